//! The prompt, as the UNet is told it.

use super::encode::{EncodedEntry, EncodedText, PassNumber, PromptText};
use crate::family::time_ids;
use crate::models::ModelCall;
use crate::sampling::{Branch, CallPoint};
use crate::settings::Request;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// What the network is told about one image, for every branch of its guidance.
#[derive(Debug, Clone)]
pub struct Conditioning {
    branches: Vec<(Branch, Timeline)>,
    /// What the refiner is told in this pass.
    pub(super) refiner: Option<Box<Conditioning>>,
    /// What the network is told in the second pass.
    pub(super) second: Option<Box<Conditioning>>,
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
    /// Of rows and the last call for which each of them holds.
    pub(super) fn new(rows: Vec<(usize, Arc<ConditioningRow>)>) -> Self {
        Self { rows }
    }

    fn at(&self, point: &CallPoint) -> Option<&Arc<ConditioningRow>> {
        self.rows.iter().find(|(last, _)| point.call <= *last).or(self.rows.last()).map(|(_, row)| row)
    }
}

impl Conditioning {
    /// What each branch of the guidance is told.
    pub(super) fn new(branches: Vec<(Branch, Timeline)>) -> Self {
        Self { branches, refiner: None, second: None }
    }

    /// The same for a request of another size; `refiner` is what its refiner is.
    pub(super) fn of_size(&self, spec: &ModelSpec, refiner: Option<&ModelSpec>, request: &Request) -> Self {
        let size = (request.canvas.height as f64, request.canvas.width as f64);
        let of_row = |branch: Branch, row: &Arc<ConditioningRow>| {
            if row.time_ids.is_empty() {
                return Arc::clone(row);
            }
            let time_ids = time_ids(spec, size, score(request, branch == Branch::Negative));
            Arc::new(ConditioningRow { time_ids, ..ConditioningRow::clone(row) })
        };
        let timeline =
            |branch, Timeline { rows }: &Timeline| Timeline::new(rows.iter().map(|(last, row)| (*last, of_row(branch, row))).collect());
        let mut sized = Self::new(self.branches.iter().map(|(branch, rows)| (*branch, timeline(*branch, rows))).collect());
        sized.refiner = self.refiner.as_ref().map(|other| match refiner {
            Some(spec) => Box::new(other.of_size(spec, None, request)),
            None => other.clone(),
        });
        sized
    }

    /// Tokens of the contexts of every pass and network; images of one batch must have as many.
    pub fn lengths(&self) -> Vec<usize> {
        let others = self.refiner.iter().chain(&self.second).flat_map(|other| other.lengths());
        std::iter::once(self.tokens()).chain(others).collect()
    }

    fn tokens(&self) -> usize {
        let rows = self.branches.iter().flat_map(|(_, timeline)| &timeline.rows);
        rows.filter_map(|(_, row)| row.context.dim(1).ok()).max().unwrap_or(0)
    }

    fn row(&self, branch: Branch, at: &CallPoint) -> Result<&Arc<ConditioningRow>> {
        // Attention is disturbed under the prompt's own condition.
        let branch = if matches!(branch, Branch::Perturbed | Branch::SkippedLayers) { Branch::Prompt } else { branch };
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

/// The aesthetic score that a branch is told.
fn score(request: &Request, negative: bool) -> f64 {
    if negative { request.guidance.negative_aesthetic_score } else { request.guidance.aesthetic_score }
}

fn join(rows: &[Arc<ConditioningRow>]) -> Result<ConditioningRows> {
    let context = Tensor::cat(&rows.iter().map(|row| &row.context).collect::<Vec<_>>(), 0)?;
    let pooled: Vec<&Tensor> = rows.iter().filter_map(|row| row.pooled.as_ref()).collect();
    let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
    let time_ids = rows.iter().map(|row| row.time_ids.clone()).filter(|ids| !ids.is_empty()).collect();
    Ok(ConditioningRows { context, pooled, time_ids })
}

/// What the network is told in a pass, from the encodings of its texts in their order.
pub(super) fn condition(
    spec: &ModelSpec,
    request: &Request,
    pass: PassNumber,
    texts: &[(PromptText, Arc<EncodedText>)],
) -> Result<Conditioning> {
    let (zero_context, zero_pooled) = request.text.zero_negative(spec.zero_missing_negative);
    let (width, height) = match pass {
        PassNumber::First => (request.canvas.width, request.canvas.height),
        PassNumber::Second => request.last_size(),
    };
    let size = (height as f64, width as f64);
    let tokens = |wanted: fn(Branch) -> bool| {
        let entries = texts.iter().filter(|(text, _)| wanted(text.branch)).flat_map(|(_, encoded)| &encoded.entries);
        entries.filter_map(|entry| entry.hidden.dim(1).ok()).max()
    };
    let parts = tokens(|branch| branch != Branch::Negative).unwrap_or(0);
    let negatives = tokens(|branch| branch == Branch::Negative).unwrap_or(0);
    let length = tokens(|branch| branch == Branch::Negative).map_or(parts, |negative| common_length(parts, negative));
    let timeline = |(text, encoded): &(PromptText, Arc<EncodedText>)| -> Result<(Branch, Timeline)> {
        let negative = text.branch == Branch::Negative;
        let zero = |x: &Tensor, zero: bool| if zero && negative { x.zeros_like() } else { Ok(x.clone()) };
        let row = |entry: &EncodedEntry| -> Result<Arc<ConditioningRow>> {
            let is_pooled = spec.unet.text_time.is_some() || spec.mmdit.is_some();
            let pooled = entry.pooled.as_ref().filter(|_| is_pooled).map(|x| zero(x, zero_pooled)).transpose()?;
            let time_ids =
                if pooled.is_some() && spec.unet.text_time.is_some() { time_ids(spec, size, score(request, negative)) } else { vec![] };
            if spec.mmdit.is_some() {
                // T5's tokens stay the last ones, and those of CLIP grow.
                let t5 = request.text.t5_tokens.min(entry.hidden.dim(1)?);
                let clip = entry.hidden.dim(1)? - t5;
                let longer = lengthened(&entry.hidden.narrow(1, 0, clip)?, parts.max(negatives).saturating_sub(t5))?;
                let context = Tensor::cat(&[longer, entry.hidden.narrow(1, clip, t5)?], 1)?;
                return Ok(Arc::new(ConditioningRow { context: zero(&context, zero_context)?, pooled, time_ids }));
            }
            let hidden = if negative { entry.hidden.clone() } else { lengthened(&entry.hidden, parts)? };
            Ok(Arc::new(ConditioningRow { context: zero(&repeated(&hidden, length)?, zero_context)?, pooled, time_ids }))
        };
        let rows: Vec<Arc<ConditioningRow>> = encoded.entries.iter().map(row).collect::<Result<_>>()?;
        let at = |(until, entry): &(usize, usize)| rows.get(*entry).map(|row| (*until, row.clone()));
        let rows: Option<Vec<_>> = text.timeline.iter().map(at).collect();
        let rows = rows.ok_or_else(|| Error::Image("the prompt's texts are not those that were encoded".into()))?;
        Ok((text.branch, Timeline::new(rows)))
    };
    let mut branches: Vec<(Branch, Timeline)> = texts.iter().map(timeline).collect::<Result<_>>()?;
    // The image alone is told what the negative prompt says.
    let negative = branches.iter().find(|(branch, _)| *branch == Branch::Negative).map(|(_, timeline)| timeline.clone());
    if let (Some(negative), true) = (negative, request.inputs.edit) {
        branches.push((Branch::ImageOnly, negative));
    }
    Ok(Conditioning::new(branches))
}

/// The most that contexts are lengthened, in times the longer one.
const MOST_REPEATED: usize = 16;

/// Tokens that two contexts can both have.
///
/// Tools call the network twice where the prompt and the negative prompt have different numbers of chunks. Tokens that are all there
/// equally often change no attention, so that both can be repeated to one length instead.
fn common_length(one: usize, other: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a.max(1)
    };
    let longer = one.max(other);
    match (one / gcd(one, other)).checked_mul(other) {
        Some(multiple) if (longer..=MOST_REPEATED * longer).contains(&multiple) => multiple,
        _ => longer,
    }
}

/// A context of so many tokens, all of them repeated where that fits.
fn repeated(context: &Tensor, length: usize) -> Result<Tensor> {
    let tokens = context.dim(1)?;
    match tokens > 0 && length.is_multiple_of(tokens) {
        true if tokens == length => Ok(context.clone()),
        true => Ok(context.repeat((1, length / tokens, 1))?),
        false => lengthened(context, length),
    }
}

/// A context of so many tokens by its last one, as A1111 makes the parts of a prompt equally long (`stack_conds`).
fn lengthened(context: &Tensor, length: usize) -> Result<Tensor> {
    let tokens = context.dim(1)?;
    if tokens >= length {
        return Ok(context.clone());
    }
    let last = context.narrow(1, tokens - 1, 1)?.repeat((1, length - tokens, 1))?;
    Ok(Tensor::cat(&[context, &last], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn contexts_get_one_length_without_changing_attention_where_that_is_possible() {
        assert_eq!([(77, 77), (77, 154), (231, 154), (0, 77)].map(|(one, other)| common_length(one, other)), [77, 154, 462, 77]);
        assert_eq!(common_length(77 * 101, 77 * 97), 77 * 101, "their common multiple would be too long");
        let context = Tensor::new(&[[[1f32], [2.0]]], &Device::Cpu).unwrap();
        let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(repeated(&context, 4).unwrap()), [1.0, 2.0, 1.0, 2.0]);
        assert_eq!(numbers(repeated(&context, 3).unwrap()), [1.0, 2.0, 2.0]);
        assert_eq!(numbers(lengthened(&context, 4).unwrap()), [1.0, 2.0, 2.0, 2.0]);
    }
}
