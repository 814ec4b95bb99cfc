//! `sd-gen convert`: the same weights in the other layout.

use super::args::ConvertArgs;
use super::progress::Progress;
use super::screen::say;
use super::{answer, cancelled, listen_for_cancellation, model};
use crate::adapter::{AdapterCache, AdapterChoice, AdapterFolders, LoraChoice};
use crate::settings::ProgressStyle;
use crate::settings::WeightedFile;
use crate::spec::TextEncoderSpec;
use crate::text::{clip_merges, clip_vocab_json};
use crate::weights::{Layout, TokenizerFiles, convert_observed};
use crate::{Error, Result};

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let ending = args.to.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let looks_like_a_file = ["ckpt", "pt", "pth", "bin", "gguf", "zip"].contains(&ending.as_str()) || ending.starts_with("safetensor");
    if looks_like_a_file && ending != "safetensors" {
        return Err(Error::Input(format!("{}: models are written as .safetensors files or as folders", args.to.display())));
    }
    if args.to.symlink_metadata().is_ok() {
        return Err(Error::Input(format!("{} exists already; name a file or folder that does not", args.to.display())));
    }
    // Only now: it may have to be fetched.
    let from = model::open(Some(&args.from), args.models_dir.as_deref())?;
    if let Some(parent) = args.to.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::Input(format!("{} cannot be made: {e}", parent.display())))?;
    }
    let is_one_file = ending == "safetensors";
    let layout = if is_one_file { Layout::Original } else { Layout::Diffusers };
    // A single file brings no vocabulary, and what it means is CLIP's.
    let merges = clip_merges()?;
    let vocab_json = clip_vocab_json(&merges);
    let tokenizer = |encoder: &TextEncoderSpec| TokenizerFiles {
        vocab_json: vocab_json.clone(),
        merges: merges.clone(),
        pad_token: Some(encoder.pad_token.clone()),
        model_max_length: Some(encoder.clip.max_positions),
        added: Vec::new(),
    };
    // SDXL's refiner has one text encoder, and it is the second one.
    let encoders = &from.spec().text_encoders;
    let folders = [("tokenizer", encoders.first()), ("tokenizer_2", encoders.last())];
    let tokenizers: Vec<_> = folders.into_iter().filter_map(|(folder, encoder)| Some((folder, tokenizer(encoder?)))).collect();
    let loras = AdapterFolders::loras(args.lora_dir.as_deref(), &model::models_folder(args.models_dir.as_deref()).0);
    let lora = |lora: &WeightedFile| {
        let path = loras.find(&lora.file.path().to_string_lossy())?;
        Ok(LoraChoice { path, weight: lora.weight(), text_weight: lora.second_weight() })
    };
    let loras = args.lora.iter().map(lora).collect::<Result<Vec<_>>>()?;
    let choice = AdapterChoice { loras, partial: args.lora_partial, ..AdapterChoice::default() };
    let adapters = AdapterCache::default().prepare(&from, &choice)?;
    for line in adapters.deltas().applied() {
        say(line);
    }
    listen_for_cancellation()?;
    let mut progress = Progress::new(ProgressStyle::Auto, false);
    let report = convert_observed(&from, &args.to, layout, args.dtype, &tokenizers, Some(&**adapters.deltas()), &mut |bytes| {
        progress.bytes("writing", bytes, None);
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    });
    drop(progress);
    let report = report?;
    for note in &report.notes {
        say(note);
    }
    say(&format!("{} tensors, {:.1} MB", report.tensors, report.bytes as f64 / 1e6));
    answer(&report.path.display().to_string())
}
