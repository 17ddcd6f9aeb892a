#!/usr/bin/env bash
# Table 14, VideoMamba-S on K400 (8 frames, 4 x 3 views): training-free, r = 0 (dense), 8, 16, ... 88.
# Cost:  12 tests; ours not yet measured.
# Paper: dense 79.3 top-1, r = 88 77.5; the other rows are in the paper; ours not yet measured.
# Needs: weights/videomamba_s16_k400_f8_res224.pth and data/k400 with val.csv or test.csv
set -euo pipefail
main=video_task.main data=data/k400
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

model=(--model videomamba_video_small_patch16_224 --model_pth "$WEIGHTS/videomamba_s16_k400_f8_res224.pth"
    --data_set Kinetics_sparse --data_path "$DATA" --split , --num_frames 8 --batch_size 32 --num_workers 12
    --test_num_segment 4 --test_num_crop 3)

for r in {0..88..8}; do
    run tab14 "${model[@]}" --num_prune "$r" --eval
done
