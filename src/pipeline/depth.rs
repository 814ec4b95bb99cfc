//! How far away everything in an image is, as an image: near is white.

use super::loading::read_from;
use super::observer::Observer;
use crate::image::{ResizeFilter, resize};
use crate::models::{DepthAnything, Scope};
use crate::weights::{DepthFile, TensorSource};
use crate::{Error, Result};
use ::image::{Rgb, RgbImage};
use candle_core::{DType, Device, Tensor};

/// What the network was trained to have taken away from red, green and blue, and divided by: ImageNet's.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];
/// Pixels of the shorter side of what the network sees.
const SHORTER_SIDE: f64 = 518.0;
/// How much longer the longer side may be: all patches attend to all.
const LONGEST: f64 = 8.0;

/// What a network says of an image, the farthest black and the nearest white, as large as the image.
///
/// It computes in f32 whatever the rest does, and is there only as long as it works.
///
/// # Source
/// The size and the normalisation: `image2tensor` in DepthAnything/Depth-Anything-V2@e5a2732:depth_anything_v2/dpt.py, with Pillow's
/// bicubic filter; the way back: `DepthEstimationPipeline` in huggingface/transformers@v4.57:src/transformers/pipelines/depth_estimation.py.
///
/// # Errors
/// The image is too long for its width, a tensor of the file is missing, the observer stops it, or the device failed.
pub fn depth_map(file: &DepthFile, image: &RgbImage, device: &Device, observer: &mut dyn Observer) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let pixels = pixels(image, file.spec().patch_size)?.to_device(device)?;
    let load = |source: &dyn TensorSource| DepthAnything::load(&Scope::root(source, DType::F32, device), file.spec());
    let network = read_from("depth network", file, Some(file.parameters()), DType::F32, observer, load)?;
    let map = network.forward(&pixels, &mut |done, all| observer.depth(done, all))?;
    drop(network);
    let map = DepthAnything::resized(&map, height as usize, width as usize)?;
    let depths: Vec<f32> = map.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
    if depths.iter().any(|depth| !depth.is_finite()) {
        return Err(Error::Image(format!("{}: the depth network gave numbers that are not finite; its file is damaged", file.name())));
    }
    let (least, most) =
        depths.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), depth| (least.min(*depth), most.max(*depth)));
    // What is all at one distance is black.
    let range = if most > least { most - least } else { 1.0 };
    let mut levels = depths.into_iter().map(|depth| ((depth - least) / range * 255.0) as u8);
    let mut made = RgbImage::new(width, height);
    made.pixels_mut().for_each(|pixel| *pixel = Rgb([levels.next().unwrap_or(0); 3]));
    Ok(made)
}

/// The sides at which the network sees an image: the shorter at least [`SHORTER_SIDE`], both multiples of a patch's.
fn seen(width: u32, height: u32, patch: usize) -> (u32, u32) {
    let (width, height, patch) = (f64::from(width), f64::from(height), patch as f64);
    let scale = (SHORTER_SIDE / width).max(SHORTER_SIDE / height);
    let side = |side: f64| {
        let near = (side * scale / patch).round_ties_even() * patch;
        if near < SHORTER_SIDE { (side * scale / patch).ceil() * patch } else { near }
    };
    (side(width) as u32, side(height) as u32)
}

/// `(1, 3, height, width)`, normalised.
fn pixels(image: &RgbImage, patch: usize) -> Result<Tensor> {
    let (width, height) = image.dimensions();
    let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
    if short == 0.0 || long > short * LONGEST {
        return Err(Error::Image(format!("an image of {width}x{height} is too long for a map of its depth; cut it")));
    }
    let (width, height) = seen(width, height, patch);
    let resized = resize(image, width, height, ResizeFilter::Bicubic);
    let normal = |(i, level): (usize, &u8)| (f32::from(*level) / 255.0 - MEAN[i % 3]) / DEVIATION[i % 3];
    let values: Vec<f32> = resized.as_raw().iter().enumerate().map(normal).collect();
    let values = Tensor::from_vec(values, (1, height as usize, width as usize, 3), &Device::Cpu)?;
    Ok(values.permute((0, 3, 1, 2))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_is_as_long_as_it_was_trained() {
        // `Resize(518, 518, keep_aspect_ratio=True, ensure_multiple_of=14, resize_method="lower_bound")` of the authors.
        for ((width, height), wanted) in [
            ((512, 512), (518, 518)),
            ((1024, 768), (686, 518)),
            ((512, 768), (518, 784)),
            ((97, 61), (826, 518)),
            ((3000, 1999), (784, 518)),
        ] {
            assert_eq!(seen(width, height, 14), wanted, "{width}x{height}");
        }
        assert!(pixels(&RgbImage::new(900, 100), 14).is_err() && pixels(&RgbImage::new(0, 0), 14).is_err());
    }
}
