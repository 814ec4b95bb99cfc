//! The prompt, as the UNet is told it.

use super::finite::check_finite;
use super::{Observer, Pipeline};
use crate::models::AddedCondition;
use crate::settings::Request;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use candle_core::{D, Tensor};

/// Aesthetic scores that SDXL's refiner is told: for the prompt, and for the negative prompt.
///
/// # Source
/// `aesthetic_score` and `negative_aesthetic_score` in
/// diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl_img2img.py.
const AESTHETIC_SCORES: (f64, f64) = (6.0, 2.5);

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

/// What the UNet is told about one image: one row, or the negative row and the prompt's.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `(rows, tokens, width)`
    pub(super) context: Tensor,
    pub(super) added: Option<AddedCondition>,
}

impl Conditioning {
    /// Tokens of the context; images of one batch must have as many.
    pub fn tokens(&self) -> usize {
        self.context.dim(1).unwrap_or(0)
    }

    /// For several images at once: all negative rows, then all rows of the prompts.
    pub(super) fn join(images: &[&Self]) -> Result<Self> {
        let first = images.first().ok_or_else(|| Error::Image("a batch without images".into()))?;
        let rows = first.context.dim(0)?;
        let each = |of: &dyn Fn(&Self) -> Option<&Tensor>| -> Result<Tensor> {
            let mut parts = Vec::new();
            for row in 0..rows {
                for image in images.iter().filter_map(|image| of(image)) {
                    parts.push(image.narrow(0, row, 1)?);
                }
            }
            Ok(Tensor::cat(&parts, 0)?)
        };
        let added = first.added.as_ref().map(|_| -> Result<AddedCondition> {
            let ids = |row: usize| images.iter().filter_map(move |image| image.added.as_ref()?.time_ids.get(row).cloned());
            let pooled = each(&|image| image.added.as_ref().map(|added| &added.pooled))?;
            Ok(AddedCondition { pooled, time_ids: (0..rows).flat_map(ids).collect() })
        });
        Ok(Self { context: each(&|image| Some(&image.context))?, added: added.transpose()? })
    }
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
pub(super) fn encode(pipeline: &Pipeline, text: &PromptText<'_>, observer: &mut dyn Observer) -> Result<EncodedText> {
    let dtype = pipeline.dtype;
    pipeline.components.with_text_encoders(observer, |encoders, observer| {
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
    let mut context = Tensor::cat(&texts.iter().map(|text| &text.hidden).collect::<Vec<_>>(), 0)?;
    let poolings: Vec<&Tensor> = texts.iter().filter_map(|text| text.pooled.as_ref()).collect();
    let mut pooled = if poolings.is_empty() { None } else { Some(Tensor::cat(&poolings, 0)?) };
    if zero_negative {
        context = zero_first_row(&context)?;
        pooled = pooled.map(|p| zero_first_row(&p)).transpose()?;
    }
    let added = pooled.filter(|_| spec.unet.text_time.is_some()).map(|pooled| {
        let (height, width) = (request.canvas.height as f64, request.canvas.width as f64);
        let ids = |score: f64| match spec.aesthetic_score {
            // Original size, crop corner, then a score or the target size.
            true => vec![height, width, 0.0, 0.0, score],
            false => vec![height, width, 0.0, 0.0, height, width],
        };
        let mut time_ids = vec![ids(AESTHETIC_SCORES.0)];
        if guided {
            time_ids.insert(0, ids(AESTHETIC_SCORES.1));
        }
        AddedCondition { pooled, time_ids }
    });
    Ok(Conditioning { context, added })
}

fn zero_first_row(x: &Tensor) -> Result<Tensor> {
    let rest = x.narrow(0, 1, x.dim(0)? - 1)?;
    Ok(Tensor::cat(&[x.narrow(0, 0, 1)?.zeros_like()?, rest], 0)?)
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
