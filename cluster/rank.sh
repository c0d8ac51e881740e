#!/bin/bash
# Run a command as one process of a distributed training: srun's numbers under the names that torch reads.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR # srun runs on the first node, as does process 0
exec "$@"
