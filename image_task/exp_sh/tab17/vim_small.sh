#!/usr/bin/env bash
# Table 17, Vim-S: tokens merged by mean, amax or amin instead of the weighted average; r = 11, training-free.
# Cost:  3 evaluations; ours not yet measured.
# Paper: dense 80.5 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_s_midclstok_80p5acc.pth and data/imagenet
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model vim_small_patch16_224 --model_pth "$WEIGHTS/vim_s_midclstok_80p5acc.pth"
    --data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --num_prune 11 --merge_interval 2 --metric X --distance cosine --if_order)

for mode in mean amax amin; do
    run tab17 "${model[@]}" --merge_mode "$mode" --eval
done
