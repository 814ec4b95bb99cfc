//! Any bytes are a manifest, of which lines that are no records are passed over, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::batch::{Ledger, LedgerOptions, Manifest};

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("sd-gen-fuzz-{}.jsonl", std::process::id()));
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(mut manifest) = Manifest::open(&path) {
        manifest.forgive();
        let _ = (manifest.strange_lines(), manifest.history("emoji", "f32"));
    }
    let _ = Ledger::read(&path, LedgerOptions { verify: true, ..LedgerOptions::default() });
});
