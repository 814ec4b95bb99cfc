//! Tells an observer how many bytes of a network were read.

use super::{Observer, Stage};
use crate::Result;
use crate::weights::{Component, InPlace, ModelSource, TensorSource};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::time::Instant;
use tracing::debug;

/// A tensor source whose reading can be followed, and stopped between two tensors.
pub(super) struct WithProgress<'a> {
    source: &'a dyn TensorSource,
    component: &'static str,
    all: Option<u64>,
    dtype: DType,
    so_far: RefCell<(u64, &'a mut dyn Observer)>,
}

impl<'a> WithProgress<'a> {
    /// `parameters` is how many numbers the network has, which become values of `dtype`.
    pub(super) fn new(
        component: &'static str,
        source: &'a dyn TensorSource,
        parameters: Option<u64>,
        dtype: DType,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let all = parameters.map(|parameters| parameters * dtype.size_in_bytes() as u64);
        observer.stage(Stage::Load { component, done: 0, all })?;
        Ok(Self { source, component, all, dtype, so_far: RefCell::new((0, observer)) })
    }

    fn count(&self, numbers: usize, dtype: DType) -> Result<()> {
        let mut so_far = self.so_far.borrow_mut();
        let (done, observer) = &mut *so_far;
        *done += (numbers * dtype.size_in_bytes()) as u64;
        observer.stage(Stage::Load { component: self.component, done: *done, all: self.all })
    }

    /// Bytes read.
    pub(super) fn bytes(&self) -> u64 {
        self.so_far.borrow().0
    }
}

impl TensorSource for WithProgress<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.source.tensor(name, shape, dtype, device)?;
        self.count(tensor.elem_count(), dtype)?;
        Ok(tensor)
    }

    fn in_place(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        let served = self.source.in_place(name, shape)?;
        if served.is_some() {
            self.count(shape.iter().product(), self.dtype)?;
        }
        Ok(served)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn numbers_below(&self, prefix: &str) -> Option<u64> {
        self.source.numbers_below(prefix)
    }

    fn adds(&self, name: &str) -> bool {
        self.source.adds(name)
    }
}

/// Reads one network of `model`; the observer follows.
pub(super) fn read<T>(
    model: &dyn ModelSource,
    component: Component,
    dtype: DType,
    observer: &mut dyn Observer,
    load: impl FnOnce(&dyn TensorSource) -> Result<T>,
) -> Result<T> {
    read_from(component.title(), &*model.tensors(component), model.parameters(component), dtype, observer, load)
}

/// Reads a network of which `source` has the tensors, with so many numbers; the observer follows.
pub(super) fn read_from<T>(
    name: &'static str,
    source: &dyn TensorSource,
    parameters: Option<u64>,
    dtype: DType,
    observer: &mut dyn Observer,
    load: impl FnOnce(&dyn TensorSource) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let followed = WithProgress::new(name, source, parameters, dtype, observer)?;
    let network = load(&followed)?;
    debug!(bytes = followed.bytes(), seconds = started.elapsed().as_secs_f64(), "the {name} is loaded");
    Ok(network)
}
