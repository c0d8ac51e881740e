#!/bin/bash
# Set up the cluster: environment, packages, weights and NYU Depth V2, all below $SCRATCH.
#
#   bash setup_hpc.sh            # installs whatever is missing; an interrupted run resumes
#   bash setup_hpc.sh --check    # only prints what is installed; exit code 1 if anything is missing
#
# Settings: cluster/settings.sh. Without conda it creates a venv with PYTHON (default python3.11).
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cluster/settings.sh
source "$REPOSITORY/cluster/settings.sh"
export NYU_MAT
python="$CONDA_ENV/bin/python"
installed="$CONDA_ENV/.installed" # copy of the requirements that are installed
packages() {
    cat "$REPOSITORY"/pyproject.toml "$REPOSITORY"/requirements*.txt
    echo "$GPU_PACKAGES"
}

has_pip() { "$python" -m pip --version >/dev/null 2>&1; }
has_packages() { [ -f "$installed" ] && cmp --silent "$installed" <(packages); }
# Print the checkout that is installed in the environment; fails if there is none or it was removed.
project() { (cd / && env -u PYTHONPATH "$python" -c 'import cli; print(cli.CHECKOUT)' 2>/dev/null); }

check() {
    local missing=0
    if has_pip; then
        echo "environment: $CONDA_ENV, $("$python" --version)"
    else
        echo "environment: $CONDA_ENV is MISSING"
        missing=1
    fi
    if has_packages; then
        echo "packages:    as in requirements*.txt"
        if project >/dev/null; then
            echo "project:     $(project)"
        else
            echo "project:     MISSING"
            missing=1
        fi
        "$python" "$REPOSITORY/cluster/download.py" --check || missing=1
    else
        echo "packages:    MISSING or older than requirements*.txt"
        echo "downloads:   not checked, since this needs the packages"
        missing=1
    fi
    df -h "$SCRATCH" | awk 'NR == 2 {print "free:        " $4 " of " $2}'
    return "$missing"
}

case ${1:-} in
    --check)
        check
        exit
        ;;
    '') ;;
    *)
        echo "error: unknown flag $1: use --check, or no flag" >&2
        exit 2
        ;;
esac

if check; then
    exit
fi
mkdir -p "$SCRATCH"
# shellcheck source=cluster/space.sh
source "$REPOSITORY/cluster/space.sh"
if has_packages; then
    require_space "$SCRATCH" 6 10 "weights and NYU Depth V2"
else
    require_space "$SCRATCH" 20 100000 "environment, weights and NYU Depth V2"
fi

if ! has_pip; then # no environment, or its creation was interrupted
    if [ -d "$CONDA_ENV/conda-meta" ] && [ ! -f "$CONDA_ENV/conda-meta/history" ]; then
        rm -rf "$CONDA_ENV" # conda would reject this folder, both as an environment and as a new prefix
    fi
    if type module >/dev/null 2>&1; then
        module load "$CLUSTER_MODULE"
    fi
    if type conda >/dev/null 2>&1; then
        # the default channels require interactive acceptance of their terms
        conda create --yes --prefix "$CONDA_ENV" --override-channels --channel conda-forge python=3.11 pip
    else
        "${PYTHON:-python3.11}" -m venv "$CONDA_ENV"
    fi
fi

if ! has_packages; then
    "$python" -m pip install --editable "${REPOSITORY}[teachers,export,rooms,dev]"
    da3=$(sed -n 's/^DA3_VERSION := //p' "$REPOSITORY/Makefile")
    "$python" -m pip install --no-deps "depth-anything-3==$da3" # its pins conflict with the other packages
    "$python" -m pip install --requirement "$REPOSITORY/requirements-da3.txt"
    if [ -n "$GPU_PACKAGES" ]; then
        read -ra gpu_packages <<<"$GPU_PACKAGES"
        "$python" -m pip install --constraint "$REPOSITORY/requirements-gpu.txt" "${gpu_packages[@]}"
    fi
    packages >"$installed.part"
    mv "$installed.part" "$installed"
elif ! project >/dev/null; then
    "$python" -m pip install --no-deps --editable "$REPOSITORY"
fi

"$python" "$REPOSITORY/cluster/download.py"
check
