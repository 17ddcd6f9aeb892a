#!/usr/bin/env bash
# The benchmark suites on one CUDA GPU: bash benchmarks/gpu.sh [OUT] [--dry-run | --plan] [part ...]
# Needs what a bare machine with torch, timm, scikit-learn and pytest has; no network. All results, after every row, are in
# OUT/results.tar.gz (OUT: runs/gpu), the only file there; call it again to go on where it stopped, on another machine
# too if the file is in OUT (exit code 3: parts are left, 1: something failed or was refused, 2: this machine or call
# cannot be used). The first call takes 235 s, the others 470 s. PYTHON picks the interpreter; COMMIT names the code in
# the results where it was copied without its history; DATA holds FashionMNIST/raw/.
# UPSTREAM=folder with the sdists of mamba-ssm and causal-conv1d (and a wheel of einops): builds them for this GPU and
# times them beside ours. AHEAD=file of python -m benchmarks.ahead pack: kernels, and upstream, compiled before.
# --dry-run: tiny sizes on the CPU with stand-ins, in a minute. --plan: the parts, how long each takes, what a cut leaves.
set -euo pipefail
root=$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/runs/gpu
case ${1:---} in
    --*) ;;
    /*) out=$1 && shift ;;
    *) out=$PWD/$1 && shift ;;
esac
given=()
[ -z "${UPSTREAM:-}" ] || given=(--upstream "$(CDPATH="" cd "$UPSTREAM" && pwd)")
[ -z "${AHEAD:-}" ] || given+=(--ahead "$(realpath "$AHEAD")")
cd "$root"
exec "${PYTHON:-python3}" -m benchmarks.plan "$out" ${given[@]+"${given[@]}"} "$@"
