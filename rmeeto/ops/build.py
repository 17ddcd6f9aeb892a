"""Builds the C++ kernels with the machine's compiler on first use, and keeps the library in the user's cache."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rmeeto.errors import shown
from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.cache import building, find, keep
from rmeeto.ops.heap import keep_freed

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
# A build takes a minute at most, on a busy machine.
LIMIT_S, VERSION_LIMIT_S = 300.0, 10.0
LARGEST_OUTPUT = 1 << 20  # bytes
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


def compiler() -> list[str]:
    """The C++ compiler and what goes before its flags: ``$CXX``, else the first of c++, g++ and clang++.

    ``CXX`` may hold arguments, such as ``ccache g++``.

    Raises:
        BackendUnavailable: there is none.
    """
    given = os.environ.get("CXX", "").strip()
    for words in ([given], _words(given)) if given else (["c++"], ["g++"], ["clang++"]):
        path = shutil.which(words[0])
        if path:
            return [path, *words[1:]]
    raise BackendUnavailable(f"no C++ compiler ({given or 'c++, g++, clang++'}); install one or set CXX")


def version(command: Sequence[str]) -> str:
    """A compiler's first line about itself.

    Raises:
        BackendUnavailable: it cannot be started, or says nothing in time.
    """
    ((_, output),) = _run([[*command, "--version"]], VERSION_LIMIT_S)
    return (output.splitlines() or ["no version"])[0]


def build(isa: str) -> Path:
    """Path of the library for an instruction set, built now if it is not in the cache.

    Raises:
        BackendUnavailable: no compiler, or it fails or takes too long.
        OSError: the cache cannot be used.
    """
    return cached(f"cpu-{isa}", (*FLAGS, *INSTRUCTION_SETS[isa]), sorted(SOURCES.glob("*.cpp")))


def cached(name: str, flags: tuple[str, ...], sources: Sequence[Path]) -> Path:
    """Path of the library of some C++ files, built now if it is not in the cache; errors as of `build`.

    Args:
        name: what its file's name starts with.
        flags: of the compiler.
        sources: which may include those of `SOURCES`.
    """
    stem = f"{name}-{_key(flags, sources)}"
    found = find(stem)
    if found is not None:
        return found
    command = compiler()
    with building() as folder:
        return keep(_compile(command, flags, folder, sources), stem)


@cache
def library() -> ctypes.CDLL:
    """The kernels for this processor; warns, once, if they cannot be had, or not from the cache.

    With them the heap of this process keeps what is freed (`rmeeto.ops.heap`).

    Raises:
        BackendUnavailable: with the reason.
    """
    loaded, reason = _load()
    if loaded is None:
        raise BackendUnavailable(reason)
    keep_freed()
    return loaded


def origin() -> str:
    """Where the library of this process is from, or why there is none."""
    loaded, origin = _load()
    return origin if loaded is not None else f"none: {origin}"


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    isa, unusable = instruction_set(), ""
    try:
        try:
            path = build(isa)
            return ctypes.CDLL(str(path)), str(path)
        except OSError as error:
            unusable = shown(error)
        with tempfile.TemporaryDirectory(prefix="rmeeto-", ignore_cleanup_errors=True) as folder:
            flags = (*FLAGS, *INSTRUCTION_SETS[isa])
            path = _compile(compiler(), flags, Path(folder), sorted(SOURCES.glob("*.cpp")))
            loaded = ctypes.CDLL(str(path))
        origin = f"built for this process alone: {unusable}; set RMEETO_CACHE to a folder of yours"
        warnings.warn(f"rmeeto's CPU kernels were {origin}", stacklevel=2)
        return loaded, origin
    except (BackendUnavailable, OSError) as error:
        reason = shown(error) + (f" (and the cache: {unusable})" if unusable else "")
        warnings.warn(f"rmeeto runs its CPU operators on PyTorch, several times slower: {reason}", stacklevel=2)
        return None, reason


@cache
def openmp() -> int:
    """Address of the entry point of the OpenMP runtime that torch runs on, 0 where there is none of the known kind."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def _key(flags: tuple[str, ...], sources: Sequence[Path] = ()) -> str:
    """What a library is built from. Not with which compiler: where there is none, a library that is there is used."""
    digest = hashlib.sha256("\0".join([platform.machine(), *flags]).encode())
    for source in [*sorted(SOURCES.iterdir()), *(path for path in sources if path.parent != SOURCES)]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BackendUnavailable(f"CXX={command!r} cannot be read: {error}") from None


def _compile(command: list[str], flags: tuple[str, ...], folder: Path, sources: Sequence[Path]) -> Path:
    """Build the library in a folder; its path there."""
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    compiled = [
        [*command, *flags, "-c", str(source), "-o", object] for source, object in zip(sources, objects, strict=True)
    ]
    library = folder / "library"
    for commands in (compiled, [[*command, "-shared", "-pthread", *objects, "-o", str(library)]]):
        ended = _run(commands, LIMIT_S)
        if any(code for code, _ in ended):
            message = "\n".join(output for _, output in ended)
            errors = [line for line in message.splitlines() if "error" in line] or message.splitlines()[:1]
            raise BackendUnavailable(f"{command[0]} failed: {' '.join(errors[:2])}")
    return library


def _run(commands: Sequence[Sequence[str]], limit_s: float) -> list[tuple[int, str]]:
    """Exit code and output of commands run side by side; none of them outlives this call.

    Raises:
        BackendUnavailable: one cannot be started, or they have not ended within the limit.
    """
    end = time.monotonic() + limit_s
    running: list[subprocess.Popen] = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a compiler starts others, which end with it
                )
            )
        outputs = [_output(process, end) for process in running]
        return [(process.returncode, output.decode(errors="replace")) for process, output in zip(running, outputs)]
    except BaseException as error:
        for process in running:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if isinstance(error, OSError):
            raise BackendUnavailable(f"{commands[0][0]} cannot be started: {error.strerror}") from None
        if isinstance(error, subprocess.TimeoutExpired):
            raise BackendUnavailable(f"{commands[0][0]} has not ended after {limit_s:.0f} s") from None
        raise
    finally:
        for process in running:
            process.stdout.close()


def _output(process: subprocess.Popen, end: float) -> bytes:
    """What a process writes until it ends, which has to be before `end` and within `LARGEST_OUTPUT`."""
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(output) <= LARGEST_OUTPUT:
            if not selector.select(max(0.0, end - time.monotonic())):
                raise subprocess.TimeoutExpired(process.args, 0)
            some = os.read(process.stdout.fileno(), 1 << 16)
            if not some:
                process.wait(max(0.0, end - time.monotonic()))
                return bytes(output)
            output += some
    raise BackendUnavailable(f"{process.args[0]} writes without end")
