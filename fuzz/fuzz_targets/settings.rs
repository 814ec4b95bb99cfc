//! Any text is a `sd-gen.toml` and the values of a sweep, or errors that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| sd_gen::cli::fuzz::settings(text));
