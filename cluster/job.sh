# shellcheck shell=bash
# Common start of all jobs: settings, environment, signals. Sourced by the .slurm files, which then call require_space
# (see space.sh) and
#
#   run COMMAND...    run a command; if SLURM's warning stops it with work left, the job is requeued

set -euo pipefail

EXIT_USAGE=2
EXIT_STOPPED=75 # the scripts' exit code when stopped by a signal with work left
command_pid='' interrupted='' warned=''
job=${SLURM_JOB_ID:-}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then # the last task's SLURM_JOB_ID is the ID of the whole array
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# SLURM sends USR1 before the time limit to this shell only (--signal=B:USR1@seconds), so it must be forwarded to the
# command. TERM comes with scancel and preemption; during a grace time only steps receive it.
on_warning() {
    warned=1
    forward USR1
}
forward() {
    if [ -n "$command_pid" ] && kill -"$1" "$command_pid" 2>/dev/null; then
        interrupted=1
    fi
}
trap on_warning USR1
trap 'forward TERM' TERM

# shellcheck source=cluster/settings.sh
source "$REPOSITORY/cluster/settings.sh"
# shellcheck source=cluster/space.sh
source "$REPOSITORY/cluster/space.sh"
if type module >/dev/null 2>&1; then
    module load "$CLUSTER_MODULE"
fi
if [ ! -x "$CONDA_ENV/bin/python" ]; then
    echo "error: there is no environment $CONDA_ENV: run bash setup_hpc.sh, or set CONDA_ENV" >&2
    exit "$EXIT_USAGE"
fi
export PATH="$CONDA_ENV/bin:$PATH"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 YOLO_OFFLINE=1 # nodes may have no network; setup_hpc.sh downloads
export PYTHONUNBUFFERED=1
export PYTHONPATH="$REPOSITORY" # use this clone's modules even if a shared environment has another clone installed
cd "$REPOSITORY"

run() {
    local code
    if [ -n "$warned" ]; then
        requeue_job
    fi
    "$@" &
    command_pid=$!
    if [ -n "$warned" ]; then # the warning came between the two lines above
        forward USR1
    fi
    interrupted=1
    while [ -n "$interrupted" ]; do # a trap makes wait return before the command has finished
        interrupted='' code=0
        wait "$command_pid" || code=$?
    done
    command_pid=''
    # a command that is still starting has no handler yet and is killed by USR1
    if [ -n "$warned" ] && ((code == EXIT_STOPPED || code == 128 + $(kill -l USR1))); then
        requeue_job
    fi
    if ((code == EXIT_STOPPED)) && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
        requeue_job # preempted with a grace time; a cancelled or requeued job is no longer RUNNING
    fi
    return "$code"
}

requeue_job() {
    echo "stopped with work left; requeueing"
    scontrol requeue "$job"
    exit "$EXIT_STOPPED"
}
