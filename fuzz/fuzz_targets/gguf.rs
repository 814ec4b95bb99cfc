//! Any bytes behind the magic are a GGUF file or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| sd_gen::cli::fuzz::gguf(bytes));
