//! What goes with Stable Diffusion 3's transformer, and what does not.

use super::Request;
use crate::spec::ModelSpec;
use crate::{Error, Result};

/// The usual numbers of skip-layer guidance.
const SKIP: (f64, f64, f64) = (2.8, 0.01, 0.2);

/// Settles what only this transformer takes, and refuses what needs a UNet.
pub(super) fn settle(request: &mut Request, spec: &ModelSpec) -> Result<()> {
    let refuse = |name, what: &str| Err(Error::setting(name, format!(": {what}")));
    let Some(mmdit) = &spec.mmdit else {
        let given = [
            ("no-t5", request.text.no_t5),
            ("t5-tokens", request.text.t5_tokens != 256),
            ("skip-layers", request.guidance.skip_layers.is_some()),
        ];
        settle_skipping(request);
        return match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => refuse(name, "is for Stable Diffusion 3, and this model is none; leave it out"),
            None => Ok(()),
        };
    };
    for (name, given) in [
        ("pag-scale", request.guidance.pag_scale != 0.0),
        ("sag-scale", request.guidance.sag_scale != 0.0),
        ("freeu", request.guidance.freeu.is_some()),
        ("tiling", request.canvas.tiling.is_some()),
        ("control", !request.adapters.control.is_empty()),
        ("ip-adapter", !request.adapters.ip_adapter.is_empty()),
        ("refiner", request.passes.refiner.is_some()),
    ] {
        if given {
            return refuse(name, "needs a model with a UNet, and this one is a transformer; leave it out");
        }
    }
    if let Some(list) = &request.guidance.skip_layers {
        let most = mmdit.layers as f64 - 1.0;
        if let Some(wrong) = list.0.iter().find(|layer| layer.fract() != 0.0 || !(0.0..=most).contains(*layer)) {
            return refuse("skip-layers", &format!("{wrong} is no block; this model has the blocks 0 to {most}"));
        }
        if request.guidance.apg.is_some() {
            return refuse("skip-layers", "does not go with `apg`, which guides by a formula of its own");
        }
        if request.part_weights().is_some() {
            return refuse("skip-layers", "does not go with a prompt with AND; leave one of them out");
        }
    }
    settle_skipping(request);
    Ok(())
}

/// What changes nothing is not there, so that an image has one key.
fn settle_skipping(request: &mut Request) {
    let is_guided = request.is_guided();
    let guidance = &mut request.guidance;
    if guidance.skip_layer_scale == 0.0 || !is_guided || guidance.skip_layers.as_ref().is_some_and(|list| list.0.is_empty()) {
        guidance.skip_layers = None;
    }
    if guidance.skip_layers.is_none() {
        (guidance.skip_layer_scale, guidance.skip_layer_start, guidance.skip_layer_end) = SKIP;
    }
}
