//! How strongly the texts steer the image.

use super::{By, Heading, NumberList, Parts, Request, Setting, Together, Value, ValueKind};
use crate::sampling::Like;
use crate::spec::ModelSpec;
use crate::{Error, Result};

settings! {
    /// Classifier-free guidance.
    GuidanceSettings, GuidanceDraft, draft.guidance, by By<'_>, of |request: &Request| Some(&request.guidance);

    /// How strongly the prompt is followed; 1 and less turns guidance off
    scale: one f64 = |by| by.spec.defaults.guidance_scale => Setting {
        name: "guidance-scale", short: Some('g'), aliases: &["cfg-scale"], hidden_aliases: &["cfg"], value: "X", default: "by model",
        heading: Heading::Sampling, range: Some((0.0, 1000.0)), infotext: Some("CFG scale"),
        together: Together::Class(Request::is_guided), ..Setting::IMAGE
    };

    /// Takes back contrast that guidance adds, 0 to 1
    rescale: one f64 = |_| 0.0 => Setting {
        name: "guidance-rescale", value: "X", default: "0", heading: Heading::Sampling, range: Some((0.0, 1.0)),
        infotext: Some("CFG Rescale"), off: Some("0"), together: Together::Class(|request| request.guidance.rescale != 0.0),
        ..Setting::IMAGE
    };

    /// What SDXL's refiner is told of the image's beauty, 1 to 10
    aesthetic_score: one f64 = |_| 6.0 => Setting {
        name: "aesthetic-score", value: "X", default: "6", heading: Heading::Sampling, range: Some((0.0, 100.0)),
        infotext: Some("Aesthetic score"), off: Some("6"), ..Setting::IMAGE
    };

    /// The same for the negative prompt
    negative_aesthetic_score: one f64 = |_| 2.5 => Setting {
        name: "negative-aesthetic-score", value: "X", default: "2.5", heading: Heading::Sampling, range: Some((0.0, 100.0)),
        infotext: Some("Negative aesthetic score"), off: Some("2.5"), ..Setting::IMAGE
    };
    /// Guides from this share of the steps on, 0 to 1
    start: one f64 = |_| 0.0 => Setting {
        name: "guidance-start", value: "X", default: "0", heading: Heading::Sampling, range: Some((0.0, 1.0)),
        infotext: Some("Guidance start"), off: Some("0"), ..Setting::IMAGE
    };

    /// Guides up to this share of the steps, 0 to 1
    end: one f64 = |_| 1.0 => Setting {
        name: "guidance-end", value: "X", default: "1", heading: Heading::Sampling, range: Some((0.0, 1.0)),
        infotext: Some("Guidance end"), off: Some("1"), ..Setting::IMAGE
    };

    /// Leaves out the negative prompt in this share of the steps at the beginning, as A1111's option "Skip Early CFG"
    skip_early: one f64 = |_| 0.0 => Setting {
        name: "skip-early-cfg", hidden_aliases: &["skip-early-guidance"], value: "X", default: "0", heading: Heading::Sampling,
        range: Some((0.0, 1.0)), infotext: Some("Skip Early CFG"), off: Some("0"), ..Setting::IMAGE
    };

    /// Leaves out the negative prompt in every other step below this sigma, as A1111's "Negative Guidance minimum sigma"
    ngms: one f64 = |_| 0.0 => Setting {
        name: "ngms", hidden_aliases: &["s-min-uncond"], value: "SIGMA", default: "0", heading: Heading::Sampling, range: Some((0.0, 1000.0)),
        infotext: Some("NGMS"), off: Some("0"), ..Setting::IMAGE
    };

    /// Does so in every step below it
    ngms_all_steps: one bool = |_| false => Setting {
        name: "ngms-all-steps", heading: Heading::Sampling, infotext: Some("NGMS all steps"), off: Some("false"), ..Setting::IMAGE
    };

    /// Adaptive projected guidance, against oversaturation: eta=0,norm=15,momentum=-0.5
    apg: maybe ProjectedGuidance => Setting {
        name: "apg", value: "NUMBERS", example: "eta=0,norm=15,momentum=-0.5", heading: Heading::Sampling, infotext: Some("APG"),
        ..Setting::IMAGE
    };

    /// Perturbed-attention guidance: how strongly the image leaves what it is with disturbed attention
    pag_scale: one f64 = |_| 0.0 => Setting {
        name: "pag-scale", value: "X", default: "0", heading: Heading::Sampling, range: Some((0.0, 100.0)),
        infotext: Some("PAG scale"), off: Some("0"), together: Together::Class(|request| request.guidance.pag_scale != 0.0),
        ..Setting::IMAGE
    };

    /// Where attention is disturbed: parts of the UNet's names, such as mid,up_blocks.0
    pag_layers: one String = |_| "mid".to_owned() => Setting {
        name: "pag-layers", value: "LIST", example: "mid", default: "mid", heading: Heading::Sampling, infotext: Some("PAG layers"), off: Some("mid"),
        ..Setting::IMAGE
    };

    /// Self-attention guidance: how strongly the image leaves what it is where it looks at itself most, blurred there
    sag_scale: one f64 = |_| 0.0 => Setting {
        name: "sag-scale", hidden_aliases: &["sag"], value: "X", default: "0", heading: Heading::Sampling, range: Some((-2.0, 100.0)),
        infotext: Some("SAG scale"), off: Some("0"), together: Together::Class(|request| request.guidance.sag_scale != 0.0),
        ..Setting::IMAGE
    };

    /// How far it is blurred there, in latent pixels
    sag_blur: maybe f64 => Setting {
        name: "sag-blur", hidden_aliases: &["sag-blur-sigma"], value: "SIGMA", default: "1; 2 with `like` comfyui", heading: Heading::Sampling,
        range: Some((0.0, 10.0)), infotext: Some("SAG blur sigma"), ..Setting::IMAGE
    };

    /// Skip-layer guidance (Stable Diffusion 3.5 medium): blocks without which the image is predicted once more, such as 7,8,9
    skip_layers: maybe NumberList => Setting {
        name: "skip-layers", value: "LIST", example: "7,8,9", heading: Heading::Sampling, infotext: Some("Skip layers"), ..Setting::IMAGE
    };

    /// How strongly the image leaves what it is without them
    skip_layer_scale: one f64 = |_| 2.8 => Setting {
        name: "skip-layer-scale", aliases: &["slg-scale"], value: "X", default: "2.8", heading: Heading::Sampling, range: Some((0.0, 100.0)),
        infotext: Some("Skip layer scale"), off: Some("2.8"), ..Setting::IMAGE
    };

    /// Skips layers after this share of the steps, 0 to 1
    skip_layer_start: one f64 = |_| 0.01 => Setting {
        name: "skip-layer-start", value: "X", default: "0.01", heading: Heading::Sampling, range: Some((0.0, 1.0)),
        infotext: Some("Skip layer start"), off: Some("0.01"), ..Setting::IMAGE
    };

    /// Skips layers before this share of the steps, 0 to 1
    skip_layer_end: one f64 = |_| 0.2 => Setting {
        name: "skip-layer-end", value: "X", default: "0.2", heading: Heading::Sampling, range: Some((0.0, 1.0)),
        infotext: Some("Skip layer end"), off: Some("0.2"), ..Setting::IMAGE
    };

    /// FreeU's factors for backbone and skip connections, such as b1=1.4,b2=1.6,s1=0.9,s2=0.2
    freeu: maybe FreeUFactors => Setting {
        name: "freeu", value: "FACTORS", example: "b1=1.4,b2=1.6,s1=0.9,s2=0.2", heading: Heading::Sampling, infotext: Some("FreeU"), ..Setting::IMAGE
    };
}

impl GuidanceSettings {
    /// The blocks that skip-layer guidance leaves out, where it is on.
    pub fn skipped_layers(&self) -> Option<Vec<usize>> {
        self.skip_layers.as_ref().map(|list| list.0.iter().map(|layer| *layer as usize).collect())
    }
}

/// Latents along a side that the blur of self-attention guidance needs: it mirrors four of them.
const BLURRED_SIDE: usize = 5;

/// Settles self-attention guidance, and refuses it where there is nothing to guide by.
pub(super) fn settle_self_attention(request: &mut Request, spec: &ModelSpec) -> Result<()> {
    let comfyui = request.sampling.like == Some(Like::ComfyUi);
    let guidance = &mut request.guidance;
    if guidance.sag_scale == 0.0 {
        // What changes nothing is not there, so that an image has one key.
        guidance.sag_blur = None;
        return Ok(());
    }
    guidance.sag_blur = Some(guidance.sag_blur.unwrap_or(if comfyui { 2.0 } else { 1.0 }));
    let refuse = |what: String| Err(Error::setting("sag-scale", format!(": {what}")));
    if !spec.unet.attends_in_the_middle() {
        return refuse("needs a UNet with attention in its middle, and this model has none; leave it out".into());
    }
    if request.inputs.edit {
        return refuse("does not go with a model that edits by instruction; leave it out".into());
    }
    if request.passes.hires_window.is_some() {
        return refuse("needs an image that is seen whole; leave it or `hires-window` out".into());
    }
    let least = BLURRED_SIDE * spec.vae.factor();
    if request.canvas.width.min(request.canvas.height) < least {
        return refuse(format!("needs at least {least} pixels a side; take a larger size, or leave it out"));
    }
    Ok(())
}

/// The numbers of adaptive projected guidance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProjectedGuidance {
    /// How much of the part along the prompt's estimate is kept.
    pub eta: f64,
    /// The longest that the difference of the estimates may be; 0 is any length.
    pub norm: f64,
    /// How much of the differences before is added.
    pub momentum: f64,
}

impl Value for ProjectedGuidance {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Parts::read(text)?;
        let eta = parts.take_number("eta", 0.0..=1.0)?.unwrap_or(0.0);
        let norm = parts.take_number("norm", 0.0..=1e6)?.unwrap_or(15.0);
        let momentum = parts.take_number("momentum", -1.0..=1.0)?.unwrap_or(-0.5);
        match parts.head.take() {
            Some(head) => Err(format!("{head}: give numbers such as eta=0,norm=15,momentum=-0.5")),
            None => parts.finish("eta, norm and momentum").map(|()| Self { eta, norm, momentum }),
        }
    }

    fn typed(&self) -> String {
        format!("eta={},norm={},momentum={}", self.eta, self.norm, self.momentum)
    }
}

/// The factors of FreeU for the two deepest up blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreeUFactors {
    /// For the backbone's features: b1, b2.
    pub backbone: [f64; 2],
    /// For the skip connections' low frequencies: s1, s2.
    pub skip: [f64; 2],
}

impl Value for FreeUFactors {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Parts::read(text)?;
        let mut take =
            |key: &str| parts.take_number(key, 0.0..=10.0)?.ok_or_else(|| format!("{key} is missing, as in b1=1.4,b2=1.6,s1=0.9,s2=0.2"));
        let factors = Self { backbone: [take("b1")?, take("b2")?], skip: [take("s1")?, take("s2")?] };
        match (parts.head, parts.pairs.first()) {
            (None, None) => Ok(factors),
            (head, pair) => Err(format!("{} is not b1, b2, s1 or s2", head.or(pair.map(|(key, _)| key.clone())).unwrap_or_default())),
        }
    }

    fn typed(&self) -> String {
        let ([b1, b2], [s1, s2]) = (self.backbone, self.skip);
        format!("b1={b1},b2={b2},s1={s1},s2={s2}")
    }
}
