//! `sd-gen preprocess canny in.png out.png`: what `--control …,preprocess=canny` shows its network, as a file.

use crate::cli::terminal::answer;
use crate::disk::{folder_of, read_bounded, stage};
use crate::image::{Preprocessor, decode, write_png};
use crate::{Error, Result};
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

canny finds edges as OpenCV does with thresholds 100 and 200; lineart and scribble are A1111's lineart_standard and scribble_xdog; invert
turns a drawing in black on white around; tile leaves the image as it is. An existing file is not overwritten without --overwrite.")]
pub(in crate::cli) struct PreprocessArgs {
    /// canny, invert, tile, lineart or scribble
    #[arg(value_name = "NAME", value_parser = Preprocessor::from_name)]
    how: Preprocessor,
    /// The image: PNG, JPEG, WebP, BMP, TIFF or GIF
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The PNG that is written
    #[arg(value_name = "OUTPUT")]
    output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
}

pub(in crate::cli) fn run(args: &PreprocessArgs) -> Result<()> {
    let PreprocessArgs { how, file, output, overwrite } = args;
    let wrong = |what: &dyn std::fmt::Display| Error::Input(format!("{}: {what}", file.display()));
    let bytes = read_bounded(file, LONGEST).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    let made = how.of(&decode(&bytes).map_err(|e| wrong(&e))?.rgb);
    let staged = stage(folder_of(output), |to| write_png(&made, &[], to)).map_err(Error::io(output))?;
    match staged.publish(output, *overwrite) {
        Ok(()) => answer(&output.display().to_string()),
        Err((e, _)) if e.kind() == ErrorKind::AlreadyExists => {
            Err(Error::Input(format!("{}: the file exists; give another name, or --overwrite", output.display())))
        }
        Err((e, _)) => Err(Error::io(output)(e)),
    }
}
