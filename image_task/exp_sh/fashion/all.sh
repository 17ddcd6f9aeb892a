#!/usr/bin/env bash
# All of the evidence of this folder, what is cheap and tells most first; what is finished is not run again.
# Cost:  about a day on an idle core; JOBS=8 on a large GPU.
# Paper: each recipe says what of it; ours: docs/evidence.md, which `python fig/evidence.py --collect runs` writes.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
bash "$here/dense.sh"
for recipe in ratio order ablations blocks; do FREE=1 bash "$here/$recipe.sh"; done
for recipe in ratio order elastic blocks amount ablations; do bash "$here/$recipe.sh"; done
