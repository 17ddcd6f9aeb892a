#!/usr/bin/env bash
# Every merging rule on the digits at r = 12: training-free, and re-trained as retrain.sh does; rows that are there stay.
# Cost:  ten minutes on 2 cores, after dense.sh (SEED 0, the default, starts from the shipped dense model instead).
# Paper: not in the paper; ours: docs/rules.md. The settings are retrain.sh's, not chosen for a rule.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
dense=image_task/exp_sh/digits/dense.safetensors
[[ $SEED == 0 ]] || dense=$RUNS/digits/dense-seed$SEED/last.pt
train=(--distill True --epochs 6 --accumulation 1 --lr 3.2e-2 --min-lr 1e-5 --schedule cosine --drop-path 0
    --mixup 0 --cutmix 0 --reprob 0 --repeated_aug False)
for arm in training_free retrained; do
    for rule in adjacent window energy importance shift random; do # exact is retrain.sh's
        name=$rule-$arm-seed$SEED
        merged=(--seed "$SEED" --model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 32
            --model_pth "$dense" --num_prune 12 --merge_interval 2 --if_order --rule "$rule")
        [[ $rule != window ]] || merged+=(--window 1,3,3)
        [[ $arm == retrained ]] && merged+=("${train[@]}") || merged+=(--eval)
        [[ -e $RUNS/rules/$name/result.json ]] || run rules --name "$name" "${merged[@]}"
    done
done
