#!/usr/bin/env bash
# Every merging rule on the moving digits at r = 60: training-free, and re-trained as retrain.sh does; rows that are there stay.
# Cost:  twenty minutes on one thread, after dense.sh (which makes the clips; SEED 0, the default, takes the shipped model).
# Paper: not in the paper; ours: docs/rules.md. The settings are retrain.sh's, not chosen for a rule.
set -euo pipefail
main=video_task.main
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
dense=video_task/exp_sh/digits/dense.safetensors
[[ $SEED == 0 ]] || dense=$RUNS/digits-video/dense-seed$SEED/last.pt
train=(--distill True --epochs 4 --warmup_epochs 0 --lr 3.2e-2 --min_lr 1e-5 --schedule cosine --layer_decay 1
    --weight_decay 0.05 --drop_path 0 --num_sample 1 --augment False)
for arm in training_free retrained; do
    for rule in exact adjacent window energy importance shift random; do
        [[ $SEED != 0 || $rule != exact ]] || continue # retrain.sh's, on the shipped model
        merged=(--name "$rule-$arm-seed$SEED" --seed "$SEED" --model videomamba_video_nano_patch4_32 --tubelet_size 2
            --data_set folder --data_path "$RUNS/digits-video/clips" --num_workers 0 --batch_size 16 --input_size 24
            --short_side_size 32 --model_pth "$dense" --test_num_segment 4 --test_num_crop 3 --num_prune 60
            --merge_interval 2 --if_order --rule "$rule")
        [[ $rule != window ]] || merged+=(--window 2,3,3)
        [[ $arm == retrained ]] && merged+=("${train[@]}") || merged+=(--eval)
        [[ -e $RUNS/rules-video/${merged[1]}/result.json ]] || run rules-video "${merged[@]}"
    done
done
