"""Models as packages that run without Python at the speed of this library's kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.export.program import exported
from rmeeto.ops import build
from rmeeto.ops.backend import BackendUnavailable

SOURCE = Path(__file__).parent / "csrc" / "operators.cpp"
LIBRARY = "librmeeto.so"
# A batch of one image fits the free batch size, which torch's own check would take for too small.
_CONFIGS = {"aot_inductor.check_lowerbound": False}
OPERATORS = ("scan", "conv1d", "add_rms_norm", "match_tokens", "merge_tokens")


def to_package(
    model: nn.Module, path: str | Path, example: Tensor | None = None, batch_size: int | None = None
) -> Path:
    """Write a model, dense or merged, as an AOTInductor package, compiled for this machine's processor.

    A C++ program loads ``librmeeto.so``, which is written beside the package and holds this library's operators, and
    then the package: ``rmeeto/export/csrc/run.cpp`` is one. Python needs ``import rmeeto.ops`` and
    ``torch._inductor.aoti_load_package(path)``, which gives a function of a batch. A batch of another shape than the
    package takes is refused where ``AOTI_RUNTIME_CHECK_INPUTS=1`` is in the environment, as that program sets it;
    without it torch reads past what it is given.

    Args:
        model: compiled as in evaluation, on the CPU in fp32.
        path: of the package; ends in .pt2.
        example: an input; None makes one of the model's ``pretrained_cfg["input_size"]``.
        batch_size: the one that the package takes; None: any.

    Returns:
        The path. The package gives logits.

    Raises:
        UserError: no C++ compiler, or one that fails; another ending; no example for a model without an input size, or
            settings that a graph cannot hold.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"to_package: path={path}; expected a file that ends in .pt2")
    try:
        build.compiler()  # before a minute of work
        program = exported("to_package", model, example, batch_size)
        library = operators()
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_CONFIGS)
        shutil.copyfile(library, path.with_name(LIBRARY))
    except BackendUnavailable as reason:
        raise UserError(
            f"to_package: {reason}; it compiles the model and needs a C++20 compiler; to_onnx needs none"
        ) from None
    except _compile_errors() as error:
        reason = next((line for line in str(error).splitlines() if "error" in line), type(error).__name__)
        raise UserError(f"to_package: the C++ compiler cannot compile the model: {reason.strip()}") from error
    return path


def operators() -> Path:
    """The operators as a library for torch without Python, from the cache or built now (a minute).

    Raises:
        BackendUnavailable: no compiler, or it fails.
        OSError: the cache cannot be used.
    """
    isa = build.instruction_set()
    include = Path(torch.__file__).parent / "include"
    ours = torch.ops.rmeeto
    schemas = {name: str(getattr(ours, name).default._schema).removeprefix("rmeeto::") for name in OPERATORS}
    flags = (
        *(flag for flag in build.FLAGS if not flag.startswith("-std")),
        "-std=c++20",  # of torch's headers
        *build.INSTRUCTION_SETS[isa],
        *(f"-I{folder}" for folder in (include, build.SOURCES)),
        *(f'-DRMEETO_{name.upper()}="{schema}"' for name, schema in schemas.items()),
    )
    return build.cached(f"torch-{isa}", flags, [SOURCE, build.SOURCES / "parallel.cpp"])


def _compile_errors() -> tuple[type[Exception], ...]:
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    return CppCompileError, InductorError, InvalidCxxCompiler
