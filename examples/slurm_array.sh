#!/bin/bash
# A folder of scans in parts, as a Slurm job array; a last job names every case that is not done, and fails for it.
#
#   PARTS=8 SBATCH_PARTITION=cpu examples/slurm_array.sh /data/scans /data/labels liver gpu1:8001 gpu2:8001
#
# The folders are the same on all nodes. The same command again goes on where the last one stopped; several arrays
# at once in one folder help each other.
#SBATCH --job-name=ctseg
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

parts=${PARTS:-8}
tries=${TRIES:-5}

submit() {
    local array
    array=$(sbatch --parsable --array="0-$((parts - 1))" --output=ctseg-%A_%a.log "$0" part "$@")
    sbatch --dependency="afterany:$array" --output=ctseg-%j-report.log "$0" report "$@"
}

# Worth another try are 3 (servers or the output's disk went away) and 143 (TERM, here before the time limit). A task
# whose node fails, or that gives way to others, Slurm starts again by itself; one that is cancelled stays so.
part() {
    local scans=$1 labels=$2 model=$3 status=0 task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        ctseg predict -i "$scans" -o "$labels" -m "$model" --url "${@:4}" --c --parts_from slurm || status=$?
    if [[ $status == 3 || $status == 143 ]] && ((${SLURM_RESTART_COUNT:-0} < tries)) &&
        [[ $(squeue --noheader --jobs="$task" --format=%T) == RUNNING ]]; then
        scontrol requeue "$task"
    fi
    return "$status"
}

report() {
    ctseg report -i "$1" -o "$2"
}

case ${1:-} in
part | report) "$@" ;;
*)
    (($# >= 4)) || { echo "usage: $0 SCANS LABELS MODEL HOST:PORT..." >&2 && exit 2; }
    submit "$@"
    ;;
esac
