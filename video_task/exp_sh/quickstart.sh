#!/usr/bin/env bash
# The whole method on embedded clips: dense, merged, re-trained, tested on 4 x 3 views, measured, drawn.
# Under four minutes on 2 cores after the set-up, which is that of exp_sh/quickstart.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../exp_sh/venv.sh"
exec "$PYTHON" -m video_task.quickstart "$@"
