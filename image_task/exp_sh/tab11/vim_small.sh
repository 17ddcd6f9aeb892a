#!/usr/bin/env bash
# Table 11, Vim-S: training-free, r = 0 (dense) to 11.
# Cost:  12 evaluations; ours not yet measured.
# Paper: dense 80.5 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_s_midclstok_80p5acc.pth and data/imagenet
# RELEASED=1: with the released code's last merge, which aims at 76 tokens whatever r is, as its rows ran: even
# r = 0 merges then.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model vim_small_patch16_224 --model_pth "$WEIGHTS/vim_s_midclstok_80p5acc.pth"
    --data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10)
released=(--compare 11)

for r in {0..11}; do
    run tab11 "${model[@]}" --num_prune "$r" --if_order --eval
done
