//! CLIP's text transformer, in the names that transformers gives it; OpenCLIP's towers are the same network.

use super::Scope;
use crate::ops::{Epilogue, LayerNorm, Linear, attention, gelu, quick_gelu};
use crate::spec::{Activation, ClipTextSpec};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// What a layer of CLIP's towers is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderLayerSpec {
    pub(super) width: usize,
    pub(super) wide: usize,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    /// A token sees those before it alone.
    pub(super) causal: bool,
}

impl EncoderLayerSpec {
    fn of(spec: &ClipTextSpec) -> Self {
        let ClipTextSpec { hidden_size: width, intermediate_size: wide, heads, activation, layer_norm_eps: eps, .. } = *spec;
        Self { width, wide, heads, activation, eps, causal: true }
    }
}

/// A layer of CLIP's towers.
#[derive(Debug)]
pub(super) struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl EncoderLayer {
    pub(super) fn load(scope: &Scope<'_>, spec: EncoderLayerSpec) -> Result<Self> {
        let EncoderLayerSpec { width, wide, eps, .. } = spec;
        let attention = scope.at("self_attn");
        let projection = |name: &str| attention.at(name).linear(width, width);
        Ok(Self {
            layer_norm1: scope.at("layer_norm1").layer_norm(width, eps)?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            layer_norm2: scope.at("layer_norm2").layer_norm(width, eps)?,
            fc1: scope.at("mlp.fc1").linear(width, wide)?,
            fc2: scope.at("mlp.fc2").linear(wide, width)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, spec: EncoderLayerSpec) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(x)?;
        let (q, k, v) = (self.q_proj.forward(&normed)?, self.k_proj.forward(&normed)?, self.v_proj.forward(&normed)?);
        let mixed = attention(&q, &k, &v, spec.heads, spec.causal)?;
        let x = self.out_proj.forward_with(&mixed, Epilogue { residual: Some(x), ..Epilogue::default() })?;
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let hidden = match spec.activation {
            Activation::QuickGelu => quick_gelu(&hidden)?,
            Activation::Gelu => gelu(&hidden)?,
        };
        Ok(self.fc2.forward_with(&hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })?)
    }
}

/// What a text encoder says about a text.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// The hidden states that were asked for, `(batch, tokens, hidden)`.
    pub hidden: Tensor,
    /// The last layer's state at the end of the text, normed and projected, `(batch, projection)`.
    pub pooled: Option<Tensor>,
}

/// CLIPTextModel, with or without projection.
#[derive(Debug)]
pub struct ClipTextModel {
    spec: ClipTextSpec,
    token_embedding: Tensor,
    position_embedding: Tensor,
    /// Vectors of words that were learned later; their ids follow the vocabulary's.
    learned: Option<Tensor>,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipTextModel {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &ClipTextSpec) -> Result<Self> {
        let scope = root.at("text_model");
        let embedding = |name: &str, rows| scope.at("embeddings").at(name).table(rows, spec.hidden_size);
        let layers = (0..spec.layers).map(|i| EncoderLayer::load(&scope.at("encoder.layers").at(i), EncoderLayerSpec::of(spec)));
        let projection = spec.projection_dim.map(|output| root.at("text_projection").linear_without_bias(spec.hidden_size, output));
        Ok(Self {
            token_embedding: embedding("token_embedding", spec.vocab_size)?,
            position_embedding: embedding("position_embedding", spec.max_positions)?,
            learned: None,
            layers: layers.collect::<Result<_>>()?,
            final_layer_norm: scope.at("final_layer_norm").layer_norm(spec.hidden_size, spec.layer_norm_eps)?,
            text_projection: projection.transpose()?,
            spec: spec.clone(),
        })
    }

    /// Learns vectors beside the vocabulary's, `(vectors, width)`, and gives their ids.
    ///
    /// # Errors
    /// They are of another width.
    pub fn learn(&mut self, vectors: &Tensor) -> Result<Vec<u32>> {
        let (count, _) = vectors.dims2()?;
        let vectors = vectors.to_dtype(self.token_embedding.dtype())?.to_device(self.token_embedding.device())?;
        let known = self.learned.as_ref().map_or(Ok(0), |learned| learned.dim(0))?;
        self.learned = Some(match self.learned.take() {
            Some(learned) => Tensor::cat(&[&learned, &vectors], 0)?,
            None => vectors,
        });
        let first = (self.spec.vocab_size + known) as u32;
        Ok((first..first + count as u32).collect())
    }

    /// The vectors of tokens, `(tokens, width)`.
    fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let vocabulary = self.spec.vocab_size as u32;
        let known = |table: &Tensor, ids: &[u32], first: u32| -> Result<Tensor> {
            let rows: Vec<u32> = ids.iter().map(|id| id - first).collect();
            Ok(table.index_select(&Tensor::new(rows, device)?, 0)?)
        };
        let Some(learned) = self.learned.as_ref().filter(|_| ids.iter().any(|id| *id >= vocabulary)) else {
            return known(&self.token_embedding, ids, 0);
        };
        let runs = ids.chunk_by(|one, next| (*one >= vocabulary) == (*next >= vocabulary));
        let parts = runs.map(|run| match run.first() {
            Some(id) if *id >= vocabulary => known(learned, run, vocabulary),
            _ => known(&self.token_embedding, run, 0),
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Encodes token rows of equal length.
    ///
    /// The state after all but the last `skip_layers` layers is returned, with the final norm if `final_norm`.
    /// The pooled output always comes from the last layer.
    pub fn forward(&self, ids: &[Vec<u32>], skip_layers: usize, final_norm: bool, pooled: bool) -> Result<ClipTextOutput> {
        let device = self.token_embedding.device();
        let tokens = ids.first().map_or(0, Vec::len);
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        let embedded = self.embed(&flat, device)?;
        let embedded = embedded.reshape((ids.len(), tokens, self.spec.hidden_size))?;
        let mut x = embedded.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)?;
        let taken = self.layers.len().saturating_sub(skip_layers);
        let mut hidden = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i >= taken && !pooled {
                break;
            }
            x = layer.forward(&x, EncoderLayerSpec::of(&self.spec))?;
            if i + 1 == taken {
                hidden = x.clone();
            }
        }
        let hidden = if final_norm { self.final_layer_norm.forward(&hidden)? } else { hidden };
        let pooled = if pooled { Some(self.pool(&self.final_layer_norm.forward(&x)?, ids)?) } else { None };
        Ok(ClipTextOutput { hidden, pooled })
    }

    /// The state at the first end-of-text token of each row, projected.
    fn pool(&self, last: &Tensor, ids: &[Vec<u32>]) -> Result<Tensor> {
        let rows: Result<Vec<Tensor>> = ids.iter().enumerate().map(|(i, row)| Ok(last.get(i)?.get(self.end_of_text(row)?)?)).collect();
        let ends = Tensor::stack(&rows?, 0)?;
        Ok(match &self.text_projection {
            Some(projection) => projection.forward(&ends)?,
            None => ends,
        })
    }

    /// Where a text ends. Without an end every text would be the same to who takes the pooled state.
    fn end_of_text(&self, row: &[u32]) -> Result<usize> {
        // Configurations from before transformers 4.24 say 2 and mean the largest id of the vocabulary.
        let wanted = if self.spec.eos_token_id == 2 {
            row.iter().copied().filter(|id| (*id as usize) < self.spec.vocab_size).max().unwrap_or(0)
        } else {
            self.spec.eos_token_id
        };
        row.iter().position(|&id| id == wanted).ok_or_else(|| {
            Error::Model(format!(
                "the text encoder's configuration says that a text ends with token {wanted} (eos_token_id), and its tokenizer ends texts \
                 otherwise; take the tokenizer that came with the model"
            ))
        })
    }

    /// Tokens of one text, with start and end.
    pub fn max_positions(&self) -> usize {
        self.spec.max_positions
    }

    /// The dtype that it computes in.
    pub fn dtype(&self) -> DType {
        self.token_embedding.dtype()
    }
}
