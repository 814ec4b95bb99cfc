#!/bin/sh
# Everything that must hold before a change is taken: format, lints, tests, documentation.
set -eux
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
# The CUDA code, without CUDA: the stand-in nvcc in .ci makes empty kernels.
PATH="$PWD/.ci:$PATH" CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 cargo clippy --locked --features cuda --lib --tests -- -D warnings
cargo test --locked
# The page of `sd-gen serve` in a real Chromium; 77 is that Python has no playwright, or the machine no Chromium, and it says so.
if command -v python3 >/dev/null 2>&1; then
    python3 tests/serve/browser.py "${CARGO_TARGET_DIR:-target}/debug/sd-gen" || [ $? -eq 77 ]
fi
sh tests/arm/run.sh
# Licences, sources and bans of the dependencies, where cargo-deny is installed. Its advisories want a clone of the RustSec database from
# the network, which a test must not ask for: `cargo deny check` includes them.
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check bans licenses sources
fi
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
