//! `sd-gen convert`: the same weights in the other layout.

use super::args::ConvertArgs;
use super::{answer, cancelled, model, say};
use crate::spec::TextEncoderSpec;
use crate::text::{clip_merges, clip_vocab_json};
use crate::weights::{Layout, TokenizerFiles, convert_observed};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let from = model::open(Some(&args.from), args.models_dir.as_deref())?;
    if let Some(parent) = args.to.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let is_one_file = args.to.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    let layout = if is_one_file { Layout::Original } else { Layout::Diffusers };
    // A single file brings no vocabulary, and what it means is CLIP's.
    let merges = clip_merges()?;
    let vocab_json = clip_vocab_json(&merges);
    let tokenizer = |encoder: &TextEncoderSpec| TokenizerFiles {
        vocab_json: vocab_json.clone(),
        merges: merges.clone(),
        pad_token: Some(encoder.pad_token.clone()),
        model_max_length: Some(encoder.clip.max_positions),
    };
    // SDXL's refiner has one text encoder, and it is the second one.
    let encoders = &from.spec().text_encoders;
    let folders = [("tokenizer", encoders.first()), ("tokenizer_2", encoders.last())];
    let tokenizers: Vec<_> = folders.into_iter().filter_map(|(folder, encoder)| Some((folder, tokenizer(encoder?)))).collect();
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::default_spinner()
            .template("{spinner} {bytes} written [{elapsed}]")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let report = convert_observed(&from, &args.to, layout, args.dtype, &tokenizers, &mut |bytes| {
        bar.set_position(bytes);
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    });
    bar.finish_and_clear();
    let report = report?;
    for note in &report.notes {
        say(note);
    }
    say(&format!("{} tensors, {:.1} MB", report.tensors, report.bytes as f64 / 1e6));
    answer(&report.path.display().to_string());
    Ok(())
}
