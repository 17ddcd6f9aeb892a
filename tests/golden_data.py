"""Reader for tests/golden/: cases, seeded numbers and the weight rule (see golden/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"


class Case:
    """One recorded case: ``case.config`` and ``case["output"]``."""

    def __init__(self, file: str, name: str) -> None:
        self.file, self.name = file, name
        self._npz = _open(file)
        self.config = json.loads(str(self._npz[f"{name}/config"]))

    def __getitem__(self, output: str) -> np.ndarray:
        return self._npz[f"{self.name}/{output}"]

    def __contains__(self, output: str) -> bool:
        return f"{self.name}/{output}" in self._npz.files

    def outputs(self) -> list[str]:
        head = self.name + "/"
        return [key[len(head) :] for key in self._npz.files if key.startswith(head)]

    def __repr__(self) -> str:
        return f"{self.file}:{self.name}"


_FILES: dict[str, np.lib.npyio.NpzFile] = {}


def _open(file: str) -> np.lib.npyio.NpzFile:
    if file not in _FILES:
        _FILES[file] = np.load(FOLDER / file)
    return _FILES[file]


def names(file: str) -> list[str]:
    """Names of a file's cases, in order."""
    return list(dict.fromkeys(key.split("/")[0] for key in _open(file).files))


def randn(key: int, shape: tuple[int, ...]) -> Tensor:
    """Seeded standard normal numbers, float32."""
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    return torch.from_numpy(np.asarray(values).astype(np.float32))


def rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The recorded models' weight of that name."""
    x = randn(zlib.crc32(name.encode()), shape)
    last = name.split(".")[-1]
    if name.endswith(("A_log", "A_b_log")):
        return torch.log(torch.arange(1, shape[1] + 1, dtype=torch.float32)).repeat(shape[0], 1) + 0.1 * x
    if name in ("D", "D_b") or name.endswith((".D", ".D_b")):
        return 1 + 0.1 * x
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * x
    if name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        return -4 + 0.5 * x
    if last in ("pos_embed", "cls_token", "temporal_pos_embedding"):
        return 0.5 * x
    if len(shape) >= 2:
        return x / float(np.sqrt(np.prod(shape[1:])))
    return 0.1 * x


def fill(module: nn.Module) -> nn.Module:
    """Give every weight of a module the value of the rule."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(rule(name, tuple(tensor.shape)))
    return module


def assert_near(actual: Tensor, expected: np.ndarray, bound: float, what: str = "") -> None:
    """max|difference| / max|reference| <= bound."""
    reference = torch.from_numpy(np.asarray(expected)).double()
    actual = actual.detach().double().cpu()
    assert actual.shape == reference.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    scale = reference.abs().max().clamp(min=1e-12)
    error = ((actual - reference).abs().max() / scale).item()
    assert error <= bound, f"{what}: error {error:.2e} of the largest magnitude, expected at most {bound:.0e}"
