#!/usr/bin/env bash
# The shipped video model: videomamba_video_nano_patch4_32 trained from scratch on moving handwritten digits.
# Cost:  nine minutes on one thread of a busy 2-core machine (the recorded run). SEED (default 0) picks the seed.
# Paper: not in the paper; ours: see CKPT.md.
set -euo pipefail
main=video_task.main
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

: "${SEED:=0}"
clips=$RUNS/digits-video/clips
if [[ $DRY_RUN == 0 && $SMOKE == 0 && ! -d $clips ]]; then # whole or not at all
    "$PYTHON" -m video_task.data.digits "$clips.part"
    mv "$clips.part" "$clips"
fi
run digits-video --name "dense-seed$SEED" --seed "$SEED" --model videomamba_video_nano_patch4_32 --tubelet_size 2 \
    --data_set folder --data_path "$clips" --num_workers 0 --batch_size 16 --num_sample 1 --augment False \
    --input_size 24 --short_side_size 32 --epochs 24 --warmup_epochs 1 --lr 6.4e-2 --min_lr 1e-5 --schedule cosine \
    --layer_decay 1 --weight_decay 0.05 --drop_path 0
