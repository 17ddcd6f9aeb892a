#!/usr/bin/env bash
# Table 18, Vim-S: Table 1 with merges in the odd blocks: merging against pruning, training-free; r = 5, 10, 15, 20.
# Cost:  8 evaluations; ours not yet measured.
# Paper: dense 80.5 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_s_midclstok_80p5acc.pth and data/imagenet
# RELEASED=1: with the released code's last merge, which aims at 76 tokens whatever r is, as its rows ran.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model vim_small_patch16_224 --model_pth "$WEIGHTS/vim_s_midclstok_80p5acc.pth"
    --data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --merge_interval 2 --if_merge_odd --metric X --distance cosine --if_order)
released=(--compare 11)

for r in 5 10 15 20; do
    run tab18 "${model[@]}" --num_prune "$r" --eval
    run tab18 "${model[@]}" --num_prune "$r" --if_pruning --eval
done
