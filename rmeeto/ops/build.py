"""Builds the C++ kernels with the machine's compiler on first use, and keeps the library in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rmeeto.ops.backend import BackendUnavailable

SOURCES = Path(__file__).parent / "csrc"
# No -ffast-math: at link time it makes loading the library switch the whole process to flush-to-zero.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}


def instruction_set() -> str:
    """The widest of `INSTRUCTION_SETS` that this processor has (and that torch has not been told to leave)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() in ("x86_64", "amd64"):
        for name in ("avx512", "avx2"):
            if capability.lower().startswith(name):
                return name
    return "portable"


def cache_folder() -> Path:
    """Where built libraries are kept: ``$RMEETO_CACHE``, else ``rmeeto`` in the user's cache folder."""
    if "RMEETO_CACHE" in os.environ:
        return Path(os.environ["RMEETO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmeeto"


def compiler() -> str:
    """Path of the C++ compiler: ``$CXX``, else the first of c++, g++ and clang++.

    Raises:
        BackendUnavailable: there is none.
    """
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise BackendUnavailable(f"no C++ compiler ({', '.join(names)}); install one or set CXX")


def build(isa: str) -> Path:
    """Path of the library for an instruction set, built now if it is not in the cache.

    Raises:
        BackendUnavailable: no compiler, the compiler fails, or the cache cannot be written.
    """
    cxx = compiler()
    flags = (*FLAGS, *INSTRUCTION_SETS[isa])
    library = cache_folder() / f"cpu-{isa}-{_key(cxx, flags)}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as folder:
            _compile(cxx, flags, Path(folder))
            # Whoever is first wins, and a second process replaces the file by its equal.
            os.replace(Path(folder) / "library", library)
    except OSError as error:
        raise BackendUnavailable(f"cannot write to {library.parent}: {error}; set RMEETO_CACHE") from error
    return library


@cache
def library() -> ctypes.CDLL:
    """The kernels for this processor; warns, once, if they cannot be had.

    Raises:
        BackendUnavailable: with the reason.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailable(loaded)
    return loaded


@cache
def _load() -> ctypes.CDLL | str:
    try:
        return ctypes.CDLL(str(build(instruction_set())))
    except (BackendUnavailable, OSError) as error:
        warnings.warn(
            f"rmeeto runs its CPU operators on PyTorch, several times slower: {error}", stacklevel=2
        )
        return str(error)


@cache
def openmp() -> int:
    """Address of the entry point of the OpenMP runtime that torch runs on, 0 where there is none of the known kind."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def call(function: str, fields: Sequence[int]) -> None:
    """Run a kernel on a struct of 64-bit fields; OpenMP's entry point and the number of threads go before them."""
    fields = (openmp(), torch.get_num_threads(), *fields)
    getattr(library(), function)((ctypes.c_int64 * len(fields))(*fields))


def pointer(tensor: Tensor | None) -> int:
    """Address of a tensor's first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def suffix(*dtypes: torch.dtype) -> str:
    """The end of a kernel's name for these types of storage."""
    return "".join("_bf16" if dtype == torch.bfloat16 else "_f32" for dtype in dtypes)


def _key(cxx: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join([platform.machine(), version, *flags]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(cxx: str, flags: tuple[str, ...], folder: Path) -> None:
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    commands = [
        [cxx, *flags, "-c", str(source), "-o", object]
        for source, object in zip(sources, objects, strict=True)
    ]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands
    ]
    outputs = [process.communicate()[1] for process in running]
    if not any(process.returncode for process in running):
        link = [cxx, "-shared", "-pthread", *objects, "-o", str(folder / "library")]
        linked = subprocess.run(link, capture_output=True, check=False)
        if linked.returncode == 0:
            return
        outputs = [linked.stderr]
    message = b"\n".join(outputs).decode(errors="replace")
    errors = [line for line in message.splitlines() if "error" in line] or message.splitlines()[:1]
    raise BackendUnavailable(f"{cxx} failed: {' '.join(errors[:2])}")
