//! From a graph to the settings of a job.
//!
//! What a sampler's node and its model say is read by the reader that `sd-gen inspect` has for graphs in images, so that a graph that is
//! sent and one that is found mean the same. Texts, networks and images are followed here, node by node. What would be computed otherwise
//! than the graph says is refused.

use super::graph::{CheckedGraph, NodeProblem, Translated, stem};
use super::second_pass::{SAMPLERS, SamplerChain, SamplerShare};
use crate::metadata::{Field, recreation, understand_graph};
use ::image::{GrayImage, Luma, Rgb};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::io::Cursor;

/// Nodes in a row: more are a circle.
const LONGEST: usize = 200;

/// A graph as a job.
#[derive(Debug, Default)]
pub(super) struct ComfyPlan {
    pub(super) settings: Map<String, Json>,
    /// Images that the settings name.
    pub(super) parts: HashMap<String, Vec<u8>>,
    pub(super) remarks: Vec<String>,
    /// The nodes that are shown at work: the one that encodes the prompt, the sampler, and the one that decodes.
    pub(super) stages: [String; 3],
}

/// Translates a graph; `read` gives the bytes of an image by its name.
///
/// # Errors
/// What of it cannot be done here.
pub(super) fn translate(graph: &CheckedGraph<'_>, read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>) -> Translated<ComfyPlan> {
    let mut plan = ComfyPlan::default();
    let (last, decode, upscale) = chain(graph)?;
    let samplers = SamplerChain::of(graph, last)?;
    let sampler = samplers.first;
    settings(graph, samplers, decode, &mut plan)?;
    autoencoder(graph, decode, &mut plan)?;
    if let Some(model) = upscale {
        plan.settings.insert("upscale".into(), model.into());
    }
    let positive = conditioning(graph, sampler, "positive")?;
    let negative = conditioning(graph, sampler, "negative")?;
    for (name, side) in [("prompt", &positive), ("negative-prompt", &negative)] {
        plan.settings.insert(name.into(), graph.text(side.encoder, "text").into());
    }
    networks(graph, sampler, &positive, &negative, &mut plan)?;
    controls(graph, &positive, &negative, read, &mut plan)?;
    latents(graph, sampler, read, &mut plan)?;
    samplers.second_pass(graph, &mut plan.settings)?;
    plan.stages = [positive.encoder, sampler, decode].map(str::to_owned);
    Ok(plan)
}

/// From the outputs back to the sampler: the sampler, the node that decodes, and the upscaler's name.
fn chain<'a>(graph: &CheckedGraph<'a>) -> Translated<(&'a str, &'a str, Option<String>)> {
    let mut found: Option<(&str, &str, Option<String>)> = None;
    for output in &graph.outputs {
        let (mut node, mut input, mut upscale) = (*output, "images", None);
        let made = loop {
            let Some((from, _)) = graph.link(node, input) else {
                return Err(NodeProblem::refused(node, input, "leads to no image"));
            };
            match graph.class(from) {
                "VAEDecode" => break (graph.link(from, "samples").map_or(from, |(sampler, _)| sampler), from, upscale),
                "ImageUpscaleWithModel" if upscale.is_none() => {
                    let model = graph.link(from, "upscale_model").map(|(loader, _)| graph.text(loader, "model_name"));
                    upscale = Some(stem(model.unwrap_or_default()).to_owned());
                    (node, input) = (from, "image");
                }
                "ImageUpscaleWithModel" => return Err(NodeProblem::refused(from, "image", "an image is enlarged once here")),
                other => return Err(NodeProblem::refused(node, input, format!("{other} hands on an image that was not generated"))),
            }
        };
        if found.as_ref().is_some_and(|found| *found != made) {
            return Err(NodeProblem::refused(output, "images", "a prompt makes one image here; send one for each"));
        }
        found = Some(made);
    }
    let (sampler, decode, upscale) = found.ok_or_else(|| NodeProblem::refused("", "images", "there is no output"))?;
    match graph.class(sampler) {
        class if SAMPLERS.contains(&class) => Ok((sampler, decode, upscale)),
        other => Err(NodeProblem::refused(decode, "samples", format!("{other} makes no image; lead a KSampler there"))),
    }
}

/// Sampler, schedule, steps, guidance, seed, model, and the rules of the tool.
fn settings<'a>(graph: &CheckedGraph<'a>, samplers: SamplerChain<'a>, decode: &str, plan: &mut ComfyPlan) -> Translated<()> {
    let sampler = samplers.first;
    let SamplerShare { steps, strength } = SamplerShare::of(graph, sampler)?;
    let unread = || NodeProblem::refused(sampler, "steps", "the graph is not understood");
    // As if the first sampler were the only one.
    let mut nodes = graph.upstream(&[sampler]);
    nodes.extend(graph.upstream(&graph.outputs).into_iter().filter(|node| !SAMPLERS.contains(&graph.class(node))));
    let mut recipe = understand_graph(&graph.part(&nodes, (decode, "samples", sampler))).ok_or_else(unread)?;
    // These are followed here, node by node.
    recipe.other.clear();
    recipe.loras.clear();
    recipe.fields.remove(&Field::Strength);
    // Latents are an eighth of it, rounded down.
    for side in [Field::Width, Field::Height] {
        let whole = recipe.get(side).and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(whole) = whole {
            recipe.fields.insert(side, (whole / 8 * 8).max(8).to_string());
        }
    }
    // Where nothing is encoded the reader says nothing; what is said here is replaced by the texts.
    recipe.fields.entry(Field::Prompt).or_insert_with(|| "x".into());
    let mut command = recreation(&recipe);
    // The last one says that the image will be another; it is made by the tool's rules.
    command.notes.pop();
    plan.remarks.extend(command.notes);
    let mut words = command.arguments.into_iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let (name, tied) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let Some(row) = crate::settings::find(name) else { continue };
        let value = match tied {
            Some(value) => value.into(),
            None if row.kind.is_switch() => true.into(),
            None => Json::from(words.next().unwrap_or_default()),
        };
        plan.settings.insert(row.name.to_owned(), value);
    }
    plan.settings.insert("steps".into(), steps.into());
    plan.settings.insert("strength".into(), strength.into());
    Ok(())
}

/// The VAE that decodes, where it is not the model's own.
fn autoencoder(graph: &CheckedGraph<'_>, decode: &str, plan: &mut ComfyPlan) -> Translated<()> {
    let reached = graph.upstream(&graph.outputs);
    let of = |node: &str| {
        graph.link(node, "vae").filter(|(from, _)| graph.class(from) == "VAELoader").map(|(from, _)| graph.text(from, "vae_name"))
    };
    let own = of(decode);
    for node in reached {
        if matches!(graph.class(node), "VAEEncode" | "VAEEncodeForInpaint") && of(node) != own {
            return Err(NodeProblem::refused(node, "vae", "images are encoded by the VAE that decodes them here"));
        }
    }
    if let Some(name) = own {
        plan.settings.insert("vae".into(), stem(name).into());
    }
    Ok(())
}

/// A side of the guidance: the text's node, and the ControlNets on the way, the one nearest to the text first.
struct GuidanceSide<'a> {
    encoder: &'a str,
    controls: Vec<&'a str>,
}

fn conditioning<'a>(graph: &CheckedGraph<'a>, sampler: &'a str, side: &'static str) -> Translated<GuidanceSide<'a>> {
    let (mut node, mut input, mut controls) = (sampler, side, Vec::new());
    for _ in 0..LONGEST {
        let Some((from, output)) = graph.link(node, input) else { break };
        match graph.class(from) {
            "CLIPTextEncode" => {
                controls.reverse();
                return Ok(GuidanceSide { encoder: from, controls });
            }
            "ControlNetApply" => {
                controls.push(from);
                (node, input) = (from, "conditioning");
            }
            "ControlNetApplyAdvanced" => {
                controls.push(from);
                (node, input) = (from, if output == 0 { "positive" } else { "negative" });
            }
            _ => break,
        }
    }
    Err(NodeProblem::refused(node, input, "leads to no text"))
}

/// LoRAs, whose nodes change the model, the text encoder, or both.
fn networks(
    graph: &CheckedGraph<'_>,
    sampler: &str,
    positive: &GuidanceSide<'_>,
    negative: &GuidanceSide<'_>,
    plan: &mut ComfyPlan,
) -> Translated<()> {
    let of_model = loaders(graph, sampler, "model")?;
    let of_texts = loaders(graph, positive.encoder, "clip")?;
    if loaders(graph, negative.encoder, "clip")? != of_texts {
        return Err(NodeProblem::refused(negative.encoder, "clip", "both texts are encoded by the same text encoder here"));
    }
    let mut nodes = of_model.clone();
    nodes.extend(of_texts.iter().filter(|node| !of_model.contains(node)));
    let is_lora = |node: &&&str| graph.class(node).starts_with("LoraLoader");
    let loras: Vec<Json> = nodes
        .iter()
        .filter(is_lora)
        .map(|node| {
            let weight = |input: &str, nodes: &[&str]| if nodes.contains(node) { graph.number(node, input) } else { 0.0 };
            let (model, texts) = (weight("strength_model", &of_model), weight("strength_clip", &of_texts));
            (graph.text(node, "lora_name"), model, texts)
        })
        .filter(|(_, model, texts)| *model != 0.0 || *texts != 0.0)
        .map(|(name, model, texts)| json!({ "name": stem(name), "weight": model, "text_weight": texts }))
        .collect();
    if !loras.is_empty() {
        plan.settings.insert("lora".into(), loras.into());
    }
    Ok(())
}

/// The nodes that change a model or a text encoder, the one nearest to the checkpoint first.
fn loaders<'a>(graph: &CheckedGraph<'a>, node: &'a str, input: &'static str) -> Translated<Vec<&'a str>> {
    let (mut node, start, mut found) = (node, node, Vec::new());
    for _ in 0..LONGEST {
        let Some((from, _)) = graph.link(node, input) else { break };
        if graph.class(from) == "CheckpointLoaderSimple" {
            found.reverse();
            return Ok(found);
        }
        found.push(from);
        node = from;
    }
    Err(NodeProblem::refused(start, input, "leads to no checkpoint"))
}

fn controls(
    graph: &CheckedGraph<'_>,
    positive: &GuidanceSide<'_>,
    negative: &GuidanceSide<'_>,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    plan: &mut ComfyPlan,
) -> Translated<()> {
    let mut controls = Vec::new();
    for (at, node) in positive.controls.iter().enumerate() {
        let advanced = graph.class(node) == "ControlNetApplyAdvanced";
        if advanced && !negative.controls.contains(node) {
            return Err(NodeProblem::refused(
                node,
                "negative",
                "a ControlNet steers both sides here; lead its second output to the sampler",
            ));
        }
        let model = graph.link(node, "control_net").map(|(loader, _)| graph.text(loader, "control_net_name")).unwrap_or_default();
        let (_, bytes) = loaded(graph, node, "image", read)?;
        let part = format!("control-{at}");
        let mut control = json!({ "model": stem(model), "image": { "part": part }, "weight": graph.number(node, "strength") });
        if let (true, Some(control)) = (advanced, control.as_object_mut()) {
            control.insert("start".into(), graph.number(node, "start_percent").into());
            control.insert("end".into(), graph.number(node, "end_percent").into());
        }
        plan.parts.insert(part, bytes);
        controls.push(control);
    }
    // The old node steers both sides from where it stands, which is the side of what is wanted.
    if let Some(other) = negative.controls.iter().find(|node| !positive.controls.contains(node)) {
        return Err(NodeProblem::refused(other, "control_net", "a ControlNet stands on the side of what is wanted"));
    }
    if !controls.is_empty() {
        plan.settings.insert("control".into(), controls.into());
    }
    Ok(())
}

/// The image that an input leads to: its node, and its bytes.
fn loaded<'a>(
    graph: &CheckedGraph<'a>,
    node: &str,
    input: &str,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Translated<(&'a str, Vec<u8>)> {
    let from = graph.link(node, input).filter(|(from, _)| graph.class(from).starts_with("LoadImage"));
    let (from, _) = from.ok_or_else(|| NodeProblem::refused(node, input, "is an image that was sent here; lead a LoadImage there"))?;
    let bytes = read(graph.text(from, "image")).map_err(|what| NodeProblem::refused(from, "image", what))?;
    Ok((from, bytes))
}

/// What the sampler starts from: nothing, an image, or an image with a mask.
fn latents(
    graph: &CheckedGraph<'_>,
    sampler: &str,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    plan: &mut ComfyPlan,
) -> Translated<()> {
    let Some((mut from, _)) = graph.link(sampler, "latent_image") else { return Ok(()) };
    let mut mask_of = None;
    if graph.class(from) == "SetLatentNoiseMask" {
        mask_of = Some(from);
        from = graph.link(from, "samples").map_or(from, |(from, _)| from);
    }
    let mut set = |name: &str, value: Json| drop(plan.settings.insert(name.to_owned(), value));
    match graph.class(from) {
        "EmptyLatentImage" if mask_of.is_none() => {
            // Latents are an eighth of it, rounded down.
            let side = |input: &str| Json::from((graph.number(from, input) as u64 / 8 * 8).max(8));
            set("width", side("width"));
            set("height", side("height"));
            plan.settings.remove("size");
            let images = graph.number(from, "batch_size") as u64;
            plan.settings.insert("images".into(), images.into());
            if images > 1 {
                // One draw for all of them.
                plan.settings.insert("batch-noise".into(), "shared".into());
            }
            match plan.settings.remove("strength").and_then(|strength| strength.as_f64()) {
                Some(strength) if strength < 1.0 => {
                    let (input, what) = match graph.class(sampler) {
                        "KSampler" => ("denoise", "is below 1 without an image to start from; lead a VAEEncode to latent_image"),
                        _ => ("start_at_step", "leaves steps out without an image to start from; lead a VAEEncode to latent_image"),
                    };
                    Err(NodeProblem::refused(sampler, input, what))
                }
                _ => Ok(()),
            }
        }
        "VAEEncode" | "VAEEncodeForInpaint" => {
            let fills = graph.class(from) == "VAEEncodeForInpaint";
            let (loader, bytes) = loaded(graph, from, "pixels", read)?;
            let wrong = |what: String| NodeProblem::refused(loader, "image", what);
            let decoded = crate::image::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
            let mut image = cropped(&decoded.rgb).ok_or_else(|| wrong("is smaller than 8 pixels".into()))?;
            let with_mask = if fills { Some(from) } else { mask_of };
            if let Some(node) = with_mask {
                let mask = mask(graph, node, decoded.rgb.dimensions(), read)?;
                let grown = if fills { grown(&mask, graph.number(node, "grow_mask_by") as u32) } else { mask.clone() };
                if fills {
                    // What is under the mask is grey before it is encoded.
                    for (pixel, under) in image.pixels_mut().zip(mask.pixels()) {
                        if under.0[0] >= 128 {
                            *pixel = Rgb([128; 3]);
                        }
                    }
                }
                plan.parts.insert("mask".into(), png(&grown).map_err(wrong)?);
                for (name, value) in [("mask", json!({ "part": "mask" })), ("mask-blur", json!(0)), ("no-composite", json!(true))] {
                    plan.settings.insert(name.into(), value);
                }
            }
            let (width, height) = image.dimensions();
            plan.parts.insert("image".into(), png(&image).map_err(wrong)?);
            plan.settings.remove("size");
            for (name, value) in [("init-image", json!({ "part": "image" })), ("width", json!(width)), ("height", json!(height))] {
                plan.settings.insert(name.into(), value);
            }
            Ok(())
        }
        other => Err(NodeProblem::refused(sampler, "latent_image", format!("{other} is not what an image can start from here"))),
    }
}

/// The mask that a node is given, over an image of this size: white is made anew.
fn mask(
    graph: &CheckedGraph<'_>,
    node: &str,
    (width, height): (u32, u32),
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Translated<GrayImage> {
    let (loader, bytes) = loaded(graph, node, "mask", read)?;
    let wrong = |what: String| NodeProblem::refused(loader, "image", what);
    let decoded = crate::image::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
    let channel = if graph.class(loader) == "LoadImageMask" { graph.text(loader, "channel") } else { "alpha" };
    let of_colour = |at: usize| {
        GrayImage::from_fn(decoded.rgb.width(), decoded.rgb.height(), |x, y| {
            Luma([decoded.rgb.get_pixel(x, y).0.get(at).copied().unwrap_or_default()])
        })
    };
    let mut drawn = match channel {
        "red" => of_colour(0),
        "green" => of_colour(1),
        "blue" => of_colour(2),
        // What is transparent is masked.
        _ => {
            let mut alpha = decoded.alpha.clone().ok_or_else(|| wrong("has no transparent part, which is what is masked".into()))?;
            alpha.pixels_mut().for_each(|pixel| pixel.0[0] = 255 - pixel.0[0]);
            alpha
        }
    };
    if drawn.dimensions() != (width, height) {
        drawn = ::image::imageops::resize(&drawn, width, height, ::image::imageops::FilterType::Triangle);
    }
    cropped(&drawn).ok_or_else(|| wrong("is smaller than 8 pixels".into()))
}

/// The middle whose sides are whole latents, as ComfyUI cuts it.
///
/// # Source
/// ComfyUI@005f3ba:nodes.py `VAEEncodeForInpaint.encode`, comfy/sd.py `vae_encode_crop_pixels`.
fn cropped<P: ::image::Pixel + 'static>(
    image: &::image::ImageBuffer<P, Vec<P::Subpixel>>,
) -> Option<::image::ImageBuffer<P, Vec<P::Subpixel>>> {
    let (width, height) = image.dimensions();
    let (inner_width, inner_height) = (width / 8 * 8, height / 8 * 8);
    let is_whole = inner_width > 0 && inner_height > 0;
    is_whole.then(|| {
        ::image::imageops::crop_imm(image, (width - inner_width) / 2, (height - inner_height) / 2, inner_width, inner_height).to_image()
    })
}

/// A mask of black and white with the white grown to a square of so many pixels around each.
fn grown(mask: &GrayImage, by: u32) -> GrayImage {
    let (width, height) = mask.dimensions();
    let before = by.saturating_sub(1).div_ceil(2);
    let after = by.saturating_sub(1) - before;
    // Sums along a line tell whether any of a stretch is white.
    let along = |mask: &GrayImage, lengthwise: bool| {
        let mut grown = GrayImage::new(width, height);
        let (lines, length) = if lengthwise { (height, width) } else { (width, height) };
        for line in 0..lines {
            let at = |i: u32| if lengthwise { (i, line) } else { (line, i) };
            let mut sums = vec![0u32];
            for i in 0..length {
                let (x, y) = at(i);
                sums.push(sums.last().copied().unwrap_or_default() + u32::from(mask.get_pixel(x, y).0[0] >= 128));
            }
            for i in 0..length {
                let (from, to) = (i.saturating_sub(before), (i + after + 1).min(length));
                let whites = sums.get(to as usize).zip(sums.get(from as usize)).map_or(0, |(to, from)| to - from);
                let (x, y) = at(i);
                grown.put_pixel(x, y, Luma([if whites > 0 { 255 } else { 0 }]));
            }
        }
        grown
    };
    along(&along(mask, true), false)
}

/// An image as PNG.
fn png<P>(image: &::image::ImageBuffer<P, Vec<u8>>) -> Result<Vec<u8>, String>
where
    P: ::image::Pixel<Subpixel = u8> + ::image::PixelWithColorType,
{
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ::image::ImageFormat::Png).map_err(|error| format!("cannot be written: {error}"))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::super::nodes::NodeInput;
    use super::*;

    fn graph() -> Json {
        json!({
            "3": { "class_type": "KSampler", "inputs": {
                "seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
                "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0] } },
            "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "some.safetensors" } },
            "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 516, "height": 768, "batch_size": 2 } },
            "6": { "class_type": "CLIPTextEncode", "inputs": { "text": " a (cat:1.2) ", "clip": ["10", 1] } },
            "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "", "clip": ["10", 1] } },
            "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
            "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "x", "images": ["8", 0] } },
            "10": { "class_type": "LoraLoader", "inputs": {
                "lora_name": "detail.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0], "clip": ["4", 1] } },
        })
    }

    fn choices(input: NodeInput) -> Option<Vec<String>> {
        match input {
            NodeInput::File(_) => Some(["some", "detail"].map(str::to_owned).to_vec()),
            NodeInput::Words(words) => Some(words.iter().map(|word| (*word).to_owned()).collect()),
            _ => Some(["dpmpp_2m", "euler", "karras", "normal"].map(str::to_owned).to_vec()),
        }
    }

    fn of(graph: &Json, image: &[u8]) -> Result<ComfyPlan, Json> {
        let nodes = graph.as_object().unwrap();
        let checked =
            CheckedGraph::of(nodes, &choices).map_err(|refusal| json!({ "error": refusal.error, "node_errors": refusal.nodes }))?;
        let mut read = |_: &str| Ok(image.to_vec());
        translate(&checked, &mut read).map_err(|problem| checked.refusal(&[*problem]).nodes)
    }

    #[test]
    fn a_graph_becomes_settings() {
        let plan = of(&graph(), &[]).unwrap();
        let wanted = json!({
            "prompt": " a (cat:1.2) ", "negative-prompt": "", "steps": 20, "seed": "5", "guidance-scale": "7.5", "model": "some",
            "schedule": "karras", "like": "comfyui", "prompt-syntax": "comfyui", "width": 512, "height": 768, "images": 2,
            "batch-noise": "shared",
            "lora": [{ "name": "detail", "weight": 0.8, "text_weight": 0.5 }],
        });
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(plan.settings.get(name), Some(value), "{name}: {:?}", plan.settings);
        }
        assert!(!plan.settings.contains_key("strength") && !plan.settings.contains_key("size"), "{:?}", plan.settings);
        assert_eq!(plan.stages, ["6", "3", "8"]);
    }

    /// The graph with a second sampler over the enlarged latents of the first.
    fn two_passes() -> Json {
        let mut graph = graph();
        graph["5"]["inputs"]["width"] = json!(512);
        graph["12"] =
            json!({ "class_type": "LatentUpscaleBy", "inputs": { "samples": ["3", 0], "upscale_method": "bilinear", "scale_by": 1.5 } });
        let mut second = graph["3"].clone();
        second["inputs"]["latent_image"] = json!(["12", 0]);
        second["inputs"]["denoise"] = json!(0.5);
        second["inputs"]["steps"] = json!(14);
        graph["13"] = second;
        graph["8"]["inputs"]["samples"] = json!(["13", 0]);
        graph
    }

    #[test]
    fn a_second_sampler_is_a_second_pass() {
        let said = |plan: &ComfyPlan, wanted: Json| {
            for (name, value) in wanted.as_object().unwrap() {
                assert_eq!(plan.settings.get(name), Some(value), "{name}: {:?}", plan.settings);
            }
        };
        let plan = of(&two_passes(), &[]).unwrap();
        let passes = json!({ "hires": 1.5, "hires-upscaler": "latent", "hires-steps": 14, "hires-strength": 0.5 });
        said(&plan, passes);
        said(&plan, json!({ "steps": 20, "seed": "5", "width": 512, "height": 768 }));
        assert!(!plan.settings.contains_key("strength"), "{:?}", plan.settings);
        // The other node says the size.
        let mut sized = two_passes();
        sized["12"] = json!({ "class_type": "LatentUpscale", "inputs": {
            "samples": ["3", 0], "upscale_method": "bicubic", "width": 1024, "height": 1536, "crop": "disabled" } });
        said(&of(&sized, &[]).unwrap(), json!({ "hires": 2.0, "hires-upscaler": "latent-bicubic" }));
        // Over the latents as they are, the last eight of twenty steps.
        let mut plain = two_passes();
        plain["13"] = json!({ "class_type": "KSamplerAdvanced", "inputs": {
            "add_noise": "enable", "noise_seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["3", 0],
            "start_at_step": 12, "end_at_step": 10000, "return_with_leftover_noise": "disable" } });
        said(&of(&plain, &[]).unwrap(), json!({ "hires": 1.0, "hires-steps": 8, "hires-strength": 0.4 }));
        let changed = |node: &str, input: &str, value: Json| {
            let mut graph = two_passes();
            graph[node]["inputs"][input] = value;
            graph
        };
        let advanced = |input: &str, value: Json| {
            let mut graph = plain.clone();
            graph["13"]["inputs"][input] = value;
            graph
        };
        let mut third = two_passes();
        third["14"] = third["13"].clone();
        third["14"]["inputs"]["latent_image"] = json!(["13", 0]);
        third["8"]["inputs"]["samples"] = json!(["14", 0]);
        for (graph, node, input) in [
            (changed("13", "seed", json!(6)), "13", "seed"),
            (changed("13", "cfg", json!(6)), "13", "cfg"),
            (changed("13", "sampler_name", json!("euler")), "13", "sampler_name"),
            (changed("13", "positive", json!(["7", 0])), "13", "positive"),
            (changed("13", "denoise", json!(1)), "13", "denoise"),
            (changed("12", "upscale_method", json!("bislerp")), "12", "upscale_method"),
            (changed("12", "scale_by", json!(0.5)), "12", "scale_by"),
            (changed("12", "samples", json!(["5", 0])), "12", "samples"),
            (advanced("add_noise", json!("disable")), "13", "add_noise"),
            (advanced("end_at_step", json!(15)), "13", "end_at_step"),
            (advanced("return_with_leftover_noise", json!("enable")), "13", "return_with_leftover_noise"),
            (advanced("start_at_step", json!(20)), "13", "start_at_step"),
            (third, "3", "latent_image"),
        ] {
            let errors = of(&graph, &[]).unwrap_err();
            assert_eq!(errors[node]["errors"][0]["extra_info"]["input_name"], input, "{errors}");
        }
    }

    #[test]
    fn a_mask_is_what_is_transparent() {
        let mut sent = ::image::RgbaImage::from_pixel(20, 17, ::image::Rgba([9, 9, 9, 255]));
        sent.put_pixel(10, 8, ::image::Rgba([9, 9, 9, 0]));
        let mut bytes = Cursor::new(Vec::new());
        sent.write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        let mut graph = graph();
        graph["11"] = json!({ "class_type": "LoadImage", "inputs": { "image": "a.png" } });
        graph["5"] = json!({ "class_type": "VAEEncodeForInpaint", "inputs": { "pixels": ["11", 0], "vae": ["4", 2], "mask": ["11", 1], "grow_mask_by": 3 } });
        let plan = of(&graph, bytes.get_ref()).unwrap();
        assert_eq!((&plan.settings["width"], &plan.settings["height"], &plan.settings["strength"]), (&json!(16), &json!(16), &json!(1.0)));
        let image = ::image::load_from_memory(&plan.parts["image"]).unwrap().to_rgb8();
        let mask = ::image::load_from_memory(&plan.parts["mask"]).unwrap().to_luma8();
        assert_eq!((image.dimensions(), mask.dimensions()), ((16, 16), (16, 16)));
        // Two columns and no row were cut off before the pixel.
        assert_eq!((image.get_pixel(8, 8).0, image.get_pixel(7, 8).0), ([128; 3], [9; 3]));
        assert_eq!(mask.pixels().filter(|pixel| pixel.0[0] == 255).count(), 9);
        assert_eq!(mask.get_pixel(7, 7).0, [255]);
    }

    #[test]
    fn what_is_not_done_is_said_of_its_node() {
        let change = |node: &str, value: Json| {
            let mut graph = graph();
            graph[node] = value;
            graph
        };
        let wrong = |node: &str, input: &str, value: Json| {
            let mut graph = graph();
            graph[node]["inputs"][input] = value;
            graph
        };
        for (graph, node, said) in [
            (change("6", json!({ "class_type": "Nonesuch", "inputs": {} })), "6", "missing_node_type"),
            (wrong("3", "steps", json!(0)), "3", "value_smaller_than_min"),
            (wrong("3", "cfg", json!("x")), "3", "invalid_input_type"),
            (wrong("3", "sampler_name", json!("nonesuch")), "3", "value_not_in_list"),
            (wrong("3", "model", json!(["6", 0])), "3", "return_type_mismatch"),
            (wrong("3", "model", json!(["99", 0])), "3", "bad_linked_input"),
            (wrong("4", "ckpt_name", json!("../../x")), "4", "value_not_in_list"),
            (wrong("3", "denoise", json!(0.5)), "3", "custom_validation_failed"),
            (wrong("10", "model", json!(["10", 0])), "3", "custom_validation_failed"),
        ] {
            let errors = of(&graph, &[]).unwrap_err();
            let nodes = errors.get("node_errors").unwrap_or(&errors);
            assert_eq!(nodes[node]["errors"][0]["type"], said, "{errors}");
            assert_eq!(nodes[node]["dependent_outputs"], json!(["9"]), "{errors}");
        }
        let mut empty = graph();
        empty.as_object_mut().unwrap().remove("9");
        match of(&empty, &[]) {
            Err(errors) => assert_eq!(errors["error"]["type"], "prompt_no_outputs"),
            Ok(plan) => panic!("{plan:?}"),
        }
    }
}
