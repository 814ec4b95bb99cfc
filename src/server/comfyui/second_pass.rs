//! Samplers that take a part of their steps, and a second sampler over the enlarged latents of the first: what of it the settings
//! `strength` and `hires` say exactly. Anything else is refused at its node.
//!
//! # Source
//! ComfyUI@005f3ba:nodes.py `common_ksampler`, `LatentUpscale.upscale`, `LatentUpscaleBy.upscale`; comfy/samplers.py `KSampler.set_steps`,
//! `KSampler.sample`.

use super::graph::{CheckedGraph, NodeProblem, Translated};
use serde_json::{Map, Value as Json};

/// Both kinds of samplers.
pub(super) const SAMPLERS: &[&str] = &["KSampler", "KSamplerAdvanced"];
/// The nodes that enlarge latents.
const ENLARGERS: &[&str] = &["LatentUpscale", "LatentUpscaleBy"];
/// From here on there is no share of the steps: what is begun with is noise alone.
const WHOLE: f64 = 0.999;

/// What a sampler takes of its steps: so many, the last ones of so many more that they are this share of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SamplerShare {
    pub(super) steps: u64,
    pub(super) strength: f64,
}

impl SamplerShare {
    /// # Errors
    /// It takes a part that neither begins with noise nor ends without.
    pub(super) fn of(graph: &CheckedGraph<'_>, sampler: &str) -> Translated<Self> {
        let steps = graph.number(sampler, "steps") as u64;
        if graph.class(sampler) == "KSampler" {
            return Ok(Self { steps, strength: graph.number(sampler, "denoise") });
        }
        let refused = |input: &str, what: &str| Err(NodeProblem::refused(sampler, input, what));
        let start = graph.number(sampler, "start_at_step") as u64;
        if (graph.number(sampler, "end_at_step") as u64) < steps {
            return refused("end_at_step", "an image is generated to its last step here");
        }
        if graph.text(sampler, "add_noise") != "enable" {
            return refused("add_noise", "a sampler begins with noise here");
        }
        if graph.text(sampler, "return_with_leftover_noise") == "enable" {
            return refused("return_with_leftover_noise", "an image is generated to its last step here");
        }
        if start >= steps {
            return refused("start_at_step", "leaves no step");
        }
        Ok(Self { steps: steps - start, strength: share(steps - start, steps) })
    }
}

/// The strength at which so many steps are the last ones of `all`: `int(steps / strength)` is `all`.
fn share(steps: u64, all: u64) -> f64 {
    let mut strength = steps as f64 / all as f64;
    while strength > 0.0 && ((steps as f64 / strength) as u64) < all {
        strength = strength.next_down();
    }
    strength
}

/// One sampler or two: `last` is the one whose latents are decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct SamplerChain<'a> {
    pub(super) first: &'a str,
    pub(super) last: &'a str,
    /// The node between both, where one is.
    enlarger: Option<&'a str>,
}

impl<'a> SamplerChain<'a> {
    /// From the sampler whose latents are decoded back to the one that it goes on from.
    ///
    /// # Errors
    /// There are other samplers too, or what is between is not understood.
    pub(super) fn of(graph: &CheckedGraph<'a>, last: &'a str) -> Translated<Self> {
        let from = graph.link(last, "latent_image").map(|(from, _)| from);
        let enlarger = from.filter(|from| ENLARGERS.contains(&graph.class(from)));
        let before = enlarger.map_or(from, |node| graph.link(node, "samples").map(|(from, _)| from));
        let first = before.filter(|before| SAMPLERS.contains(&graph.class(before)));
        if let (Some(enlarger), None) = (enlarger, first) {
            return Err(NodeProblem::refused(enlarger, "samples", "enlarges what a KSampler made here"));
        }
        let chain = Self { first: first.unwrap_or(last), last, enlarger };
        let reached = graph.upstream(&graph.outputs);
        let is_other = |node: &&str| SAMPLERS.contains(&graph.class(node)) && *node != chain.first && *node != chain.last;
        match reached.into_iter().find(is_other) {
            Some(other) => {
                let what = "an image is made by one sampler here, and by a second one over what the first made";
                Err(NodeProblem::refused(other, "latent_image", what))
            }
            None => Ok(chain),
        }
    }

    /// The settings of the second pass, where there is one; `settings` has those of the first.
    ///
    /// # Errors
    /// Both samplers differ in what they have in common here, or what is between is done otherwise here.
    pub(super) fn second_pass(&self, graph: &CheckedGraph<'a>, settings: &mut Map<String, Json>) -> Translated<()> {
        if self.first == self.last {
            return Ok(());
        }
        let refused = |input: &str, what: &str| Err(NodeProblem::refused(self.last, input, what));
        for input in ["model", "positive", "negative"] {
            if graph.link(self.first, input) != graph.link(self.last, input) {
                return refused(input, "both samplers have the same here");
            }
        }
        for input in ["sampler_name", "scheduler"] {
            if graph.text(self.first, input) != graph.text(self.last, input) {
                return refused(input, "both samplers have the same here");
            }
        }
        if graph.number(self.first, "cfg") != graph.number(self.last, "cfg") {
            return refused("cfg", "both samplers have the same here");
        }
        let seed = |sampler: &str| if graph.class(sampler) == "KSampler" { "seed" } else { "noise_seed" };
        let number =
            |sampler: &str| graph.value(sampler, seed(sampler)).map(|seed| seed.as_str().map_or_else(|| seed.to_string(), str::to_owned));
        if number(self.first) != number(self.last) {
            return refused(seed(self.last), "both samplers draw from the same seed here; give the first one's");
        }
        // Their noise is laid over the steps that are taken; here over all of the schedule.
        if graph.text(self.last, "sampler_name").contains("sde") {
            return refused("sampler_name", "has noise of its own in a second pass, which is laid otherwise here");
        }
        let SamplerShare { steps, strength } = SamplerShare::of(graph, self.last)?;
        if strength > WHOLE {
            let input = if graph.class(self.last) == "KSampler" { "denoise" } else { "start_at_step" };
            return refused(input, "leaves nothing of the first image; a second pass keeps some of it");
        }
        let side = |name: &str| settings.get(name).and_then(Json::as_u64).map_or(0, |side| side / 8);
        let first = (side("width"), side("height"));
        let (scale, method) = match self.enlarger {
            Some(node) => (scale(graph, node, first)?, method(graph, node)?),
            None => (1.0, "latent"),
        };
        let pairs: [(&str, Json); 4] = [
            ("hires", scale.into()),
            ("hires-upscaler", method.into()),
            ("hires-steps", steps.into()),
            ("hires-strength", strength.into()),
        ];
        settings.extend(pairs.map(|(name, value)| (name.to_owned(), value)));
        Ok(())
    }
}

/// How latents are enlarged, as the setting calls it.
fn method(graph: &CheckedGraph<'_>, node: &str) -> Translated<&'static str> {
    match graph.text(node, "upscale_method") {
        "bilinear" => Ok("latent"),
        "bicubic" => Ok("latent-bicubic"),
        other => Err(NodeProblem::refused(node, "upscale_method", format!("{other}: latents are enlarged bilinear or bicubic here"))),
    }
}

/// By how much latents of this width and height are enlarged.
fn scale(graph: &CheckedGraph<'_>, node: &str, (width, height): (u64, u64)) -> Translated<f64> {
    let number = |input: &str| graph.number(node, input);
    let by = graph.class(node) == "LatentUpscaleBy";
    let wanted = if by {
        let side = |side: u64| (side as f64 * number("scale_by")).round_ties_even() as u64;
        (side(width), side(height))
    } else {
        let (across, down) = (number("width") as u64, number("height") as u64);
        match (across, down) {
            (0, 0) => (width, height),
            (0, down) => ((width as f64 * (down.max(64) / 8) as f64 / height.max(1) as f64).round_ties_even() as u64, down.max(64) / 8),
            (across, 0) => {
                (across.max(64) / 8, (height as f64 * (across.max(64) / 8) as f64 / width.max(1) as f64).round_ties_even() as u64)
            }
            (across, down) => (across.max(64) / 8, down.max(64) / 8),
        }
    };
    let input = if by { "scale_by" } else { "width" };
    if wanted.0 < width || wanted.1 < height {
        return Err(NodeProblem::refused(node, input, "a second pass makes an image larger"));
    }
    if graph.text(node, "crop") == "center" && wanted.0 * height != wanted.1 * width {
        return Err(NodeProblem::refused(node, "crop", "nothing is cut off between two passes here"));
    }
    // As the setting `hires` makes a side of a side.
    let becomes = |side: u64, scale: f64| ((side * 8) as f64 * scale) as u64 / 8;
    let fits = |scale: &f64| (becomes(width, *scale), becomes(height, *scale)) == wanted;
    let middle = |wanted: u64, side: u64| (wanted as f64 * 8.0 + 4.0) / (side.max(1) * 8) as f64;
    let plain = |wanted: u64, side: u64| wanted as f64 / side.max(1) as f64;
    let mut candidates = vec![plain(wanted.0, width), plain(wanted.1, height), middle(wanted.0, width), middle(wanted.1, height)];
    if by {
        candidates.insert(0, number("scale_by"));
    }
    candidates.into_iter().find(fits).ok_or_else(|| {
        let what = format!("{}x{} is not {width}x{height} enlarged in both directions alike", wanted.0, wanted.1);
        NodeProblem::refused(node, input, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_steps_gives_all_of_them() {
        for all in 1..=300 {
            for steps in 1..=all {
                assert_eq!((steps as f64 / share(steps, all)) as u64, all, "{steps} of {all}");
            }
        }
    }
}
