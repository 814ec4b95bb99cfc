#!/bin/sh
# The ARM kernels in an emulator, on a processor with bf16 and on one without. Wants the target's standard library, a cross compiler and
# qemu (Debian: gcc-aarch64-linux-gnu, qemu-user); says so where one is missing.
set -eu
cd "$(dirname "$0")"
TARGET=aarch64-unknown-linux-gnu
missing() { echo "the ARM kernels are not run: $1 is missing"; exit 0; }
command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || missing aarch64-linux-gnu-gcc
command -v qemu-aarch64 >/dev/null 2>&1 || missing qemu-aarch64
[ -d "$(rustc --print sysroot)/lib/rustlib/$TARGET/lib" ] || missing "the target $TARGET (rustup target add)"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
rustc --edition 2024 -O --target $TARGET -C linker=aarch64-linux-gnu-gcc kernels.rs -o "$folder/kernels"
for processor in max cortex-a57; do
    echo "$processor:"
    qemu-aarch64 -cpu $processor -L /usr/aarch64-linux-gnu "$folder/kernels"
done
