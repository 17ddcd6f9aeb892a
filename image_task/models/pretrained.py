"""Official weights by the model's name: one table, a local folder, the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rmeeto.errors import UserError
from rmeeto.hub import fetch
from rmeeto.weights import HEAD, LoadReport, load_weights

ENVIRONMENT = "RMEETO_WEIGHTS"  # the local folder; unset: weights


@dataclass(frozen=True)
class Official:
    """A model's file, as its authors publish it.

    Args:
        repository: on huggingface.co.
        file: its name, in the local folder and in the repository.
        num_tensors: of the model.
        size: bytes, where recorded.
        ema: the reported accuracy is that of averaged weights.
        on_hub: its name in the repository, where that is another.
    """

    repository: str
    file: str
    num_tensors: int
    size: int | None = None
    ema: bool = False
    on_hub: str | None = None


_VIDEOMAMBA = "OpenGVLab/VideoMamba"
# Names and repositories are the authors'. The files were not at hand when this was written: no size is recorded, so
# that a cut file is found by reading it. DeiT's names are those of timm's registry.
OFFICIAL = {
    "vim_tiny_patch16_224": Official("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 415),
    "vim_small_patch16_224": Official("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 415),
    "vim_base_patch16_224": Official("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 415, ema=True),
    "videomamba_tiny_patch16_224": Official(_VIDEOMAMBA, "videomamba_t16_in1k_res224.pth", 415),
    "videomamba_small_patch16_224": Official(_VIDEOMAMBA, "videomamba_s16_in1k_res224.pth", 415),
    "videomamba_middle_patch16_224": Official(_VIDEOMAMBA, "videomamba_m16_in1k_res224.pth", 551),
    "videomamba_base_patch16_224": Official(_VIDEOMAMBA, "videomamba_b16_in1k_res224.pth", 415),
    **{
        f"rmeeto_{name}": Official(f"timm/{name}.fb_in1k", f"{name}-{digest}.pth", 152, on_hub="model.safetensors")
        for name, digest in (
            ("deit_tiny_patch16_224", "a1311bcf"),
            ("deit_small_patch16_224", "cd65a155"),
            ("deit_base_patch16_224", "b5f2ef4d"),
        )
    },
}  # fmt: skip


def official(name: str) -> Official:
    """A model's entry in the table.

    Raises:
        UserError: it has none.
    """
    if name not in OFFICIAL:
        raise UserError(
            f"--pretrained auto: no official weights of {name} are known; there are those of {', '.join(OFFICIAL)}.",
            "give a file with --model_pth, or leave the flag out",
        )
    return OFFICIAL[name]


def load_official(model: nn.Module, name: str, ema: bool | str = "auto", *, new_head: bool = False) -> LoadReport:
    """Load a model's official weights strictly: every key, every shape.

    Args:
        model: of that name, dense or merged.
        name: as in `OFFICIAL`.
        ema: as for `load_weights`, but ``auto`` takes the averaged weights where the reported accuracy is theirs.
        new_head: as for `load_weights`.

    Raises:
        UserError: see `resolve` and `load_weights`; or a file of more or fewer tensors than the official one.
    """
    entry = official(name)
    path = resolve(name)
    report = load_weights(model, path, "prefer" if ema == "auto" and entry.ema else ema, new_head=new_head)
    found = len(model.state_dict().keys() | set(HEAD))  # those of the file, which fits strictly
    if found != entry.num_tensors:
        raise UserError(
            f"weights: {path} has {found} tensors of {name}; the official file has {entry.num_tensors}",
            "remove it and fetch it again, or give it with --model_pth if it is what you want",
        )
    return report


def resolve(name: str) -> Path:
    """The file of a model's official weights: from the local folder, else the hub's cache, else the network.

    Args:
        name: as in `OFFICIAL`.

    Returns:
        Its path; what it holds is checked by `load_weights`.

    Raises:
        UserError: a model without official weights, a file of another size, or one that cannot be fetched.
    """
    entry = official(name)
    path = Path(os.environ.get(ENVIRONMENT) or "weights") / entry.file
    if not path.is_file():
        folder = path.parent.absolute()
        advice = f"without a network, put {entry.file} into {folder}, or name its folder in {ENVIRONMENT}"
        return _checked(fetch(entry.repository, entry.on_hub or entry.file, advice), entry.size)
    return _checked(path, entry.size)


def _checked(path: Path, size: int | None) -> Path:
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(
            f"weights: {path} has {found} bytes; the official file has {size}",
            "it may be truncated or of another kind: remove it, and fetch it again",
        )
    return path
