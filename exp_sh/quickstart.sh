#!/usr/bin/env bash
# The whole method on embedded data: dense, merged, re-trained, measured. About two minutes on 2 cores after the set-up.
# --output_dir FOLDER  runs/quickstart; an older one is kept as <name>-1, -2, ...
# --seed N             of the re-training (0)
# --weights FILE       of the dense model (the shipped one)
set -euo pipefail
flags="--output_dir --seed --weights"
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
root=$PWD && cd "$here"
exec "$PYTHON" "$root/image_task/quickstart.py" --output_dir "$root/runs/quickstart" "$@"
