#!/usr/bin/env bash
# The benchmark suites on one CUDA GPU: bash benchmarks/gpu.sh [OUT] [--dry-run | --plan] [part ...]
# Needs what a bare machine with torch, timm, scikit-learn and pytest has; no network. Writes the suites' result files,
# and all of them as OUT/results.tar.gz (OUT: runs/gpu), under 9 minutes a call; call it again to go on where it stopped
# (exit code 3: parts are left, 1: something failed or was refused, 2: this machine or call cannot be used). PYTHON picks
# the interpreter; COMMIT names the code in the results where it was copied without its history.
# UPSTREAM=folder with the sdists of mamba-ssm and causal-conv1d (and a wheel of einops): builds them for this GPU and
# times them beside ours. --dry-run: tiny sizes on the CPU with stand-ins, in a minute. --plan: the parts, how long each
# takes and what a cut leaves.
set -euo pipefail
root=$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/runs/gpu
case ${1:---} in
    --*) ;;
    /*) out=$1 && shift ;;
    *) out=$PWD/$1 && shift ;;
esac
upstream=()
[ -z "${UPSTREAM:-}" ] || upstream=(--upstream "$(CDPATH="" cd "$UPSTREAM" && pwd)")
cd "$root"
exec "${PYTHON:-python3}" -m benchmarks.plan "$out" ${upstream[@]+"${upstream[@]}"} "$@"
