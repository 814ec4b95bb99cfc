//! The layers of a loaded network by their names, so that some can be given new weights while the others stay where they are.

use crate::ops::{Conv2d, GraphCache, GroupNorm, LayerNorm, Linear, RmsNorm, UpsamplingConv2d};
use candle_core::Tensor;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What was made of one name.
#[derive(Debug, Clone)]
pub(super) enum StoredLayer {
    Linear(Linear),
    Conv2d(Conv2d),
    UpsamplingConv2d(UpsamplingConv2d),
    GroupNorm(GroupNorm),
    LayerNorm(LayerNorm),
    RmsNorm(RmsNorm),
    Table(Tensor),
}

/// A form that layers are kept in.
pub(super) trait Stored: Clone {
    fn store(self) -> StoredLayer;
    fn stored(layer: StoredLayer) -> Option<Self>;
}

macro_rules! stored {
    ($type:ty, $variant:ident) => {
        impl Stored for $type {
            fn store(self) -> StoredLayer {
                StoredLayer::$variant(self)
            }

            fn stored(layer: StoredLayer) -> Option<Self> {
                match layer {
                    StoredLayer::$variant(layer) => Some(layer),
                    _ => None,
                }
            }
        }
    };
}
stored!(Linear, Linear);
stored!(Conv2d, Conv2d);
stored!(UpsamplingConv2d, UpsamplingConv2d);
stored!(GroupNorm, GroupNorm);
stored!(LayerNorm, LayerNorm);
stored!(RmsNorm, RmsNorm);
stored!(Tensor, Table);

/// The layers of one network. They share their weights with the network's own.
///
/// To give some layers new weights, drop the network, [forget](LayerStore::forget) those layers, and load the network again from this
/// store: what is still here is taken as it is, and only the others are read. At no time are there two of a layer's weights.
#[derive(Debug, Default)]
pub struct LayerStore {
    layers: Mutex<HashMap<String, StoredLayer>>,
    /// Of the network that was dropped: the layers' weights are on its device.
    graph_cache: Mutex<Option<GraphCache>>,
}

impl LayerStore {
    /// Frees the weights of these layers.
    pub fn forget<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            layers.remove(name);
        }
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Nothing was loaded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the place where a network's weights are, for the network that is loaded next; what was recorded of its calls is gone.
    pub(super) fn keep_graph_cache(&self, graph_cache: GraphCache) {
        graph_cache.invalidate();
        *self.graph_cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(graph_cache);
    }

    pub(super) fn take_graph_cache(&self) -> Option<GraphCache> {
        self.graph_cache.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn get<T: Stored>(&self, name: &str) -> Option<T> {
        T::stored(self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.clone())
    }

    pub(super) fn put<T: Stored>(&self, name: &str, layer: T) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), layer.store());
    }
}
