//! The networks that predict what is noise in latents, as one.

use super::{Backbone, LayerStore, Mmdit, ModelCall, ModelOutput, Scope, UNet2DCondition};
use crate::Result;
use crate::spec::ModelSpec;

/// A model's denoiser.
#[derive(Debug)]
pub enum DenoisingNetwork {
    /// Stable Diffusion 1, 2 and XL.
    UNet(Box<UNet2DCondition>),
    /// Stable Diffusion 3.
    Mmdit(Box<Mmdit>),
}

impl DenoisingNetwork {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(scope: &Scope<'_>, spec: &ModelSpec) -> Result<Self> {
        Ok(match &spec.mmdit {
            Some(mmdit) => Self::Mmdit(Box::new(Mmdit::load(scope, mmdit)?)),
            None => Self::UNet(Box::new(UNet2DCondition::load(scope, &spec.unet)?)),
        })
    }

    /// Drops the network but for the layers that `layers` has, and keeps the place where their weights are.
    pub fn dismantle(self, layers: &LayerStore) {
        match self {
            Self::UNet(network) => network.dismantle(layers),
            Self::Mmdit(network) => network.dismantle(layers),
        }
    }

    fn backbone(&self) -> &dyn Backbone {
        match self {
            Self::UNet(network) => &**network,
            Self::Mmdit(network) => &**network,
        }
    }
}

impl Backbone for DenoisingNetwork {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        self.backbone().call(call)
    }

    fn weights_changed(&self) {
        self.backbone().weights_changed();
    }
}
