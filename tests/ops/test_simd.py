"""The C++ kernels' own functions of vectors."""

from __future__ import annotations

import subprocess

import pytest

from rmeeto.ops import build
from rmeeto.ops.backend import BackendUnavailable

PROGRAM = """
#include <cmath>
#include <cstdio>
#include "simd.h"

int main() {
    constexpr int kCount = 100000;
    double error = 0.0;
    for (int i = -kCount; i <= kCount; ++i) {
        const float x = kExponentLimit * i / kCount;
        vf a = splat(x), b = splat(x);
        exp2_within<1>(&a), exp2_scaled<1>(&b);
        if (std::memcmp(&a, &b, sizeof(a))) return std::printf("2^%.9g: %.9g and %.9g\\n", x, a[0], b[0]), 1;
        error = std::fmax(error, std::fabs(a[0] / std::exp2(double(x)) - 1.0));
    }
    return std::printf("%g\\n", error), 0;
}
"""


def test_powers_by_the_processors_instructions_are_the_same_to_the_last_bit(tmp_path):
    source, program = tmp_path / "powers.cpp", tmp_path / "powers"
    source.write_text(PROGRAM)
    try:
        command = build.compiler()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    flags = (*build.FLAGS, *build.INSTRUCTION_SETS[build.instruction_set()], f"-I{build.SOURCES}")
    subprocess.run([*command, *flags, str(source), "-o", str(program)], check=True)
    ended = subprocess.run([str(program)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert float(ended.stdout) < 2e-7
