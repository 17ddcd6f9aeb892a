# shellcheck shell=bash
# Sourced by launch.sh: checks the variables that a recipe reads, each once and before anything is computed from it.

# In the C locale %q escapes what is not ASCII, marks of direction and the like among it.
fail() { echo "launch: $1" >&2; exit "${2:-2}"; }

absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; }

# boolean NAME...: each becomes 1 or 0
boolean() {
    local name
    for name in "$@"; do
        case ${!name:-} in
            1 | [Tt][Rr][Uu][Ee] | [Yy][Ee][Ss] | [Oo][Nn]) printf -v "$name" 1 ;;
            "" | 0 | [Ff][Aa][Ll][Ss][Ee] | [Nn][Oo] | [Oo][Ff][Ff]) printf -v "$name" 0 ;;
            *) fail "$name is $(LC_ALL=C printf %q "${!name}"): expected 1 or 0 (true or false, yes or no, on or off)." ;;
        esac
    done
}

# whole NAME LEAST MOST: a whole number, or nothing
whole() {
    local LC_ALL=C value=${!1:-} # in other languages [0-9] has more than ten digits
    [[ -n $value ]] || return 0
    # The pattern first: what bash takes for arithmetic may be a command.
    if [[ $value =~ ^[0-9]{1,10}$ ]] && ((10#$value >= $2 && 10#$value <= $3)); then
        printf -v "$1" %d "$((10#$value))"
    else
        fail "$1 is $(LC_ALL=C printf %q "$value"): expected a whole number from $2 to $3."
    fi
}

[[ -z ${SLURM_STEP_ID:-} ]] || source "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
boolean DRY_RUN CHECK SMOKE RESUME RELEASED
whole GPUS 1 4096
whole NPROC 1 4096
whole PROCESSES 1 65536
[[ -z ${GPUS:-} || ${NPROC:-$GPUS} == "$GPUS" ]] || fail "GPUS is $GPUS and NPROC is $NPROC: they are two names of one number."
: "${NPROC:=${GPUS:-}}"
MOST_NODES=
if [[ ${NNODES:-} == *:* ]]; then # as many machines as come
    MOST_NODES=${NNODES#*:} NNODES=${NNODES%%:*}
    [[ -n $NNODES && -n $MOST_NODES ]] || fail "NNODES is $(LC_ALL=C printf %q "$NNODES:$MOST_NODES"): expected the fewest and the most, such as 2:4."
    whole MOST_NODES 1 65536
fi
whole NNODES 1 65536
whole MAX_RESTARTS 0 1000
whole NODE_RANK 0 65535
whole MASTER_PORT 1 65000 # and one more for each run
whole SEED 0 2147483647
: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_PORT:=29500}"
[[ -z $MOST_NODES ]] || ((NNODES <= MOST_NODES)) || fail "NNODES is $NNODES:$MOST_NODES: expected the smaller number first."
: "${MAX_RESTARTS:=$([[ -z $MOST_NODES ]] && echo 0 || echo 3)}"
((MAX_RESTARTS == 0)) || RESUME=1 # who is started anew goes on
((NODE_RANK < NNODES)) || fail "NODE_RANK is $NODE_RANK: expected less than NNODES, which is $NNODES."
[[ ${MASTER_ADDR:-} =~ ^[][[:alnum:]_.:%-]*$ && ${MASTER_ADDR:-} != -* ]] ||
    fail "MASTER_ADDR is $(LC_ALL=C printf %q "$MASTER_ADDR"): expected the name or address of the machine with NODE_RANK=0."
[[ $NNODES == 1 && -z $MOST_NODES ]] || [[ -n ${MASTER_ADDR:-} ]] ||
    fail "NNODES is $NNODES${MOST_NODES:+:$MOST_NODES} but MASTER_ADDR is not set: give the address of the machine with NODE_RANK=0."

# Paths from the user are relative to where the user is; a PYTHON without a slash is a command.
for name in DATA WEIGHTS RUNS RMEETO_VENV; do
    [[ -z ${!name:-} ]] || printf -v "$name" %s "$(absolute "${!name}")"
done
[[ ${PYTHON:-} != */* ]] || PYTHON=$(absolute "$PYTHON")
