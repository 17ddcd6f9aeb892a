"""Numbers that a GPU could get wrong: bf16 training against fp32, TF32, and a loss that is not finite."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import models
from benchmarks.parity import rms_ratio
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.main import main


def training(device: torch.device, quick: bool) -> dict[str, float]:
    """Mean loss of the last tenth of the steps on the embedded digits, the same data in both formats."""
    losses, steps = {}, 4 if quick else 200
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        network = models.create("vim_nano_patch2_16", device, 8).train()
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
        curve = []
        for images, targets in digits(device, steps):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(network(images).float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        last = torch.stack(curve[-max(1, steps // 10) :])
        losses[name], losses[f"{name}, first"] = float(last.mean()), float(curve[0])
    losses["difference"] = losses["bf16"] - losses["fp32"]
    if not quick:
        assert losses["fp32"] < 0.7 * losses["fp32, first"], losses
        assert abs(losses["difference"]) < 0.1 * losses["fp32, first"], losses
    return losses | {"steps": steps}


def digits(device: torch.device, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of real digits, without augmentation."""
    config = DataConfig(data_set="digits", batch_size=64, num_workers=0, augment=False, mixup=0.0, cutmix=0.0,
                        repeated_aug=False)  # fmt: skip
    data = build_data(config, img_size=16, rank=0, world_size=1, seed=0)
    count = epoch = 0
    while True:
        for images, targets in data.train_batches(epoch):
            if count == steps:
                return
            yield images.to(device), targets.to(device)
            count += 1
        epoch += 1


def tf32(device: torch.device, quick: bool) -> dict[str, float]:
    """RMS difference of logits with TF32 matrix products from those without (the default of this project)."""
    network = models.create(models.SMALLEST[device.type], device)
    images = models.images(network, 4, device)
    logits = {}
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        with torch.no_grad():
            logits[allowed] = network(images)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return {"rms_ratio": rms_ratio(logits[True], logits[False])}


def finite_guard(device: torch.device, quick: bool) -> dict[str, Any]:
    """A learning rate that breaks the model stops the command before the optimizer step, with one error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as errors:
        command = ["--model", "vim_nano_patch2_16", "--data_set", "digits", "--lr", "1e30", "--epochs", "1",
                   "--num_workers", "0", "--output_dir", folder]  # fmt: skip
        code = main(command)
    message = errors.getvalue()
    assert code == 2 and "loss is not finite" in message, message[-500:]
    return {"message": message.strip().splitlines()[-2]}
