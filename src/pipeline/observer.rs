//! Who hears what the pipeline does.

use crate::Result;
use ::image::RgbImage;

/// Where the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage<'a> {
    /// Weights are being read.
    Load {
        /// Which network.
        component: &'static str,
        /// Bytes read so far, as they lie in memory.
        done: u64,
        /// Bytes in all, where that is known.
        all: Option<u64>,
    },
    /// The text encoders are at work.
    EncodePrompt,
    /// `step` of `steps` denoising steps are done.
    Denoise {
        /// Steps done.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// The seeds of the images at work.
        images: &'a [u64],
    },
    /// The autoencoder is at work.
    Decode {
        /// Images of the batch that are decoded.
        done: usize,
        /// Images of the batch.
        all: usize,
    },
}

/// Makes an image, or says why it cannot; see [`Observer::forming`].
pub type Estimate<'a> = dyn Fn() -> Result<Vec<RgbImage>> + 'a;

/// Hears of every stage, and of what the user should know.
pub trait Observer {
    /// A stage begins, or a step is done.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] stops the work.
    fn stage(&mut self, stage: Stage<'_>) -> Result<()>;

    /// So many parts of the network are computed that says how far away everything in an image is.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] stops the work.
    fn depth(&mut self, _done: usize, _all: usize) -> Result<()> {
        Ok(())
    }

    /// Something that the user should know although the work goes on.
    fn warn(&mut self, message: &str);

    /// A step is done. Who wants to see what is forming calls `estimate` for one image a seed; who does not pays nothing.
    fn forming(&mut self, _estimate: &Estimate<'_>) {}
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn stage(&mut self, _: Stage<'_>) -> Result<()> {
        Ok(())
    }

    fn warn(&mut self, _: &str) {}
}
