#!/usr/bin/env bash
# Installs Horovod 0.28.1 beside the TensorFlow of an environment.
#
#   install/horovod.sh            builds it from its sdist with our patch, or takes the wheel of an
#                                 earlier build from the user's cache
#   install/horovod.sh --check    says whether the tools for that are there
#
# PYTHON is the environment's Python (default: .venv/bin/python). HOROVOD_* variables decide the
# build as Horovod documents them; HOROVOD_GPU_OPERATIONS=NCCL makes a GPU build, with the nvcc of
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
      "The whole log: $log"
  keep "$wheel" "$cache"
  echo "Horovod $version is built and installed."
}

check_tools() {
  local missing=()
  command -v "${CXX:-g++}" >/dev/null || missing+=("${CXX:-g++}")
  command -v make >/dev/null || missing+=(make)
  command -v patch >/dev/null || command -v git >/dev/null || missing+=(patch)
  [ ${#missing[@]} = 0 ] ||
    die "building Horovod needs ${missing[*]}, which PATH does not have. On Debian or Ubuntu:" \
      "sudo apt-get install ${missing[*]}. Without Horovod, for one process:" \
      "pip install -e '.[cpu]' in an environment of your own."
}

# Sets `tensorflow` to what a wheel depends on: Python, machine, TensorFlow's distribution.
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
  ) || die "Horovod is built for the TensorFlow that is installed, and $python has none." \
    "\`make install\` does it all in order."
}

choose_features() {
  # What the user sets passes through, also as a part of the key of the cache.
  chosen=$(env | grep '^HOROVOD_' | sort || true)
  export HOROVOD_WITH_TENSORFLOW=${HOROVOD_WITH_TENSORFLOW-1}
  export HOROVOD_WITHOUT_PYTORCH=${HOROVOD_WITHOUT_PYTORCH-1}
  export HOROVOD_WITHOUT_MXNET=${HOROVOD_WITHOUT_MXNET-1}
  export HOROVOD_WITH_GLOO=${HOROVOD_WITH_GLOO-1}
  mpi=none
  if command -v mpicxx >/dev/null; then
    mpi=$(mpicxx -show 2>&1; mpirun --version 2>&1 | head -n 3 || true)
  elif [ -z "${HOROVOD_WITH_MPI:-}" ]; then
    export HOROVOD_WITHOUT_MPI=1  # libraries without a compiler wrapper are of no use
  fi
  nvcc=none nccl=none
  if [ "${HOROVOD_GPU_OPERATIONS:-}" = NCCL ]; then
    find_cuda
    find_nccl
  fi
}

find_cuda() {
  local how="Set HOROVOD_CUDA_HOME to a toolkit of CUDA 12, which TensorFlow is built for."
  if [ -n "${HOROVOD_CUDA_HOME:-}" ]; then
    nvcc=$HOROVOD_CUDA_HOME/bin/nvcc
    [ -x "$nvcc" ] || die "HOROVOD_CUDA_HOME=$HOROVOD_CUDA_HOME holds no bin/nvcc. $how"
    nvcc=$("$nvcc" --version)
    return
  fi
  command -v nvcc >/dev/null || die "a GPU build needs nvcc, which PATH does not have. $how"
  nvcc=$(nvcc --version)
  [[ $nvcc == *"release 12."* ]] ||
    die "the nvcc of PATH is of $(grep -o 'release [0-9.]*' <<<"$nvcc"). $how"
  # nvcc on PATH may be a link or a wrapper; it knows its own folder.
  HOROVOD_CUDA_HOME=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
  export HOROVOD_CUDA_HOME
}

find_nccl() {
  # Horovod would ask whichever nvcc is first on PATH.
  export HOROVOD_BUILD_CUDA_CC_LIST=${HOROVOD_BUILD_CUDA_CC_LIST:-70,80,90}
  [ -z "${HOROVOD_NCCL_HOME:-}" ] || return 0
  HOROVOD_NCCL_HOME=$("$python" -c \
    'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>>"$log") ||
    die "a GPU build needs NCCL, which is not installed. \`make install EXTRA=gpu\` brings it;" \
      "or set HOROVOD_NCCL_HOME."
  export HOROVOD_NCCL_HOME
  nccl=$("$python" -c 'from importlib.metadata import version; print(version("nvidia-nccl-cu12"))')
  # The linker looks for this name, which wheels do not carry; at run time the library is found in
  # the same environment, wherever that is.
  ln -sf libnccl.so.2 "$HOROVOD_NCCL_HOME/lib/libnccl.so"
  export LDFLAGS="${LDFLAGS:-} -Wl,-rpath,'\$ORIGIN/../../nvidia/nccl/lib'"
}

key() {
  local hash
  hash=$(printf '%s\n' "$tensorflow" "$mpi" "$chosen" "$nvcc" "$nccl" |
    cat - "$here/horovod.sh" "$here/horovod-$version.patch" | sha256sum | cut -c 1-16)
  printf '%s-%s' "$tensorflow" "$hash"
}

# Fails where the wheel cannot be loaded, so that a stale one is built anew.
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
  ) >>"$log" 2>&1 || failed "our patch does not fit Horovod's sources"
  find_cmake
  # A MAKEFLAGS that make left in the environment would make this a build on one core.
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
  export CMAKE_POLICY_VERSION_MINIMUM=3.5  # for CMake 4; Gloo's own files ask for 2.8
  if command -v cmake >/dev/null || [ -n "${HOROVOD_CMAKE:-}" ]; then
    return
  fi
  "$python" -m pip install -c "$here/constraints.txt" --target "$work/cmake" cmake >>"$log" 2>&1 ||
    failed "pip could not install cmake; sudo apt-get install cmake is another way"
  export HOROVOD_CMAKE=$work/cmake/cmake/data/bin/cmake
}

# A core each, 8 at most: a compiler takes up to 2 GB here.
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
  die "$reason. The lines above are from $log; when its cause is mended, run the same command again."
}

# The cache holds whole wheels only.
keep() {
  mkdir -p "$2" && cp "$1" "$2/.$$" && mv "$2/.$$" "$2/$(basename "$1")" ||
    echo "note: the wheel could not be kept in $2; the next set-up builds it again." >&2
}

main "$@"
