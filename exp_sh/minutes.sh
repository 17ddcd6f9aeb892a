#!/usr/bin/env bash
# The wall-time table: 3 epochs of re-training Vim-Ti, -S and -B on 1, 2 and 4 machines, beside what the paper reports.
# Measured where the machines are: with GPUs, images in DATA and official weights in WEIGHTS, images/s of 200 micro-batches on the
# machines that exp_sh/launch.sh is told of (NNODES=2 NODE_RANK=0 ... and so on, once for each number). Predicted elsewhere, from
# the paper's figure for one machine, and from a step and the loader measured here (minutes on a CPU). docs/scaling.md says how.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if [[ -d $DATA/train ]] && "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    for kind in "tiny t_midclstok_76p1acc 5" "small s_midclstok_80p5acc 11" "base b_midclstok_81p9acc 11"; do
        read -r size weights r <<<"$kind"
        run minutes --name "vim_${size}_patch16_224-$NNODES" --model "vim_${size}_patch16_224" --model_pth "$WEIGHTS/vim_$weights.pth" \
            --data-set IMNET --data-path "$DATA" --num_prune "$r" --if_order --distill --epochs 1 --max_train_batches 200 \
            --max_eval_batches 1 --batch-size 128 --num_workers 10
    done
fi
[[ $DRY_RUN == 1 || $NODE_RANK != 0 || ${SLURM_PROCID:-0} != 0 ]] ||
    RUNS=$RUNS "$PYTHON" -m benchmarks minutes --force
