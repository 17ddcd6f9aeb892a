#!/usr/bin/env bash
# The digits model merged (r = 12 in every second block): training-free, re-trained for 6 epochs with the dense teacher,
# and the control arm: the dense model trained for as many epochs with the same teacher.
# Cost:  about a minute on 2 cores, after dense.sh. SEED (default 0) picks the seed of all.
# Paper: not in the paper; ours: see CKPT.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
common=(--seed "$SEED" --model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 32
    --model_pth "$RUNS/digits/dense-seed$SEED/last.pt")
merged=(--num_prune 12 --merge_interval 2 --if_order)
train=(--distill True --epochs 6 --accumulation 1 --lr 3.2e-2 --min-lr 1e-5 --schedule cosine --drop-path 0
    --mixup 0 --cutmix 0 --reprob 0 --repeated_aug False)

run digits --name "training_free-seed$SEED" "${common[@]}" "${merged[@]}" --eval
run digits --name "retrained-seed$SEED" "${common[@]}" "${merged[@]}" "${train[@]}"
run digits --name "control-seed$SEED" "${common[@]}" "${train[@]}"
