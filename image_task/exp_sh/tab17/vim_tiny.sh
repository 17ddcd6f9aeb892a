#!/usr/bin/env bash
# Table 17, Vim-Ti: tokens merged by mean, amax or amin instead of the weighted average; r = 5, training-free.
# Cost:  3 evaluations; ours not yet measured.
# Paper: dense 76.1 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_t_midclstok_76p1acc.pth and data/imagenet
# RELEASED=1: with the released code's last merge, which leaves 76 tokens instead of 142, as its rows ran.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model vim_tiny_patch16_224 --model_pth "$WEIGHTS/vim_t_midclstok_76p1acc.pth"
    --data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --num_prune 5 --merge_interval 2 --metric X --distance cosine --if_order)
released=(--compare 11)

for mode in mean amax amin; do
    run tab17 "${model[@]}" --merge_mode "$mode" --eval
done
