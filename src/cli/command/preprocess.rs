//! `sd-gen preprocess canny in.png out.png`: what `--control …,preprocess=canny` shows its network, as a file.

use crate::cli::model::download::DownloadStyle;
use crate::cli::model::{DepthFinder, models_folder};
use crate::cli::settings::args::NamedValues;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::{answer, listen_for_cancellation};
use crate::device::{DeviceChoice, open};
use crate::disk::{folder_of, read_bounded, stage};
use crate::image::{Preprocessor, decode, write_png};
use crate::pipeline::depth_map;
use crate::settings::{ProgressStyle, Value};
use crate::weights::DepthFile;
use crate::{Error, Result};
use ::image::RgbImage;
use clap::Args;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Bytes of an image file.
const LONGEST: u64 = 512 << 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen preprocess canny photo.png edges.png
  sd-gen -p \"a castle\" --control control_v11p_sd15_canny,image=edges.png
  sd-gen -p \"a castle\" --control control_v11p_sd15_canny,image=photo.png,preprocess=canny
  sd-gen preprocess depth photo.png depth.png --depth-model depth-anything/Depth-Anything-V2-Small-hf

canny finds edges as OpenCV does with thresholds 100 and 200; lineart and scribble are A1111's lineart_standard and scribble_xdog; invert
turns a drawing in black on white around; tile leaves the image as it is; depth is what Depth Anything V2 says of it. An existing file is not overwritten without --overwrite.")]
pub(in crate::cli) struct PreprocessArgs {
    /// canny, invert, tile, lineart, scribble or depth
    #[arg(value_name = "NAME", value_parser = Preprocessor::from_name)]
    how: Preprocessor,
    /// The image: PNG, JPEG, WebP, BMP, TIFF or GIF
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The PNG that is written
    #[arg(value_name = "OUTPUT")]
    output: PathBuf,
    /// The network that depth needs: a file, a folder or a hub id, or its name in the folder depth beside or inside the models folder
    #[arg(long, value_name = "FILE")]
    depth_model: Option<PathBuf>,
    /// Where the network is looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Where the network computes: auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_possible_values = true,
          value_parser = NamedValues { names: vec!["auto", "cpu", "cuda", "metal"], parser: str::parse::<DeviceChoice> })]
    device: DeviceChoice,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
    /// How progress is shown on standard error
    #[arg(long, default_value = "auto", value_name = "STYLE",
          value_parser = NamedValues { names: vec!["auto", "bar", "json", "none"], parser: ProgressStyle::parse })]
    progress: ProgressStyle,
    /// Only errors, and the image's path
    #[arg(short, long)]
    quiet: bool,
}

impl PreprocessArgs {
    pub(in crate::cli) fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(in crate::cli) fn run(args: &PreprocessArgs) -> Result<()> {
    let PreprocessArgs { how, file, output, depth_model, overwrite, .. } = args;
    if depth_model.is_some() && *how != Preprocessor::Depth {
        return Err(Error::Input(format!("--depth-model: {} needs no network; leave it out", how.name())));
    }
    let wrong = |what: &dyn std::fmt::Display| Error::Input(format!("{}: {what}", file.display()));
    let bytes = read_bounded(file, LONGEST).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    let made = how.of(&decode(&bytes).map_err(|e| wrong(&e))?.rgb, |image| depth_of(args, image))?;
    let staged = stage(folder_of(output), |to| write_png(&made, &[], to)).map_err(Error::io(output))?;
    match staged.publish(output, *overwrite) {
        Ok(()) => answer(&output.display().to_string()),
        Err((e, _)) if e.kind() == ErrorKind::AlreadyExists => {
            Err(Error::Input(format!("{}: the file exists; give another name, or --overwrite", output.display())))
        }
        Err((e, _)) => Err(Error::io(output)(e)),
    }
}

/// What the network that is named says of an image.
fn depth_of(args: &PreprocessArgs, image: &RgbImage) -> Result<RgbImage> {
    let (models, _) = models_folder(args.models_dir.as_deref());
    let showing = DownloadStyle { style: args.progress, quiet: args.quiet };
    let network = DepthFinder::new(&models).downloading(showing).find(args.depth_model.as_deref())?;
    let (device, remark) = open(args.device)?;
    if let Some(remark) = remark.filter(|_| !args.quiet) {
        screen::say(&format!("warning: {remark}"));
    }
    listen_for_cancellation()?;
    depth_map(&DepthFile::open(network.path())?, image, &device, &mut Progress::new(args.progress, args.quiet))
}
