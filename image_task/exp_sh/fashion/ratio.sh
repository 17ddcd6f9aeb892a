#!/usr/bin/env bash
# Accuracy against the share of tokens removed: Vim and DeiT, merged and pruned, training-free and re-trained.
# Cost:  26 evaluations and 26 short trainings, after dense.sh; FREE=1 leaves out the trainings.
# Paper: its figure of accuracy against ratio; tables 1 and 11. The control arm (r0) is the dense model trained as long.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

for arm in free brief; do
    for r in 0 8 20 11 5 15 2; do
        for kind in vim deit; do
            merging="--num_prune $r --merge_interval 1 --if_order"
            ((r > 0)) || merging="--merge_method none"
            "$arm" "$kind" "r$r" "$merging"
            ((r == 0)) || "$arm" "$kind" "r$r-prune" "$merging --if_prune"
        done
    done
done
finish_rows
