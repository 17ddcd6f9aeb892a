#!/usr/bin/env bash
# The tests: sets up the environment once, then lint, types and the CPU suite (under 5 minutes on 2 cores).
# Further arguments go to pytest: bash exp_sh/test.sh tests/merge
set -euo pipefail
flags="" # pytest's
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # else each process compiles the project and its tests anew
step() { printf "+"; printf " %q" "$@"; echo; "$@"; }

step "$PYTHON" -m ruff check .
step "$PYTHON" -m ruff format --check .
if "$PYTHON" -c "import mypy" 2>/dev/null; then
    step "$PYTHON" -m mypy
else
    echo "mypy is not installed (pip install -e '.[dev]'): types are not checked"
fi
step "$PYTHON" -m pytest -n 2 -q -m "not slow and not gpu" "$@"
