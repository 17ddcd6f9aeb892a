#!/usr/bin/env bash
# The order of the tokens at r = 11: kept, not kept, odd-even and random shuffles; before and after re-training.
# Cost:  14 evaluations and 14 short trainings, after dense.sh; FREE=1 leaves out the trainings.
# Paper: tables 4 and 5: Mamba needs the order, a Transformer does not (its shuffles are ours: the paper's are Vim's).
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

base="--num_prune 11 --merge_interval 1"
for arm in free brief; do
    for kind in vim deit; do
        "$arm" "$kind" r11 "$base --if_order"
        "$arm" "$kind" r11-noorder "$base --if_order False"
        "$arm" "$kind" r11-oddeven "$base --if_order --shuffle odd-even"
        for rate in 0.1 0.3 0.5 0.7; do
            "$arm" "$kind" "r11-shuffle$rate" "$base --if_order --shuffle random --shuffle_rate $rate"
        done
    done
done
finish_rows
