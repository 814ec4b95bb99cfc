//! What a network's call gives back of its inside, and what it takes from an earlier call in the place of computing it.

use super::call::AttentionSite;
use crate::ops::{NamedTensors, attention_received};
use crate::{Error, Result};
use candle_core::Tensor;
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// What of a UNet's inside one call keeps for later ones, and what it takes from an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Reuse {
    /// The hidden state that enters the last layers of the way up.
    pub deep: DeepReuse,
    /// The outputs of the attentions to the image itself, in their order.
    pub self_attention: AttentionReuse,
    /// The outputs of the attentions to the text, in their order.
    pub cross_attention: AttentionReuse,
    /// The rows for which it is given back how much each place of the middle is attended to.
    pub attended: Option<Range<usize>>,
}

/// The middle's first transformer block, whose attention [`Reuse::attended`] asks about.
const MIDDLE: &str = "mid_block.attentions.0.transformer_blocks.0";

/// Whether the inner part of a UNet is computed: all but the last layers of its way up, and the layers of its way down that they read.
///
/// # Source
/// Ma et al. 2023, "DeepCache", arXiv:2312.00858; horseee/DeepCache@1691a3ab:DeepCache/extension/deepcache.py counts layers as this does.
#[derive(Debug, Clone, Default)]
pub enum DeepReuse {
    /// Nothing is kept.
    #[default]
    Off,
    /// What enters the last so many layers is given back.
    Keep(usize),
    /// The last so many layers alone are computed, from what an earlier call gave.
    Take(usize, Tensor),
}

/// Whether attentions are computed.
#[derive(Debug, Clone, Default)]
pub enum AttentionReuse {
    /// They are.
    #[default]
    Off,
    /// Their outputs, `(rows, tokens, channels)` before the residual is added, are given back.
    Keep,
    /// Those of an earlier call are taken.
    Take(Vec<Tensor>),
}

/// What a call gave back, in the order of the network.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Of [`DeepReuse::Keep`].
    pub deep: Option<Tensor>,
    /// Of [`AttentionReuse::Keep`], to the image itself.
    pub self_attention: Vec<Tensor>,
    /// Of [`AttentionReuse::Keep`], to the text.
    pub cross_attention: Vec<Tensor>,
    /// Of [`Reuse::attended`]: in the attention to the image itself of the middle's first transformer block, summed over the queries, the
    /// mean of the heads, `(rows, height, width)` in f32.
    pub attended: Option<Tensor>,
}

impl Reuse {
    fn parts(&self) -> [(&'static str, &AttentionReuse); 2] {
        [("self", &self.self_attention), ("cross", &self.cross_attention)]
    }

    /// Tells calls apart that do not do the same: a recorded call belongs to one of them.
    pub(super) fn key(&self) -> String {
        let mut key = match self.deep {
            DeepReuse::Off => String::new(),
            DeepReuse::Keep(layers) => format!("keeps what enters {layers} layers"),
            DeepReuse::Take(layers, _) => format!("takes what enters {layers} layers"),
        };
        for (name, reuse) in self.parts() {
            key += match reuse {
                AttentionReuse::Off => "",
                AttentionReuse::Keep => " keeps ",
                AttentionReuse::Take(_) => " takes ",
            };
            if !matches!(reuse, AttentionReuse::Off) {
                key += name;
            }
        }
        if let Some(rows) = &self.attended {
            key += &format!(" tells what the rows {rows:?} attend to");
        }
        key
    }

    /// Adds the tensors that are taken to a call's inputs.
    pub(super) fn add_inputs(&self, inputs: &mut NamedTensors) {
        if let DeepReuse::Take(_, hidden) = &self.deep {
            inputs.push("deep hidden", hidden.clone());
        }
        for (name, reuse) in self.parts() {
            if let AttentionReuse::Take(outputs) = reuse {
                outputs.iter().enumerate().for_each(|(i, output)| inputs.push(format!("{name} attention {i}"), output.clone()));
            }
        }
    }

    /// What follows the prediction in a call's outputs.
    pub(super) fn split(&self, mut outputs: Vec<Tensor>) -> Kept {
        let attended = if self.attended.is_some() { outputs.pop() } else { None };
        let mut outputs = outputs.into_iter();
        let deep = if matches!(self.deep, DeepReuse::Keep(_)) { outputs.next() } else { None };
        let rest: Vec<Tensor> = outputs.collect();
        let keeps = |reuse: &AttentionReuse| matches!(reuse, AttentionReuse::Keep);
        let (own, text) = match (keeps(&self.self_attention), keeps(&self.cross_attention)) {
            // Every transformer block has one of each.
            (true, true) => rest.into_iter().enumerate().partition::<Vec<_>, _>(|(i, _)| i % 2 == 0),
            (true, false) => (rest.into_iter().enumerate().collect(), vec![]),
            (false, _) => (vec![], rest.into_iter().enumerate().collect()),
        };
        let tensors = |list: Vec<(usize, Tensor)>| list.into_iter().map(|(_, tensor)| tensor).collect();
        Kept { deep, self_attention: tensors(own), cross_attention: tensors(text), attended }
    }
}

/// Which of the two attentions of a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attends {
    ToItself,
    ToText,
}

/// The attentions of one call, as they are reached.
#[derive(Debug)]
pub(super) struct AttentionRecord<'a> {
    reuse: &'a Reuse,
    reached: [Cell<usize>; 2],
    kept: RefCell<Vec<Tensor>>,
    attended: RefCell<Option<Tensor>>,
}

impl<'a> AttentionRecord<'a> {
    pub(super) fn of(reuse: &'a Reuse) -> Self {
        Self { reuse, reached: Default::default(), kept: RefCell::default(), attended: RefCell::default() }
    }

    /// Takes note of what an attention to the image itself looks at, where that is asked for; `query` and `key` are its projections.
    pub(super) fn note(&self, site: &AttentionSite<'_>, query: &Tensor, key: &Tensor) -> Result<()> {
        let Some(rows) = self.reuse.attended.as_ref().filter(|_| site.name == MIDDLE) else { return Ok(()) };
        let of = |x: &Tensor| x.narrow(0, rows.start, rows.len());
        let received = attention_received(&of(query)?, &of(key)?, site.heads)?;
        *self.attended.borrow_mut() = Some(received.reshape((rows.len(), site.grid.0, site.grid.1))?);
        Ok(())
    }

    /// Everything that is given back, as [`Reuse::split`] finds it.
    ///
    /// # Errors
    /// The middle has no attention to the image itself, and is asked about it.
    pub(super) fn given_back(self) -> Result<Vec<Tensor>> {
        let attended = self.attended.into_inner();
        if self.reuse.attended.is_some() && attended.is_none() {
            return Err(Error::Model("the UNet's middle has no attention to the image itself".into()));
        }
        Ok(self.kept.into_inner().into_iter().chain(attended).collect())
    }

    /// `residual` and the attention's output, which `compute` gives with the tensor that it is given added.
    pub(super) fn add(
        &self,
        which: Attends,
        residual: &Tensor,
        inputs: &NamedTensors,
        compute: impl FnOnce(Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (at, name, reuse) = match which {
            Attends::ToItself => (&self.reached[0], "self", &self.reuse.self_attention),
            Attends::ToText => (&self.reached[1], "cross", &self.reuse.cross_attention),
        };
        let index = at.replace(at.get() + 1);
        match reuse {
            AttentionReuse::Off => compute(Some(residual)),
            AttentionReuse::Keep => {
                let output = compute(None)?;
                let sum = (residual + &output)?;
                self.kept.borrow_mut().push(output);
                Ok(sum)
            }
            AttentionReuse::Take(_) => Ok((residual + inputs.get(&format!("{name} attention {index}"))?)?),
        }
    }
}
