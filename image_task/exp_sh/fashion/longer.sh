#!/usr/bin/env bash
# Longer re-training, where the comparison matters most: three epochs of 20,000 images instead of 4,000.
# Cost:  9 trainings of 60,000 images, after dense.sh; the other recipes' are of 12,000.
# Paper: tables 1 and 4, as ratio.sh and order.sh. The control (r0) is the dense model trained as long.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

for kind in vim deit; do
    trained "$kind" r0 "--merge_method none"
    trained "$kind" r11 "--num_prune 11 --merge_interval 1 --if_order"
    trained "$kind" r11-noorder "--num_prune 11 --merge_interval 1 --if_order False"
done
for r in 5 20; do trained vim "r$r" "--num_prune $r --merge_interval 1 --if_order"; done
trained vim r11-prune "--num_prune 11 --merge_interval 1 --if_order --if_prune"
finish_rows
