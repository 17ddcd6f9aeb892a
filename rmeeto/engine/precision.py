"""Which number format the forward pass runs in."""

from __future__ import annotations

import torch

from rmeeto.errors import UserError

AMP = ("auto", "bf16", "fp16", "off")


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast format of a run, or None for float32 throughout.

    Args:
        amp: "auto" (bf16 on a GPU that has it, else off), "bf16", "fp16" (for GPUs without bf16), "off".
        device: where the model runs.

    Raises:
        UserError: a format that is unknown or that the GPU lacks.
    """
    if amp not in AMP:
        raise UserError(f"amp={amp!r}; expected one of {', '.join(AMP)}.")
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if amp == "bf16" and not has_bf16:
        raise UserError("amp='bf16': this GPU has no bf16; use amp='fp16' or 'off'.")
    if amp == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_bf16 else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """The context of a forward pass; does nothing for None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
