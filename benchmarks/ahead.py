"""What a rented GPU need not wait for: compiled kernels and upstream's extensions, made before or beside the checks.

    python -m benchmarks.ahead pack OUT.tar.gz [--capability 90] [--sdists FOLDER] [--settings ...]
    python -m benchmarks.ahead warm [--quick] --out FOLDER --archive FILE   # a part of the plan, on the GPU itself

`pack` needs no GPU. Its archive is for the Python, the torch and the Triton that made it: Triton's cache knows a kernel
by all of its own files, so that another one compiles anew, which costs no more than no archive. AHEAD=OUT.tar.gz hands
it to gpu.sh.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import build
from benchmarks.packing import pack

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 64 << 20  # bytes that travel to the machine
SETTINGS = [f"vim_{size}{end}" for size in ("small", "tiny", "base") for end in ("", "_evaluation")]


def main(argv: Sequence[str] | None = None) -> int:
    """Make an archive, or warm up the machine that this runs on.

    Returns:
        0; 1 where something failed, and the archive lacks it, or is too large.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead", description=__doc__)
    parser.add_argument("what", choices=("pack", "warm"))
    parser.add_argument("file", nargs="?", type=Path, help="of pack: the archive")
    parser.add_argument("--capability", default="90", help="of the GPU; default: 90, of an H100")
    parser.add_argument("--sdists", type=Path, help="folder with upstream's sdists, see build.py")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="of tests/ops/triton_cases/offline.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["warm"]:
        return warm(parser.parse_args(["warm"]), given[1:])
    options = parser.parse_args(given)
    if options.file is None:
        parser.error("pack takes the file to write.")
    return make(options)


def warm(options: argparse.Namespace, checks: Sequence[str]) -> int:
    """Compile the kernels of the models, while the suite of checks runs with its options; its exit code."""
    with ThreadPoolExecutor() as pool:
        quick = "--quick" in checks
        kernels = None if quick else pool.submit(compile_kernels, options, Path(os.environ["TRITON_CACHE_DIR"]))
        code = subprocess.run([sys.executable, "-m", "benchmarks", "checks", *checks], cwd=ROOT).returncode
        failed = [] if kernels is None else kernels.result()
    return code or bool(failed)


def make(options: argparse.Namespace) -> int:
    """Compile, build and pack."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        failed = compile_kernels(options, folder / "triton")
        if options.sdists is not None:
            build.main(options.sdists, folder / "upstream", options.capability)
        patterns = [
            "triton/*/*",
            "upstream/*.so",
            "upstream/*.whl",
            "upstream/build.json",
            "upstream/*/*/**/*.py",
        ]
        size = pack(folder, options.file, patterns)
    print(f"{options.file}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        print(f"error: more than {LARGEST >> 20} MiB; give fewer --settings", file=sys.stderr)
    return 1 if failed or size > LARGEST else 0


def compile_kernels(options: argparse.Namespace, cache: Path) -> list[str]:
    """Compile the settings' kernels into a cache, ``jobs`` processes at once; the settings that failed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)

    def one(setting: str) -> str | None:
        command = [sys.executable, "-m", "tests.ops.triton_cases.offline", options.capability, setting]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        print(f"{setting}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return setting

    with ThreadPoolExecutor(options.jobs) as pool:
        return [setting for setting in pool.map(one, options.settings) if setting is not None]


if __name__ == "__main__":
    sys.exit(main())
