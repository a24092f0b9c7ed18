# shellcheck shell=bash disable=SC2034
# The settings of a site; the only file here to edit. Every job reads it at its start. If its first
# part is not empty, also read it in the shell from which you submit:
#
#     . slurm/site.sh
#     sbatch slurm/train.sbatch --data /data/sevir --filters 32

# ---- for sbatch: partition, account, GPUs per node, time limit --------------------------------
# These override the defaults in a script, and the options of sbatch override these.

# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=project
# export SBATCH_GPUS_PER_NODE=4
# Each rank must see all GPUs of its node, or NCCL cannot copy from one to the other directly.
# export SBATCH_GPU_BIND=none SLURM_GPU_BIND=none
# export SBATCH_TIMELIMIT=12:00:00

# ---- in the job: modules and the environment --------------------------------------------------

# module purge
# module load openmpi cuda

# The Python of the environment: a path relative to the repository, or an absolute one.
python=${KERAS_NOWCAST_PYTHON:-.venv/bin/python}

# ---- in the job: the network and the GPUs -----------------------------------------------------
# The network between the nodes, if NCCL and Gloo choose another one.
# NCCL_DEBUG=INFO makes NCCL print what it chose.

# export NCCL_SOCKET_IFNAME=ib0 HOROVOD_GLOO_IFACE=ib0
# export NCCL_DEBUG=INFO

# On a GPU newer than TensorFlow's wheel, the driver compiles TensorFlow's kernels in the first job
# and keeps them here. Let one short job do so before the first that is measured.
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-${HOME:-/tmp}/.nv/ComputeCache}
export CUDA_CACHE_MAXSIZE=${CUDA_CACHE_MAXSIZE:-4294967296}

# ---- in the job: the launcher of the ranks ----------------------------------------------------
# mpirun:      Open MPI, which starts its daemons on the other nodes through Slurm, not ssh
# srun:        Slurm itself; Horovod's MPI must support the --mpi of srun_options
# horovodrun:  Gloo, if Horovod has no MPI; one node only
# auto:        mpirun if Horovod was built with MPI, otherwise horovodrun

launcher=${KERAS_NOWCAST_LAUNCHER:-auto}
mpirun_options=()
srun_options=(--mpi=pmix)

# An interrupted job that has saved is requeued automatically, at most this many times.
max_requeues=${KERAS_NOWCAST_MAX_REQUEUES:-20}
