#!/usr/bin/env bash
# Table 11's shape on the embedded digits: the shipped dense model merged without re-training, r = 0 to 20.
# Cost:  about two minutes on 2 cores.
# Paper: not in the paper; ours: fig/digits_accuracy.png and results/curve-*.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../exp_sh/launch.sh"

for r in 0 2 4 6 8 10 12 14 16 18 20; do
    run digits --name "curve-r$r" --model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 64 \
        --model_pth image_task/exp_sh/digits/dense.safetensors --num_prune "$r" --merge_interval 2 --if_order --eval
done
