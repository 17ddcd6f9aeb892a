"""The gradients of several processes, averaged: DistributedDataParallel as a training wants it."""

# Annotations are evaluated here: torch compares a hook's with its own class.

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from rmeeto.engine.dist import World
from rmeeto.engine.optim import OptimConfig


def parallel(model: nn.Module, world: World, optim: OptimConfig) -> nn.Module:
    """A model whose gradients are the mean over all processes; the model itself where there is one.

    Args:
        optim: `reduce` is read, and whether a step has one backward pass, which torch may take to be alike every time.
    """
    if world.size == 1:
        return model
    alike = optim.accumulation == 1 and not optim.elastic_r
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=alike)
    if optim.reduce == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    elif world.device.type == "cpu":
        wrapped.register_comm_hook(world.size, add_in_order)
    return wrapped


def add_in_order(size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean, added rank by rank: gloo adds in an order that depends on where in a bucket a number lies, and torch
    fills the buckets otherwise after the first step, so a resumed run would differ in the last bit."""
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(size)]

    def mean(_: torch.futures.Future) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return own.copy_(total / size)

    return dist.all_gather(parts, own, async_op=True).get_future().then(mean)
