#!/bin/sh
# Fuzzes targets one after the other without cargo-fuzz and nightly: a million inputs each, at most 500 MB.
#   fuzz/run.sh [TARGET...]      RUNS=1000000 LENGTH=4096 SECONDS_EACH=3600
# The address sanitizer is left out: it needs nightly, and the code that reads files is safe Rust.
set -eu
cd "$(dirname "$0")"
targets=${*:-adapter checkpoint configuration gguf image input_image lines manifest prompt scheduler settings survey tokenizer}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks"
[ -f Cargo.lock ] || cp ../Cargo.lock .
# A target triple, so that what runs while building is not instrumented.
triple=$(rustc -vV | sed -n 's/^host: //p')
for target in $targets; do
    cargo build --release --target "$triple" --bin "$target"
done
for target in $targets; do
    case $target in
    adapter | checkpoint | survey) seeds=../tests/data/adapters ;;
    gguf) seeds=../tests/data/gguf ;;
    image | input_image) seeds=../tests/data/metadata ;;
    *) seeds=seeds/$target ;;
    esac
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "== $target"
    "$CARGO_TARGET_DIR/$triple/release/$target" "corpus/$target" "$seeds" -artifact_prefix="artifacts/$target/" -runs="${RUNS:-1000000}" \
        -max_len="${LENGTH:-16384}" -max_total_time="${SECONDS_EACH:-3600}" -rss_limit_mb=500 -malloc_limit_mb=500 -timeout=30 \
        -print_final_stats=1 -verbosity="${VERBOSITY:-0}" 2>&1 | tail -n 40
done
