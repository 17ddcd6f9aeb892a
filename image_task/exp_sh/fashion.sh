# shellcheck shell=bash
# Sourced by fashion/*.sh: one row of the evidence a call. What is finished is not run again, what was cut short goes on.
#
# Training and choosing see the training set alone: 5,000 of its images are held out for the evaluation after every
# epoch. The 10,000 test images are read once, at the end of a row (those run folders end with -test).
#
# DATA    holds FashionMNIST/raw/ (default data)    SEED   of the dense models and of all that follows (default 0)
# FREE=1  the training-free rows alone              JOBS   rows at the same time (default 1)
# GRAPH=1 training steps as CUDA graphs
# On a GPU `python -m rmeeto.cli.warm 8 bash all.sh` runs 8 rows at once in processes that stay, which saves their starts.
main=image_task.main data=data RESUME=1
source "$(dirname "${BASH_SOURCE[0]}")/../../exp_sh/launch.sh"
boolean FREE GRAPH
whole JOBS 1 64
: "${SEED:=0}" "${JOBS:=1}"
[[ $DRY_RUN == 0 && $SMOKE == 0 ]] || JOBS=1

declare -A models=([vim]=vim_nano_patch2_28 [deit]=rmeeto_deit_nano_patch2_28)
training=(--holdout 5000 --accumulation 1 --aa none --color-jitter 0 --mixup 0 --cutmix 0 --reprob 0 --repeated_aug False
    --drop-path 0 --schedule iteration --min-lr 1e-4 --clip-grad 1)
[[ $GRAPH == 0 ]] || training+=(--cuda_graph True)

one() { # KIND NAME FLAGS...: a run
    local name=$1-$2-seed$SEED
    [[ -e $RUNS/fashion/$name/result.json ]] || run fashion --name "$name" --seed "$SEED" --model "${models[$1]}" \
        --data-set FASHION --data-path "$DATA" --batch-size 64 "${@:3}"
}

weights() { # KIND NAME: of a run; the dense ones of seed 0 may be beside the recipes instead
    local own=$RUNS/fashion/$1-$2-seed$SEED/last.pt shipped=image_task/exp_sh/fashion/$1.safetensors
    [[ $2 != dense || $SEED != 0 || -e $own || ! -e $shipped ]] && echo "$own" || echo "$shipped"
}

row() { # what has to happen one after the other; JOBS of them at once, and one that fails stops no other
    if [[ -z ${failures:-} ]]; then
        "$@"
        return
    fi
    while (($(jobs -rp | wc -l) >= JOBS)); do wait -n || true; done
    ! grep -qxE "75|130|143" "$failures" || exit # told to leave: finish says so
    if ((JOBS == 1)); then
        ("$@") || echo $? >>"$failures"
    else
        { ("$@") || echo $? >>"$failures"; } &
    fi
}

finish_rows() { wait; }

if [[ $DRY_RUN == 0 && $SMOKE == 0 && $NNODES == 1 && -z $MOST_NODES ]]; then
    after_failure="its row stops here, the others go on"
    failures=$(mktemp)
    end() {
        local status=$? failed
        wait
        failed=$(wc -l <"$failures")
        ((failed == 0)) || status=$(sort -n "$failures" | tail -1)
        rm -f -- "$failures"
        ((failed == 0)) || fail "$((failed)) of the rows failed, as said above; the others are done." "$status"
        exit "$status"
    }
    trap end EXIT
fi

# free KIND NAME MERGING: the dense model merged without training; MERGING is the flags in one word
free() {
    local merging
    read -ra merging <<<"$3"
    row one "$1" "$2-free-test" --model_pth "$(weights "$1" dense)" --eval "${merging[@]}"
}

# brief KIND NAME MERGING FLAGS...: re-trained for three epochs of 4,000 images with the dense teacher, unless FLAGS say
# another; trained: of 20,000
brief() { retrain brief "--max_train_batches 62 --max_eval_batches 8" "$@"; }
trained() { retrain trained "--max_train_batches 312" "$@"; }

retrain() { # ARM LENGTH KIND NAME MERGING FLAGS...
    [[ $FREE == 1 ]] || row train_and_test "$@"
}

train_and_test() {
    local name=$4-$1 length merging teacher=(--distill True)
    read -ra length <<<"$2"
    read -ra merging <<<"$5"
    # What the teacher says of the same images is kept for the next row; a CUDA graph asks it anew.
    [[ $GRAPH == 1 || "${*:6}" == *--distill* || "${*:6}" == *--holdout* ]] ||
        teacher+=(--teacher_cache "$RUNS/fashion/teacher-$3-seed$SEED")
    one "$3" "$name" --model_pth "$(weights "$3" dense)" "${merging[@]}" "${training[@]}" --lr 4e-3 "${teacher[@]}" \
        --epochs 3 "${length[@]}" "${@:6}"
    one "$3" "$name-test" --model_pth "$(weights "$3" "$name")" --eval "${merging[@]}"
}
