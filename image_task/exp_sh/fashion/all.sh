#!/usr/bin/env bash
# All of the evidence of this folder, what is cheap and tells most first; what is finished is not run again.
# Cost:  nine hours of a core (recorded), of which dense.sh two and a half; on a GPU: ../fashion.sh.
# Paper: each recipe says what of it; ours: docs/evidence.md, which `python fig/evidence.py --collect runs` writes.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
help_more="Variables: exp_sh/launch.sh."
source "$here/../../../exp_sh/help.sh"
if (($# > 0)); then
    echo "error: all.sh takes no arguments, and got$(LC_ALL=C printf " %q" "$@"): it reads variables such as SEED=1." >&2
    exit 2
fi
code=0
start() {
    bash "$here/$1.sh" || code=$?
    ((code != 75 && code != 130 && code != 143)) || exit "$code" # told to leave
}
start dense
for recipe in ratio order ablations blocks; do FREE=1 start "$recipe"; done
for recipe in ratio order elastic blocks amount ablations longer; do start "$recipe"; done
exit "$code"
