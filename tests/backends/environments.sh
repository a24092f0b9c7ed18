#!/usr/bin/env bash
# Creates an environment without TensorFlow for each of Keras' other backends: build/backends/jax
# and build/backends/torch. Keeps one that these pins made. The tests of tests/backends run in them.
#
# A backend that cannot be installed costs a line and not the others. PyTorch is installed only if
# the build that pip would choose needs no CUDA, since those packages are several GB.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
pins=(-c install/constraints.txt -c tests/backends/constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK=1

main() {
  mkdir -p build/backends
  local backend
  for backend in jax torch; do
    create "$backend"
  done
}

create() {
  local backend=$1 folder=build/backends/$1 log=build/backends/$1.log
  if [ "$(cat "$folder/made-with" 2>/dev/null)" = "$(wanted)" ]; then
    return
  fi
  rm -rf "$folder"
  if [ "$backend" = torch ] && needs_cuda; then
    echo "note: the PyTorch that pip would install needs CUDA, several GB. Let pip find a CPU" \
      "build to test the network on PyTorch; until then these tests are skipped."
    return
  fi
  echo "Creating $folder, about a minute; the log is $log."
  if ! {
    "$python" -m venv --without-pip "$folder" &&
      # Only what is imported is compiled, when it is: that halves the time.
      "$python" -m pip --python "$folder/bin/python" install --no-compile "${pins[@]}" \
        "$backend" keras h5py deflate nvidia-ml-py numpy pytest hypothesis tqdm
  } >"$log" 2>&1; then
    rm -rf "$folder"
    echo "note: $backend could not be installed; the tests of the network on it are skipped. The" \
      "end of $log: $(tail -n 1 "$log")"
    return
  fi
  wanted >"$folder/made-with"
}

# Prints a hash of everything that an environment depends on.
wanted() {
  {
    echo "$PWD"
    "$python" --version
    cat install/constraints.txt tests/backends/constraints.txt tests/backends/environments.sh
  } | sha256sum
}

# True if the PyTorch that pip would choose requires packages of CUDA.
needs_cuda() {
  "$python" -m pip install --quiet --dry-run --ignore-installed --no-deps --report - \
    "${pins[@]}" torch 2>build/backends/torch.log | grep -q '"nvidia-\|"cuda-\|"triton'
}

main
