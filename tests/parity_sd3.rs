//! Every stage of Stable Diffusion 3 and 3.5 medium against diffusers, on small models whose random weights leave no part without an effect.
//!
//! `tests/data/parity_sd3/make_parity_sd3.py` made the models and what they ought to compute. Run with `--nocapture` to see how far off each
//! stage is.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::models::{AutoencoderKLDecoder, AutoencoderKLEncoder, Backbone, DenoisingNetwork, ModelCall, Scope};
use sd_gen::pipeline::{BatchItem, Pipeline, Silent};
use sd_gen::prompt::{Emphasis, PromptSyntax};
use sd_gen::settings::{Draft, Seed};
use sd_gen::text::{ClipTokenizer, T5TextEncoder, T5Tokenizer, TextEncoder};
use sd_gen::weights::{Checkpoint, Component, ModelSource};
use std::collections::HashMap;
use std::path::PathBuf;

const MODELS: [&str; 2] = ["sd3", "sd35-medium"];
/// How far off f32 may be: the largest difference over the golden tensor's standard deviation.
const CLOSE: f64 = 2e-5;
/// The same after a whole run.
const CLOSE_AFTER_A_RUN: f64 = 1e-4;
/// The texts and settings of the runs, as `tests/data/parity/make_parity.py` has them.
const TEXTS: [&str; 2] = ["blurry; low quality", "A photo of a red apple, on 3 old tables! (the best)"];
const T5_TOKENS: usize = 24;

struct Model {
    name: &'static str,
    checkpoint: Checkpoint,
    golden: HashMap<String, Tensor>,
}

impl Model {
    fn all() -> impl Iterator<Item = Self> {
        MODELS.into_iter().map(|name| {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity_sd3").join(name);
            let golden = safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).expect("golden.safetensors");
            Self { name, checkpoint: Checkpoint::open(&folder).expect("the folder opens"), golden }
        })
    }

    fn golden(&self, key: &str) -> Tensor {
        self.golden.get(key).unwrap_or_else(|| panic!("{}: golden.safetensors has no {key}", self.name)).clone()
    }

    fn close(&self, key: &str, got: &Tensor, most: f64) {
        let golden = self.golden(key);
        assert_eq!(got.dims(), golden.dims(), "{} {key}", self.name);
        let (got, golden) = (numbers(got), numbers(&golden));
        let mean = golden.iter().sum::<f64>() / golden.len() as f64;
        let deviation = (golden.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / golden.len() as f64).sqrt();
        let largest = got.iter().zip(&golden).map(|(a, b)| (a - b).abs() / deviation).fold(0.0, f64::max);
        say(&format!("{:12} {key:20} largest {largest:.1e}", self.name));
        assert!(largest <= most, "{} {key}: off by {largest:.1e} standard deviations, at most {most:.0e} is right", self.name);
    }
}

#[expect(clippy::print_stderr, reason = "tests show their figures with --nocapture")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).and_then(|x| x.flatten_all()?.to_vec1()).expect("numbers")
}

#[test]
fn clip_says_what_it_says_there() {
    for model in Model::all() {
        for (i, spec) in model.checkpoint.spec().text_encoders.iter().enumerate() {
            let files = model.checkpoint.tokenizer(i).expect("tokenizer files");
            let tokenizer =
                ClipTokenizer::from_files(model.name, &files.vocab_json, &files.merges, &spec.pad_token, 77).expect("a tokenizer");
            let source = model.checkpoint.component(Component::text_encoder(i));
            let encoder = TextEncoder::load(&Scope::root(&source, DType::F32, &Device::Cpu), spec, tokenizer).expect("an encoder");
            let ids: Vec<Vec<u32>> = TEXTS.iter().map(|text| encoder.tokenize(text).expect("tokens").ids).collect();
            let embeds = encoder.encode(&ids, 0).expect("embeddings");
            model.close(&format!("text.{i}.hidden"), &embeds.hidden, CLOSE);
            model.close(&format!("text.{i}.pooled"), &embeds.pooled.expect("pooled text"), CLOSE);
        }
    }
}

#[test]
fn t5_says_what_it_says_there() {
    for model in Model::all() {
        let spec = model.checkpoint.spec().t5.as_ref().expect("a T5");
        let text = model.checkpoint.t5_tokenizer().expect("its tokenizer.json");
        let tokenizer = || T5Tokenizer::from_json(model.name, text).expect("a tokenizer");
        let ids: Vec<u32> = TEXTS.iter().flat_map(|text| tokenizer().encode(text, T5_TOKENS).expect("tokens").ids).collect();
        assert_eq!(ids.into_iter().map(f64::from).collect::<Vec<_>>(), numbers(&model.golden("t5.ids")), "{}", model.name);
        let source = model.checkpoint.component(Component::T5);
        let t5 = T5TextEncoder::load(&Scope::root(&source, DType::F32, &Device::Cpu), spec, tokenizer()).expect("an encoder");
        let rows: Vec<Tensor> = TEXTS.iter().map(|text| t5.encode(text, T5_TOKENS).expect("embeddings").0).collect();
        model.close("t5.hidden", &Tensor::cat(&rows, 0).expect("rows"), CLOSE);
        let words = PromptSyntax::ComfyUi.words("a (red:1.3) apple on (old:0.5)", Emphasis::Original).expect("words");
        let how = (PromptSyntax::ComfyUi, Emphasis::Original);
        let (weighted, left_out) = t5.encode_weighted(&words, T5_TOKENS, how).expect("embeddings");
        model.close("t5.weighted", &weighted, CLOSE);
        assert_eq!(left_out, None);
        let (_, left_out) = t5.encode_weighted(&words, 4, how).expect("embeddings");
        assert!(left_out.is_some_and(|left_out| left_out.contains("on")), "what did not fit is said");
    }
}

#[test]
fn one_call_of_the_transformer() {
    for model in Model::all() {
        let source = model.checkpoint.component(Component::UNET);
        let net = DenoisingNetwork::load(&Scope::root(&source, DType::F32, &Device::Cpu), model.checkpoint.spec()).expect("a network");
        for case in ["square", "wide"] {
            let of = |name: &str| model.golden(&format!("net.{case}.{name}"));
            let call =
                ModelCall { pooled: Some(of("pooled")), ..ModelCall::new(of("latents"), numbers(&of("timestep"))[0], of("context")) };
            model.close(&format!("net.{case}.output"), &net.call(&call).expect("it runs").prediction, CLOSE);
        }
    }
}

#[test]
fn the_autoencoder() {
    for model in Model::all() {
        let (source, spec) = (model.checkpoint.component(Component::VAE), &model.checkpoint.spec().vae);
        let scope = Scope::root(&source, DType::F32, &Device::Cpu);
        let decoded = AutoencoderKLDecoder::load(&scope, spec).expect("a decoder").decode(&model.golden("vae.latents")).expect("an image");
        model.close("vae.decoded", &decoded, CLOSE);
        let mean = AutoencoderKLEncoder::load(&scope, spec).expect("an encoder").encode_mean(&model.golden("vae.image")).expect("latents");
        model.close("vae.mean", &mean, CLOSE);
    }
}

#[test]
fn whole_runs() {
    for model in Model::all() {
        let [negative, prompt] = TEXTS;
        let draft = Draft::new(prompt).with(|draft| {
            draft.seed = Some(Seed::Is(42));
            draft.text.negative_prompt = Some(negative.into());
            draft.text.prompt_syntax = Some(PromptSyntax::Plain);
            draft.text.t5_tokens = Some(T5_TOKENS);
            draft.set_size(Some((48, 32)));
            draft.sampling.steps = Some(4);
            draft.guidance.scale = Some(7.5);
        });
        let request = draft.resolve(model.checkpoint.spec()).expect("a good request");
        let pipeline = Pipeline::load(&model.checkpoint, &Device::Cpu, DType::F32, DType::F32, &mut Silent).expect("the pipeline loads");
        let prompt = pipeline.encode_prompt(&request, &mut Silent).expect("the prompt is encoded");
        let made = pipeline.generate_batch(&BatchItem::of_seeds(&request, &prompt, &[42]), &mut Silent).expect("an image").remove(0);
        model.close("run.latents", &made.latents, CLOSE_AFTER_A_RUN);
        let off =
            numbers(&model.golden("run.image")).iter().zip(made.image.as_raw()).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        assert!(off <= 1.0, "{}: the image is off by {off} levels", model.name);
    }
}
