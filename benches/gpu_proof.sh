#!/usr/bin/env bash
# Proves the CUDA path in one call of under ten minutes, on a machine with a GPU and Python with torch; no network and no Rust.
#
#   benches/gpu_proof.sh --pack DIR                    where the project is built: builds with CUDA, packs what is needed into DIR
#   benches/gpu_proof.sh DIR [OUT] [ORACLE_CHECK]      on the machine with the GPU, in the project's folder
#
# DIR holds one file, pack.tar.xz: sd-gen, the test executables and, for the comparison, diffusers where it is not installed.
# OUT becomes the record [default: benches/runs/<date>-<gpu>]. ORACLE_CHECK is a check.py that takes `sd-gen --extra FLAGS`.
# Every part writes its own file and its seconds; a part that fails or runs out of time does not end the others.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --pack ]; then
    set -e
    packed=${2:?--pack wants a folder}
    mkdir -p "$packed"
    bin=$(mktemp -d)
    trap 'rm -rf "$bin"' EXIT
    cargo build --locked --release --features cuda --bin sd-gen
    cp "$(find "${CARGO_TARGET_DIR:-target}/release" -maxdepth 1 -name sd-gen)" "$bin/sd-gen"
    cargo test --locked --release --features cuda --no-run --lib --test parity --message-format=json |
        python3 -c '
import json, shutil, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made.get("profile", {}).get("test"):
        shutil.copy(made["executable"], sys.argv[1] + "/test-" + made["target"]["kind"][0] + "-" + made["target"]["name"])
' "$bin"
    python3 -m pip install -q --root-user-action=ignore --no-compile --target "$bin/python" "diffusers==0.36.0" "huggingface-hub<1" ||
        echo "without diffusers: the comparison wants it installed"
    # The machine's own numpy goes with its torch; nothing is downloaded there.
    rm -rf "$bin"/python/{bin,numpy*,hf_xet*}
    # The executables have most of their bytes in common: a dictionary that holds them all halves the file.
    tar -C "$bin" -c . | xz -T1 --lzma2=preset=6,dict=192MiB >"$packed/pack.tar.xz"
    ls -la "$packed"
    exit
fi

packed=$(cd "${1:?the folder with the packed programs; see the top of this file}" && pwd)
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$packed/pack.tar.xz" "$bin" || exit
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr ' ' '-' | tr '[:upper:]' '[:lower:]')
out=${2:-benches/runs/$(date +%Y-%m-%d)-${gpu:-no-gpu}}
oracle=${3:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
budget=${GPU_PROOF_SECONDS:-570}
left() { echo $((budget - SECONDS)); }

# The libraries of a toolkit, or of torch's Python packages.
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
wheels=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
for folder in ${wheels:+"$wheels"/*/lib} /usr/local/nvidia/lib64 /usr/local/cuda/lib64; do
    [ -d "$folder" ] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done
export LD_LIBRARY_PATH
sd_gen=$bin/sd-gen

# part NAME LIMIT COMMAND...: runs within the limit and what is left, into OUT/NAME.txt.
part() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    [ "$limit" -lt "$(left)" ] || limit=$(left)
    if [ "$limit" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$out/parts.txt"
        return 1
    fi
    timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    echo "$name: exit $code, $((SECONDS - begin)) s" | tee -a "$out/parts.txt"
    [ "$code" = 0 ] || tail -15 "$out/$name.txt"
    return "$code"
}

: >"$out/parts.txt"
{ nvidia-smi; echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"; python3 --version; uname -a; } >"$out/machine.txt" 2>&1

# Right?
part ops 90 "$bin/test-lib-sd_gen" ops::cuda::tests --nocapture
grep -h "^skipped" "$out/ops.txt" | head -1 | sed 's/^/ops: exit 1, nothing was tested: /' | tee -a "$out/parts.txt"
SD_GEN_CUDA_CONV=cudnn part ops-cudnn 60 "$bin/test-lib-sd_gen" ops::cuda::tests::convolutions --nocapture
SD_GEN_TEST_DEVICE=cuda part parity 90 "$bin/test-test-parity" --nocapture --test-threads=1
part image 60 "$sd_gen" -p "a red apple" --seed 1 --device cuda -o "$out/apple-f16.png" --overwrite --verbose
part image-low-memory 60 "$sd_gen" -p "a red apple" --seed 1 --device cuda --low-memory --vae-tiling on -o "$out/apple-low-memory.png" --overwrite --verbose
# The same image without CUDA graphs: not a byte may differ.
SD_GEN_CUDA_GRAPH=0 part image-launched 60 "$sd_gen" -p "a red apple" --seed 1 --device cuda -o "$out/apple-launched.png" --overwrite --verbose
part graph-bytes 5 cmp "$out/apple-f16.png" "$out/apple-launched.png"
if grep -q "no CUDA graph is used" "$out/image.txt"; then
    grep -h "no CUDA graph is used" "$out/image.txt" | sed 's/^/graph: exit 1, /' | tee -a "$out/parts.txt"
fi
part correctness 60 "$sd_gen" bench --devices cuda --dtypes f32,f16,bf16 --json "$out/correctness.json" --overwrite --progress none
if [ -n "$oracle" ]; then
    part oracle 100 python3 "$oracle" "$sd_gen" --extra "--device cuda --dtype f32"
fi

# Fast? Ours and theirs by turns, on the same warm machine.
bench() { # bench NAME FLAGS...
    local name=$1
    shift
    part "bench-$name" 80 "$sd_gen" bench --devices cuda --dtypes f16 --skip-correctness --warmups 2 --repeats 10 --steps 20 \
        --json "$out/bench-$name.json" --overwrite --progress none "$@"
}
bench sd15 --random sd15 --sizes 512x512,1024x1024
SD_GEN_CUDA_GRAPH=0 bench sd15-launched --random sd15 --sizes 512x512
SD_GEN_CUDA_CONV=cudnn bench sd15-cudnn --random sd15 --sizes 512x512,1024x1024
SD_GEN_CUDA_PROFILE=1 part profile-sd15 60 "$sd_gen" bench --random sd15 --devices cuda --dtypes f16 --skip-correctness --warmups 1 --repeats 1 --steps 1 --progress none
bench sdxl --random sdxl --sizes 512x512,1024x1024
SD_GEN_CUDA_GRAPH=0 bench sdxl-launched --random sdxl --sizes 1024x1024
SD_GEN_CUDA_PROFILE=1 part profile-sdxl 80 "$sd_gen" bench --random sdxl --sizes 1024x1024 --devices cuda --dtypes f16 --skip-correctness --warmups 1 --repeats 1 --steps 1 --progress none
part peers "$(left)" python3 benches/peers_cuda.py --seconds "$(($(left) - 90))" --path "$bin/python" --cases sd15:512,sdxl:1024,sd15:1024,sdxl:512 --modes compile,eager

python3 - "$out" <<'PY' | tee "$out/summary.txt"
import glob, json, os, sys
out = sys.argv[1]
peers = {}
try:
    for line in open(os.path.join(out, "peers.txt")):
        if line.startswith("{"):
            row = json.loads(line)
            if "seconds" in row and "family" in row: peers[row["family"], row["size"], row["what"], row["mode"]] = row["seconds"]
except OSError: pass
print("milliseconds; ratio: ours over torch.compile's")
for path in sorted(glob.glob(os.path.join(out, "bench-*.json"))):
    name = os.path.basename(path)[len("bench-"):-len(".json")]
    for row in json.load(open(path))["rows"]:
        if row.get("error"): print(f"{name}: {row['error']}"); continue
        family, size = row["model"].split()[-1], row["width"]
        # A step by the whole image, whose other costs are shared by its steps.
        for what, phase in (("guided step", "step"), ("VAE decode", "decode")):
            ours = row["phases"][phase]["median"]
            compiled, eager = (peers.get((family, size, what, mode)) for mode in ("compile", "eager"))
            show = lambda seconds: "-" if seconds is None else f"{seconds * 1e3:.2f}"
            print(f"{name:13} {size:5} {what:12} ours {show(ours):>8}  compile {show(compiled):>8}  eager {show(eager):>8}  ratio {ours / compiled if compiled else float('nan'):.2f}")
        image = row["phases"]["image"]
        print(f"{name:13} {size:5} {row['steps']} steps, text and decode: {image['median']:.3f} s; GPU memory {(row.get('peak_device_bytes') or 0) / 1e9:.2f} GB")
PY
echo "$SECONDS s in all; the record is in $out"
grep -vq "exit 0" "$out/parts.txt" && exit 1
exit 0
