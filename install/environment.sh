#!/usr/bin/env bash
# Creates .venv with the pinned packages and Horovod. Does nothing if that is already done.
#
#   PYTHON     the Python to create it from (default: the first of 3.10 to 3.13 on PATH, beginning
#              with 3.11)
#   EXTRA      cpu (default), gpu, or volta for GPUs before Turing, such as V100
#   HOROVOD_*  Horovod's build variables
#
# These choices are remembered, so a later `make test` keeps a GPU environment.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=build/install.log
remembered=.venv/set-up-with
stamp=.venv/set-up-done
build_variables='PYTHON|EXTRA|HOROVOD_(WITH|WITHOUT|GPU|CPU_OPERATIONS|CUDA|NCCL|ROCM|BUILD|ALLOW|CMAKE)[A-Z_]*'
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

main() {
  if [ -z "$(chosen)" ] && [ -f "$remembered" ]; then
    # shellcheck source=/dev/null
    . "$remembered"
  fi
  export EXTRA=${EXTRA:-cpu}
  [[ $EXTRA =~ ^(cpu|gpu|volta)$ ]] || die "EXTRA must be cpu, gpu or volta. Received: $EXTRA."
  local wanted
  wanted=$(wanted)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return
  fi
  bash install/horovod.sh --check
  check_space
  mkdir -p build
  rm -f "$stamp"
  make_environment
  install_packages
  PYTHON=$PWD/.venv/bin/python bash install/horovod.sh
  export -p | grep -E "^declare -x ($build_variables)=" >"$remembered"
  printf '%s\n' "$wanted" >"$stamp"
}

chosen() {
  env | grep -E "^($build_variables)=" | sort || true
}

# Prints a hash of everything that the environment depends on.
wanted() {
  {
    echo "$PWD"
    chosen
    cat setup.py install/*
  } | sha256sum
}

check_space() {
  local free_kib need_gb=4
  [ "$EXTRA" = cpu ] || need_gb=12
  free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -ge $((need_gb * 1000000)) ] ||
    die "setup needs $need_gb GB on the disk of $PWD, and $((free_kib / 1000)) MB are free." \
      "Make room there, or clone to another disk."
}

make_environment() {
  ! usable || return 0
  local python
  python=$(choose_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install" \
      "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  "$python" -m venv --clear .venv
}

# True if .venv runs, was created in this folder from the requested Python, and does not have the
# other TensorFlow distribution: tensorflow and tensorflow-cpu install into the same folder.
usable() {
  supported .venv/bin/python && grep -qF "$PWD/.venv" .venv/bin/activate || return 1
  [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of .venv/bin/python)" ] || return 1
  local other=tensorflow
  [ "$EXTRA" = cpu ] || other=tensorflow-cpu
  ! .venv/bin/python -c "import importlib.metadata as m; m.version('$other')" 2>/dev/null
}

choose_python() {
  local rule="keras_nowcast needs Python 3.10 to 3.13"
  local how="On Debian or Ubuntu: sudo apt-get install python3 python3-venv; or choose one:"
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || die "$rule. Received: PYTHON=$PYTHON, $(version_of "$PYTHON")."
    echo "$PYTHON"
    return
  fi
  local each
  for each in python3.11 python3 python3.12 python3.13 python3.10; do
    if supported "$each"; then
      echo "$each"
      return
    fi
  done
  die "$rule; PATH has none (python3: $(version_of python3)). $how make install PYTHON=..."
}

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

version_of() {
  "$1" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null ||
    echo "which does not run"
}

install_packages() {
  local python=.venv/bin/python extras=${EXTRA/volta/gpu},dev,tensorboard
  if [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
    extras=$extras,baselines
  else
    echo "note: Python's headers are missing (python3-dev). pysteps is not installed, and the" \
      "tests that compare with it are skipped."
  fi
  echo "Installing TensorFlow and the other packages: 1 to 3 minutes; the log is $log."
  {
    "$python" -m pip install -c install/constraints.txt pip setuptools wheel &&
      "$python" -m pip install -c install/constraints.txt -e ".[$extras]" &&
      { [ "$EXTRA" != volta ] || "$python" -m pip install -r install/volta.txt; }
  } >"$log" 2>&1 || failed
}

failed() {
  local reason="pip could not install the packages"
  ! grep -q 'No space left on device' "$log" || reason="$reason: the disk is full"
  tail -n 8 "$log" | sed 's/^/  | /' >&2
  die "$reason. The lines above are from $log; fix the cause and run the same command again."
}

main "$@"
