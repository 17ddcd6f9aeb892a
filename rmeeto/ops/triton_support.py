"""What the Triton kernels' launchers share: whether they can run here, and on what."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from rmeeto.ops.backend import BackendUnavailable

OLDEST = (3, 6)
DEFAULT_SMS = 132
MAX_BATCH = 65_535  # CUDA's limit for the grid's second dimension, which samples are
FUSED = {"enable_fp_fusion": True}  # a * b + c is one instruction: a launch says so, as Triton's versions differ
STORAGE = (torch.float32, torch.bfloat16, torch.float16)  # types of the tensors that kernels take


@cache
def require_triton() -> None:
    """Return if the Triton kernels can run on this machine's GPU.

    Raises:
        BackendUnavailable: Triton, a CUDA build of torch or a new enough GPU is missing; the message says which.
    """
    try:
        found = version("triton")
    except PackageNotFoundError:
        raise BackendUnavailable("triton is not installed") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise BackendUnavailable(f"needs Triton {OLDEST[0]}.{OLDEST[1]} or newer, found {found}")
    if torch.version.cuda is None:
        raise BackendUnavailable("torch is built without CUDA")
    if not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        raise BackendUnavailable(f"needs compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}")


def implementation(module: str, name: str) -> Callable:
    """A function of a module of Triton kernels, which is imported only where they can run.

    Raises:
        BackendUnavailable: as `require_triton`.
    """
    require_triton()
    return getattr(importlib.import_module(module), name)


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for the GPU: the kernels then run on CPU tensors, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def dispatch_keys() -> tuple[str, ...]:
    """Keys to register a Triton operator under."""
    return ("CUDA", "CPU") if interpreted() else ("CUDA",)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def check_batch(tensor: Tensor) -> None:
    """Refuse more samples than a grid has room for.

    Raises:
        ValueError: there are more.
    """
    if tensor.shape[0] > MAX_BATCH:
        raise ValueError(f"the Triton kernels take up to {MAX_BATCH} samples, got {tensor.shape[0]}; split the batch")


@cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else DEFAULT_SMS


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and ``least``."""
    return max(least, 1 << (int(n) - 1).bit_length())


def contiguous_rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors with their last dimension contiguous and, as the kernels take one set of strides, all alike."""
    strides = tensors[0].stride()
    if strides[-1] == 1 and all(t.stride() == strides for t in tensors[1:]):
        return list(tensors)
    tensors_ = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
    if any(t.stride() != tensors_[0].stride() for t in tensors_):
        tensors_ = [t.contiguous() for t in tensors_]
    return tensors_
