//! Any bytes are an image that something is made of, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| assert!(sd_gen::cli::fuzz::input_image(bytes)));
