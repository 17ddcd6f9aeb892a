# shellcheck shell=bash
# Sourced by launch.sh inside a step of SLURM (srun bash recipe.sh): machines, ranks and address from the allocation.
# One task a machine starts a process a GPU; several tasks a machine are the processes themselves.

[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || : "${RESUME:=1}" # the job was queued again
trap : USR1                                              # the notice before the time limit is for the processes: wait for them

if [[ ${SLURM_STEP_NUM_TASKS:-1} != 1 && -z ${NNODES:-} ]]; then
    whole SLURM_STEP_NUM_TASKS 1 1000000
    whole SLURM_STEP_NUM_NODES 1 65536
    whole SLURM_JOB_ID 0 4294967295
    whole SLURM_NODEID 0 65535
    whole SLURM_PROCID 0 1000000
    whole SLURM_LOCALID 0 4095
    # node[03-05,9] begins with node03; scontrol knows more forms, where it is there
    first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" 2>/dev/null | head -n 1) || first=
    [[ -n $first ]] || first=$(sed -E 's/^([^[,]*)\[([^],-]*).*/\1\2/; s/,.*//' <<<"$SLURM_STEP_NODELIST")
    : "${MASTER_ADDR:=$first}" "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 20000))}" # two jobs on a machine do not meet
    if [[ $SLURM_STEP_NUM_TASKS == "$SLURM_STEP_NUM_NODES" ]]; then
        NNODES=$SLURM_STEP_NUM_NODES NODE_RANK=$SLURM_NODEID
    else
        [[ -z ${NPROC:-}${GPUS:-} ]] ||
            fail "NPROC or GPUS is set, but SLURM starts $SLURM_STEP_NUM_TASKS processes: leave it out, or use --ntasks-per-node=1."
        NPROC=1
        export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS MASTER_ADDR
        [[ -z ${CUDA_VISIBLE_DEVICES:-} || $CUDA_VISIBLE_DEVICES == *,* ]] || LOCAL_RANK=0 # a task sees its own GPU alone
    fi
fi
