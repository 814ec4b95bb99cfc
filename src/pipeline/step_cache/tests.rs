//! What caches leave out, and what they leave of the image.

use super::*;
use crate::models::{AttentionReuse, DeepReuse, Kept, ModelCall, ModelOutput};
use crate::pipeline::{BatchItem, Pipeline, Silent};
use crate::settings::{Draft, Seed};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Gives its latents back, keeps what it is asked to, and remembers what it was asked.
#[derive(Debug, Default)]
struct Remembering(Mutex<Vec<ModelCall>>);

impl Backbone for Remembering {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        self.0.lock().unwrap().push(call.clone());
        let tensor = || call.latents.clone();
        let kept = |reuse: &AttentionReuse| if matches!(reuse, AttentionReuse::Keep) { vec![tensor()] } else { vec![] };
        let deep = matches!(call.reuse.deep, DeepReuse::Keep(_)).then(tensor);
        let (self_attention, cross_attention) = (kept(&call.reuse.self_attention), kept(&call.reuse.cross_attention));
        Ok(ModelOutput { prediction: (&call.latents * 0.5)?, kept: Kept { deep, self_attention, cross_attention, attended: None } })
    }

    fn weights_changed(&self) {}
}

fn calls(network: &dyn Backbone, rows: &[usize]) -> Vec<usize> {
    let one = |(i, &rows): (usize, &usize)| {
        let latents = Tensor::full(1f32 + i as f32 / 50.0, (rows, 1, 2, 2), &Device::Cpu).unwrap();
        let context = Tensor::zeros((rows, 1, 1), DType::F32, &Device::Cpu).unwrap();
        network.call(&ModelCall::new(latents, 1.0, context)).unwrap().prediction.dim(0).unwrap()
    };
    rows.iter().enumerate().map(one).collect()
}

#[test]
fn deepcache_computes_every_third_call_as_a_whole_and_one_whose_rows_are_others() {
    let network = Remembering::default();
    calls(&DeepCache::new(&network, 3, 1), &[2, 2, 2, 2, 2, 1, 1]);
    let whole = |call: &ModelCall| matches!(call.reuse.deep, DeepReuse::Keep(2));
    assert_eq!(network.0.lock().unwrap().iter().map(whole).collect::<Vec<_>>(), [true, false, false, true, false, true, true]);
}

#[test]
fn a_gate_leaves_one_row_and_no_attention_to_the_text() {
    let network = Remembering::default();
    assert_eq!(calls(&TemporalGate::new(&network, 2, 5), &[2; 8]), [2; 8], "the prediction has all rows again");
    let seen = network.0.lock().unwrap();
    assert_eq!(seen.iter().map(|call| call.latents.dim(0).unwrap()).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 1, 1, 1]);
    let takes = |reuse: &AttentionReuse| matches!(reuse, AttentionReuse::Take(_));
    let text: Vec<bool> = seen.iter().map(|call| takes(&call.reuse.cross_attention)).collect();
    assert_eq!(text, [false, false, false, false, false, true, true, true]);
    let own: Vec<bool> = seen.iter().map(|call| takes(&call.reuse.self_attention)).collect();
    assert_eq!(own, [false, false, false, true, false, false, false, false]);
}

#[test]
fn ucache_leaves_out_calls_whose_error_is_small() {
    let (network, none) = (Remembering::default(), Remembering::default());
    calls(&UCache::new(&network, 20, 1.0), &[1; 20]);
    calls(&UCache::new(&none, 20, 0.0), &[1; 20]);
    let (made, all) = (network.0.lock().unwrap().len(), none.0.lock().unwrap().len());
    assert!(made < 18 && all == 20, "{made} and {all} of 20");
}

fn emoji() -> Pipeline {
    let model = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    Pipeline::load_shared(Arc::new(model), &Device::Cpu, DType::F32, DType::F32, &mut Silent).unwrap()
}

/// The final latents of images of these seeds, generated together.
fn latents(pipeline: &Pipeline, cache: &str, seeds: &[u64]) -> Vec<Tensor> {
    let mut draft = Draft::new("a red apple").with(|draft| {
        draft.seed = Some(Seed::Is(seeds[0]));
        draft.scheduler.sampler = Some("dpm++2m".into());
        draft.sampling.steps = Some(20);
    });
    if !cache.is_empty() {
        draft.set("cache", [cache]).unwrap();
    }
    let request = draft.resolve(pipeline.spec()).unwrap();
    let prompt = pipeline.encode_prompt(&request, &mut Silent).unwrap();
    let latents = pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, seeds), &mut Silent).unwrap();
    (0..seeds.len()).map(|i| latents.narrow(0, i, 1).unwrap()).collect()
}

fn bits(latents: &Tensor) -> Vec<u32> {
    latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// In decibels, of images from -1 to 1.
fn psnr(one: &Tensor, other: &Tensor) -> f32 {
    let error = (one.clamp(-1.0, 1.0).unwrap() - other.clamp(-1.0, 1.0).unwrap()).unwrap().sqr().unwrap().mean_all().unwrap();
    10.0 * (4.0 / error.to_scalar::<f32>().unwrap()).log10()
}

#[test]
fn the_built_in_model_keeps_its_image() {
    let pipeline = emoji();
    let full = latents(&pipeline, "", &[7]).remove(0);
    for nothing in ["spectrum:0", "ucache:0", "deepcache:1", "tgate:0"] {
        assert_eq!(bits(&latents(&pipeline, nothing, &[7])[0]), bits(&full), "{nothing} leaves nothing out");
    }
    let image = pipeline.decode(&full).unwrap();
    for (cache, floor) in [("spectrum", 35.0), ("ucache", 33.0), ("deepcache", 38.0), ("tgate", 26.0)] {
        let alone = latents(&pipeline, cache, &[7]);
        let of_full = psnr(&pipeline.decode(&alone[0]).unwrap(), &image);
        assert!(of_full > floor && of_full < 90.0, "{cache}: {of_full} dB");
        let together = latents(&pipeline, cache, &[6, 7]);
        assert_eq!(bits(&together[1]), bits(&alone[0]), "{cache}: an image does not depend on its batch");
    }
}

#[test]
fn what_does_not_go_together_is_said() {
    let pipeline = emoji();
    let spec = pipeline.spec().clone();
    for (name, value) in [("guidance-end", "0.5"), ("pag-scale", "3"), ("ngms", "1")] {
        let mut draft = Draft::new("a cat");
        draft.set("cache", ["tgate"]).unwrap();
        draft.set(name, [value]).unwrap();
        let error = draft.resolve(&spec).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }) && error.to_string().contains(name), "{error}");
    }
}
