//! A network's calls that come again with other numbers in the same shapes.

use super::NamedTensors;
use candle_core::{Device, Error, Tensor};

/// Where a network computes, and what is kept of its calls.
///
/// On a GPU that can record its work (CUDA), the second call of a shape is recorded and every later one is played at once, in the place
/// of hundreds of launches. Elsewhere a call is a call.
///
/// A network puts its weights on [`GraphCache::device`], and keeps this as its last field: what is dropped before it is freed there.
#[derive(Debug)]
pub struct GraphCache {
    device: Device,
    #[cfg(feature = "cuda")]
    graphs: Option<super::cuda::Graphs>,
}

impl GraphCache {
    /// For a network that is called with tensors on `device`.
    ///
    /// # Errors
    /// The GPU has no memory for a queue of work beside the others.
    pub fn new(device: &Device) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let graphs = super::cuda::Graphs::beside(cuda)?;
            return Ok(Self { device: graphs.device(), graphs: Some(graphs) });
        }
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            graphs: None,
        })
    }

    /// For a network whose weights come and go while it works: nothing is recorded.
    pub fn unrecorded(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            graphs: None,
        }
    }

    /// Where the network's weights belong, and where `work` of [`GraphCache::run`] gets its inputs: the device itself, or on a GPU a queue
    /// of work of its own, which no other thread disturbs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `work(inputs)`, on the device of the inputs again.
    ///
    /// What `work` does must follow from `key` and from the inputs' names and shapes alone, and their numbers must be all that changes from
    /// call to call: it uploads nothing, looks at no number and keeps no tensor.
    ///
    /// # Errors
    /// Those of `work`, and of the device.
    pub fn run<E>(&self, key: &str, inputs: &NamedTensors, work: impl Fn(&NamedTensors) -> Result<Vec<Tensor>, E>) -> Result<Vec<Tensor>, E>
    where
        E: From<Error> + std::fmt::Display,
    {
        #[cfg(feature = "cuda")]
        // Op by op is not how a recorded call runs.
        if let Some(graphs) = self.graphs.as_ref().filter(|_| !super::profile::is_wanted()) {
            return graphs.run(key, inputs, &work);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = key;
        work(inputs)
    }

    /// Forgets all that was recorded: the network's weights are no longer where they were.
    pub fn invalidate(&self) {
        #[cfg(feature = "cuda")]
        if let Some(graphs) = &self.graphs {
            graphs.invalidate();
        }
    }
}
