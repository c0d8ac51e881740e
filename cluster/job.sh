# shellcheck shell=bash
# What every job does first: settings, environment, signals. Sourced by the .slurm files, which then call require_space (see
# space.sh) and
#
#   run COMMAND...    run it; stopped by SLURM's warning with work left, the job goes back to the queue

set -euo pipefail

EXIT_USAGE=2
EXIT_STOPPED=75 # of the scripts: stopped by a signal with work left
command_pid='' interrupted='' warned=''
job=${SLURM_JOB_ID:-}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then # the last task's own number is that of the whole array
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# USR1 comes from SLURM before the time limit and goes to this shell alone (--signal=B:USR1@seconds): the command has to
# be told. TERM comes with scancel and with pre-emption, to steps alone while a grace time lasts.
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
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 YOLO_OFFLINE=1 # nodes may be cut off; a download is setup_hpc.sh's
export PYTHONUNBUFFERED=1
export PYTHONPATH="$REPOSITORY" # this clone's modules, whichever one is installed in an environment that several share
cd "$REPOSITORY"

run() {
    local code
    if [ -n "$warned" ]; then
        requeue_job
    fi
    "$@" &
    command_pid=$!
    if [ -n "$warned" ]; then # between the two lines above
        forward USR1
    fi
    interrupted=1
    while [ -n "$interrupted" ]; do # a trap ends wait before the command has ended
        interrupted='' code=0
        wait "$command_pid" || code=$?
    done
    command_pid=''
    # what is still starting up has no handler yet, and dies of the warning
    if [ -n "$warned" ] && ((code == EXIT_STOPPED || code == 128 + $(kill -l USR1))); then
        requeue_job
    fi
    if ((code == EXIT_STOPPED)) && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
        requeue_job # pre-empted with a grace time; a cancelled or requeued job is no longer running
    fi
    return "$code"
}

requeue_job() {
    echo "stopped with work left; back to the queue"
    scontrol requeue "$job"
    exit "$EXIT_STOPPED"
}
