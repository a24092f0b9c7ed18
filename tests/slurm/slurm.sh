#!/usr/bin/env bash
# Tests the batch scripts on a real Slurm of two nodes, which this script starts and stops. Needs
# root, and installs missing Debian packages. Prints one line per check; exits with 1 if one failed.
#
#     tests/slurm/slurm.sh            with .venv, or the Python that KERAS_NOWCAST_PYTHON names
#
# Every path contains spaces, quotes, semicolons, a newline and commands.
# shellcheck disable=SC2016  # the commands in the paths are in single quotes
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$here/../..
# shellcheck source=tests/slurm/slurm_cluster.bash
. "$here/slurm_cluster.bash"

passed=0 failed=0

check() {
  local name=$1
  shift
  if "$@" >"$scratch/check.out" 2>&1; then
    passed=$((passed + 1))
    echo "ok      $name"
  else
    failed=$((failed + 1))
    echo "FAILED  $name ($*)"
    tail -n 20 "$scratch/check.out"
    [ ! -f "${log:-}" ] || tail -n 30 "$log" | sed 's/^/  | /'
  fi
}

# ---- jobs -------------------------------------------------------------------------------------

# submit WORDS...: submits a job with these arguments of sbatch. Sets job and log.
submit() {
  local word
  job=$(sbatch --parsable "$@") || return 1
  for word; do
    [[ $word != slurm/*.sbatch ]] || log=slurm/logs/$(basename "$word" .sbatch)-$job.log
  done
}

state() {
  scontrol --oneliner show job "$1" | grep -o 'JobState=[A-Z_]*' | cut -d= -f2
}

restarts() {
  scontrol --oneliner show job "$1" | grep -o 'Restarts=[0-9]*' | cut -d= -f2
}

is_over() {
  [[ $(state "$1") =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY)$ ]]
}

# ends JOB STATE EXIT: waits for the job's end; true if it ended in this state with this exit code.
ends() {
  within 240 is_over "$1"
  [ "$(state "$1")" = "$2" ] && scontrol --oneliner show job "$1" | grep -q "ExitCode=$3 "
}

# trains_after JOB RESTARTS: true if the job runs after this many requeues and has since finished an
# epoch.
trains_after() {
  [ "$(restarts "$1")" = "$2" ] && [ "$(state "$1")" = RUNNING ] &&
    sed -n "/restart $2\$/,\$p" "$log" | grep -q 'epoch [0-9]*/'
}

warn() {
  scancel --signal=USR1 --batch "$1"
}

# ---- the checks -------------------------------------------------------------------------------

pack_data() {
  submit -c 2 slurm/make_dataset.sbatch --data "$data" --grid 16 --out "$packed"
  check "make_dataset packs by sbatch" ends "$job" COMPLETED 0:0
  check "  its checksums hold" "$python" experiments/make_dataset.py --verify "$packed"
  submit slurm/make_dataset.sbatch --data "$data" --layout authors --out "$scratch/in out"
  check "  also as IN and OUT" ends "$job" COMPLETED 0:0
}

refuse() {
  submit slurm/train.sbatch --data "$data/absent"
  check "bad input ends with 2 and is not requeued" ends "$job" FAILED 2:0
  check "  with a one-line error" grep -q '^error: `--data` must be a folder' "$log"
  submit -N 2 -n 2 --export=ALL,KERAS_NOWCAST_LAUNCHER=horovodrun slurm/train.sbatch
  check "horovodrun on two nodes is refused" ends "$job" FAILED 2:0
  submit --export='ALL,KERAS_NOWCAST_MAX_REQUEUES=a[$(touch injected)]' slurm/train.sbatch
  check "an invalid number is refused" ends "$job" FAILED 2:0
}

train() {
  run=$scratch/$odd.run
  submit -N 2 -n 2 slurm/train.sbatch --data "$packed" --run-dir "$run" "${tiny[@]}" --epochs 60
  check "train: two nodes, first epoch" within 240 trains_after "$job" 0
  warn "$job"
  check "  warned, requeued, resumes" within 240 trains_after "$job" 1
  warn "$job"
  check "  a second time" within 240 trains_after "$job" 2
  check "  completes" ends "$job" COMPLETED 0:0
  check "  resumed, not started from scratch" [ "$(grep -c '^resuming in epoch' "$log")" = 2 ]
  check "  each epoch once" [ "$(grep -o '^epoch [0-9]*' "$log" | sort | uniq -d | wc -l)" = 0 ]
  check "  the record joins with sacct" "$python" "$here/slurm_join.py" "$run" "$job" 3
}

stop_gloo() {
  submit -N 1 -n 2 --export=ALL,KERAS_NOWCAST_LAUNCHER=horovodrun,KERAS_NOWCAST_MAX_REQUEUES=0 \
    slurm/train.sbatch --data "$packed" "${tiny[@]}" --epochs 500
  check "train: one node, Gloo, first epoch" within 240 trains_after "$job" 0
  warn "$job"
  check "  at the limit of requeues it ends with 75" ends "$job" FAILED 75:0
  check "  saved" grep -q '"status": "interrupted"' "runs/slurm-$job/record.json"
}

preempt() {
  submit -c 2 slurm/train.sbatch --data "$packed" "${tiny[@]}" --epochs 500
  check "train: one rank, run folder named after the job" within 240 trains_after "$job" 0
  sbatch --parsable -p urgent -N 2 --exclusive -o /dev/null --wrap 'sleep 2' >/dev/null
  check "  preempted, resumes afterwards" within 240 trains_after "$job" 1
  check "  it had saved" grep -q '^interrupted' "$log"
  scontrol requeue "$job"
  check "  requeued without a warning, resumes" within 240 trains_after "$job" 2
  scancel "$job"
  check "  canceled, it stays canceled" ends "$job" CANCELLED '[0-9]*:[0-9]*'
  check "  one run folder" test -f "runs/slurm-$job/config.json"
}

evaluate() {
  submit -N 2 -n 2 slurm/evaluate.sbatch "$run"
  check "evaluate: two nodes" ends "$job" COMPLETED 0:0
  check "  scores" test -s "$run/scores.csv"
}

sweep() {
  local sweep=$scratch/$odd.sweep
  "$python" experiments/sweep.py --launcher slurm --sweep-dir "$sweep" --data "$packed" \
    "${tiny[@]}" --epochs 1 --filters 2 3 --np 1 2 >"$scratch/sweep.out" 2>&1
  check "sweep: one array per number of ranks" [ "$(grep -c '^job ' "$scratch/sweep.out")" = 2 ]
  check "  all cells complete" within 240 all_done "$sweep" 4
}

all_done() {
  [ "$(grep -l '"status": "completed"' "$1"/*/record.json | wc -l)" = "$2" ]
}

main() {
  [ "$(id -u)" = 0 ] || { echo "error: this script needs root" >&2 && exit 1; }
  install_packages || exit 1
  python=${KERAS_NOWCAST_PYTHON:-$repository/.venv/bin/python}
  [ -x "$python" ] || { echo "error: $python is missing; run make install" >&2 && exit 1; }
  scratch=$(mktemp -d)
  # Not named `folder`, because the trap may run while a function has a local of that name.
  trap 'stop_cluster "$scratch/cluster"; cd /; rm -rf "$scratch"' EXIT
  trap 'exit 130' INT TERM HUP
  odd=$'odd; touch injected\n$(touch injected) `touch injected` "\'& | *'
  local clone=$scratch/$odd.clone
  mkdir "$clone"
  cp -R "$repository"/{slurm,experiments,keras_nowcast} "$clone"
  cd "$clone" || exit 1
  data=$scratch/$odd.data packed=$scratch/$odd.packed
  tiny=(--depth 1 --filters 2 --batch-per-replica 4 --power-source none)
  export KERAS_NOWCAST_PYTHON=$python PYTHONPATH=$clone CUDA_VISIBLE_DEVICES=
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  start_cluster "$scratch/cluster" 2
  "$python" experiments/make_synthetic.py --root "$data" --events 12 --size 32 >/dev/null
  pack_data
  refuse
  train
  stop_gloo
  preempt
  evaluate
  sweep
  check "no command in a path was run" [ -z "$(find "$scratch" -name injected)" ]
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}

main "$@"
