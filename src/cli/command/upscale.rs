//! `sd-gen upscale FILES… --upscaler FILE`: images enlarged by a network, one after the other, and what is there already left alone.

use crate::batch::{ImageNames, ImageTarget};
use crate::cli::command::output::make_folder;
use crate::cli::model::{models_folder, upscaler_named};
use crate::cli::process::{cancelled, set_threads};
use crate::cli::settings::args::NamedValues;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::show::{harmless, several};
use crate::cli::terminal::{answer, listen_for_cancellation};
use crate::device::{DTypeChoice, DeviceChoice, open};
use crate::disk::{counted, folder_of, read_bounded};
use crate::image::{decode, write_png};
use crate::metadata::{Text, texts};
use crate::pipeline::UpscalePipeline;
use crate::settings::{ProgressStyle, Value};
use crate::weights::{UpscalerFile, hash};
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::DType;
use clap::Args;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Bytes of an image file.
const LONGEST: u64 = 1 << 30;
/// How much larger an image may become.
const MOST: f64 = 16.0;
/// The keyword under which A1111 and this program say what was done to an image after it was generated.
const KEYWORD: &str = "postprocessing";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen upscale apple.png --upscaler 4x-UltraSharp.safetensors          apple-4x.png beside it
  sd-gen upscale out/*.png --upscaler 4x-UltraSharp --scale 2 --output-dir large
  sd-gen upscale out/*.png --upscaler RealESRGAN_x2plus --output-dir large   the same again goes on where it stopped

Networks of ESRGAN's family are read from .safetensors files: RRDBNet (ESRGAN, Real-ESRGAN, BSRGAN), Compact, SPAN and SwinIR. An image's
texts stay in it, and the upscaler's name and hash are added. No file is replaced.")]
pub(in crate::cli) struct UpscaleArgs {
    /// The images: PNG, JPEG, WebP, BMP, TIFF or GIF
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    /// The network: a .safetensors file, or its name in the models folder or in upscalers, upscale_models or ESRGAN beside or inside it
    #[arg(long, value_name = "FILE")]
    upscaler: PathBuf,
    /// How much larger the images become [default: as the network makes them]
    #[arg(long, value_name = "X")]
    scale: Option<f64>,
    /// Where enlarged images go [default: beside the images]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Where the network is looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "cpu", "cuda", "metal"], parser: str::parse::<DeviceChoice> })]
    device: DeviceChoice,
    /// What the network computes in: f32, f16 or bf16
    #[arg(long, visible_alias = "precision", value_name = "DTYPE", default_value = "f32", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "f32", "f16", "bf16"], parser: str::parse::<DTypeChoice> })]
    dtype: DTypeChoice,
    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// How progress is shown on standard error
    #[arg(long, default_value = "auto", value_name = "STYLE",
          value_parser = NamedValues { names: vec!["auto", "bar", "json", "none"], parser: ProgressStyle::parse })]
    progress: ProgressStyle,
    /// Only errors, and the images' paths
    #[arg(short, long)]
    quiet: bool,
}

impl UpscaleArgs {
    pub(in crate::cli) fn is_quiet(&self) -> bool {
        self.quiet
    }
}

/// A network that was opened, and what is said of it in an image.
pub(in crate::cli) struct NamedUpscaler {
    pub(in crate::cli) pipeline: UpscalePipeline,
    pub(in crate::cli) name: String,
    /// The first ten digits of the file's SHA-256, as A1111 shows it.
    pub(in crate::cli) hash: String,
}

impl NamedUpscaler {
    /// Opens a file, or what has the name in the folders where upscalers are kept.
    ///
    /// # Errors
    /// There is none, or it is no upscaler.
    pub(in crate::cli) fn open(what: &Path, models: &Path, device: DeviceChoice, dtype: DTypeChoice) -> Result<Self> {
        let path = upscaler_named("upscaler", what, models)?;
        let (device, remark) = open(device)?;
        if let Some(remark) = remark {
            screen::say(&format!("warning: {remark}"));
        }
        let dtype = match dtype {
            DTypeChoice::Is(dtype) => dtype,
            DTypeChoice::Auto => DType::F32,
        };
        let file = UpscalerFile::open(&path)?;
        let pipeline = UpscalePipeline::load(&file, &path.display().to_string(), &device, dtype)?;
        let hashes = hash(&path, |_| if cancelled() { Err(Error::Cancelled) } else { Ok(()) })?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { pipeline, name, hash: hashes.model_hash().to_owned() })
    }

    /// Enlarges an image `scale` times, whatever the network itself does.
    ///
    /// # Errors
    /// As [`UpscalePipeline::run`].
    pub(in crate::cli) fn run(
        &self,
        image: &RgbImage,
        scale: f64,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<RgbImage> {
        self.pipeline.run_to(image, scale, progress)
    }
}

pub(in crate::cli) fn run(args: &UpscaleArgs) -> Result<()> {
    if let Some(threads) = args.threads {
        set_threads(threads)?;
    }
    if let Some(scale) = args.scale.filter(|scale| !(*scale > 0.0 && *scale <= MOST)) {
        return Err(Error::Input(format!("--scale {scale}: give a number above 0 and at most {MOST}")));
    }
    for file in &args.files {
        let wrong = |what: String| Error::Input(format!("{}: {what}", file.display()));
        match std::fs::metadata(file) {
            Err(e) => return Err(wrong(format!("the image cannot be read: {e}"))),
            Ok(there) if there.is_dir() => return Err(wrong(format!("is a folder; name its images, such as {}/*.png", file.display()))),
            Ok(there) if !there.is_file() => return Err(wrong("is not a file; give an image".into())),
            Ok(_) => {}
        }
    }
    if let Some(folder) = &args.output_dir {
        make_folder(folder)?;
    }
    let (models, _) = models_folder(args.models_dir.as_deref());
    let upscaler = NamedUpscaler::open(&args.upscaler, &models, args.device, args.dtype)?;
    let scale = args.scale.unwrap_or(upscaler.pipeline.scale() as f64);
    listen_for_cancellation()?;
    let mut progress = Progress::new(args.progress, args.quiet);
    progress.say(&format!("{} ({}), {}x", upscaler.name, upscaler.pipeline.architecture(), upscaler.pipeline.scale()));
    let (mut made, mut there, mut failed) = (0, 0, Vec::new());
    for file in &args.files {
        match upscale(file, args.output_dir.as_deref(), &upscaler, scale, &mut progress) {
            Ok(Some(path)) => {
                made += 1;
                screen::aside(|| answer(&path.display().to_string()))?;
            }
            Ok(None) => there += 1,
            Err(error @ (Error::Cancelled | Error::Model(_))) => return Err(error),
            Err(error) => {
                progress.say(&format!("error: {error}"));
                failed.push(error);
            }
        }
    }
    if there > 0 {
        progress.say(&format!("{} enlarged, {there} were there already", several(made, "image")));
    }
    match (failed.len(), args.files.len()) {
        (0, _) => Ok(()),
        (1, 1) => Err(failed.remove(0)),
        (failed, _) => Err(Error::Image(format!("{} could not be enlarged; the others are done", several(failed, "image")))),
    }
}

/// Enlarges a file; `None` where that was done before.
fn upscale(file: &Path, folder: Option<&Path>, upscaler: &NamedUpscaler, scale: f64, progress: &mut Progress) -> Result<Option<PathBuf>> {
    let wrong = |what: &dyn std::fmt::Display| Error::Image(format!("{}: {what}", file.display()));
    let bytes = read_bounded(file, LONGEST).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    let note = note(&upscaler.name, &upscaler.hash, scale, &bytes);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = folder.unwrap_or(folder_of(file)).join(format!("{stem}-{scale}x.png"));
    let mut path = name.clone();
    let mut count = 2;
    while path.symlink_metadata().is_ok() {
        if says(&path, &note) {
            return Ok(None);
        }
        path = counted(&name, count);
        count += 1;
    }
    let image = decode(&bytes).map_err(|e| wrong(&e))?;
    if image.alpha.is_some() {
        progress.say(&format!("warning: {}: has transparent parts, which are left out", file.display()));
    }
    let what = format!("enlarging {}", harmless(&stem).replace(['\n', '\t'], " "));
    let enlarged = upscaler.run(&image.rgb, scale, &mut |done, all| {
        progress.tiles(&what, done, all);
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    });
    let enlarged = enlarged.map_err(|error| if matches!(error, Error::Cancelled) { error } else { wrong(&error) })?;
    // What cannot be read as text is no reason to lose the image.
    let mut kept = texts(file).ok().flatten().unwrap_or_default();
    kept.retain(|text| text.place.starts_with("PNG") && text.keyword != KEYWORD && png_keyword(&text.keyword) && !text.text.contains('\0'));
    let mut lines: Vec<(&str, Cow<'_, str>)> = kept.iter().map(|Text { keyword, text, .. }| (keyword.as_str(), Cow::from(text))).collect();
    lines.push((KEYWORD, Cow::from(note)));
    let target = ImageTarget::new(name, false, false);
    ImageNames::default().stage(target, |to| write_png(&enlarged, &lines, to))?.publish_somewhere().map(Some)
}

/// What is said in an image of how it was enlarged: by what, how much, and of which file.
pub(in crate::cli) fn note(name: &str, hash: &str, scale: f64, source: &[u8]) -> String {
    let source: String = Sha256::digest(source).iter().map(|byte| format!("{byte:02x}")).collect();
    // A name with a comma would end there.
    let name = name.replace(',', " ");
    format!("Postprocess upscale by: {scale}, Postprocess upscaler: {name}, Postprocess upscaler hash: {hash}, Source SHA-256: {source}")
}

/// Whether an image says of itself what `note` says.
fn says(path: &Path, note: &str) -> bool {
    texts(path).ok().flatten().is_some_and(|texts| texts.iter().any(|text| text.keyword == KEYWORD && text.text == note))
}

/// 1 to 79 bytes of Latin-1, as PNG wants them.
fn png_keyword(keyword: &str) -> bool {
    let length = keyword.chars().count();
    (1..80).contains(&length) && keyword.chars().all(|c| matches!(c as u32, 32..=126 | 161..=255)) && keyword.trim() == keyword
}
