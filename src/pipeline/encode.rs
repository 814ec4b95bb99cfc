//! The texts of a request, and what the text encoders make of them.

use super::finite::check_finite;
use super::{Observer, Pipeline};
use crate::adapter::AdapterSet;
use crate::guidance::Conjunction;
use crate::prompt::{Emphasis, Prompt, PromptPart, PromptReading, PromptScheduling, PromptSyntax, WeightedText};
use crate::sampling::{Branch, Schedule, plan};
use crate::settings::{HiresPass, Request};
use crate::text::{TextEncoder, TimelineText};
use crate::{Error, Result};
use candle_core::{D, Tensor};
use std::collections::HashMap;
use std::time::Instant;
use tracing::{debug, info};

/// Texts that an image needs encoded together: those of the timeline of a prompt, of one of its parts, or of the negative prompt.
#[derive(Debug, Clone)]
pub struct PromptText {
    /// What it is called in messages: "prompt" or "negative prompt".
    pub which: &'static str,
    /// Everything that decides the encoding.
    pub key: TextKey,
    /// The last call of the network for which an entry holds, and its number among the key's texts.
    pub(super) timeline: Vec<(usize, usize)>,
    pub(super) branch: Branch,
    /// What looks like a slip, for people.
    slips: Vec<String>,
    /// How it was understood, for people who ask.
    view: Option<String>,
}

/// Texts and how they are encoded: equal ones have equal encodings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TextKey {
    /// Each text of the timeline once, and how many entries have it.
    texts: Vec<(String, usize)>,
    syntax: PromptSyntax,
    emphasis: Emphasis,
    /// Layers left out beyond what the family leaves out.
    skip_layers: usize,
    /// Tokens of T5, and whether they are zeros.
    t5: (usize, bool),
}

/// Texts as all text encoders see them, in the order of their key.
#[derive(Debug, Clone)]
pub struct EncodedText {
    pub(super) entries: Vec<EncodedEntry>,
}

/// One text as all text encoders see it.
#[derive(Debug, Clone)]
pub(super) struct EncodedEntry {
    /// `(1, tokens, width)`
    pub(super) hidden: Tensor,
    /// `(1, pooled width)`
    pub(super) pooled: Option<Tensor>,
}

impl EncodedText {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let of = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        self.entries.iter().map(|entry| of(&entry.hidden) + entry.pooled.as_ref().map_or(0, of)).sum()
    }
}

/// One of the runs that an image takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassNumber {
    /// The one from noise, or from the image to start from.
    First,
    /// Hires: over the enlarged result of the first.
    Second,
}

/// The texts of a request in the order of the network's rows: the negative prompt where guidance is on, then the parts of the prompt.
///
/// # Errors
/// A prompt cannot be read; the message names it.
pub(super) fn texts(request: &Request, pass: PassNumber) -> Result<Vec<PromptText>> {
    let mut texts = Vec::new();
    if request.is_guided() {
        let negative = request.text.negative_prompt.as_deref().unwrap_or("");
        texts.extend(parts("negative prompt", negative, request, pass, |_| Branch::Negative)?);
    }
    texts.extend(parts("prompt", &request.prompt, request, pass, Conjunction::branch)?);
    Ok(texts)
}

fn parts(
    which: &'static str,
    source: &str,
    request: &Request,
    pass: PassNumber,
    branch: impl Fn(usize) -> Branch,
) -> Result<Vec<PromptText>> {
    let negative = which != "prompt";
    let (syntax, emphasis) = (request.text.prompt_syntax, request.text.emphasis);
    let steps = calls(request, request.sampling.steps, &plan(&request.scheduler, request.sampling.steps)?);
    let hires_steps = match (pass, request.hires_pass()?) {
        (PassNumber::Second, Some(HiresPass { schedule: Some(schedule), steps, .. })) => Some(calls(request, steps, &schedule)),
        _ => None,
    };
    let reading = PromptReading { syntax, emphasis, scheduling: PromptScheduling::Current, steps, hires_steps, negative };
    let prompt = Prompt::parse(source, reading).map_err(|error| Error::Input(format!("{which}: {error}")))?;
    // diffusers leaves layers out for the prompt only; the other tools do for both.
    let skip_layers = if negative && syntax == PromptSyntax::Plain { 0 } else { request.skip_layers };
    // Once said is enough.
    let first = pass == PassNumber::First;
    let slips = prompt.slips.iter().filter(|_| first).map(|slip| format!("{which}: {}", slip.show(source)));
    let mut slips: Vec<String> = slips.collect();
    let mut view = (first && syntax != PromptSyntax::Plain && !source.is_empty()).then(|| prompt.to_string());
    let part = |(i, part): (usize, &PromptPart)| {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut texts: Vec<(String, usize)> = Vec::new();
        let mut timeline = Vec::with_capacity(part.timeline.len() + 1);
        for entry in &part.timeline {
            let number = *numbers.entry(&entry.text).or_insert_with(|| {
                texts.push((entry.text.clone(), 0));
                texts.len() - 1
            });
            texts[number].1 += 1;
            timeline.push((entry.until, number));
        }
        // As A1111: a call beyond the last one sees the first entry.
        timeline.push((usize::MAX, 0));
        let key = TextKey { texts, syntax, emphasis, skip_layers, t5: (request.text.t5_tokens, request.text.no_t5) };
        PromptText { which, key, timeline, branch: branch(i), slips: std::mem::take(&mut slips), view: view.take() }
    };
    Ok(prompt.parts.iter().enumerate().map(part).collect())
}

/// Calls of the network that the numbers of a timeline are shares of.
fn calls(request: &Request, steps: usize, schedule: &Schedule) -> usize {
    if request.text.prompt_syntax != PromptSyntax::A1111 { steps } else { calls_of(steps, schedule) }
}

/// Calls of the network in a pass, as A1111 counts them beforehand; `schedule` has all of the pass's steps.
///
/// A1111 v1.10.1 modules/sd_samplers_kdiffusion.py: a pass that begins at an image is launched with the steps that it takes.
pub(super) fn counted_calls(request: &Request, pass: PassNumber, schedule: &Schedule) -> Result<usize> {
    let steps = request.sampling.steps;
    // Some samplers' lists have a step more than was asked for.
    let whole = pass == PassNumber::First && plan(&request.scheduler, steps)?.steps.len() == schedule.steps.len();
    Ok(calls_of(if whole { steps } else { schedule.steps.len() }, schedule))
}

/// One a step, or two with samplers of second order.
fn calls_of(steps: usize, schedule: &Schedule) -> usize {
    // The first or the last step may be another.
    let twice = schedule.steps.iter().filter(|step| schedule.evaluations(step) == 2).count();
    if 2 * twice > schedule.steps.len() { 2 * steps } else { steps }
}

/// Encodes texts with all text encoders.
pub(super) fn encode(pipeline: &Pipeline, text: &PromptText, adapters: &AdapterSet, observer: &mut dyn Observer) -> Result<EncodedText> {
    let started = Instant::now();
    if let Some(view) = &text.view {
        info!("{view}");
    }
    text.slips.iter().for_each(|slip| observer.warn(slip));
    let dtype = pipeline.dtype;
    let clip = pipeline.components.with_text_encoders(adapters, observer, |encoders, observer| {
        let mut all: Vec<Vec<EncodedEntry>> = Vec::new();
        for (i, encoder) in encoders.iter().enumerate() {
            // All encoders of a family cut a text at the same word: once said is enough.
            let mut warn = |remark: &str| {
                if i == 0 {
                    observer.warn(remark)
                }
            };
            let entries = with_encoder(encoder, text, &mut warn)?;
            for EncodedEntry { hidden, pooled } in &entries {
                check_finite(hidden, || format!("the text encoder in {}; try `dtype` f32", dtype.as_str()))?;
                if let Some(pooled) = pooled {
                    check_finite(pooled, || format!("the text encoder's pooled output in {}; try `dtype` f32", dtype.as_str()))?;
                }
            }
            if let (0, true, Some(entry)) = (i, text.key.syntax != PromptSyntax::Plain, entries.first()) {
                let (tokens, room) = (entry.hidden.dim(1)?, encoder.max_tokens());
                info!("the {} takes {} chunks of {} tokens", text.which, tokens / room.max(1), room.saturating_sub(2));
            }
            all.push(entries);
        }
        let count = text.key.texts.len();
        let join = |i: usize| {
            let entries: Vec<&EncodedEntry> = all.iter().filter_map(|entries| entries.get(i)).collect();
            let hidden = Tensor::cat(&entries.iter().map(|entry| &entry.hidden).collect::<Vec<_>>(), D::Minus1)?;
            if pipeline.spec.mmdit.is_some() {
                let pooled: Vec<&Tensor> = entries.iter().filter_map(|entry| entry.pooled.as_ref()).collect();
                return Ok(EncodedEntry { hidden, pooled: Some(Tensor::cat(&pooled, D::Minus1)?) });
            }
            Ok(EncodedEntry { hidden, pooled: entries.iter().rev().find_map(|entry| entry.pooled.clone()) })
        };
        Ok(EncodedText { entries: (0..count).map(join).collect::<Result<_>>()? })
    })?;
    let encoded = match pipeline.spec.mmdit.as_ref().map(|mmdit| mmdit.context_width) {
        Some(width) => with_t5(pipeline, text, clip, width, observer)?,
        None => clip,
    };
    debug!(seconds = started.elapsed().as_secs_f64(), "the {} is encoded", text.which);
    Ok(encoded)
}

/// With zeros up to the width of T5 beside what CLIP says of the texts, and what T5 says below it.
///
/// # Source
/// `encode_prompt` in huggingface/diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py
fn with_t5(pipeline: &Pipeline, text: &PromptText, clip: EncodedText, width: usize, observer: &mut dyn Observer) -> Result<EncodedText> {
    let (tokens, left_out) = text.key.t5;
    let (syntax, emphasis) = (text.key.syntax, text.key.emphasis);
    let words = |(text_of_prompt, _): &(String, usize)| syntax.words(text_of_prompt, emphasis);
    let below: Vec<Tensor> = if pipeline.spec.t5.is_none() || left_out {
        vec![Tensor::zeros((1, tokens, width), pipeline.dtype, &pipeline.device)?; clip.entries.len()]
    } else {
        let texts = text.key.texts.iter().map(words).collect::<Result<Vec<_>>>()?;
        pipeline.components.with_t5(observer, |t5, observer| {
            let row = |words: &Vec<WeightedText>| {
                let (hidden, left_out) = t5.encode_weighted(words, tokens, (syntax, emphasis))?;
                if let Some(left_out) = left_out {
                    let (which, left_out) = (text.which, excerpt(&left_out));
                    observer
                        .warn(&format!("the {which} is longer than the {tokens} tokens of T5 (`t5-tokens`); left out of it: {left_out}"));
                }
                check_finite(&hidden, || "the T5 encoder; try `dtype` f32".to_owned())?;
                Ok(hidden.to_dtype(pipeline.dtype)?)
            };
            texts.iter().map(row).collect::<Result<_>>()
        })?
    };
    let joined = |(EncodedEntry { hidden, pooled }, below): (EncodedEntry, Tensor)| -> Result<EncodedEntry> {
        let beside = width - hidden.dim(2)?;
        let hidden = Tensor::cat(&[hidden.pad_with_zeros(2, 0, beside)?, below], 1)?;
        Ok(EncodedEntry { hidden, pooled })
    };
    Ok(EncodedText { entries: clip.entries.into_iter().zip(below).map(joined).collect::<Result<_>>()? })
}

fn with_encoder(encoder: &TextEncoder, text: &PromptText, warn: &mut dyn FnMut(&str)) -> Result<Vec<EncodedEntry>> {
    let TextKey { texts, syntax, emphasis, skip_layers, .. } = &text.key;
    let embeds = if *syntax == PromptSyntax::Plain {
        let row = |(text_of_prompt, _): &(String, usize)| {
            let tokens = encoder.tokenize(text_of_prompt)?;
            if let Some(left_out) = tokens.left_out {
                let (which, room, left_out) = (text.which, tokens.ids.len() - 2, excerpt(&left_out));
                warn(&format!("the {which} is longer than the {room} tokens that the text encoder takes; left out: {left_out}"));
            }
            encoder.encode(&[tokens.ids], *skip_layers)
        };
        texts.iter().map(row).collect::<Result<Vec<_>>>()?
    } else {
        let words = |(text, times): &(String, usize)| Ok(TimelineText { words: syntax.words(text, *emphasis)?, times: *times });
        let texts: Vec<TimelineText> = texts.iter().map(words).collect::<Result<_>>()?;
        encoder.encode_weighted(&texts, *syntax, *emphasis, *skip_layers)?
    };
    Ok(embeds.into_iter().map(|embeds| EncodedEntry { hidden: embeds.hidden, pooled: embeds.pooled }).collect())
}

/// A text in quotes, cut to what one reads in a warning.
fn excerpt(text: &str) -> String {
    const MOST: usize = 300;
    let letters = text.chars().count();
    if letters <= MOST {
        return format!("\"{text}\"");
    }
    format!("\"{} …\" ({letters} letters in all)", text.chars().take(MOST).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Draft;

    #[test]
    fn calls_are_those_of_the_pass() {
        for (sampler, a_step) in [("euler", 1), ("heun", 2)] {
            let draft = Draft::new("a").with(|draft| {
                draft.scheduler.sampler = Some(sampler.into());
                draft.sampling.steps = Some(12);
            });
            let request = draft.resolve(&crate::family::well_known("sd15").unwrap()).unwrap();
            let whole = plan(&request.scheduler, 12).unwrap();
            assert_eq!(counted_calls(&request, PassNumber::First, &whole).unwrap(), 12 * a_step);
            // From an image, and over an enlarged one.
            let some = plan(&request.scheduler, 5).unwrap();
            for pass in [PassNumber::First, PassNumber::Second] {
                assert_eq!(counted_calls(&request, pass, &some).unwrap(), 5 * a_step, "{sampler} {pass:?}");
            }
        }
    }
}
