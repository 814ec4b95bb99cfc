//! Opens checkpoints without trusting them and serves their tensors under diffusers' names.
//!
//! A model comes as a diffusers folder, as one file in the original layout, or compiled into the program. [`Checkpoint`]
//! finds its parts, concludes its [`ModelSpec`] with the evidence, and hands out each network's
//! tensors as a [`TensorSource`] under the names that today's diffusers uses, whatever the file calls them.
//!
//! # What is refused
//! Pickles (`.ckpt`, `.pt`, `.pth`, `.bin`) are never read. A network option that this program does not implement is an
//! error that names the file and the field, not a wrong image. Nothing is allocated by a number that a file claims.
//!
//! # Open files
//! Weight files are read tensor by tensor, when a tensor is wanted, and never as a whole. Whatever is checked was read before.
//! A file that is truncated or overwritten while a [`Checkpoint`] has it open is an error that says so. Replacing it by
//! renaming another file over it is safe: what is open stays what it was.
//!
//! # Names
//! `family::keys` holds one table for each network and layout. A table is read in both directions, so that what is loaded from the
//! original layout and what [`convert`] writes in it cannot disagree.

mod assembled;
mod catalog;
mod checkpoint;
mod component;
mod control_net;
mod convert;
pub(crate) mod decode;
mod depth;
mod disk_file;
mod file;
mod folder;
mod gguf;
mod hash;
mod header;
mod identity;
mod ignorable;
mod ip_adapter;
mod tiny;
mod training;
mod upscaler;
mod vae;
mod weight_type;

pub use catalog::{CatalogKind, Found, find_models, is_model_folder, with_network_folders};
pub use checkpoint::{Checkpoint, OpenOptions};
pub(crate) use component::Part;
pub use component::{ComponentTensors, InPlace};
pub use control_net::{ControlNetFile, ControlNetTensors};
pub use convert::{ConvertReport, Layout, TensorChanges, convert, convert_observed};
pub use depth::DepthFile;
pub(crate) use disk_file::ReadBuffers;
pub(crate) use file::{Blob, WeightFile};
pub(crate) use folder::{PICKLE, is_pickle};
pub use hash::{HashCache, Hashes, hash};
pub(crate) use header::Entry;
pub use ip_adapter::{ImageEncoderFile, IpAdapterFile, find_image_encoder};
pub use tiny::TinyAutoencoder;
pub(crate) use tiny::find as find_tiny_autoencoder;
pub use training::trained_words;
pub use upscaler::UpscalerFile;
pub use vae::VaeFile;
pub use weight_type::WeightType;

// What a diffusers folder is read from, for whoever has to fetch it first.
#[cfg(feature = "hub")]
pub(crate) use folder::{Folder, choose};

pub use crate::family::TokenizerFiles;
pub use crate::spec::Component;

use crate::Result;
pub(crate) use crate::error::{model_error, quoted};
use crate::spec::ModelSpec;
use candle_core::{DType, Device, Tensor};

/// Serves the tensors of one network under the names that diffusers gives them.
pub trait TensorSource {
    /// The tensor `name`, converted to `dtype` on `device`.
    ///
    /// # Errors
    /// A missing name or another shape: the message names the file, the key and both shapes.
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor>;

    /// The numbers of the tensor `name` where they are stored, for who can convert them on the way to where they are wanted;
    /// `None` where they cannot be lent, and [`TensorSource::tensor`] makes them.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    fn in_place(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        let _ = (name, shape);
        Ok(None)
    }

    /// The shape of `name`, if there is such a tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// How many numbers the tensors have whose names begin with `prefix`; `None` where that is not known.
    fn numbers_below(&self, _prefix: &str) -> Option<u64> {
        None
    }

    /// Whether `name` is a bias that the network does not have and is given all the same.
    fn adds(&self, _name: &str) -> bool {
        false
    }
}

/// What a pipeline is loaded from: a spec and the tensors for it. A [`Checkpoint`] is one.
pub trait ModelSource {
    /// What people call the model.
    fn name(&self) -> &str;

    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// The tokenizer of the text encoder `index`; `None` where CLIP's own is meant.
    fn tokenizer(&self, index: usize) -> Option<&TokenizerFiles>;

    /// The text of T5's `tokenizer.json`, where the model brings one.
    fn t5_tokenizer(&self) -> Option<&str> {
        None
    }

    /// How many numbers one network's tensors have; `None` where that is not known beforehand.
    fn parameters(&self, _: Component) -> Option<u64> {
        None
    }

    /// The tensors of one network.
    fn tensors(&self, component: Component) -> Box<dyn TensorSource + '_>;

    /// The files that it is read from, against which adapters are held; `None` where there are none.
    fn checkpoint(&self) -> Option<&Checkpoint> {
        None
    }
}

impl ModelSource for Checkpoint {
    fn name(&self) -> &str {
        Checkpoint::name(self)
    }

    fn spec(&self) -> &ModelSpec {
        Checkpoint::spec(self)
    }

    fn tokenizer(&self, index: usize) -> Option<&TokenizerFiles> {
        Checkpoint::tokenizer(self, index)
    }

    fn t5_tokenizer(&self) -> Option<&str> {
        self.t5_tokenizer.as_deref()
    }

    fn parameters(&self, component: Component) -> Option<u64> {
        self.part(component).map(|part| part.parameters())
    }

    fn tensors(&self, component: Component) -> Box<dyn TensorSource + '_> {
        Box::new(self.component(component))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        Some(self)
    }
}
