//! The prompt, as the UNet is told it.

use super::{Observer, Pipeline, check_finite};
use crate::Result;
use crate::models::AddedCondition;
use crate::request::GenerationRequest;
use candle_core::{D, Tensor};

/// Aesthetic scores that SDXL's refiner is told: for the prompt, and for the negative prompt.
///
/// # Source
/// `aesthetic_score` and `negative_aesthetic_score` in
/// diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl_img2img.py.
const AESTHETIC_SCORES: (f64, f64) = (6.0, 2.5);

/// What the UNet is told about one picture: one row, or the negative row and the prompt's.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `(rows, tokens, width)`
    pub(super) context: Tensor,
    pub(super) added: Option<AddedCondition>,
}

impl Conditioning {
    /// For `pictures` at once: all negative rows, then all rows of the prompt.
    pub(super) fn repeat(&self, pictures: usize) -> Result<Self> {
        let each = |x: &Tensor| -> Result<Tensor> {
            let rows: Result<Vec<Tensor>> = (0..x.dim(0)?).map(|i| Ok(x.narrow(0, i, 1)?.repeat((pictures, 1))?)).collect();
            Ok(Tensor::cat(&rows?, 0)?)
        };
        let (rows, tokens, width) = self.context.dims3()?;
        let context = each(&self.context.reshape((rows, tokens * width))?)?.reshape((rows * pictures, tokens, width))?;
        let added = self.added.as_ref().map(|added| -> Result<AddedCondition> {
            let time_ids = added.time_ids.iter().flat_map(|ids| std::iter::repeat_n(ids.clone(), pictures)).collect();
            Ok(AddedCondition { pooled: each(&added.pooled)?, time_ids })
        });
        Ok(Self { context, added: added.transpose()? })
    }
}

/// Encodes prompt and negative prompt with all text encoders.
pub(super) fn encode(pipeline: &Pipeline, request: &GenerationRequest, observer: &mut dyn Observer) -> Result<Conditioning> {
    let spec = &pipeline.spec;
    let guided = request.is_guided();
    // The reference zeroes the embeddings only where no negative prompt was given at all.
    let zero_negative = guided && request.negative_prompt.is_none() && spec.zero_missing_negative;
    // As in the reference, layers are skipped for the prompt only: the negative prompt keeps the family's own layer.
    let mut texts = vec![("prompt", request.prompt.as_str(), request.skip_layers)];
    if guided {
        texts.insert(0, ("negative prompt", request.negative_prompt.as_deref().unwrap_or(""), 0));
    }

    let mut hidden = Vec::new();
    let mut pooled = None;
    for (i, encoder) in pipeline.text_encoders.iter().enumerate() {
        let mut embeds = Vec::new();
        for (which, text, skip) in &texts {
            let tokens = encoder.tokenize(text)?;
            // All encoders of a family cut a text at the same word: once said is enough.
            if let Some(left_out) = tokens.left_out.filter(|_| i == 0) {
                let (room, left_out) = (tokens.ids.len() - 2, excerpt(&left_out));
                observer.warn(&format!("the {which} is longer than the {room} tokens that the text encoder takes; left out: {left_out}"));
            }
            embeds.push(encoder.encode(&[tokens.ids], *skip)?);
        }
        let rows = Tensor::cat(&embeds.iter().map(|e| &e.hidden).collect::<Vec<_>>(), 0)?;
        check_finite(&rows, || format!("the text encoder in {}; try --dtype f32", pipeline.dtype.as_str()))?;
        hidden.push(rows);
        let poolings: Vec<&Tensor> = embeds.iter().filter_map(|e| e.pooled.as_ref()).collect();
        if !poolings.is_empty() {
            let rows = Tensor::cat(&poolings, 0)?;
            check_finite(&rows, || format!("the text encoder's pooled output in {}; try --dtype f32", pipeline.dtype.as_str()))?;
            pooled = Some(rows);
        }
    }
    let mut context = Tensor::cat(&hidden, D::Minus1)?;
    if zero_negative {
        context = zero_first_row(&context)?;
        pooled = pooled.map(|p| zero_first_row(&p)).transpose()?;
    }
    let added = pooled.filter(|_| spec.unet.text_time.is_some()).map(|pooled| {
        let (height, width) = (request.height as f64, request.width as f64);
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
