# shellcheck shell=bash
# Sourced by every recipe: the only place that knows about processes, nodes, ports and run folders.
#   run <table> <arguments of image_task.main...>      writes below $RUNS/<table>
# A recipe of another program sets main=video_task.main data=<its default data set> before it sources this.
#
# DRY_RUN=1  print each command (for the repository root) and validate it    SMOKE=1  run each for a few batches
# RESUME=1   go on with runs that were cut short    RUNS     where the run folders go (default runs)
# RELEASED=1 with the released code's quirks where published figures rest on them: the recipe's header says which
# DATA       the data set (default: the recipe's)    WEIGHTS  pre-trained weights (default weights)
# NPROC      processes on this machine (default: one a GPU, else 1)
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   the same recipe, started once on each of several machines
# PYTHON     the interpreter (default: that of $RMEETO_VENV or .venv, else python3)

fail() { echo "launch: $1" >&2; exit "${2:-2}"; }

absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; }

(($# == 0)) ||
    fail "a recipe takes no arguments, and got $*: it reads variables such as SMOKE=1 (exp_sh/launch.sh lists them)."
[[ ${RELEASED:-0} != 1 ]] || grep -q "released=" "$0" ||
    fail "RELEASED=1 has no effect: nothing in this recipe rests on the released code's quirks; leave it out."

# Paths from the user are relative to where the user is; everything else is relative to the repository root.
for name in DATA WEIGHTS RUNS RMEETO_VENV; do
    [[ -z ${!name:-} ]] || printf -v "$name" %s "$(absolute "${!name}")"
done
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
: "${DATA:=${data:-data/imagenet}}" "${WEIGHTS:=weights}" "${RUNS:=runs}" "${RMEETO_VENV:=.venv}"

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$RMEETO_VENV/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
fi
: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_PORT:=29500}"
if [[ -z ${NPROC:-} ]]; then
    NPROC=$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))") ||
        fail "$PYTHON cannot import torch: run bash exp_sh/quickstart.sh once, or set PYTHON to one that can." 1
fi
[[ $NNODES == 1 || -n ${MASTER_ADDR:-} ]] ||
    fail "NNODES is $NNODES but MASTER_ADDR is not set: give the address of the machine with NODE_RANK=0."

if [[ ${SMOKE:-0} == 1 ]]; then
    RUNS=$RUNS/smoke/$(basename "$(dirname "$0")")-$(basename "$0" .sh)
    [[ ${DRY_RUN:-0} == 1 || $NODE_RANK != 0 ]] || rm -rf -- "$RUNS"
fi

num_runs=0
released=() # set by recipes: what RELEASED=1 adds to the commands that follow
run() {
    local table=$1 processes=("$PYTHON")
    local task=(-m "${main:-image_task.main}" "${@:2}" --output_dir "$RUNS/$table")
    [[ ${RESUME:-0} != 1 ]] || task+=(--resume)
    [[ ${SMOKE:-0} != 1 ]] || task+=(--smoke)
    [[ ${RELEASED:-0} != 1 ]] || task+=(${released[@]+"${released[@]}"})
    if ((NNODES > 1)); then # a port of its own for each run: a fast node must not join the slow node's last run
        processes+=(-m torch.distributed.run --nproc_per_node "$NPROC" --nnodes "$NNODES" --node_rank "$NODE_RANK"
            --master_addr "$MASTER_ADDR" --master_port "$((MASTER_PORT + num_runs))")
    elif ((NPROC > 1)); then
        processes+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
    fi
    num_runs=$((num_runs + 1))

    local shown
    shown=$(printf "%q " "${processes[@]}" "${task[@]}")
    echo "${shown% }"
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        "$PYTHON" "${task[@]}" --dry_run >/dev/null || fail "the command above is not valid." $?
    else
        "${processes[@]}" "${task[@]}" ||
            fail "the command above ended with exit code $?; the recipe stops here (RESUME=1 goes on)." $?
    fi
}
