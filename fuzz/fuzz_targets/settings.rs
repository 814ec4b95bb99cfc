#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sd_gen::fuzz::settings(bytes));
