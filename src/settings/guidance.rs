//! How strongly the texts steer the image.

use super::{By, Heading, Request, Setting, Together};

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
}
