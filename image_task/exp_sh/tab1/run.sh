#!/usr/bin/env bash
# Table 1, Vim-S: merging against pruning at r = 5, 10, 15, 20: training-free, and merged with 3 epochs of re-training.
# Cost:  101 minutes on 8 H100 (4 x the paper's 25.2 for 3 epochs) and 8 evaluations; ours not yet measured.
# Paper: dense 80.5 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_s_midclstok_80p5acc.pth and data/imagenet
# RELEASED=1: with the released code's last merge, which aims at 76 tokens whatever r is, as its rows ran.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model vim_small_patch16_224 --model_pth "$WEIGHTS/vim_s_midclstok_80p5acc.pth"
    --data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --merge_interval 2 --metric X --distance cosine --if_order)
train=(--distill True --epochs 3 --accumulation 2 --lr 2e-5 --min-lr 1e-6 --drop-path 0.1)
released=(--compare 11)

for r in 5 10 15 20; do
    run tab1 "${model[@]}" --num_prune "$r" --eval
    run tab1 "${model[@]}" --num_prune "$r" --if_pruning --eval
    run tab1 "${model[@]}" --num_prune "$r" "${train[@]}"
done
