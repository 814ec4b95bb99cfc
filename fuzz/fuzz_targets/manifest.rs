//! Any bytes are a manifest, of which lines that are no records are passed over, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("sd-gen-fuzz-{}.jsonl", std::process::id()));
    if std::fs::write(&path, bytes).is_ok() {
        sd_gen::cli::fuzz::manifest(&path);
    }
});
