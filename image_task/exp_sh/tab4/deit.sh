#!/usr/bin/env bash
# Table 4, DeiT-Ti, DeiT-S and DeiT-B, the control: merged tokens in their order and not, r = 5, 11 and 11, 3 epochs.
# Cost:  not reported for DeiT; ours not yet measured.
# Paper: dense 72.2, 79.8 and 81.8 top-1; the figures of its rows are in the paper; ours not yet measured.
# Needs: weights/deit_{tiny,small,base}_patch16_224-*.pth (PRETRAINED.md) and data/imagenet
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

common=(--data-set IMNET --data-path "$DATA" --batch-size 128 --num_workers 10 --metric X --distance cosine
    --distill True --epochs 3 --accumulation 2 --lr 2e-5 --min-lr 1e-6 --drop-path 0.1)

for setting in "tiny 5 a1311bcf" "small 11 cd65a155" "base 11 b5f2ef4d"; do
    read -r size r hash <<<"$setting"
    model=deit_${size}_patch16_224
    for order in True False; do
        run tab4 --model "rmeeto_$model" --model_pth "$WEIGHTS/$model-$hash.pth" "${common[@]}" \
            --num_prune "$r" --if_order "$order"
    done
done
