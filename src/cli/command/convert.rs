//! `sd-gen convert`: the same weights in the other layout.

use crate::adapter::{AdapterCache, AdapterChoice, AdapterFolders, LoraChoice};
use crate::cli::model;
use crate::cli::process::cancelled;
use crate::cli::terminal::answer;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen::say;
use crate::settings::ProgressStyle;
use crate::settings::{Value, WeightedFile};
use crate::spec::TextEncoderSpec;
use crate::text::{clip_merges, clip_vocab_json};
use crate::weights::{Layout, TokenizerFiles, WeightType, convert_observed};
use crate::{Error, Result};
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen convert models/sd15 sd15.safetensors --dtype f16   a folder as one file, half as large
  sd-gen convert sd15.safetensors sd15                      and back as a diffusers folder
  sd-gen convert sd15.safetensors sd15.gguf --dtype q8_0    quantised, as stable-diffusion.cpp reads it
  sd-gen convert sd15 detailed.safetensors --lora detail:0.8   with a LoRA in it")]
pub(in crate::cli) struct ConvertArgs {
    /// The model: a folder, a .safetensors file, a name in the models folder, or a hub id
    pub(in crate::cli) from: String,
    /// What to write: a name that ends in .safetensors or .gguf is one file, any other a folder
    pub(in crate::cli) to: PathBuf,
    /// Merge a LoRA into the weights: a file or a name in the LoRA folder; repeat for more
    #[arg(long, value_name = "FILE[:WEIGHT[:TEXT-WEIGHT]]", value_parser = WeightedFile::parse)]
    pub(in crate::cli) lora: Vec<WeightedFile>,
    /// Where LoRAs are looked for by name [default: loras and Lora in the models folder, or beside it]
    #[arg(long, value_name = "DIR", alias = "lora-model-dir")]
    pub(in crate::cli) lora_dir: Option<PathBuf>,
    /// Of a LoRA that does not fit the model as a whole, take what fits
    #[arg(long)]
    pub(in crate::cli) lora_partial: bool,
    /// Convert the weights too: f32, f16, bf16, f8_e4m3; in a .gguf file q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k, q2_k
    #[arg(long, value_name = "DTYPE", value_parser = WeightType::from_str)]
    pub(in crate::cli) dtype: Option<WeightType>,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) models_dir: Option<PathBuf>,
}

pub(in crate::cli) fn run(args: &ConvertArgs) -> Result<()> {
    let ending = args.to.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let looks_like_a_file = ["ckpt", "pt", "pth", "bin", "zip"].contains(&ending.as_str()) || ending.starts_with("safetensor");
    let layout = match ending.as_str() {
        "safetensors" => Layout::Original,
        "gguf" => Layout::Gguf,
        _ if looks_like_a_file => {
            let what = "models are written as .safetensors files, as .gguf files, or as folders";
            return Err(Error::Input(format!("{}: {what}", args.to.display())));
        }
        _ => Layout::Diffusers,
    };
    if args.to.symlink_metadata().is_ok() {
        return Err(Error::Input(format!("{} exists already; name a file or folder that does not", args.to.display())));
    }
    // Only now: it may have to be fetched.
    let from = model::open(Some(&args.from), args.models_dir.as_deref())?;
    if let Some(parent) = args.to.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::Input(format!("{} cannot be made: {e}", parent.display())))?;
    }
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
