//! Attention: one kernel that never writes the scores, or blocks of queries where no kernel fits.

use super::gpu::Gpu;
use super::plan;
use crate::ops::reference;
use candle_core::{Result, Tensor, bail};

/// Scores in f32 that are in memory at once where no kernel fits.
const SCORES: usize = 64 << 20;

pub(in super::super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((batch, queries, width), (_, keys, _)) = (q.dims3()?, k.dims3()?);
    if heads == 0 || width % heads != 0 || k.dims() != [batch, keys, width] || v.dims() != k.dims() {
        bail!("attention: {:?}, {:?} and {:?} do not fit {heads} heads", q.shape(), k.shape(), v.shape());
    }
    let gpu = Gpu::of(q)?;
    let shape = plan::AttentionPlan { dtype: q.dtype(), batch, queries, keys, heads, size: width / heads, causal };
    let (q, k, v) = (gpu.aligned(q)?, gpu.aligned(k)?, gpu.aligned(v)?);
    let y = gpu.make(q.shape(), q.dtype())?;
    let addresses = [gpu.address(&q)?, gpu.address(&k)?, gpu.address(&v)?, gpu.address(&y)?];
    if let Some(launch) = shape.launch(gpu.limits, addresses)? {
        gpu.launch(launch)?;
        return Ok(y);
    }
    let at_once = (SCORES / (batch * heads * keys).max(1)).max(1);
    // A causal mask counts from the first query, and is asked for over a prompt's few tokens only.
    if causal || queries <= at_once {
        return reference::attention(&q, &k, &v, heads, causal);
    }
    let blocks = (0..queries).step_by(at_once).map(|first| {
        let q = q.narrow(1, first, at_once.min(queries - first))?;
        reference::attention(&q, &k, &v, heads, false)
    });
    Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)
}
