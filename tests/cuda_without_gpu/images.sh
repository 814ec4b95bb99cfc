#!/usr/bin/env bash
# Whole images with the driver of driver.cpp: a recorded call (a CUDA graph) must not change a byte of them.
#
#   cargo build --release --features cuda         (a toolkit: scripts/cuda-toolkit.sh)
#   tests/cuda_without_gpu/images.sh target/release/sd-gen
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
sd_gen=$(realpath "$1")
models=$here/../data/parity
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export CUDA_WITHOUT_GPU_REPORT=1

# generate NAME MODEL FLAGS...: NAME-1.png and so on, and what was said in NAME.log.
generate() {
    local name=$1 model=$2
    shift 2
    mkdir "$out/$name"
    "$here/run.sh" "$sd_gen" --model "$models/$model" -p "a red apple" --seed 1 --size 32x32 --sampler euler --steps 3 --device cuda -v -o "$out/$name/{seed}.png" "$@" \
        >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; exit 1; }
}
played() { sed -n 's/^driver: .* and \([0-9]*\) played$/\1/p' "$out/$1.log"; }
# same A B LEAST MOST: the images of A and B are equal, and B played so many recorded calls.
same() {
    diff -r "$out/$1" "$out/$2"
    local count
    count=$(played "$2")
    [ "$count" -ge "$3" ] && [ "$count" -le "$4" ] || { echo "$2: $count calls were played"; cat "$out/$2.log"; exit 1; }
    echo "$2: as $1, $count calls were played"
}

for case in sd15-f16 sdxl-f32; do
    model=${case%-*} dtype=${case#*-}
    SD_GEN_CUDA_GRAPH=0 generate "$case-launched" "$model" --dtype "$dtype"
    same "$case-launched" "$case-launched" 0 0
    # Three calls, of which the first is not recorded.
    generate "$case" "$model" --dtype "$dtype"
    same "$case-launched" "$case" 2 2
done

# Three images, two at once: the last is another shape.
SD_GEN_CUDA_GRAPH=0 generate three-launched sd15 --images 3 --batch-size 2
generate three sd15 --images 3 --batch-size 2
same three-launched three 4 4

# The UNet leaves the GPU between the batches, and its weights come back elsewhere. Two GPUs, each with its own.
SD_GEN_CUDA_GRAPH=0 generate alone-launched sd15 --images 2 --batch-size 1
generate in-turn sd15 --images 2 --batch-size 1 --low-memory
same alone-launched in-turn 4 4
generate two sd15 --images 2 --batch-size 1 --device cuda:0,cuda:1
same alone-launched two 4 4

# A driver that does not record, or not play.
for function in cuStreamBeginCapture_v2 cuGraphInstantiateWithFlags cuGraphLaunch; do
    CUDA_WITHOUT_GPU_REFUSE=$function generate "without-$function" sd15 --dtype f16
    same sd15-f16-launched "without-$function" 0 0
    [ "$(grep -c "no CUDA graph is used from here on" "$out/without-$function.log")" = 1 ] || { cat "$out/without-$function.log"; exit 1; }
done
