#!/usr/bin/env bash
# Table 5: tokens shuffled before each merge, training-free: Vim-Ti r = 5, Vim-S r = 11, Vim-S r = 11 pruned.
# Cost:  12 evaluations; ours not yet measured.
# Paper: dense 76.1 and 80.5 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_{t_midclstok_76p1,s_midclstok_80p5}acc.pth and data/imagenet
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

common=(--data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --merge_interval 2 --metric X --distance cosine --if_order)

for setting in "tiny 5 t_midclstok_76p1" "small 11 s_midclstok_80p5" "small 11 s_midclstok_80p5 --if_pruning"; do
    read -r size r weights prune <<<"$setting"
    for rate in 0.1 0.3 0.5 0.7; do
        run tab5 --model "vim_${size}_patch16_224" --model_pth "$WEIGHTS/vim_${weights}acc.pth" "${common[@]}" \
            --num_prune "$r" ${prune:+"$prune"} --if_shuffle --shuffle_rate "$rate" --eval
    done
done
