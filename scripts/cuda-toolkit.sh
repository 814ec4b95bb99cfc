#!/usr/bin/env bash
# A CUDA toolkit to build with, where there is none: the compiler from Python packages, no GPU and no root needed (about 300 MB).
#
#   eval "$(bash scripts/cuda-toolkit.sh [DIR])"        DIR: where to put it [default: ~/.cache/sd-gen/cuda-13.0]
#   cargo build --release --features cuda
#
# The libraries beside it are empty: the program looks for CUDA's libraries when it runs, and the linker only wants to see their names.
# Prints export lines on standard output and everything else on standard error. Wants python3 with pip, and cc.
set -euo pipefail
dir=${1:-$HOME/.cache/sd-gen/cuda-13.0}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
packages="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"

if [ "$(cat "$dir/packages" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$dir/site"
    # shellcheck disable=SC2086 # the packages are words
    "${PYTHON:-python3}" -m pip install -q --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
        --root-user-action=ignore --target "$dir/site" $packages >&2
    echo "$packages" >"$dir/packages"
fi
toolkit=$dir/site/nvidia/cu13
mkdir -p "$toolkit/lib/stubs"
ln -sfn lib "$toolkit/lib64"
ln -sf libcudart.so.13 "$toolkit/lib/libcudart.so"
for library in cuda:1 cublas:13 cublasLt:13 curand:10 nvrtc:13; do
    name=lib${library%:*}.so
    echo 'static int empty __attribute__((unused));' |
        "${CC:-cc}" -shared -fPIC -nostdlib -x c - -Wl,-soname,"$name.${library#*:}" -o "$toolkit/lib/stubs/$name"
done
"$toolkit/bin/nvcc" --version | grep release >&2
cat <<X
export CUDA_HOME='$toolkit'
export CUDA_PATH='$toolkit'
export PATH='$toolkit/bin':"\$PATH"
export CUDA_COMPUTE_CAP=80
export CUDARC_CUDA_VERSION=13000
export NVCC_APPEND_FLAGS='-w -Xfatbin=-compress-all'
X
