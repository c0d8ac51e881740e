#!/bin/bash
# Run a command as one process of a distributed training: exports srun's ranks under torch's names.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR # srun is launched from the first node, which also has rank 0
exec "$@"
