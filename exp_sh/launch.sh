# shellcheck shell=bash
# Sourced by every recipe: the only place that knows about processes, nodes, ports and run folders.
#   run <table> <arguments of image_task.main...>      writes below $RUNS/<table>
# A recipe of another program sets main=video_task.main data=<its default data set> before it sources this.
#
# What is on or off is 1 or 0, or any of true false, yes no, on off.
# DRY_RUN=1  print each command (for the repository root) and validate it    SMOKE=1  run each for a few batches
# CHECK=1    the same, and find its data and weights, before the job waits in a queue; nothing is run or written
# RESUME=1   go on with runs that were cut short    RUNS     where the run folders go (default runs)
# RELEASED=1 with the released code's quirks where published figures rest on them: the recipe's header says which
# DATA       the data set (default: the recipe's)    WEIGHTS  pre-trained weights (default weights)
# NPROC      processes on this machine (default: one a GPU, else 1); GPUS is the same
# PROCESSES  train as on so many processes (the paper: 8) on any number that divides a step: the same steps and rate
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   the same recipe, started once on each of several machines
# NNODES=2:4 as many machines as come, without NODE_RANK; who comes or goes later changes only the speed
# MAX_RESTARTS  times that all processes are started anew after one has died (default 0, of 2:4 3); they go on
# Under SLURM (srun bash recipe.sh) all of these come from the allocation: exp_sh/slurm/recipe.sbatch is a job.
# SEED       of the recipes that say so (default 0)
# PYTHON     the interpreter (default: that of $RMEETO_VENV or .venv, else python3)

source "$(dirname "${BASH_SOURCE[0]}")/variables.sh"

help_more="Variables: exp_sh/launch.sh."
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
(($# == 0)) ||
    fail "a recipe takes no arguments, and got$(LC_ALL=C printf " %q" "$@"): it reads variables such as SMOKE=1 (exp_sh/launch.sh lists them)."
[[ $RELEASED == 0 ]] || grep -q "released=" "$0" ||
    fail "RELEASED=1 has no effect: nothing in this recipe rests on the released code's quirks; leave it out."

[[ $CHECK == 0 ]] || DRY_RUN=1 # for recipes too: there is nothing to prepare

smoke_mark=made-by-smoke
recipe=$(basename "$(cd "$(dirname "$0")" && pwd)")-$(basename "$0" .sh)
# What is not the user's is relative to the repository root.
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
: "${DATA:=${data:-data/imagenet}}" "${WEIGHTS:=weights}" "${RUNS:=runs}" "${RMEETO_VENV:=.venv}"

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$RMEETO_VENV/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
fi
if [[ -z ${NPROC:-} ]]; then
    NPROC=$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))") ||
        fail "$(LC_ALL=C printf %q "$PYTHON") cannot import torch: run bash exp_sh/quickstart.sh once, or set PYTHON to one that can." 1
    whole NPROC 1 4096
fi

if [[ $SMOKE == 1 ]]; then # a folder for each recipe, made anew: what smoke runs have made bears a mark
    main=${main:-image_task.main}
    RUNS=$RUNS/smoke/${main%%.*}/$recipe
    if [[ $DRY_RUN == 0 && $NODE_RANK == 0 && ${SLURM_PROCID:-0} == 0 ]]; then
        [[ ! -e $RUNS && ! -L $RUNS ]] || [[ -f $RUNS/$smoke_mark ]] ||
            fail "$(LC_ALL=C printf %q "$RUNS") is not of a smoke run (it holds no $smoke_mark): remove it, or set RUNS."
        rm -rf -- "$RUNS"
        mkdir -p -- "$RUNS" && : >"$RUNS/$smoke_mark" || fail "$(LC_ALL=C printf %q "$RUNS") cannot be made: set RUNS."
    fi
fi

launch_commands=() # of a dry run or a check: one process takes them all, at the end
launch_mode=--dry_run
[[ $CHECK == 0 ]] || launch_mode=--check
finish() {
    local status=$?
    ((status == 0 && ${#launch_commands[@]})) || exit "$status"
    WORLD_SIZE=$((NPROC * NNODES)) RANK=0 "$PYTHON" -m rmeeto.cli.dry_runs "${launch_commands[@]}" ||
        fail "the command above is not valid." $?
}
[[ $DRY_RUN == 0 ]] || trap finish EXIT

show() { # a command as a shell reads it, in lines of 80 columns
    local line="" word
    for word in "$@"; do
        LC_ALL=C printf -v word %q "$word"
        if [[ -z $line ]]; then
            line=$word
        elif ((${#line} + ${#word} + 3 > 80)); then
            printf '%s \\\n' "$line"
            line="    $word"
        else
            line+=" $word"
        fi
    done
    printf "%s\n" "$line"
}

num_runs=0
after_failure="the recipe stops here (RESUME=1 goes on)"
released=() # set by recipes: what RELEASED=1 adds to the commands that follow
run() {
    local table=$1 processes=("$PYTHON")
    local task=(-m "${main:-image_task.main}" "${@:2}" --output_dir "$RUNS/$table")
    [[ $RESUME == 0 ]] || task+=(--resume)
    [[ $SMOKE == 0 ]] || task+=(--smoke)
    [[ -z ${PROCESSES:-} || " ${*:2} " == *" --eval "* ]] || task+=(--processes "$PROCESSES")
    [[ $RELEASED == 0 ]] || task+=(${released[@]+"${released[@]}"})
    if [[ -n $MOST_NODES ]]; then
        processes+=(-m rmeeto.cli.launch --nproc_per_node "$NPROC" --nnodes "$NNODES:$MOST_NODES"
            --rdzv_backend c10d --rdzv_endpoint "$MASTER_ADDR:$((MASTER_PORT + num_runs))"
            --rdzv_id "run$num_runs" --max_restarts "$MAX_RESTARTS")
    elif ((NNODES > 1)); then # a port of its own for each run: a fast node must not join the slow node's last run
        processes+=(-m rmeeto.cli.launch --nproc_per_node "$NPROC" --nnodes "$NNODES" --node_rank "$NODE_RANK"
            --master_addr "$MASTER_ADDR" --master_port "$((MASTER_PORT + num_runs))")
    elif ((NPROC > 1 || MAX_RESTARTS > 0)); then
        processes+=(-m rmeeto.cli.launch --standalone --nproc_per_node "$NPROC")
    elif [[ -n ${SLURM_STEP_ID:-} ]]; then # this is one of the processes
        export MASTER_PORT=$((MASTER_PORT + 1))
    fi
    [[ $MAX_RESTARTS == 0 || -n $MOST_NODES ]] || processes+=(--max_restarts "$MAX_RESTARTS")
    num_runs=$((num_runs + 1))

    if [[ $DRY_RUN == 1 ]]; then
        launch_commands+=(-- "$(show "${processes[@]}" "${task[@]}")" "${task[@]}" "$launch_mode")
    else
        show "${processes[@]}" "${task[@]}"
        "${processes[@]}" "${task[@]}" ||
            fail "the command above ended with exit code $?; $after_failure." $?
    fi
}
