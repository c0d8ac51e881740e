# shellcheck shell=bash
# The cluster's settings, sourced by setup_hpc.sh, submit.sh and every job. Environment variables override them.
# sbatch reads SBATCH_*: they override the #SBATCH lines, which repeat the defaults for a plain `sbatch train.slurm`;
# sbatch's flags override both.

if [ -z "${SCRATCH:-}" ]; then
    echo "error: SCRATCH is not set: export SCRATCH=/a/large/disk" >&2
    exit 2
fi

export SBATCH_PARTITION="${SBATCH_PARTITION:-l40s_public}"
SBATCH_PARTITION_CPU="${SBATCH_PARTITION_CPU:-$SBATCH_PARTITION}" # for the packing job, which needs no GPU
export SBATCH_ACCOUNT="${SBATCH_ACCOUNT:-torch_pr_742_general}"
export SBATCH_GRES="${SBATCH_GRES-gpu:l40s:1}"               # empty: no GPU
CLUSTER_MODULE="${CLUSTER_MODULE:-anaconda3/2025.06}"        # loaded if there is a module system
CONDA_ENV="${CONDA_ENV:-$SCRATCH/conda_envs/nchsb_ml}"       # a conda environment or a venv
GPU_PACKAGES="${GPU_PACKAGES-tensorrt}"                      # from requirements-gpu.txt, installed by setup_hpc.sh
REPOSITORY="${REPOSITORY:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"

# Training data: nyu ($SCRATCH/nyu_depth_v2/*.mat), corridor (a data folder from dataset/corridor_loader.py), or rooms
# (rendered, for a dry run). Teachers: learned, or reference if the data has reference labels.
DATASET="${DATASET:-nyu}"
TEACHERS="${TEACHERS:-learned}"
ROOMS="${ROOMS:---scenes 60 --frames-per-scene 4}"           # flags of rooms/render_rooms.py
GATE_FRAMES="${GATE_FRAMES:-5}"
EXPORT_FLAGS="${EXPORT_FLAGS:-}"                             # flags of export_trt.py
NYU_MAT="${NYU_MAT:-$SCRATCH/nyu_depth_v2/nyu_depth_v2_labeled.mat}"
DATA="${DATA:-$SCRATCH/${DATASET}_teacher_data}"

# Other datasets get folders of their own, so that they neither overwrite NYU's student nor block each other's runs.
own=""
if [ "$DATASET" != nyu ]; then
    own=/$DATASET
fi
export WEIGHTS_DIR="${WEIGHTS_DIR:-$SCRATCH/model_weights}"
export CHECKPOINT_DIR="${CHECKPOINT_DIR:-$SCRATCH/checkpoints$own}"
export ENGINE_DIR="${ENGINE_DIR:-$SCRATCH/engines$own}"
export LOG_DIR="${LOG_DIR:-$SCRATCH/runs}"
JOB_LOGS="${JOB_LOGS:-$SCRATCH/job_logs}"

# $HOME is small, so libraries cache in $SCRATCH.
export HF_HOME="${HF_HOME:-$WEIGHTS_DIR/huggingface}"
export TORCH_HOME="${TORCH_HOME:-$SCRATCH/.cache/torch}"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$SCRATCH/.cache/pip}"
export CONDA_PKGS_DIRS="${CONDA_PKGS_DIRS:-$SCRATCH/.cache/conda_pkgs}"
export YOLO_CONFIG_DIR="${YOLO_CONFIG_DIR:-$SCRATCH/.cache/ultralytics}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$SCRATCH/.cache}"   # for matplotlib and others
export MPLCONFIGDIR="${MPLCONFIGDIR:-$SCRATCH/.cache/matplotlib}"
export CUDA_CACHE_PATH="${CUDA_CACHE_PATH:-$SCRATCH/.cache/cuda}"
export CONDA_REGISTER_ENVS=false # would write to $HOME/.conda
export PYTHONNOUSERSITE=1        # packages in $HOME/.local would shadow the environment's
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$SCRATCH/.cache/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$SCRATCH/.cache/inductor}"
