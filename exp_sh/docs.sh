#!/usr/bin/env bash
# The documents as one static site in runs/site, strictly: a broken link or name is an error. Needs pip install -e ".[docs]".
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-${RMEETO_VENV:-.venv}/bin/python}
[[ -x $PYTHON ]] || PYTHON=python3
exec "$PYTHON" -m mkdocs build --strict --site-dir "${1:-runs/site}"
