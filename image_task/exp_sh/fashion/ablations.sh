#!/usr/bin/env bash
# What is compared, how, and what is made of it (Vim, r = 11), one setting changed at a time; every rule of the zoo.
# Cost:  25 evaluations and 25 short trainings, after dense.sh; see FREE=1.
# Paper: tables 6, 7, 8, 9, 15, 16, 17 and 18; intervals are half as long as there, for there are a third of the blocks.
# Needs: data/FashionMNIST/raw/, unpacked (or DATA=)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../fashion.sh"

base="--num_prune 11 --if_order" all="--merge_interval 1"
for arm in free brief; do
    "$arm" vim r11 "$base $all"
    for rule in adjacent energy importance shift random; do "$arm" vim "r11-$rule" "$base $all --rule $rule"; done
    "$arm" vim r11-window "$base $all --window 1,3,3"
    for metric in B C delta; do "$arm" vim "r11-metric$metric" "$base $all --metric $metric"; done
    for distance in l1 l2; do "$arm" vim "r11-$distance" "$base $all --distance $distance"; done
    for mode in mean amax amin; do "$arm" vim "r11-$mode" "$base $all --mode $mode"; done
    for k in 3 5 7 14; do "$arm" vim "r11-neighbour$k" "$base $all --neighbour $k"; done
    for interval in 2 3 4; do "$arm" vim "r11-every$interval" "$base --merge_interval $interval"; done
    "$arm" vim r11-odd "$base --merge_interval 2 --odd" && "$arm" vim r11-exact "$base $all --class_position exact"
done
finish_rows
