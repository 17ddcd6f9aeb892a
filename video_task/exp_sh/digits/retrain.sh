#!/usr/bin/env bash
# The moving digits' model merged (r = 60 in every second block): training-free, re-trained for 4 epochs with the dense
# teacher, and the control arm: the dense model trained for as many epochs with the same teacher.
# Cost:  about two minutes on one thread, after dense.sh. SEED (default 0) picks the seed of all.
# Paper: not in the paper; ours: see CKPT.md.
set -euo pipefail
main=video_task.main
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
common=(--seed "$SEED" --model videomamba_video_nano_patch4_32 --tubelet_size 2 --data_set folder
    --data_path "$RUNS/digits-video/clips" --num_workers 0 --batch_size 16 --input_size 24 --short_side_size 32
    --model_pth "$RUNS/digits-video/dense-seed$SEED/last.pt" --test_num_segment 4 --test_num_crop 3)
merged=(--num_prune 60 --merge_interval 2 --if_order)
train=(--distill True --epochs 4 --warmup_epochs 0 --lr 3.2e-2 --min_lr 1e-5 --schedule cosine --layer_decay 1
    --weight_decay 0.05 --drop_path 0 --num_sample 1 --augment False)

run digits-video --name "training_free-seed$SEED" "${common[@]}" "${merged[@]}" --eval
run digits-video --name "retrained-seed$SEED" "${common[@]}" "${merged[@]}" "${train[@]}"
run digits-video --name "control-seed$SEED" "${common[@]}" "${train[@]}"
