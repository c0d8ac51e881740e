#!/bin/bash
# Submit the whole pipeline as a chain of jobs and print it: teachers (in --shards parts), manifest, packing, training,
# Table IV, export. If a job fails, the jobs that depend on it are cancelled.
#
#   bash cluster/submit.sh [--shards N] [flags of train.py]
#
# Settings: cluster/settings.sh, and sbatch's own environment variables (SBATCH_TIMELIMIT=...).
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPOSITORY
# shellcheck source=cluster/settings.sh
source "$REPOSITORY/cluster/settings.sh"
export DATASET TEACHERS ROOMS GATE_FRAMES NYU_MAT DATA CONDA_ENV CLUSTER_MODULE

SHARDS=4
if [ "${1:-}" = --shards ]; then
    SHARDS=${2:-}
    shift 2 || true
fi
if ! [[ $SHARDS =~ ^[1-9][0-9]*$ ]]; then
    echo "error: --shards needs a number of parts, 1 or more" >&2
    exit 2
fi
export SHARDS
for flag in "$@"; do
    case $flag in
        --checkpoint-dir* | --manifest*)
            echo "error: evaluation and export would ignore $flag: set CHECKPOINT_DIR or DATA instead" >&2
            exit 2
            ;;
    esac
done

mkdir -p "$JOB_LOGS"
cd "$REPOSITORY"

submitted=() cluster=""

# submit NAME AFTER [sbatch's flags] FILE [arguments]: submit a job that depends on AFTER, print it, set $job to its ID
submit() {
    local name=$1 after=$2 flags=(--parsable --job-name="$1" --output="$JOB_LOGS/%x-%A.out")
    shift 2
    if [[ $1 == --array=* ]]; then
        flags+=(--output="$JOB_LOGS/%x-%A_%a.out")
    fi
    if [ -n "$after" ]; then
        flags+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
    fi
    if ! job=$(sbatch "${flags[@]}" "$@"); then
        echo "error: sbatch rejected $name; cancelling the earlier jobs (${#submitted[@]})" >&2
        if ((${#submitted[@]})); then
            scancel ${cluster:+--clusters="$cluster"} "${submitted[@]}" || echo "error: cancelling them failed" >&2
        fi
        exit 2
    fi
    cluster=${job#"${job%%;*}"} # --parsable prints ID, or ID;cluster
    cluster=${cluster#;} job=${job%%;*}
    submitted+=("$job")
    printf '%-10s %10s   %s\n' "$name" "$job" "${after:+after $after}"
}

teachers=teacher_infer/teacher_infer.slurm
best=$CHECKPOINT_DIR/best.pt
submit gate "" "$teachers" prepare gate
submit da3 "$job" --array="0-$((SHARDS - 1))" "$teachers" da3
submit sam2 "$job" --array="0-$((SHARDS - 1))" "$teachers" sam2
submit manifest "$job" "$teachers" manifest
submit pack "$job" --partition="$SBATCH_PARTITION_CPU" --gres=none cluster/pack.slurm "$@"
submit train "$job" train.slurm "$@"
trained=$job
submit evaluate "$trained" cluster/run.slurm \
    python eval_distillation.py --checkpoint "$best" --manifest "$DATA/manifest.jsonl"
read -ra export_flags <<<"$EXPORT_FLAGS"
submit export "$trained" cluster/run.slurm \
    python export_trt.py --checkpoint "$best" --manifest "$DATA/manifest.jsonl" "${export_flags[@]}"
echo "logs: $JOB_LOGS; watch with: squeue --me"
