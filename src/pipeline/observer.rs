//! Who hears what the pipeline does.

use crate::Result;
use crate::weights::{Component, InPlace, ModelSource, TensorSource};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;

/// Where the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage<'a> {
    /// Weights are being read.
    Load {
        /// Which network.
        component: &'static str,
    },
    /// The text encoders are at work.
    EncodePrompt,
    /// `step` of `steps` denoising steps are done.
    Denoise {
        /// Steps done.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// The seeds of the pictures at work.
        pictures: &'a [u64],
    },
    /// The autoencoder is at work.
    Decode,
}

/// Hears of every stage, and of what the user should know.
pub trait Observer {
    /// A stage begins, or a step is done.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] stops the work.
    fn stage(&mut self, stage: Stage<'_>) -> Result<()>;

    /// Asked in the middle of a stage that takes long: between the tensors of a network that is loaded.
    ///
    /// # Errors
    /// As [`Observer::stage`].
    fn go_on(&mut self) -> Result<()> {
        Ok(())
    }

    /// Something that the user should know although the work goes on.
    fn warn(&mut self, message: &str);
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

/// Tensors that are served as long as an observer lets the work go on.
pub(super) struct Observed<'a> {
    tensors: Box<dyn TensorSource + 'a>,
    observer: RefCell<&'a mut dyn Observer>,
}

impl<'a> Observed<'a> {
    pub(super) fn new(model: &'a dyn ModelSource, component: Component, observer: &'a mut dyn Observer) -> Self {
        Self { tensors: model.tensors(component), observer: RefCell::new(observer) }
    }
}

impl TensorSource for Observed<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.observer.borrow_mut().go_on()?;
        self.tensors.tensor(name, shape, dtype, device)
    }

    fn in_place(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        self.observer.borrow_mut().go_on()?;
        self.tensors.in_place(name, shape)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.shape(name)
    }
}
