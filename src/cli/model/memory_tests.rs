//! What is said when the memory is too small. The limits are given: no test depends on the machine's memory.

use super::Opened;
use crate::device::DTypeChoice;
use crate::settings::{Draft, Request};
use crate::weights::Checkpoint;
use candle_core::{DType, Device};
use std::path::Path;

fn opened(change: impl FnOnce(&mut Draft)) -> (Opened, Request) {
    let checkpoint = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    let draft = Draft::new("a red apple").with(change);
    let request = draft.resolve(checkpoint.spec()).unwrap();
    (Opened::new(checkpoint, vec![Device::Cpu], &draft.load.decide(&())), request)
}

#[test]
fn a_network_that_no_memory_holds_is_refused_by_name_before_it_is_read() {
    let (f32, _) = opened(|draft| draft.load.dtype = Some(DTypeChoice::Is(DType::F32)));
    let bytes = f32.checkpoint.least_turn(DType::F32, DType::F32).1;
    assert!(f32.check_turns(None).is_ok() && f32.check_turns(Some(bytes)).is_ok());
    let error = f32.check_turns(Some(bytes - 1)).unwrap_err();
    let said = error.to_string();
    assert_eq!(error.exit_code(), 3, "{said}");
    for part in ["emoji: its UNet alone takes at least ", " of memory in f32, and ", " can be had; try --dtype bf16, end other programs"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    let (bf16, _) = opened(|draft| draft.load.dtype = Some(DTypeChoice::Is(DType::BF16)));
    let said = bf16.check_turns(Some(1)).unwrap_err().to_string();
    assert!(said.contains("in bf16") && !said.contains("--dtype bf16"), "{said}");
}

#[test]
fn a_dry_run_says_which_images_are_too_large_for_the_memory() {
    let (small, request) = opened(|draft| draft.set("size", ["64x64"]).unwrap());
    let whole = |draft: &mut Draft| {
        draft.set("size", ["4096x4096"]).unwrap();
        draft.set("vae-tiling", ["off"]).unwrap();
    };
    let (model, large) = opened(whole);
    const GB: u64 = 1_000_000_000;
    assert_eq!(small.excess_of(&request, (2 * GB, 2 * GB)), None);
    let said = model.excess_of(&large, (2 * GB, 2 * GB)).unwrap();
    let (start, end) = ("too large for the memory: one image takes about ", " with the model, and 2.0 GB can be had");
    assert!(said.starts_with(start) && said.ends_with(end), "{said}");
    assert_eq!(model.excess_of(&large, (200 * GB, 200 * GB)), None);
    // What is free decides whether the networks take turns; the limit decides what can be had.
    assert!(small.excess_of(&request, (0, 2 * GB)).is_none() && small.excess_of(&request, (2 * GB, 0)).is_some());
}
