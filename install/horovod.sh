#!/usr/bin/env bash
# Installs Horovod 0.28.1 for the TensorFlow of an environment.
#
#   install/horovod.sh            builds Horovod from its source distribution with this project's
#                                 patch, or takes the wheel of an earlier build from the user cache
#   install/horovod.sh --check    only checks that the tools for the build are on PATH
#
# PYTHON is the environment's Python (default: .venv/bin/python). HOROVOD_* variables control the
# build as Horovod documents them. HOROVOD_GPU_OPERATIONS=NCCL makes a GPU build, with the nvcc of
# HOROVOD_CUDA_HOME or of PATH and the NCCL of tensorflow[and-cuda].
set -euo pipefail

version=0.28.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
log=$here/../build/horovod.log
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

main() {
  check_tools
  [ "${1:-}" != --check ] || exit 0
  mkdir -p "$(dirname "$log")"
  : >"$log"
  find_tensorflow
  choose_features

  local cache wheel
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/keras_nowcast/horovod/$(key)
  wheel=$(find "$cache" -name '*.whl' 2>/dev/null || true)
  if [ -n "$wheel" ] && install_wheel "$wheel"; then
    echo "Horovod $version is installed, from $cache."
    return
  fi
  build_wheel
  wheel=$(find "$work/wheel" -name '*.whl')
  install_wheel "$wheel" ||
    die "Horovod was built, but could not be installed or loaded: $(tail -n 1 "$log")" \
      "The complete log: $log"
  keep "$wheel" "$cache"
  echo "Horovod $version is built and installed."
}

check_tools() {
  local missing=()
  command -v "${CXX:-g++}" >/dev/null || missing+=("${CXX:-g++}")
  command -v make >/dev/null || missing+=(make)
  command -v patch >/dev/null || command -v git >/dev/null || missing+=(patch)
  [ ${#missing[@]} = 0 ] ||
    die "building Horovod needs ${missing[*]}, not found on PATH. On Debian or Ubuntu:" \
      "sudo apt-get install ${missing[*]}. To use one process without Horovod:" \
      "pip install -e '.[cpu]' in a separate environment."
}

# Sets `tensorflow` to the versions that a wheel depends on: Python, TensorFlow's distribution, and
# the machine type.
find_tensorflow() {
  tensorflow=$("$python" - 2>>"$log" <<'PYTHON'
import platform, sys
from importlib.metadata import PackageNotFoundError, version

for name in ("tensorflow-cpu", "tensorflow"):
    try:
        print(f"py{sys.version_info[0]}{sys.version_info[1]}-{name}-{version(name)}", end="-")
        print(platform.machine())
        break
    except PackageNotFoundError:
        pass
else:
    sys.exit("no TensorFlow")
PYTHON
  ) || die "building Horovod needs an installed TensorFlow, and $python has none." \
    "\`make install\` installs both in order."
}

choose_features() {
  # Variables that the user sets take precedence, and are part of the cache key.
  chosen=$(env | grep '^HOROVOD_' | sort || true)
  export HOROVOD_WITH_TENSORFLOW=${HOROVOD_WITH_TENSORFLOW-1}
  export HOROVOD_WITHOUT_PYTORCH=${HOROVOD_WITHOUT_PYTORCH-1}
  export HOROVOD_WITHOUT_MXNET=${HOROVOD_WITHOUT_MXNET-1}
  export HOROVOD_WITH_GLOO=${HOROVOD_WITH_GLOO-1}
  mpi=none
  if command -v mpicxx >/dev/null; then
    mpi=$(mpicxx -show 2>&1; mpirun --version 2>&1 | head -n 3 || true)
  elif [ -z "${HOROVOD_WITH_MPI:-}" ]; then
    export HOROVOD_WITHOUT_MPI=1  # MPI libraries without a compiler wrapper are unusable
  fi
  nvcc=none nccl=none
  if [ "${HOROVOD_GPU_OPERATIONS:-}" = NCCL ]; then
    find_cuda
    find_nccl
  fi
}

find_cuda() {
  local how="Set HOROVOD_CUDA_HOME to a CUDA 12 toolkit; TensorFlow is built for CUDA 12."
  if [ -n "${HOROVOD_CUDA_HOME:-}" ]; then
    nvcc=$HOROVOD_CUDA_HOME/bin/nvcc
    [ -x "$nvcc" ] || die "HOROVOD_CUDA_HOME=$HOROVOD_CUDA_HOME has no bin/nvcc. $how"
    nvcc=$("$nvcc" --version)
    return
  fi
  command -v nvcc >/dev/null || die "a GPU build needs nvcc, not found on PATH. $how"
  nvcc=$(nvcc --version)
  [[ $nvcc == *"release 12."* ]] ||
    die "a GPU build needs nvcc of CUDA 12. Received: the nvcc on PATH," \
      "$(grep -o 'release [0-9.]*' <<<"$nvcc"). $how"
  # nvcc on PATH may be a link or a wrapper, so ask it for its folder.
  HOROVOD_CUDA_HOME=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
  export HOROVOD_CUDA_HOME
}

find_nccl() {
  # Without this list, Horovod asks the first nvcc on PATH.
  local capabilities=70,80,90
  [[ ! $nvcc =~ release\ (1[3-9]|[2-9][0-9])\. ]] || capabilities=80,90 # they do not know Volta
  export HOROVOD_BUILD_CUDA_CC_LIST=${HOROVOD_BUILD_CUDA_CC_LIST:-$capabilities}
  [ -z "${HOROVOD_NCCL_HOME:-}" ] || return 0
  HOROVOD_NCCL_HOME=$("$python" -c \
    'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>>"$log") ||
    die "a GPU build needs NCCL, which is not installed. Run \`make install EXTRA=gpu\`, which" \
      "includes it, or set HOROVOD_NCCL_HOME."
  export HOROVOD_NCCL_HOME
  nccl=$("$python" -c 'from importlib.metadata import version; print(version("nvidia-nccl-cu12"))')
  # The linker needs this file name, which the wheel of NCCL does not have. At run time the relative
  # path finds the library in the same environment, wherever that is.
  ln -sf libnccl.so.2 "$HOROVOD_NCCL_HOME/lib/libnccl.so"
  export LDFLAGS="${LDFLAGS:-} -Wl,-rpath,'\$ORIGIN/../../nvidia/nccl/lib'"
}

key() {
  local hash
  hash=$(printf '%s\n' "$tensorflow" "$mpi" "$chosen" "$nvcc" "$nccl" |
    cat - "$here/horovod.sh" "$here/horovod-$version.patch" | sha256sum | cut -c 1-16)
  printf '%s-%s' "$tensorflow" "$hash"
}

# Fails if the wheel cannot be loaded, so that an outdated one is built again.
install_wheel() {
  {
    "$python" -m pip install --force-reinstall --no-deps "$1" &&
      "$python" -m pip install -c "$here/constraints.txt" "horovod==$version" &&
      (cd / && "$python" -c 'import horovod.tensorflow')
  } >>"$log" 2>&1
}

build_wheel() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  check_space "$work"
  echo "Building Horovod $version: 3 minutes on 2 cores; the log is build/horovod.log."
  "$python" -m pip download --no-deps --no-binary :all: --no-build-isolation -d "$work" \
    "horovod==$version" >>"$log" 2>&1 || failed "pip could not download Horovod's sources"
  tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
  (
    cd "$work/horovod-$version"
    if command -v patch >/dev/null; then
      patch -p1 <"$here/horovod-$version.patch"
    else
      GIT_CEILING_DIRECTORIES=$work git apply "$here/horovod-$version.patch"
    fi
  ) >>"$log" 2>&1 || failed "this project's patch does not fit Horovod's sources"
  find_cmake
  # MAKEFLAGS inherited from `make install` would limit this build to one core.
  MAKEFLAGS=-j$(jobs_at_once) "$python" -m pip wheel --no-deps --no-build-isolation \
    -w "$work/wheel" "$work/horovod-$version" >>"$log" 2>&1 || failed "Horovod could not be built"
}

check_space() {
  local free_kib
  free_kib=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -ge 1000000 ] ||
    die "building Horovod needs 1 GB in the folder for temporary files, and $((free_kib / 1000))" \
      "MB are free. Make room, or set TMPDIR to a folder on another disk."
}

find_cmake() {
  export CMAKE_POLICY_VERSION_MINIMUM=3.5  # CMake 4 needs it, because Gloo's files request 2.8
  if command -v cmake >/dev/null || [ -n "${HOROVOD_CMAKE:-}" ]; then
    return
  fi
  "$python" -m pip install -c "$here/constraints.txt" --target "$work/cmake" cmake >>"$log" 2>&1 ||
    failed "pip could not install cmake; sudo apt-get install cmake works too"
  export HOROVOD_CMAKE=$work/cmake/cmake/data/bin/cmake
}

# Prints the number of parallel compilations: one per core, at most 8, since each takes up to 2 GB.
jobs_at_once() {
  local cores
  cores=$(nproc)
  echo $((cores < 8 ? cores : 8))
}

failed() {
  local reason=$1
  ! grep -q 'No space left on device' "$log" || reason="$reason: the disk is full"
  {
    grep -i -m 5 'error' "$log" || true
    echo ...
    tail -n 5 "$log"
  } | sed 's/^/  | /' >&2
  die "$reason. The lines above are from $log; fix the cause and run the same command again."
}

# Copies a wheel to the cache. It gets its name last, so the cache holds complete wheels only.
keep() {
  mkdir -p "$2" && cp "$1" "$2/.$$" && mv "$2/.$$" "$2/$(basename "$1")" ||
    echo "note: the wheel could not be stored in $2; the next setup builds it again." >&2
}

main "$@"
