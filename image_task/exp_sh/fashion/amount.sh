#!/usr/bin/env bash
# How much re-training (Vim, r = 11): epochs, share of the training images at equal steps, with and without the teacher.
# Cost:  the time of 13 trainings of 60,000 images, after dense.sh.
# Paper: tables 8 and 9: the first epochs bring most; the teacher.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

base="--num_prune 11 --merge_interval 1 --if_order"
trained vim r11 "$base"
for epochs in 1 5 7 15; do trained vim "r11-epochs$epochs" "$base" --epochs "$epochs"; done
trained vim r11-noteacher "$base" --distill False
while read -r share held_out epochs; do # of 55,000 images; the others are held out, and 512 of them evaluated
    trained vim "r11-share$share" "$base" --holdout "$held_out" --epochs "$epochs" --max_train_batches 0 --max_eval_batches 8
done <<<$'10 54500 11\n5 57250 22\n1 59450 117'
finish_rows
