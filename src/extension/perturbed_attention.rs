//! The row of perturbed-attention guidance: tokens that attend to themselves alone.

use super::Extension;
use crate::Result;
use crate::models::{AttentionSite, ModelCall, Patch};
use crate::ops::{NamedTensors, attention};
use crate::sampling::{Branch, CallPoint};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Disturbs the self-attention of some layers for the rows of [`Branch::Perturbed`]; what is made of them is the guider's.
///
/// # Source
/// Ahn et al. 2024, arXiv:2403.17377, section 4.2; the layers' names are matched as diffusers' `pag_applied_layers`.
#[derive(Debug)]
pub struct PerturbedAttention {
    layers: Vec<String>,
}

impl PerturbedAttention {
    /// For layers by a part of their name, such as `mid`, `up_blocks.0` or `down_blocks.1.attentions.0`.
    pub fn new(layers: Vec<String>) -> Self {
        Self { layers }
    }
}

impl Extension for PerturbedAttention {
    fn before_call(&mut self, _: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
        let Some(at) = branches.iter().position(|branch| *branch == Branch::Perturbed) else { return Ok(()) };
        let images = call.latents.dim(0)? / branches.len().max(1);
        let rows = at * images..(at + 1) * images;
        call.patches.push(Arc::new(IdentityAttention { layers: self.layers.clone(), rows }));
        Ok(())
    }
}

/// Some rows' self-attention is the identity.
#[derive(Debug)]
struct IdentityAttention {
    layers: Vec<String>,
    rows: Range<usize>,
}

impl IdentityAttention {
    fn is_at(&self, name: &str) -> bool {
        // `up_blocks.1` is not `up_blocks.10`.
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
        self.layers.iter().any(|layer| name.match_indices(layer.as_str()).any(|(at, _)| ends(&name[at + layer.len()..])))
    }
}

impl Patch for IdentityAttention {
    fn key(&self) -> String {
        format!("identity attention of rows {:?} in {}", self.rows, self.layers.join(","))
    }

    fn self_attention(&self, site: &AttentionSite<'_>, q: &Tensor, k: &Tensor, v: &Tensor, _: &NamedTensors) -> Result<Option<Tensor>> {
        if !self.is_at(site.name) {
            return Ok(None);
        }
        let attended = |rows: Range<usize>| -> Result<Option<Tensor>> {
            if rows.is_empty() {
                return Ok(None);
            }
            let of = |x: &Tensor| x.narrow(0, rows.start, rows.len())?.contiguous();
            Ok(Some(attention(&of(q)?, &of(k)?, &of(v)?, site.heads, false)?))
        };
        let disturbed = v.narrow(0, self.rows.start, self.rows.len())?;
        let parts = [attended(0..self.rows.start)?, Some(disturbed), attended(self.rows.end..q.dim(0)?)?];
        Ok(Some(Tensor::cat(&parts.into_iter().flatten().collect::<Vec<_>>(), 0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn only_the_disturbed_rows_of_the_named_layers_change() {
        let numbers =
            |n: usize| Tensor::arange(0f32, n as f32, &Device::Cpu).unwrap().reshape((3, 2, 4)).unwrap().affine(0.1, 0.0).unwrap();
        let (q, k, v) = (numbers(24), numbers(24), numbers(24));
        let patch = IdentityAttention { layers: vec!["mid".into(), "up_blocks.1".into()], rows: 1..2 };
        let site = |name| AttentionSite { name, heads: 2, grid: (1, 2) };
        let none = NamedTensors::default();
        assert!(patch.self_attention(&site("up_blocks.10.attentions.0"), &q, &k, &v, &none).unwrap().is_none());
        let got = patch.self_attention(&site("mid_block.attentions.0"), &q, &k, &v, &none).unwrap().unwrap();
        let plain = attention(&q, &k, &v, 2, false).unwrap();
        let rows = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!((&rows(&got)[0], &rows(&got)[1], &rows(&got)[2]), (&rows(&plain)[0], &rows(&v)[1], &rows(&plain)[2]));
    }
}
