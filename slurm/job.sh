# What the batch scripts share. Each sources it in the repository, where sbatch starts a job.
#
# Sets: job (its id for scontrol), run_name, restarts, nodes, ranks, cores (of a rank), and what
# slurm/site.sh sets.
# shellcheck shell=bash disable=SC2154

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# ---- the warning before the end ---------------------------------------------------------------
# Slurm sends USR1 some time before the end (#SBATCH --signal), and TERM with the end itself. Ranks
# save at USR1; mpirun would kill them at TERM.

status=0 signals=0 warned="" child="" rank_0=""
trap 'warned=${warned:-USR1}; hand_on' USR1
trap 'warned=TERM; hand_on' TERM

hand_on() {
  local rank
  signals=$((signals + 1))
  if [ -z "$rank_0" ]; then
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null
    return
  fi
  # horovodrun would give the ranks five seconds. One rank that is told tells the others.
  rank=$(cat -- "$rank_0")
  if [ -n "$rank" ]; then kill -USR1 "$rank"; else kill -TERM "$child"; fi 2>/dev/null
}

# on_all_ranks COMMAND...: runs it to its end. Sets status.
on_all_ranks() {
  printf '%s: ranks %s, nodes %s (%s), cores a rank %s, launcher %s, restart %s\n' "$job" \
    "$ranks" "$nodes" "${SLURM_JOB_NODELIST:-?}" "$cores" "$launcher" "$restarts"
  start "$@"
  [ -z "$warned" ] || hand_on # it came before there was anything to hand it on to
  local seen=-1
  until [ "$seen" = "$signals" ]; do # a signal cuts `wait` short
    seen=$signals
    wait "$child"
    status=$?
  done
  [ -z "$rank_0" ] || rm -f -- "$rank_0"
  child="" rank_0=""
}

# Ends the job with the command's status. A run that was warned, and one that Slurm pre-empts, goes
# back to the queue, though not when it was cancelled.
end() {
  if [ "$status" = 0 ] || [ "$status" = 2 ] || [ "$warned" = TERM ]; then
    exit "$status"
  fi
  [ "$status" = 75 ] || [ "$warned" = USR1 ] || is_preempted || exit "$status"
  if [ "$restarts" -ge "$max_requeues" ]; then
    echo "$job: requeued $restarts times, the limit; go on with the same command and --resume" >&2
  else
    echo "$job: interrupted with status $status, goes back to the queue"
    scontrol requeue "$job" && sleep 60 # until Slurm ends this script
  fi
  exit 75
}

# A pre-empted job has some time left. Its steps, and with them mpirun's daemons on other nodes, get
# TERM at once, this script only where Slurm has preempt_send_user_signal.
is_preempted() {
  [[ $(scontrol --oneliner show job "$job") =~ PreemptTime=[0-9] ]]
}

# ---- what Slurm tells of the job --------------------------------------------------------------

# read_number TARGET VARIABLE DEFAULT: what enters arithmetic must be a number, because bash would
# run a command that stands in its place.
read_number() {
  local value=${!2:-$3}
  [[ $value =~ ^[0-9]{1,9}$ ]] || die "\`$2\` must be a whole number. Received: ${value@Q}."
  printf -v "$1" %d "$((10#$value))"
}

read_job() {
  local array task tasks per_node
  read_number max_requeues max_requeues 20
  read_number job SLURM_JOB_ID 0
  [ "$job" -gt 0 ] || die "this script is for sbatch. Received: no SLURM_JOB_ID."
  # shellcheck disable=SC2034  # for train.sbatch
  run_name=slurm-$job
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read_number array SLURM_ARRAY_JOB_ID "$job"
    read_number task SLURM_ARRAY_TASK_ID 0
    job=${array}_$task # the number of an array alone would mean all its tasks
  fi
  read_number restarts SLURM_RESTART_COUNT 0
  read_number nodes SLURM_JOB_NUM_NODES 1
  # As many ranks as sbatch was told, else one a GPU, else one a node.
  read_number per_node SLURM_GPUS_ON_NODE 1
  if [ -n "${SLURM_NTASKS:-}" ]; then
    read_number ranks SLURM_NTASKS 1
    tasks=${SLURM_TASKS_PER_NODE:-$ranks} # as 2(x3),1
    tasks=${tasks%%[!0-9]*}
    read_number per_node tasks 1
  else
    ranks=$((nodes * per_node))
    # For Open MPI, whose slots these are.
    export SLURM_TASKS_PER_NODE="$per_node(x$nodes)"
  fi
  ((ranks >= nodes && nodes > 0 && per_node > 0)) ||
    die "\`--ntasks\` must be the number of nodes at least. Received: $ranks ranks, $nodes nodes."
  # Threads for the cores of a rank: without this each rank starts as many as the node has cores.
  read_number cores SLURM_CPUS_ON_NODE 1
  cores=$((cores / per_node))
  read_number cores SLURM_CPUS_PER_TASK "$((cores > 1 ? cores : 1))"
  export OMP_NUM_THREADS=$cores TF_NUM_INTRAOP_THREADS=$cores PYTHONUNBUFFERED=1
  choose_binding "$per_node"
}

# Several ranks on a node are kept to cores of their own where that can be told: no GPU (its rank
# belongs near it), and as many processors in sight as Slurm gave.
choose_binding() {
  local processors
  binding=(--bind-to none)
  read_number processors SLURM_CPUS_ON_NODE 0
  if [ "$1" -gt 1 ] && [ "$ranks" = $(($1 * nodes)) ] && [ $(($1 * cores)) -le "$processors" ] &&
    [ "$processors" = "$(env -u OMP_NUM_THREADS nproc)" ] && [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
    binding=(--use-hwthread-cpus --map-by "ppr:$1:node:PE=$cores" --bind-to hwthread)
  fi
}

# ---- how the ranks are started ----------------------------------------------------------------

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
        "needs ssh. Received: horovodrun, $nodes nodes; \`make install\` builds Horovod with MPI" \
        "where mpicxx is on PATH, slurm/site.sh names the launcher."
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

# start COMMAND...: starts it on every rank, in the background.
start() {
  case $launcher in
    none) "$@" & ;;
    mpirun) mpirun -np "$ranks" "${binding[@]}" "${mpirun_options[@]}" "$@" & ;;
    srun)
      srun --ntasks="$ranks" --cpus-per-task="$cores" --kill-on-bad-exit=1 "${srun_options[@]}" \
        "$@" &
      ;;
    horovodrun)
      rank_0=$(mktemp) || die "\`TMPDIR\` must be a folder that can be written."
      # shellcheck disable=SC2016  # for the shell of each rank
      "$python" -m horovod.runner.launch -np "$ranks" --gloo bash -c \
        '[ "$HOROVOD_RANK" != 0 ] || echo $$ >"$0"; exec "$@"' "$rank_0" "$@" &
      ;;
  esac
  child=$!
}

# ---- at the start of a job --------------------------------------------------------------------

. slurm/site.sh
set -u # not before: modules use what is not set
read_job
choose_launcher
