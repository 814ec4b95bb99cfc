//! Any bytes are lines of prompts in the format that the first of them chooses, each with a request or an error that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::weights::Checkpoint;
use std::path::Path;
use std::sync::LazyLock;

static MODEL: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji")).expect("the built-in model"));

fuzz_target!(|bytes: &[u8]| sd_gen::cli::fuzz::lines(bytes, MODEL.spec()));
