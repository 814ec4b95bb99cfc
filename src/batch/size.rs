//! How many images are generated at once: by what is fastest, and by what the memory holds.

use crate::pipeline::{decoding_bytes, denoising_bytes};
use crate::settings::Request;
use crate::spec::ModelSpec;
use crate::weights::{Checkpoint, Component};
use candle_core::{DType, Device};

/// Latent pixels at once from which a CPU gains nothing by more: its matrix products are large enough to keep every core busy.
const CPU_PIXELS: usize = 4096;
/// The same of a GPU.
const GPU_PIXELS: usize = 65_536;
/// More at once only delay the first image.
const MOST: usize = 16;

/// What a request's images ask of the device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Footprint {
    /// The model's weights.
    pub weights: u64,
    /// One image while it is denoised.
    pub image: u64,
    /// One image while it is decoded; decoding goes image by image.
    pub decoding: u64,
    /// What is free, where the system tells.
    pub free: Option<u64>,
    /// Pixels of the image's latents.
    pixels: usize,
    cpu: bool,
}

/// How a group of images is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Images in a batch.
    pub batch: usize,
    /// Batches on the device.
    pub at_once: usize,
}

impl Footprint {
    /// The bytes of a model's weights.
    pub(crate) fn weights(checkpoint: &Checkpoint, dtype: DType, vae_dtype: DType) -> u64 {
        let texts = checkpoint.spec().text_components();
        let numbers: u64 = texts.chain([Component::UNET]).map(|component| checkpoint.parameters(component)).sum();
        numbers * dtype.size_in_bytes() as u64 + checkpoint.parameters(Component::VAE) * vae_dtype.size_in_bytes() as u64
    }

    /// What images of a request take, by the largest layers of the networks.
    pub(crate) fn new(
        spec: &ModelSpec,
        request: &Request,
        dtype: DType,
        vae_dtype: DType,
        device: &Device,
        weights: u64,
        free: Option<u64>,
    ) -> Self {
        let factor = spec.vae.factor().max(1);
        let (width, height) = request.last_size();
        let pixels = (height / factor) * (width / factor);
        let image = denoising_bytes(spec, request, dtype, device);
        let decoding = decoding_bytes(&spec.vae, height, width, vae_dtype);
        Self { weights, image, decoding, free, pixels, cpu: device.is_cpu() }
    }

    /// Bytes of a run with these sizes.
    pub(crate) fn total(&self, sizes: Sizes) -> u64 {
        self.weights + sizes.at_once as u64 * (self.image * sizes.batch as u64).max(self.decoding)
    }
}

/// How `images` of one shape are generated; `most` is the user's limit.
pub(crate) fn sizes(footprint: &Footprint, images: usize, most: Option<usize>) -> Sizes {
    let enough = if footprint.cpu { CPU_PIXELS } else { GPU_PIXELS };
    let fast = (enough / footprint.pixels.max(1)).clamp(1, MOST);
    // Small batches have serial parts, during which another batch keeps the processor busy.
    let at_once = if footprint.cpu && fast >= 4 && images > 1 { 2 } else { 1 };
    // As many batches as are at work together, or a multiple of that, and all of a size: none is left to work alone at the end.
    let rounds = images.div_ceil(most.unwrap_or(fast).max(1) * at_once).max(1);
    let mut sizes = Sizes { batch: images.div_ceil(rounds * at_once).max(1), at_once };
    let Some(free) = footprint.free else { return sizes };
    while footprint.total(sizes) > free / 10 * 9 && (sizes.batch, sizes.at_once) != (1, 1) {
        if sizes.batch > 1 {
            sizes.batch /= 2;
        } else {
            sizes.at_once = 1;
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint(pixels: usize, free: Option<u64>) -> Footprint {
        Footprint { weights: 1000, image: 10, decoding: 50, free, pixels, cpu: true }
    }

    #[test]
    fn small_images_are_generated_many_at_once_and_large_ones_alone() {
        let sizes = |pixels, images, most| sizes(&footprint(pixels, None), images, most);
        assert_eq!(sizes(256, 1000, None), Sizes { batch: 16, at_once: 2 });
        assert_eq!(sizes(256, 8, None), Sizes { batch: 4, at_once: 2 });
        // Four batches of 9, 9, 9 and 7, where 16, 16 and 2 would leave the last one alone.
        assert_eq!(sizes(256, 34, None), Sizes { batch: 9, at_once: 2 });
        assert_eq!(sizes(256, 1, None), Sizes { batch: 1, at_once: 1 });
        assert_eq!(sizes(4096, 1000, None), Sizes { batch: 1, at_once: 1 });
        assert_eq!(sizes(4096, 1000, Some(3)), Sizes { batch: 3, at_once: 1 });
        assert_eq!(sizes(256, 1000, Some(5)).batch, 5);
    }

    #[test]
    fn a_batch_fits_into_the_memory() {
        for free in [1100, 1200, 1500, 2000] {
            let footprint = footprint(256, Some(free));
            let sizes = sizes(&footprint, 1000, None);
            assert!(footprint.total(sizes) <= free || sizes == Sizes { batch: 1, at_once: 1 }, "{free}: {sizes:?}");
        }
        assert_eq!(sizes(&footprint(256, Some(10)), 1000, None), Sizes { batch: 1, at_once: 1 });
    }
}
