#!/usr/bin/env bash
# One checkpoint for any speed: trained at r = 0, 5, 11 and 16 together, against one checkpoint for each r at equal cost.
# Cost:  the time of 8 short trainings and 12 evaluations, after dense.sh.
# Paper: not in the paper. A step at several r is three passes: four epochs of it cost what three of each of four r do.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

merging() { echo "--num_prune $1 --merge_interval 1 --if_order"; }
for r in 5 11 16; do free vim "r$r" "$(merging "$r")"; done
brief vim r0 "--merge_method none"
for r in 5 11 16; do brief vim "r$r" "$(merging "$r")"; done
brief vim elastic "$(merging 11)" --elastic_r 0,5,11,16 --epochs 4
finish_rows
for r in 0 2 5 8 11 16 20; do # 2, 8 and 20 were not trained at; r0 is the dense model
    [[ $FREE == 1 ]] || row one vim "elastic-at-r$r-test" --eval --model_pth "$(weights vim elastic-brief)" \
        --num_prune "$r" --merge_interval 1
done
finish_rows
