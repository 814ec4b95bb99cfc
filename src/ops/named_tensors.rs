//! Tensors by name, in a fixed order.

use candle_core::{Error, Result, Tensor};

/// The inputs of a network's call.
#[derive(Debug, Clone, Default)]
pub struct NamedTensors(Vec<(String, Tensor)>);

impl NamedTensors {
    /// Adds a tensor.
    pub fn push(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.0.push((name.into(), tensor));
    }

    /// The tensor `name`, where there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| Error::Msg(format!("a network was called without {name}")))
    }

    /// The names and tensors, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The same names with other tensors.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.0.iter().map(|(name, tensor)| Ok((name.clone(), change(tensor)?))).collect::<Result<_>>().map(Self)
    }

    /// Whether names, shapes and dtypes are the same.
    pub fn is_like(&self, other: &Self) -> bool {
        let same = |((a, x), (b, y)): (&(String, Tensor), &(String, Tensor))| a == b && x.dims() == y.dims() && x.dtype() == y.dtype();
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}
