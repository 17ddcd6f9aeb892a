#!/usr/bin/env bash
# How much re-training (Vim, r = 11): epochs, share of the training images at equal steps, with and without the teacher.
# Cost:  the time of 15 short trainings, after dense.sh.
# Paper: tables 8 and 9: the first epochs bring most; the teacher.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

base="--num_prune 11 --merge_interval 1 --if_order"
brief vim r11 "$base"
for epochs in 1 5 7 15; do brief vim "r11-epochs$epochs" "$base" --epochs "$epochs"; done
brief vim r11-noteacher "$base" --distill False
while read -r share held_out epochs batches; do # of 55,000 images; the others are held out, and 512 of them evaluated
    brief vim "r11-share$share" "$base" --holdout "$held_out" --epochs "$epochs" --max_train_batches "$batches"
done <<<$'10 54500 3 62\n5 57250 6 31\n1 59450 31 6'
finish_rows
