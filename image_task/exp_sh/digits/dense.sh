#!/usr/bin/env bash
# The shipped digits model: vim_nano_patch2_16 trained from scratch on the embedded handwritten digits.
# Cost:  about two minutes on 2 cores. SEED (default 0) picks the seed.
# Paper: not in the paper; ours: see CKPT.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
run digits --name "dense-seed$SEED" --seed "$SEED" --model vim_nano_patch2_16 --data-set digits --num_workers 0 \
    --batch-size 64 --accumulation 1 --epochs 30 --warmup_epochs 2 --lr 1.6e-2 --min-lr 1e-5 --schedule cosine --drop-path 0 \
    --mixup 0 --cutmix 0 --reprob 0 --repeated_aug False
