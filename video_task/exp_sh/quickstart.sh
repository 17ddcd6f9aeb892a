#!/usr/bin/env bash
# The whole method on embedded clips: dense, merged, re-trained, tested on 4 x 3 views, measured, drawn.
# Under four minutes on 2 cores after the set-up, which is that of exp_sh/quickstart.sh.
# --output_dir FOLDER  runs/quickstart-video; an older one is kept as <name>-1, -2, ...
# --seed N             of the re-training (0)
# --weights FILE       of the dense model (the shipped one)
set -euo pipefail
flags="--output_dir --seed --weights"
source "$(dirname "${BASH_SOURCE[0]}")/../../exp_sh/venv.sh"
root=$PWD && cd "$here"
exec "$PYTHON" "$root/video_task/quickstart.py" --output_dir "$root/runs/quickstart-video" "$@"
