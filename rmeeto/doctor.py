"""What is installed, what runs here, and why: ``python -m rmeeto.doctor``. Nothing is needed for it to run."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from rmeeto.cli.interrupt import answer_interrupts
from rmeeto.cli.parser import Parser
from rmeeto.errors import shown

WIDTH = 80
# distribution -> (module, what it is for when it may be left out)
PACKAGES = {
    "torch": ("torch", ""),
    "torchvision": ("torchvision", ""),
    "timm": ("timm", ""),
    "numpy": ("numpy", ""),
    "safetensors": ("safetensors", ""),
    "triton": ("triton", "fast operators on a GPU"),
    "mamba-ssm": ("mamba_ssm", "upstream's scan on a GPU"),
    "causal-conv1d": ("causal_conv1d", "upstream's convolution on a GPU"),
    "av": ("av", "video"),
}


def main() -> int:
    """Print the report.

    Returns:
        0, whatever is missing: this is a report, not a check.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reasons are in the report
        for title, section in SECTIONS.items():
            print(title, flush=True)
            try:
                for line in section():
                    print(line, flush=True)
            except Exception as error:  # a broken part is a finding, not an end
                print(_item("not known", _reason(error)))
    return 0


def versions() -> Iterator[str]:
    """Python and the packages; one that is there but cannot be imported says why."""
    yield _item("python", f"{platform.python_version()} ({sys.executable})")
    for name, (module, purpose) in PACKAGES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _item(name, f"not installed (for {purpose})" if purpose else "not installed, but needed")
            continue
        try:
            importlib.import_module(module)
            yield _item(name, version)
        except Exception as error:  # a broken extension can raise anything
            yield _item(name, f"{version}, but it cannot be imported: {_reason(error)}")


def devices() -> Iterator[str]:
    """The processor and the GPUs."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield _item("cpu", f"{cpu_name()}, {capability}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "no device is visible"
        yield _item("cuda", f"none: {why}")
        return
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        yield _item(
            f"cuda:{i}",
            f"{device.name}, compute capability {device.major}.{device.minor}, "
            f"{device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}",
        )


def compiler() -> Iterator[str]:
    """The C++ compiler that builds the CPU operators, where they are kept, and what this process uses."""
    from rmeeto.ops import build
    from rmeeto.ops.cache import cache_folder
    from rmeeto.ops.heap import keep_freed

    try:
        command = build.compiler()
        yield _item("compiler", f"{' '.join(command)}: {build.version(command)}")
    except Exception as error:
        yield _item("compiler", _reason(error))
    try:
        folder = cache_folder()
        built = len(list(folder.glob("*.so"))) if folder.is_dir() else 0
        yield _item("cache", f"{folder} ({built} built)" if built else f"{folder} (empty)")
    except OSError as error:
        yield _item("cache", f"none: {_reason(error)}")
    yield _item("library", build.origin())
    yield _item("heap", keep_freed())


def operators() -> Iterator[str]:
    """Each operator's backends, best first, on each kind of device that is there."""
    import torch

    from rmeeto.ops.backend import ENVIRONMENT

    if os.environ.get(ENVIRONMENT):
        yield _item(ENVIRONMENT, os.environ[ENVIRONMENT])
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for operator in _operators():
            try:
                ladder = operator.explain(device)
            except Exception as error:
                yield _item(f"{operator.name} on {device}", _reason(error))
                continue
            chosen = next((name for name, state in ladder if state == "chosen"), "none")
            yield _item(f"{operator.name} on {device}", chosen)
            for name, state in ladder:
                yield _item(name, state, indent=4)


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": versions,
    "devices": devices,
    "operators (best backend first)": operators,
    "C++": compiler,
}


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself; also True where that is not known."""
    import torch

    found = getattr(torch.cpu, "get_capabilities", dict)()
    known = str(found.get("architecture", "")).startswith("x86")
    return not known or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _operators() -> Iterator:
    import rmeeto.ops
    from rmeeto.ops.backend import Operator

    for found in pkgutil.iter_modules(rmeeto.ops.__path__, "rmeeto.ops."):
        if found.ispkg:
            yield from (
                value for value in vars(importlib.import_module(found.name)).values() if isinstance(value, Operator)
            )


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _item(name: str, value: str, indent: int = 2) -> str:
    start = f"{' ' * indent}{name:<{28 - indent}} "
    return textwrap.fill(shown(value), WIDTH, initial_indent=start, subsequent_indent=" " * 29, break_on_hyphens=False)


def command() -> int:
    """Run the command line of this process, which has no flags."""
    Parser(prog="python -m rmeeto.doctor", description=__doc__).parse_args()
    answer_interrupts()  # before torch is imported
    return main()


if __name__ == "__main__":
    sys.exit(command())
