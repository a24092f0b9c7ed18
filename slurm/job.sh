# Shared code of the batch scripts. Each script sources it in the repository, where sbatch starts
# the job.
#
# Sets: job (the id for scontrol), run_name, restarts, nodes, ranks, cores (per rank), and the
# variables of slurm/site.sh.
# shellcheck shell=bash disable=SC2154

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# ---- the warning before the end of the job's time ---------------------------------------------
# Slurm sends USR1 some time before the time limit (#SBATCH --signal), and TERM at the limit itself.
# Ranks save at USR1; mpirun would kill them at TERM.

status=0 signals=0 warned="" child="" rank_0=""
trap 'warned=${warned:-USR1}; forward_warning' USR1
trap 'warned=TERM; forward_warning' TERM

# Sends USR1 to the launcher, or to rank 0 if horovodrun is the launcher.
forward_warning() {
  local rank
  signals=$((signals + 1))
  if [ -z "$rank_0" ]; then
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null
    return
  fi
  # horovodrun would kill the ranks after five seconds. Rank 0 informs the others.
  rank=$(cat -- "$rank_0")
  if [ -n "$rank" ]; then kill -USR1 "$rank"; else kill -TERM "$child"; fi 2>/dev/null
}

# on_all_ranks COMMAND...: runs the command on all ranks until it ends. Sets status.
on_all_ranks() {
  printf '%s: ranks %s, nodes %s (%s), cores per rank %s, launcher %s, restart %s\n' "$job" \
    "$ranks" "$nodes" "${SLURM_JOB_NODELIST:-?}" "$cores" "$launcher" "$restarts"
  start "$@"
  [ -z "$warned" ] || forward_warning # the warning came before the command had started
  local seen=-1
  until [ "$seen" = "$signals" ]; do # a signal interrupts `wait`
    seen=$signals
    wait "$child"
    status=$?
  done
  [ -z "$rank_0" ] || rm -f -- "$rank_0"
  child="" rank_0=""
}

# Ends the job with the command's status. A job that was warned or is preempted is requeued, unless
# it was canceled.
end() {
  if [ "$status" = 0 ] || [ "$status" = 2 ] || [ "$warned" = TERM ]; then
    exit "$status"
  fi
  [ "$status" = 75 ] || [ "$warned" = USR1 ] || is_preempted || exit "$status"
  if [ "$restarts" -ge "$max_requeues" ]; then
    echo "$job: requeued $restarts times, the limit; resume with the same command and --resume" >&2
  else
    echo "$job: interrupted with status $status, requeued"
    scontrol requeue "$job" && sleep 60 # Slurm ends this script meanwhile
  fi
  exit 75
}

# True if Slurm preempts the job, which then has some time left. Its steps, and with them mpirun's
# daemons on other nodes, get TERM at once. This script gets a signal only if Slurm has
# preempt_send_user_signal.
is_preempted() {
  [[ $(scontrol --oneliner show job "$job") =~ PreemptTime=[0-9] ]]
}

# ---- the job as Slurm describes it ------------------------------------------------------------

# read_number TARGET VARIABLE DEFAULT: sets TARGET to a number from VARIABLE. Text that enters
# arithmetic must be checked, because bash would run a command in its place.
read_number() {
  local value=${!2:-$3}
  [[ $value =~ ^[0-9]{1,9}$ ]] || die "\`$2\` must be a whole number. Received: ${value@Q}."
  printf -v "$1" %d "$((10#$value))"
}

read_job() {
  local array task tasks per_node
  read_number max_requeues max_requeues 20
  read_number job SLURM_JOB_ID 0
  [ "$job" -gt 0 ] ||
    die "\`SLURM_JOB_ID\` must be set: submit this script with sbatch. Received: none."
  # shellcheck disable=SC2034  # for train.sbatch
  run_name=slurm-$job
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read_number array SLURM_ARRAY_JOB_ID "$job"
    read_number task SLURM_ARRAY_TASK_ID 0
    job=${array}_$task # the id of the array alone would mean all of its tasks
  fi
  read_number restarts SLURM_RESTART_COUNT 0
  read_number nodes SLURM_JOB_NUM_NODES 1
  # The number of ranks that sbatch was given, otherwise one per GPU, otherwise one per node.
  read_number per_node SLURM_GPUS_ON_NODE 1
  if [ -n "${SLURM_NTASKS:-}" ]; then
    read_number ranks SLURM_NTASKS 1
    tasks=${SLURM_TASKS_PER_NODE:-$ranks} # as 2(x3),1
    tasks=${tasks%%[!0-9]*}
    read_number per_node tasks 1
  else
    ranks=$((nodes * per_node))
    # Open MPI takes its slots from this variable.
    export SLURM_TASKS_PER_NODE="$per_node(x$nodes)"
  fi
  ((ranks >= nodes && nodes > 0 && per_node > 0)) ||
    die "\`--ntasks\` must be at least the number of nodes. Received: $ranks ranks, $nodes nodes."
  # One thread per core of a rank. By default each rank would start one per core of the node.
  read_number cores SLURM_CPUS_ON_NODE 1
  cores=$((cores / per_node))
  read_number cores SLURM_CPUS_PER_TASK "$((cores > 1 ? cores : 1))"
  export OMP_NUM_THREADS=$cores TF_NUM_INTRAOP_THREADS=$cores PYTHONUNBUFFERED=1
  choose_binding "$per_node"
}

# choose_binding RANKS_PER_NODE: sets `binding`. Several ranks on a node are bound to separate cores
# if there is no GPU (a rank belongs near its GPU) and if the visible processors are those that
# Slurm allocated.
choose_binding() {
  local processors
  binding=(--bind-to none)
  read_number processors SLURM_CPUS_ON_NODE 0
  if [ "$1" -gt 1 ] && [ "$ranks" = $(($1 * nodes)) ] && [ $(($1 * cores)) -le "$processors" ] &&
    [ "$processors" = "$(env -u OMP_NUM_THREADS nproc)" ] && [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
    binding=(--use-hwthread-cpus --map-by "ppr:$1:node:PE=$cores" --bind-to hwthread)
  fi
}

# ---- starting the ranks -----------------------------------------------------------------------

choose_launcher() {
  if [ "$ranks" = 1 ]; then
    launcher=none
  elif [ "$launcher" = auto ]; then
    launcher=horovodrun
    ! horovod_has_mpi || launcher=mpirun
  fi
  case $launcher in
    none | mpirun | srun) ;;
    horovodrun)
      [ "$nodes" = 1 ] || die "\`launcher\` must be mpirun or srun on several nodes: horovodrun" \
        "needs ssh. Received: horovodrun, $nodes nodes; set the launcher in slurm/site.sh" \
        "(mpirun needs Horovod with MPI: \`make install\` with mpicxx on PATH)."
      ;;
    *) die "\`launcher\` must be auto, mpirun, srun or horovodrun. Received: ${launcher@Q}." ;;
  esac
}

horovod_has_mpi() {
  local library
  library=$("$python" - <<'PYTHON'
import importlib.util
import pathlib

horovod = importlib.util.find_spec("horovod")
folder = pathlib.Path(horovod.origin).parent / "tensorflow" if horovod else pathlib.Path("absent")
print(next(folder.glob("mpi_lib*.so"), ""))
PYTHON
  ) && [ -n "$library" ] && ldd "$library" | grep -q libmpi
}

# start COMMAND...: starts the command on every rank, in the background. Sets child, and with
# horovodrun rank_0, a file with the process id of rank 0.
start() {
  case $launcher in
    none) "$@" & ;;
    mpirun) mpirun -np "$ranks" "${binding[@]}" "${mpirun_options[@]}" "$@" & ;;
    srun)
      srun --ntasks="$ranks" --cpus-per-task="$cores" --kill-on-bad-exit=1 "${srun_options[@]}" \
        "$@" &
      ;;
    horovodrun)
      rank_0=$(mktemp) || die "\`TMPDIR\` must be a writable folder."
      # shellcheck disable=SC2016  # expanded by the shell of each rank
      "$python" -m horovod.runner.launch -np "$ranks" --gloo bash -c \
        '[ "$HOROVOD_RANK" != 0 ] || echo $$ >"$0"; exec "$@"' "$rank_0" "$@" &
      ;;
  esac
  child=$!
}

# ---- the start of every job -------------------------------------------------------------------

. slurm/site.sh
set -u # only now, because modules use unset variables
read_job
choose_launcher
