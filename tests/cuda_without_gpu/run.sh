#!/usr/bin/env bash
# Runs a program that was built with CUDA on a machine without a GPU, with the driver that is written down in driver.cpp beside this.
#
#   cargo test --release --features cuda --no-run --lib           (a toolkit: scripts/cuda-toolkit.sh)
#   tests/cuda_without_gpu/run.sh target/release/deps/sd_gen-… ops::cuda::tests
#
# It is slow: every thread of every kernel is run by itself.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
libraries=${CUDA_WITHOUT_GPU:-${TMPDIR:-/tmp}/sd-gen-cuda-without-gpu}
mkdir -p "$libraries"
if [ ! -e "$libraries/libcuda.so.1" ] || [ -n "$(find "$here" "$here/../../src/ops/cuda/kernels" -newer "$libraries/libcuda.so.1" -type f)" ]; then
    "${CXX:-g++}" -std=c++17 -O2 -w -fPIC -shared -DSD_GEN_EMULATE "$here/driver.cpp" -o "$libraries/libcuda.so.1"
    for name in libcublas.so.13 libcublasLt.so.13 libcurand.so.10; do
        ln -sf libcuda.so.1 "$libraries/$name"
    done
fi
LD_LIBRARY_PATH=$libraries SD_GEN_TEST_SMALL=1 exec "$@"
