#!/usr/bin/env bash
# Which blocks bear merging (Vim): r = 30 before one block at a time, and 77 tokens spread constantly, falling and rising.
# Cost:  10 evaluations and 3 short trainings, after dense.sh; FREE=1 leaves out the trainings.
# Paper: not in the paper.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

for block in {1..7}; do
    r=(0 0 0 0 0 0 0)
    r[block - 1]=30
    free vim "block$block" "--num_prune $(IFS=, && echo "${r[*]}") --merge_interval 1 --if_order"
done
for arm in free brief; do
    "$arm" vim r11 "--num_prune 11 --merge_interval 1 --if_order"
    for slope in -1 1; do
        "$arm" vim "r11-slope$slope" "--num_prune 11,$slope.0 --merge_interval 1 --if_order"
    done
done
finish_rows
