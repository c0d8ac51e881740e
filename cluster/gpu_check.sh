#!/bin/bash
# Check a machine's GPU: print the machine, run the tests that need a GPU, and measure training and teachers.
#
#   sbatch cluster/run.slurm bash cluster/gpu_check.sh        # in the jobs' environment
#   PYTHON=.venv/bin/python bash cluster/gpu_check.sh         # after make setup
#
# It needs no data and no weights: frames are rendered, weights random. Exit codes: 0 all passed; 1 a test or a benchmark
# failed, and the others ran all the same; 2 there is no usable GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python}
FRAMES=1024
BATCH_SIZES=(8 16 32 64)
failed=0

# Print the machine; exit code 2 and one line on stderr if PyTorch finds no GPU.
print_machine() {
    "$python" -W ignore - <<'END'
import sys

try:
    import torch

    torch.cuda.init()
except (AssertionError, ImportError, RuntimeError) as error:
    reason = " ".join(str(error).split()).partition(". ")[0]
    sys.exit(f"error: no usable GPU ({reason}): sbatch cluster/run.slurm bash cluster/gpu_check.sh, with SBATCH_GRES set")
for index in range(torch.cuda.device_count()):
    gpu = torch.cuda.get_device_properties(index)
    print(f"GPU {index}: {gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
nccl = ".".join(map(str, torch.cuda.nccl.version()))
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}")
try:
    import tensorrt

    print(f"TensorRT {tensorrt.__version__}")
except ImportError as error:
    print(f"no TensorRT: {error}")
END
}

# step TITLE COMMAND...: run a command; remember if it fails
step() {
    local code=0
    echo
    echo "== $1"
    shift
    "$@" || code=$?
    if ((code)); then
        echo "FAILED with exit code $code: $*"
        failed=1
    fi
}

print_machine || exit 2
if type nvidia-smi >/dev/null 2>&1; then
    echo "driver: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

step "tests, with the figures that they print" \
    "$python" -m pytest -q -rsP --no-fold-skipped -m gpu tests/gpu
step "training, images/s by batch size; goal: training / compute 0.9" \
    "$python" benchmarks/train_throughput.py --device cuda --frames "$FRAMES" --batch-size "${BATCH_SIZES[@]}"
for flags in "" --compile; do
    # shellcheck disable=SC2086 # no flag is no argument
    step "depth teacher, frames/s ${flags}" \
        "$python" benchmarks/teacher_depth.py --device cuda --model da3metric-large --frames 64 $flags
done
step "class teacher, frames/s" \
    "$python" benchmarks/teacher_seg.py --device cuda --detector yolov8x --size large --frames 20

echo
if ((failed)); then
    echo "a test or a benchmark FAILED: see above"
    exit 1
fi
echo "all tests and benchmarks passed"
