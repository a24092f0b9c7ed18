# shellcheck shell=bash disable=SC2034
# What differs from site to site; the only file here to edit. Every job reads it at its start. Read
# it yourself too, in the shell that you submit from, where the first part is not empty:
#
#     . slurm/site.sh
#     sbatch slurm/train.sbatch --data /data/sevir --filters 32

# ---- for sbatch: partition, account, GPUs of a node, time limit -------------------------------
# sbatch takes these before what a script says, and its own options before these.

# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=project
# export SBATCH_GPUS_PER_NODE=4
# export SBATCH_TIMELIMIT=12:00:00

# ---- in the job: modules and the environment --------------------------------------------------

# module purge
# module load openmpi cuda

# The Python of the environment, from the repository or absolute.
python=${KERAS_NOWCAST_PYTHON:-.venv/bin/python}

# ---- in the job: how the ranks are started ----------------------------------------------------
# mpirun       Open MPI, which starts its daemons on the other nodes through Slurm, not ssh
# srun         Slurm itself; Horovod's MPI must know the --mpi of srun_options
# horovodrun   Gloo, where Horovod has no MPI; one node
# auto         mpirun if Horovod was built with MPI, else horovodrun

launcher=${KERAS_NOWCAST_LAUNCHER:-auto}
mpirun_options=()
srun_options=(--mpi=pmix)

# A job that was interrupted and saved goes back to the queue by itself, so often at most.
max_requeues=${KERAS_NOWCAST_MAX_REQUEUES:-20}
