#!/usr/bin/env bash
# Table 4, Vim-Ti, Vim-S and Vim-B: merged tokens in their order and not, r = 5, 11 and 11, 3 epochs.
# Cost:  198 minutes on 8 H100 (2 x the paper's 16.2 + 25.2 + 57.6 for 3 epochs); ours not yet measured.
# Paper: dense 76.1, 80.5 and 81.9 (EMA) top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/vim_{t_midclstok_76p1,s_midclstok_80p5,b_midclstok_81p9}acc.pth and data/imagenet
# RELEASED=1: Vim-Ti with the released code's last merge, which leaves 76 tokens instead of 142, as its rows ran.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

common=(--data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10
    --merge_interval 2 --metric X --distance cosine
    --distill True --epochs 3 --accumulation 2 --lr 2e-5 --min-lr 1e-6 --drop-path 0.1)

for setting in "tiny 5 t_midclstok_76p1" "small 11 s_midclstok_80p5" "base 11 b_midclstok_81p9"; do
    read -r size r weights <<<"$setting"
    released=()
    [[ $size != tiny ]] || released=(--compare 11)
    for order in True False; do
        run tab4 --model "vim_${size}_patch16_224" --model_pth "$WEIGHTS/vim_${weights}acc.pth" "${common[@]}" \
            --num_prune "$r" --if_order "$order"
    done
done
