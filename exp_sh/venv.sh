# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: makes the virtual environment ($RMEETO_VENV, default .venv), goes to the
# repository root and sets PYTHON. An environment whose packages are those of requirements.txt is used as it is.

# Before anything is made: help is the header of the script that sources this, and where that names its `flags` there
# are no others.
for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n '2,/^[^#]/s/^# //p' "$0"
            exit
            ;;
        --*)
            [[ -z ${flags:-} || " $flags " == *" ${argument%%=*} "* ]] && continue
            echo "error: unknown flag $(LC_ALL=C printf %q "${argument%%=*}"); there are $flags." >&2
            exit 2
            ;;
    esac
done

here=$PWD # relative paths from the user begin there
[[ -z ${RMEETO_VENV:-} || $RMEETO_VENV == /* ]] || RMEETO_VENV=$here/$RMEETO_VENV
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
RMEETO_VENV=${RMEETO_VENV:-$PWD/.venv}

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found (python3 is $(python3 --version 2>&1)): install one," \
        "for example with conda env create -f environment.yml." >&2
    return 1
}

make_environment() {
    local python
    if [[ -d $RMEETO_VENV && ! -e $RMEETO_VENV/pyvenv.cfg && -n $(ls -A "$RMEETO_VENV") ]]; then
        echo "setup: $(LC_ALL=C printf %q "$RMEETO_VENV") is not a virtual environment: set RMEETO_VENV to another folder." >&2
        return 1
    fi
    if ! "$RMEETO_VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || return 1
        if ! "$python" -c "import ensurepip, venv" 2>/dev/null; then
            echo "setup: $python has no venv module: install it (Debian and Ubuntu: apt install python3-venv)." >&2
            return 1
        fi
        echo "setup: $python -m venv $RMEETO_VENV"
        "$python" -m venv "$RMEETO_VENV" || return 1
    fi
    echo "setup: installing requirements.txt into $RMEETO_VENV (once; about 6 GB with the CUDA libraries)"
    "$RMEETO_VENV/bin/python" -m pip install --no-input --disable-pip-version-check -r requirements.txt || return 1
    cp requirements.txt "$RMEETO_VENV/requirements.txt" # only now: an interrupted install is taken up again
}

PYTHON=$RMEETO_VENV/bin/python
if [[ ! -x $PYTHON ]] || ! cmp -s requirements.txt "$RMEETO_VENV/requirements.txt"; then
    make_environment || exit 1
fi
