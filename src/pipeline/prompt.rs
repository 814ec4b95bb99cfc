//! The prompt, as the UNet is told it.

use super::finite::check_finite;
use super::{Observer, Pipeline};
use crate::adapter::AdapterSet;
use crate::family::time_ids;
use crate::models::ModelCall;
use crate::sampling::{Branch, CallPoint};
use crate::settings::Request;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use candle_core::{D, Tensor};
use std::sync::Arc;

/// A text that an image needs encoded. Equal ones have equal encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PromptText<'a> {
    /// What it is called in messages: "prompt" or "negative prompt".
    pub which: &'static str,
    /// The text.
    pub text: &'a str,
    /// Layers left out beyond what the family leaves out.
    pub skip_layers: usize,
}

/// A text as all text encoders see it.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// `(1, tokens, width)`
    hidden: Tensor,
    /// `(1, pooled width)`
    pooled: Option<Tensor>,
}

impl EncodedText {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let of = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        of(&self.hidden) + self.pooled.as_ref().map_or(0, of)
    }
}

/// What the network is told about one image, for every branch of its guidance.
#[derive(Debug, Clone)]
pub struct Conditioning {
    branches: Vec<(Branch, Timeline)>,
}

/// What the network is told in each part of a run.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    /// The last call of the network for which a row holds, counted from 0; the rows stand in this order, and the last one holds to the end.
    rows: Vec<(usize, Arc<ConditioningRow>)>,
}

/// What the network is told in one row.
#[derive(Debug, Clone)]
pub(super) struct ConditioningRow {
    /// `(1, tokens, width)`
    pub(super) context: Tensor,
    /// `(1, pooled width)`
    pub(super) pooled: Option<Tensor>,
    pub(super) time_ids: Vec<f64>,
}

impl Timeline {
    /// The same from the first call to the last.
    pub(super) fn constant(row: ConditioningRow) -> Self {
        Self::new(vec![(usize::MAX, row)])
    }

    /// Of rows and the last call for which each of them holds.
    pub(super) fn new(rows: Vec<(usize, ConditioningRow)>) -> Self {
        Self { rows: rows.into_iter().map(|(last, row)| (last, Arc::new(row))).collect() }
    }

    fn at(&self, point: &CallPoint) -> Option<&Arc<ConditioningRow>> {
        self.rows.iter().find(|(last, _)| point.call <= *last).or(self.rows.last()).map(|(_, row)| row)
    }
}

impl Conditioning {
    /// What each branch of the guidance is told.
    pub(super) fn new(branches: Vec<(Branch, Timeline)>) -> Self {
        Self { branches }
    }

    /// Tokens of the context; images of one batch must have as many.
    pub fn tokens(&self) -> usize {
        let rows = self.branches.iter().flat_map(|(_, timeline)| &timeline.rows);
        rows.filter_map(|(_, row)| row.context.dim(1).ok()).max().unwrap_or(0)
    }

    fn row(&self, branch: Branch, at: &CallPoint) -> Result<&Arc<ConditioningRow>> {
        // Attention is disturbed under the prompt's own condition.
        let branch = if branch == Branch::Perturbed { Branch::Prompt } else { branch };
        let timeline = self.branches.iter().find(|(known, _)| *known == branch).map(|(_, timeline)| timeline);
        timeline
            .and_then(|timeline| timeline.at(at))
            .ok_or_else(|| Error::Image(format!("the prompt was not encoded for the branch {branch:?}")))
    }
}

/// The conditioning of a batch, put together when it changes.
#[derive(Debug)]
pub(super) struct BatchConditioning<'a> {
    images: Vec<&'a Conditioning>,
    /// The rows that were joined last, and what they make.
    joined: Option<(Vec<Arc<ConditioningRow>>, ConditioningRows)>,
}

/// Rows for one call.
#[derive(Debug, Clone)]
struct ConditioningRows {
    context: Tensor,
    pooled: Option<Tensor>,
    time_ids: Vec<Vec<f64>>,
}

impl<'a> BatchConditioning<'a> {
    pub(super) fn new(images: Vec<&'a Conditioning>) -> Self {
        Self { images, joined: None }
    }

    /// A call with the rows of all images for the first branch, then for the second, and so on.
    pub(super) fn call(&mut self, latents: Tensor, branches: &[Branch], at: &CallPoint) -> Result<ModelCall> {
        let mut rows = Vec::with_capacity(branches.len() * self.images.len());
        for branch in branches {
            for image in &self.images {
                rows.push(Arc::clone(image.row(*branch, at)?));
            }
        }
        let known =
            self.joined.take().filter(|(joined, _)| joined.len() == rows.len() && joined.iter().zip(&rows).all(|(a, b)| Arc::ptr_eq(a, b)));
        let (rows, joined) = match known {
            Some(known) => known,
            None => {
                let joined = join(&rows)?;
                (rows, joined)
            }
        };
        let ConditioningRows { context, pooled, time_ids } = joined.clone();
        self.joined = Some((rows, joined));
        Ok(ModelCall { pooled, time_ids, ..ModelCall::new(latents, at.level.timestep, context) })
    }
}

fn join(rows: &[Arc<ConditioningRow>]) -> Result<ConditioningRows> {
    let context = Tensor::cat(&rows.iter().map(|row| &row.context).collect::<Vec<_>>(), 0)?;
    let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.pooled.as_ref()).collect();
    let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
    let time_ids = rows.iter().map(|row| row.time_ids.clone()).filter(|ids| !ids.is_empty()).collect();
    Ok(ConditioningRows { context, pooled, time_ids })
}

/// The texts of a request in the order of the UNet's rows.
pub fn texts(request: &Request) -> Vec<PromptText<'_>> {
    // As in the reference, layers are skipped for the prompt only: the negative prompt keeps the family's own layer.
    let prompt = PromptText { which: "prompt", text: &request.prompt, skip_layers: request.text.skip_layers() };
    let negative = request.text.negative_prompt.as_deref().unwrap_or("");
    let negative = PromptText { which: "negative prompt", text: negative, skip_layers: 0 };
    if request.is_guided() { vec![negative, prompt] } else { vec![prompt] }
}

/// Encodes a text with all text encoders.
pub(super) fn encode(
    pipeline: &Pipeline,
    text: &PromptText<'_>,
    adapters: &AdapterSet,
    observer: &mut dyn Observer,
) -> Result<EncodedText> {
    let dtype = pipeline.dtype;
    pipeline.components.with_text_encoders(adapters, observer, |encoders, observer| {
        let mut hidden = Vec::new();
        let mut pooled = None;
        for (i, encoder) in encoders.iter().enumerate() {
            let tokens = encoder.tokenize(text.text)?;
            // All encoders of a family cut a text at the same word: once said is enough.
            if let Some(left_out) = tokens.left_out.filter(|_| i == 0) {
                let (which, room, left_out) = (text.which, tokens.ids.len() - 2, excerpt(&left_out));
                observer.warn(&format!("the {which} is longer than the {room} tokens that the text encoder takes; left out: {left_out}"));
            }
            let embeds = encoder.encode(&[tokens.ids], text.skip_layers)?;
            check_finite(&embeds.hidden, || format!("the text encoder in {}; try --dtype f32", dtype.as_str()))?;
            hidden.push(embeds.hidden);
            if let Some(row) = embeds.pooled {
                check_finite(&row, || format!("the text encoder's pooled output in {}; try --dtype f32", dtype.as_str()))?;
                pooled = Some(row);
            }
        }
        Ok(EncodedText { hidden: Tensor::cat(&hidden, D::Minus1)?, pooled })
    })
}

/// What the UNet is told, from the encodings of [`texts`].
pub(super) fn condition(spec: &ModelSpec, request: &Request, texts: &[&EncodedText]) -> Result<Conditioning> {
    let guided = request.is_guided();
    if texts.len() != 1 + usize::from(guided) {
        return Err(Error::Image(format!("{} texts where an image with this guidance has {}", texts.len(), 1 + usize::from(guided))));
    }
    // The reference zeroes the embeddings only where no negative prompt was given at all.
    let zero_negative = guided && request.text.negative_prompt.is_none() && spec.zero_missing_negative;
    let size = (request.canvas.height as f64, request.canvas.width as f64);
    let row = |branch: Branch, text: &EncodedText| -> Result<(Branch, Timeline)> {
        let zero = |x: &Tensor| if zero_negative && branch != Branch::Prompt { x.zeros_like() } else { Ok(x.clone()) };
        let pooled = text.pooled.as_ref().filter(|_| spec.unet.text_time.is_some()).map(zero).transpose()?;
        let guidance = &request.guidance;
        let score = if branch == Branch::Prompt { guidance.aesthetic_score } else { guidance.negative_aesthetic_score };
        let time_ids = if pooled.is_some() { time_ids(spec, size, score) } else { vec![] };
        Ok((branch, Timeline::constant(ConditioningRow { context: zero(&text.hidden)?, pooled, time_ids })))
    };
    let branches: &[Branch] = if guided { &[Branch::Negative, Branch::Prompt] } else { &[Branch::Prompt] };
    let mut branches: Vec<_> = branches.iter().zip(texts).map(|(branch, text)| row(*branch, text)).collect::<Result<_>>()?;
    if let ([negative, _], true) = (texts, request.inputs.edit) {
        branches.push(row(Branch::ImageOnly, negative)?);
    }
    Ok(Conditioning::new(branches))
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
