//! `sd-gen convert`: the same weights in the other layout.

use super::args::ConvertArgs;
use super::model;
use crate::Result;
use crate::text::{clip_merges, clip_vocab_json};
use crate::weights::{Layout, convert};
use candle_core::DType;

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let from = model::open(Some(&args.from), args.models_dir.as_deref())?;
    let one_file = args.to.extension().is_some_and(|e| e == "safetensors");
    let layout = if one_file { Layout::Original } else { Layout::Diffusers };
    let dtype = args.dtype.as_deref().map(|name| match name {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    });
    let merges = clip_merges()?;
    let report = convert(&from, &args.to, layout, dtype, &clip_vocab_json(&merges), &merges)?;
    eprintln!("{report}");
    println!("{}", args.to.display());
    Ok(())
}
