//! Adapters, held against a model and merged into its weights on their way to the layers.

use super::formula::{LowRank, largest, one_product};
use super::{Adapter, AdapterFit, Bound};
use crate::error::{model_error, quoted};
use crate::ops::Weight;
use crate::spec::{Component, ModelSpec};
use crate::weights::{Checkpoint, InPlace, ModelSource, TensorChanges, TensorSource, TokenizerFiles, decode};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An adapter and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct AdapterUse {
    /// The file.
    pub adapter: Arc<Adapter>,
    /// The strength in the denoiser.
    pub weight: f64,
    /// The strength in the text encoders.
    pub text_weight: f64,
}

impl AdapterUse {
    fn strength(&self, component: Component) -> f64 {
        if component.is_text() { self.text_weight } else { self.weight }
    }
}

/// The part of a layer that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LayerPart {
    Weight,
    Bias,
}

/// One change of one tensor.
#[derive(Debug, Clone)]
struct DeltaStep {
    adapter: Arc<Adapter>,
    target: usize,
    leaf: LayerPart,
    strength: f64,
    third: Option<usize>,
}

/// What some adapters change of a model, layer by layer, in the order in which they were named.
#[derive(Debug, Clone, Default)]
pub struct Deltas {
    steps: BTreeMap<Component, BTreeMap<String, Vec<DeltaStep>>>,
    applied: Vec<String>,
    /// The files that change a network, with their strengths.
    signatures: BTreeMap<Component, String>,
}

impl Deltas {
    /// Holds adapters against a model. Those of strength 0 are held against it, and change nothing.
    ///
    /// # Errors
    /// One does not fit; the message names what does not. With `partial` what fits is taken, unless nothing does.
    pub fn bind(model: &Checkpoint, adapters: &[AdapterUse], partial: bool) -> Result<Deltas> {
        let mut deltas = Deltas::default();
        for used in adapters {
            let adapter = &used.adapter;
            let (bound, fit) = adapter.bind(model);
            let fits_whole = fit.absent.is_empty() && fit.misshapen.is_empty();
            if bound.is_empty() || !fits_whole && !partial {
                return Err(misfit(adapter, &fit, model.spec()));
            }
            deltas.applied.push(format!("{}: {} of {} layers", adapter.name, fit.layers, fit.of));
            let changed: BTreeSet<Component> = bound.iter().map(|bound| bound.component).collect();
            for component in changed.into_iter().filter(|component| used.strength(*component) != 0.0) {
                let signature = deltas.signatures.entry(component).or_default();
                signature.push_str(&format!("[{}:{}]", adapter.file_name(), used.strength(component)));
            }
            for Bound { component, layer, target, bias, weight, third } in bound {
                let strength = used.strength(component);
                if strength == 0.0 {
                    continue;
                }
                let leaves = [(weight, LayerPart::Weight, "weight"), (bias, LayerPart::Bias, "bias")];
                for (_, leaf, name) in leaves.into_iter().filter(|(changes, ..)| *changes) {
                    let steps = deltas.steps.entry(component).or_default().entry(format!("{layer}.{name}")).or_default();
                    steps.push(DeltaStep { adapter: adapter.clone(), target, leaf, strength, third });
                }
            }
        }
        Ok(deltas)
    }

    /// What was found to fit, one phrase an adapter: "detail: 264 of 264 layers".
    pub fn applied(&self) -> &[String] {
        &self.applied
    }

    /// Equal for what makes the same of a network; empty where it stays as it is.
    pub fn signature(&self, component: Component) -> &str {
        self.signatures.get(&component).map_or("", String::as_str)
    }

    /// Nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The layers of a network that are changed, without the names of their tensors.
    pub fn layers(&self, component: Component) -> BTreeSet<String> {
        self.steps
            .get(&component)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned()))
            .collect()
    }

    fn of(&self, component: Component, name: &str) -> Option<&[DeltaStep]> {
        self.steps.get(&component)?.get(name).map(Vec::as_slice)
    }

    /// What `steps` add, where it is one product of matrices and finite whatever they are added to; `None` where it is not.
    fn product(steps: &[DeltaStep]) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        if !steps.iter().all(DeltaStep::is_low_rank) {
            return Ok(None);
        }
        let products = steps.iter().map(DeltaStep::low_rank).collect::<Result<Vec<_>>>()?;
        let products: Vec<LowRank> = products.into_iter().flatten().collect();
        Ok(one_product(&products)?.filter(|(a, b)| is_small(a, b)))
    }

    /// The tensor `name`, changed, in f32.
    fn merge(&self, steps: &[DeltaStep], weight: &Weight<'_>, name: &str) -> Result<Vec<f32>> {
        let shape = weight.dims().to_vec();
        // Plain products commute with each other, and are added together; what reads the weight reads it as it is by then.
        let mut products: Vec<LowRank> = Vec::new();
        let mut values: Option<Vec<f32>> = None;
        let with_products = |values: Option<Vec<f32>>, products: &[LowRank]| -> Result<Vec<f32>> {
            Ok(match (values, one_product(products)?) {
                (Some(values), None) => values,
                (Some(values), Some((a, b))) => Weight::computed(&values, &shape, DType::F32).plus_product(a, &b)?.numbers()?,
                (None, None) => weight.numbers()?,
                (None, Some((a, b))) => weight.clone().plus_product(a, &b)?.numbers()?,
            })
        };
        for step in steps {
            if let Some(product) = step.low_rank()? {
                products.push(product);
                continue;
            }
            let Some(target) = step.adapter.target(step.target) else { continue };
            let tensors = step.adapter.tensors(target);
            let mut now = with_products(values.take(), &std::mem::take(&mut products))?;
            match step.leaf {
                LayerPart::Bias => tensors.change_bias(&mut now, step.strength)?,
                LayerPart::Weight => tensors.change_weight(&mut now, &shape, step.strength)?,
            }
            values = Some(now);
        }
        let values = with_products(values, &products)?;
        if decode::are_finite(bytemuck::cast_slice(&values), Dtype::F32) {
            return Ok(values);
        }
        let names: Vec<&str> = steps.iter().map(|step| step.adapter.file_name()).collect();
        Err(model_error(
            names.join(", "),
            format!("makes values of {} that are not numbers (NaN or infinity); give a smaller weight", quoted(name)),
        ))
    }
}

impl DeltaStep {
    fn is_low_rank(&self) -> bool {
        let target = self.adapter.target(self.target).filter(|_| self.leaf == LayerPart::Weight);
        target.is_some_and(|target| self.adapter.tensors(target).is_low_rank())
    }

    /// The step as a product of two matrices, where it is one.
    fn low_rank(&self) -> Result<Option<LowRank>> {
        let Some(target) = self.adapter.target(self.target).filter(|_| self.leaf == LayerPart::Weight) else { return Ok(None) };
        let product = self.adapter.tensors(target).low_rank(self.strength)?;
        Ok(product.map(|product| match self.third {
            Some(third) => product.third(third),
            None => product,
        }))
    }
}

/// No number of the product of two matrices can be near the largest that there is.
fn is_small(a: &[f32], b: &[f32]) -> bool {
    const FAR_FROM_THE_LARGEST: f64 = 1e30;
    let rank = a.len().min(b.len()) as f64;
    f64::from(largest(a)) * f64::from(largest(b)) * rank < FAR_FROM_THE_LARGEST
}

/// Why an adapter is not applied.
fn misfit(adapter: &Adapter, fit: &AdapterFit, spec: &ModelSpec) -> Error {
    const SHOWN: usize = 3;
    let own = spec.family.name();
    let file = adapter.file_name();
    if adapter.is_of_a_transformer() && spec.mmdit.is_none() {
        return model_error(
            file,
            format!(
                "is a LoRA for a transformer (Flux, Stable Diffusion 3 or a relative), and the model is {own}; take one made for {own}"
            ),
        );
    }
    if let Some((family, why)) = adapter.base().filter(|(family, _)| *family != spec.family) {
        return model_error(file, format!("is a LoRA for {} ({why}), and the model is {own}; take one made for {own}", family.name()));
    }
    let (keys, what) = if fit.absent.is_empty() {
        (&fit.misshapen, "of other shapes than the model's")
    } else {
        (&fit.absent, "that meet no layer of the model")
    };
    let shown: Vec<String> = keys.iter().take(SHOWN).map(|key| quoted(key)).collect();
    let more = if keys.len() > SHOWN { ", …" } else { "" };
    let advice = if fit.layers > 0 { format!("; `lora-partial` takes the {} layers that fit", fit.layers) } else { String::new() };
    model_error(file, format!("has {} keys {what}: {}{more}{advice}", keys.len(), shown.join(", ")))
}

impl TensorChanges for Deltas {
    fn changes(&self, component: Component, name: &str) -> bool {
        self.of(component, name).is_some()
    }

    fn changed(&self, component: Component, name: &str, shape: &[usize], values: Vec<f32>) -> Result<Vec<f32>> {
        match self.of(component, name) {
            Some(steps) => self.merge(steps, &Weight::computed(&values, shape, DType::F32), name),
            None => Ok(values),
        }
    }

    fn names(&self) -> Vec<(Component, String)> {
        self.steps.iter().flat_map(|(component, names)| names.keys().map(|name| (*component, name.clone()))).collect()
    }
}

/// A network's tensors with adapters merged in. A tensor that none changes is served as it is, in place where it can be.
struct WithDeltas<'a> {
    base: Box<dyn TensorSource + 'a>,
    component: Component,
    deltas: Arc<Deltas>,
}

impl WithDeltas<'_> {
    /// The tensor `name` where it is stored, if it is there and can be lent.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        if self.is_gained(name) { Ok(None) } else { self.base.in_place(name, shape) }
    }

    /// A layer without a bias gains one.
    fn is_gained(&self, name: &str) -> bool {
        self.adds(name) && self.base.shape(name).is_none()
    }

    /// The tensor `name`, changed, in f32; `stored` is where it is.
    fn merged(&self, steps: &[DeltaStep], name: &str, shape: &[usize], stored: Option<InPlace<'_>>) -> Result<Vec<f32>> {
        // Straight from the file, where it can be.
        if let Some(stored) = &stored
            && let Some(weight) = Weight::in_place(stored.bytes(), stored.dtype(), shape, DType::F32, &Device::Cpu)
        {
            return self.deltas.merge(steps, &weight, name);
        }
        let values = match self.is_gained(name) {
            true => vec![0f32; shape.iter().product()],
            false => self.base.tensor(name, shape, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?,
        };
        self.deltas.merge(steps, &Weight::computed(&values, shape, DType::F32), name)
    }
}

impl TensorSource for WithDeltas<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match self.deltas.of(self.component, name) {
            Some(steps) => {
                let merged = self.merged(steps, name, shape, self.stored(name, shape)?)?;
                Ok(Weight::computed(&merged, shape, dtype).into_tensor()?.to_device(device)?)
            }
            None => self.base.tensor(name, shape, dtype, device),
        }
    }

    fn in_place(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace<'_>>> {
        let Some(steps) = self.deltas.of(self.component, name) else { return self.base.in_place(name, shape) };
        let stored = self.stored(name, shape)?;
        if let Some(stored) = stored {
            return Ok(Some(match Deltas::product(steps)? {
                Some((a, b)) => stored.plus_product(a, b),
                None => InPlace::computed(self.merged(steps, name, shape, Some(stored))?),
            }));
        }
        Ok(Some(InPlace::computed(self.merged(steps, name, shape, None)?)))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn numbers_below(&self, prefix: &str) -> Option<u64> {
        self.base.numbers_below(prefix)
    }

    fn adds(&self, name: &str) -> bool {
        name.ends_with(".bias") && self.deltas.of(self.component, name).is_some()
    }
}

/// A model whose networks have adapters merged in.
pub struct ModelWithDeltas<'a> {
    model: &'a dyn ModelSource,
    deltas: Arc<Deltas>,
}

impl<'a> ModelWithDeltas<'a> {
    /// `deltas` were bound to `model`.
    pub fn new(model: &'a dyn ModelSource, deltas: Arc<Deltas>) -> Self {
        Self { model, deltas }
    }
}

impl ModelSource for ModelWithDeltas<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn tokenizer(&self, index: usize) -> Option<&TokenizerFiles> {
        self.model.tokenizer(index)
    }

    fn t5_tokenizer(&self) -> Option<&str> {
        self.model.t5_tokenizer()
    }

    fn parameters(&self, component: Component) -> Option<u64> {
        self.model.parameters(component)
    }

    fn tensors(&self, component: Component) -> Box<dyn TensorSource + '_> {
        let base = self.model.tensors(component);
        match self.deltas.steps.contains_key(&component) {
            true => Box::new(WithDeltas { base, component, deltas: self.deltas.clone() }),
            false => base,
        }
    }
}
