#!/bin/sh
# Everything that must hold before a change is taken: format, lints, tests, documentation.
set -eux
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
