# shellcheck shell=bash
# Sourced by scripts: with -h or --help the comment at the top of the one that was started is printed, and it ends.
# help_more  a line behind that

for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
        sed -n '2,/^[^#]/s/^# //p' "$0"
        [[ -z ${help_more:-} ]] || echo "$help_more"
        exit
    fi
done
