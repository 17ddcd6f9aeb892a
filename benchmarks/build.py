"""Build upstream's extensions for the present GPU only, from their sdists: python -m benchmarks.build FROM TO.

FROM holds mamba_ssm-*.tar.gz, causal_conv1d-*.tar.gz and, where it is not installed, an einops wheel. TO gets the
extensions, the packages' Python files and build.json. Their own setup would compile for every GPU, which takes hours.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

FLAGS = ["-O3"]  # torch adds the standard that its headers need
NVCC = [
    *FLAGS,
    *(f"-U__CUDA_NO_{name}__" for name in (
        "HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS",
        "BFLOAT162_CONVERSIONS",
    )),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
]  # fmt: skip
EXTENSIONS = {  # name of the extension: sdist, folder of its sources
    "causal_conv1d_cuda": ("causal_conv1d", "csrc"),
    "selective_scan_cuda": ("mamba_ssm", "csrc/selective_scan"),
}


def main(sdists: Path, out: Path, capability: str | None = None) -> None:
    """Unpack, compile both at once, and write what came of it to build.json, last.

    Args:
        capability: of the GPU, such as "90"; None: of the present one.
    """
    capability = capability or "".join(map(str, torch.cuda.get_device_capability()))
    out.mkdir(parents=True, exist_ok=True)
    for wheel in sdists.glob("*.whl"):
        shutil.copy(wheel, out)
    with ThreadPoolExecutor() as pool:  # the compilers are processes of their own
        reports = dict(zip(EXTENSIONS, pool.map(lambda name: compiled(name, sdists, out, capability), EXTENSIONS)))
    errors = [f"{name}: {report['error']}" for name, report in reports.items() if report["error"]]
    report = {"error": "; ".join(errors) or None} | reports
    temporary = out / "build.tmp"
    temporary.write_text(json.dumps(report, indent=1))
    temporary.replace(out / "build.json")  # whoever waits for it reads all of it


def compiled(name: str, sdists: Path, out: Path, capability: str) -> dict[str, Any]:
    """Seconds that an extension took, and what went wrong: the benchmark then goes on without upstream."""
    start, error = time.perf_counter(), None
    package, folder = EXTENSIONS[name]
    try:
        compile_extension(name, unpack(sdists, package, out), folder, out, capability)
    except Exception as caught:  # a compiler's failure comes as any type
        error = f"{type(caught).__name__}: {caught}"[-2000:]
    return {"error": error, "seconds": round(time.perf_counter() - start, 1)}


def unpack(sdists: Path, package: str, out: Path) -> Path:
    """The package's folder."""
    found = sorted(sdists.glob(f"{package}-*.tar.gz"))
    if not found:
        raise FileNotFoundError(f"no {package}-*.tar.gz in {sdists}")
    with tarfile.open(found[-1]) as archive:
        archive.extractall(out, filter="data")
    return out / found[-1].name.removesuffix(".tar.gz")


def compile_extension(name: str, source: Path, folder: str, out: Path, capability: str) -> None:
    """Compile all sources of an extension in parallel, for one architecture."""
    from torch.utils import cpp_extension

    files = sorted(path for path in (source / folder).iterdir() if path.suffix in (".cpp", ".cu"))
    build = out / f"{name}_build"
    build.mkdir(exist_ok=True)
    (build / "lock").unlink(missing_ok=True)  # of a build that was stopped; torch would wait for it for ever
    cpp_extension.load(
        name=name,
        sources=[str(path) for path in files],
        extra_include_paths=[str(source / folder)],
        extra_cflags=FLAGS,
        extra_cuda_cflags=[*NVCC, f"-gencode=arch=compute_{capability},code=sm_{capability}"],
        build_directory=str(build),
        is_python_module=False,
    )
    shutil.copy(build / f"{name}.so", out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
