//! Networks that enlarge images, of the family of ESRGAN: which of them a file holds, and how large it is, is read off its tensors.
//!
//! What is not one of these is refused: nothing is guessed from a file's name.

mod compact;
mod rrdb;
mod span;
mod swinir;

use super::Scope;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::fmt::Debug;

/// Red, green and blue.
const CHANNELS: usize = 3;
/// The mean of DIV2K's images, which SPAN and SwinIR take away before they begin.
const MEAN: [f32; CHANNELS] = [0.4488, 0.4371, 0.4040];

/// No network enlarges by more.
const LARGEST_SCALE: usize = 32;

/// A network that was read.
struct Loaded {
    network: Box<dyn UpscalerNetwork>,
    /// How much larger it makes an image.
    scale: usize,
    /// It takes sides that are a multiple of this.
    multiple: usize,
}

/// From an image, `(1, height, width, 3)` in [0, 1], to a larger one.
trait UpscalerNetwork: Debug + Send + Sync {
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// The architectures: their names, and what reads one, or finds that the tensors are not its.
type Architecture = (&'static str, fn(&Scope<'_>) -> Result<Option<Loaded>>);
const ARCHITECTURES: [Architecture; 4] =
    [("ESRGAN", rrdb::load), ("Compact", compact::load), ("SPAN", span::load), ("SwinIR", swinir::load)];

/// A network that enlarges images.
#[derive(Debug)]
pub struct Upscaler {
    architecture: &'static str,
    scale: usize,
    multiple: usize,
    network: Box<dyn UpscalerNetwork>,
}

impl Upscaler {
    /// Reads the network, whichever it is; `None` where the tensors are those of none.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the network is not one for colour images.
    pub fn load(root: &Scope<'_>) -> Result<Option<Self>> {
        for (architecture, load) in ARCHITECTURES {
            if let Some(Loaded { network, scale, multiple }) = load(root)? {
                if !(1..=LARGEST_SCALE).contains(&scale) {
                    return Err(refused(format!(
                        "{architecture}: it makes images {scale} times as large; 1 to {LARGEST_SCALE} times is possible"
                    )));
                }
                return Ok(Some(Self { architecture, scale, multiple, network }));
            }
        }
        Ok(None)
    }

    /// What people call networks like this one.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// How much larger an image becomes.
    pub fn scale(&self) -> usize {
        self.scale
    }

    /// What begins at a multiple of this is seen by the network as it is in the whole image.
    pub fn multiple(&self) -> usize {
        self.multiple
    }

    /// Enlarges an image.
    ///
    /// # Shapes
    /// `(1, height, width, 3)` in [0, 1] to `(1, scale × height, scale × width, 3)`, which may leave that range a little.
    ///
    /// # Errors
    /// The memory does not suffice.
    pub fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let (_, height, width, _) = image.dims4()?;
        let padded = reflected(&reflected(image, 1, self.multiple)?, 2, self.multiple)?;
        let enlarged = self.network.forward(&padded)?;
        Ok(enlarged.narrow(1, 0, height * self.scale)?.narrow(2, 0, width * self.scale)?)
    }
}

/// The side `dim` at the next multiple, with the image mirrored at its end.
fn reflected(x: &Tensor, dim: usize, multiple: usize) -> Result<Tensor> {
    let side = x.dim(dim)?;
    let wanted = side.next_multiple_of(multiple.max(1));
    if wanted == side {
        return Ok(x.clone());
    }
    // Back and forth, where the image is smaller than what is to be added.
    let period = (2 * side).saturating_sub(2).max(1);
    let mirrored = |at: usize| if at % period < side { at % period } else { period - at % period };
    let at: Vec<u32> = (0..wanted).map(|at| mirrored(at) as u32).collect();
    Ok(x.index_select(&Tensor::from_vec(at, wanted, x.device())?, dim)?)
}

fn refused(what: String) -> Error {
    Error::Model(format!("the upscaler cannot be used: {what}"))
}

/// The shape of a tensor of a place, if there is such a tensor.
fn shape(scope: &Scope<'_>, name: &str) -> Option<Vec<usize>> {
    scope.source.shape(&format!("{}{name}", scope.prefix))
}

/// The first side of a tensor's shape.
fn length(scope: &Scope<'_>, name: &str) -> Option<usize> {
    shape(scope, name)?.first().copied()
}

/// How many things there are, counted from `first` on.
fn count(first: usize, is_there: impl Fn(usize) -> bool) -> usize {
    (first..).take_while(|n| is_there(*n)).count()
}

/// The factor of a pixel shuffle that makes `to` channels of `from`.
fn shuffle_factor(from: usize, to: usize) -> Option<usize> {
    let factor = (from / to.max(1)).isqrt();
    (factor > 0 && factor * factor * to == from).then_some(factor)
}

/// The channels that a network takes and gives are those of a colour image; `taken` counts those that an unshuffle makes of one.
///
/// # Errors
/// They are others.
fn unshuffle_of(taken: usize, given: usize) -> Result<usize> {
    match (shuffle_factor(taken, CHANNELS), given) {
        (Some(factor), CHANNELS) => Ok(factor),
        _ => Err(refused(format!("it takes {taken} channels and gives {given}, and is not one for colour images"))),
    }
}

/// The mean as what a channels-last image is added to.
fn mean(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(&MEAN, CHANNELS, like.device())?.to_dtype(like.dtype())?)
}

/// `sigmoid(x)`, in f32.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::sigmoid(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {

    use super::*;
    use candle_core::Device;

    #[test]
    fn an_image_is_mirrored_at_its_end() {
        let padded = |side: usize, multiple| {
            let x = Tensor::arange(0u32, side as u32, &Device::Cpu).expect("numbers").reshape((1, side, 1, 1)).expect("an image");
            reflected(&x, 1, multiple).expect("padded").flatten_all().expect("flat").to_vec1::<u32>().expect("numbers")
        };
        assert_eq!(padded(5, 4), [0, 1, 2, 3, 4, 3, 2, 1]);
        assert_eq!(padded(3, 8), [0, 1, 2, 1, 0, 1, 2, 1]);
        assert_eq!(padded(1, 4), [0, 0, 0, 0]);
        assert_eq!(padded(4, 4), [0, 1, 2, 3]);
        assert_eq!(
            [(48, 3), (12, 3), (3, 3), (10, 3), (1, 3)].map(|(from, to)| shuffle_factor(from, to)),
            [Some(4), Some(2), Some(1), None, None]
        );
    }
}
