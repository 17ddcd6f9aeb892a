#!/usr/bin/env bash
# The documents as one static site in runs/site, strictly: a broken link or name is an error. Needs pip install -e ".[docs]".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-${RMEETO_VENV:-.venv}/bin/python}
[[ -x $PYTHON ]] || PYTHON=python3
"$PYTHON" -c "import mkdocs" 2>/dev/null || {
    echo "error: $PYTHON has no mkdocs; run $PYTHON -m pip install -e '.[docs]'." >&2
    exit 2
}
exec "$PYTHON" -m mkdocs build --strict --site-dir "${1:-runs/site}"
