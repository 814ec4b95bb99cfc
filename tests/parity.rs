//! Every stage against diffusers, on small models whose random weights leave no part without an effect.
//!
//! `tests/data/parity/make_parity.py` made the models and what they ought to compute. Run with `--nocapture` to see how far off
//! each stage is, and with `SD_GEN_TEST_DEVICE=cuda` for a GPU in place of the CPU.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::device;
use sd_gen::models::{AutoencoderKLDecoder, AutoencoderKLEncoder, AutoencoderTinyDecoder, Backbone, ModelCall, Scope, UNet2DCondition};
use sd_gen::pipeline::{BatchItem, Estimate, GeneratedImage, Observer, Pipeline, SharedModel, Silent, Stage};
use sd_gen::prompt::PromptSyntax;
use sd_gen::sampling::TimestepSpacing;
use sd_gen::settings::{Draft, Request, Seed, VaeTiling};
use sd_gen::text::{ClipTokenizer, TextEncoder};
use sd_gen::weights::{Checkpoint, Component, TinyAutoencoder};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

const MODELS: [&str; 4] = ["sd15", "sd21-v", "sdxl", "sdxl-refiner"];

/// How far off f32 may be: the largest difference over the golden tensor's standard deviation.
const CLOSE: f64 = 2e-5;
/// The same after a whole run, which feeds each step's rounding to the next one and multiplies it by the guidance scale.
const CLOSE_AFTER_A_RUN: f64 = 1e-4;

/// Where the networks compute.
fn test_device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let choice = std::env::var("SD_GEN_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        device::open(choice.parse().expect("a device's name")).expect("the device opens").0
    })
}

struct Model {
    name: &'static str,
    checkpoint: Checkpoint,
    golden: HashMap<String, Tensor>,
    request: serde_json::Value,
}

impl Model {
    fn open(name: &'static str) -> Self {
        // Tests that were built elsewhere are run in the project's folder.
        let built_at = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let project = if built_at.exists() { built_at } else { PathBuf::new() };
        let folder = project.join("tests/data/parity").join(name);
        let request = std::fs::read(folder.join("request.json")).expect("request.json");
        Self {
            name,
            checkpoint: Checkpoint::open(&folder).expect("the folder opens"),
            golden: safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).expect("golden.safetensors"),
            request: serde_json::from_slice(&request).expect("JSON"),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        MODELS.into_iter().map(Self::open)
    }

    fn golden(&self, key: &str) -> Tensor {
        self.golden.get(key).unwrap_or_else(|| panic!("{}: golden.safetensors has no {key}", self.name)).clone()
    }

    /// A golden tensor in another dtype, as an input.
    fn input(&self, key: &str, dtype: DType) -> Tensor {
        self.golden(key).to_dtype(dtype).and_then(|x| x.to_device(test_device())).expect("a dtype and a device")
    }

    /// The negative prompt, then the prompt.
    fn texts(&self) -> [&str; 2] {
        ["negative_prompt", "prompt"].map(|key| self.request[key].as_str().expect("a text"))
    }

    fn draft(&self) -> Draft {
        let [negative, prompt] = self.texts();
        let count = |key: &str| self.request[key].as_u64().map(|n| n as usize);
        Draft::new(prompt).with(|draft| {
            draft.seed = self.request["seed"].as_u64().map(Seed::Is);
            draft.text.negative_prompt = Some(negative.into());
            draft.text.prompt_syntax = Some(PromptSyntax::Plain);
            draft.canvas.width = count("width");
            draft.canvas.height = count("height");
            draft.sampling.steps = count("steps");
            draft.guidance.scale = self.request["guidance_scale"].as_f64();
        })
    }

    fn request(&self, draft: &Draft) -> Request {
        draft.resolve(self.checkpoint.spec()).expect("a good request")
    }

    fn pipeline(&self, dtype: DType) -> Pipeline {
        Pipeline::load(&self.checkpoint, test_device(), dtype, dtype, &mut Silent).expect("the pipeline loads")
    }

    fn tokenizer(&self, encoder: usize) -> ClipTokenizer {
        let files = self.checkpoint.tokenizer(encoder).expect("tokenizer files");
        let pad = &self.checkpoint.spec().text_encoders[encoder].pad_token;
        ClipTokenizer::from_files(self.name, &files.vocab_json, &files.merges, pad, 77).expect("a tokenizer")
    }

    fn text_encoder(&self, i: usize, dtype: DType) -> TextEncoder {
        let source = self.checkpoint.component(Component::text_encoder(i));
        let spec = &self.checkpoint.spec().text_encoders[i];
        TextEncoder::load(&Scope::root(&source, dtype, test_device()), spec, self.tokenizer(i)).expect("a text encoder")
    }

    fn unet(&self, dtype: DType) -> UNet2DCondition {
        let source = self.checkpoint.component(Component::UNET);
        UNet2DCondition::load(&Scope::root(&source, dtype, test_device()), &self.checkpoint.spec().unet).expect("a UNet")
    }

    /// Runs the UNet on the golden inputs of `case`.
    fn call_unet(&self, unet: &UNet2DCondition, case: &str, dtype: DType) -> Tensor {
        let timestep = numbers(&self.golden(&format!("unet.{case}.timestep")))[0];
        self.call_unet_at(timestep, unet, case, dtype)
    }

    /// The same at another timestep.
    fn call_unet_at(&self, timestep: f64, unet: &UNet2DCondition, case: &str, dtype: DType) -> Tensor {
        let key = |name: &str| format!("unet.{case}.{name}");
        let (latents, context) = (self.input(&key("latents"), dtype), self.input(&key("context"), dtype));
        let mut call = ModelCall::new(latents, timestep, context);
        if let Some(time_ids) = self.golden.get(&key("time_ids")) {
            call.pooled = Some(self.input(&key("pooled"), dtype));
            call.time_ids = rows(time_ids).into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect();
        }
        unet.call(&call).expect("the UNet runs").prediction
    }

    fn decoder(&self, dtype: DType) -> AutoencoderKLDecoder {
        let source = self.checkpoint.component(Component::VAE);
        AutoencoderKLDecoder::load(&Scope::root(&source, dtype, test_device()), &self.checkpoint.spec().vae).expect("a decoder")
    }

    fn encoder(&self, dtype: DType) -> AutoencoderKLEncoder {
        let source = self.checkpoint.component(Component::VAE);
        AutoencoderKLEncoder::load(&Scope::root(&source, dtype, test_device()), &self.checkpoint.spec().vae).expect("an encoder")
    }

    /// How far `got` is from the golden tensor `key`.
    fn compare(&self, key: &str, got: &Tensor) -> Difference {
        let golden = self.golden(key);
        assert_eq!(got.dims(), golden.dims(), "{} {key}", self.name);
        let (got, golden) = (numbers(got), numbers(&golden));
        assert!(got.iter().all(|x| x.is_finite()), "{} {key} is not finite", self.name);
        let mean = golden.iter().sum::<f64>() / golden.len() as f64;
        let root_mean_square = |values: &mut dyn Iterator<Item = f64>| (values.map(|x| x * x).sum::<f64>() / golden.len() as f64).sqrt();
        let deviation = root_mean_square(&mut golden.iter().map(|x| x - mean));
        let differences = || got.iter().zip(&golden).map(|(a, b)| (a - b).abs() / deviation);
        let difference = Difference { largest: differences().fold(0.0, f64::max), typical: root_mean_square(&mut differences()) };
        say(&format!("{:13} {key:22} largest {:.1e}, typical {:.1e}", self.name, difference.largest, difference.typical));
        difference
    }

    fn assert_close(&self, key: &str, got: &Tensor, tolerance: f64) {
        let Difference { largest, .. } = self.compare(key, got);
        assert!(largest <= tolerance, "{} {key}: off by {largest:.1e} standard deviations, at most {tolerance:.0e} is right", self.name);
    }

    fn assert_near(&self, key: &str, got: &Tensor, dtype: DType, roundings: f64) {
        let Difference { typical, .. } = self.compare(key, got);
        let tolerance = roundings * unit_roundoff(dtype);
        let name = self.name;
        assert!(typical <= tolerance, "{name} {key} in {dtype:?}: typically off by {typical:.1e} standard deviations, not {tolerance:.1e}");
    }
}

/// In standard deviations of what is right.
struct Difference {
    largest: f64,
    /// The root of the mean square.
    typical: f64,
}

#[expect(clippy::print_stderr, reason = "tests show their figures with --nocapture")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// The largest relative error of rounding to `dtype`.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu).and_then(|x| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()).expect("numbers")
}

fn rows(x: &Tensor) -> Vec<Vec<f32>> {
    x.to_dtype(DType::F32).and_then(|x| x.to_vec2()).expect("rows")
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("f32").into_iter().map(f32::to_bits).collect()
}

fn generate(pipeline: &Pipeline, request: &Request, seeds: &[u64]) -> Vec<GeneratedImage> {
    let prompt = pipeline.encode_prompt(request, &mut Silent).expect("the prompt is encoded");
    pipeline.generate_batch(&BatchItem::of_seeds(request, &prompt, seeds), &mut Silent).expect("an image")
}

/// The largest and the mean difference of two images, in levels of 255.
fn levels_off(golden: &Tensor, generated: &GeneratedImage) -> (f64, f64) {
    let golden = numbers(golden);
    assert_eq!(golden.len(), generated.image.as_raw().len());
    let off: Vec<f64> = golden.iter().zip(generated.image.as_raw()).map(|(a, b)| (a - f64::from(*b)).abs()).collect();
    (off.iter().copied().fold(0.0, f64::max), off.iter().sum::<f64>() / off.len() as f64)
}

/// A text encoder that looked for a text's end under a wrong token would give one pooled vector to every text.
#[test]
fn two_texts_are_never_told_as_one() {
    let texts = ["", "a", "a red apple", "a red apples", "red a apple", "an apple", "a red apple.", "a red apple a", "東京", "京東"];
    let repeated = ["a ".repeat(74), "a ".repeat(75)];
    let texts: Vec<&str> = texts.into_iter().chain(repeated.iter().map(String::as_str)).collect();
    for model in Model::all() {
        for i in 0..model.checkpoint.spec().text_encoders.len() {
            let encoder = model.text_encoder(i, DType::F32);
            let rows: Vec<Vec<u32>> = texts.iter().map(|text| encoder.tokenize(text).expect("tokens").ids).collect();
            let embeds = encoder.encode(&rows, 0).expect("embeddings");
            for states in [Some(embeds.hidden), embeds.pooled].into_iter().flatten() {
                let states = states.flatten_from(1).and_then(|states| states.to_vec2::<f32>()).expect("numbers");
                for (at, state) in states.iter().enumerate() {
                    let alike = states[..at].iter().position(|other| other == state).map(|other| texts[other]);
                    assert_eq!(alike, None, "{}, text encoder {i}: the state of {:?}", model.name, texts[at]);
                }
            }
        }
    }
}

#[test]
fn tokens() {
    for model in Model::all() {
        for i in 0..model.checkpoint.spec().text_encoders.len() {
            let tokenizer = model.tokenizer(i);
            for (text, wanted) in model.texts().into_iter().zip(rows(&model.golden(&format!("text.{i}.ids")))) {
                let got: Vec<f32> = tokenizer.encode(text).expect("tokens").ids.into_iter().map(|id| id as f32).collect();
                assert_eq!(got, wanted, "{} {text:?}", model.name);
            }
        }
    }
}

#[test]
fn text_encoders() {
    for model in Model::all() {
        for (i, spec) in model.checkpoint.spec().text_encoders.iter().enumerate() {
            let encoder = model.text_encoder(i, DType::F32);
            let ids: Vec<Vec<u32>> = model.texts().into_iter().map(|text| encoder.tokenize(text).expect("tokens").ids).collect();
            let embeds = encoder.encode(&ids, 0).expect("embeddings");
            model.assert_close(&format!("text.{i}.hidden"), &embeds.hidden, CLOSE);
            assert_eq!(embeds.pooled.is_some(), spec.pooled, "{}", model.name);
            if let Some(pooled) = &embeds.pooled {
                model.assert_close(&format!("text.{i}.pooled"), pooled, CLOSE);
            }
            let skipped = encoder.encode(&ids, 1).expect("embeddings");
            model.assert_close(&format!("text.{i}.hidden_skipped"), &skipped.hidden, CLOSE);
            assert_eq!(skipped.pooled.as_ref().map(bits), embeds.pooled.as_ref().map(bits), "the pooled text knows no skipped layers");
        }
    }
}

#[test]
fn unet() {
    for model in Model::all() {
        let unet = model.unet(DType::F32);
        for case in ["even", "odd"] {
            let output = model.call_unet(&unet, case, DType::F32);
            model.assert_close(&format!("unet.{case}.output"), &output, CLOSE);
        }
    }
}

/// A GPU records the second call of a shape and plays it from then on.
#[test]
fn a_call_that_comes_again_gives_the_same_bytes() {
    let dtype = if test_device().is_cpu() { DType::F32 } else { DType::F16 };
    for model in Model::all() {
        let unet = model.unet(dtype);
        for (timestep, case) in [(901.0, "even"), (700.0, "odd"), (601.0, "even"), (501.0, "even"), (300.0, "odd"), (1.0, "odd")] {
            let first = model.call_unet_at(timestep, &model.unet(dtype), case, dtype);
            let again = model.call_unet_at(timestep, &unet, case, dtype);
            assert!(numbers(&first) == numbers(&again), "{}: {case} at {timestep}", model.name);
            assert!(numbers(&again).iter().all(|x| x.is_finite()), "{}: {case} at {timestep}", model.name);
        }
    }
}

#[test]
fn autoencoder() {
    for model in Model::all() {
        let decoded = model.decoder(DType::F32).decode(&model.input("vae.latents", DType::F32)).expect("an image");
        model.assert_close("vae.decoded", &decoded, CLOSE);
        let mean = model.encoder(DType::F32).encode_mean(&model.input("vae.image", DType::F32)).expect("latents");
        model.assert_close("vae.mean", &mean, CLOSE);
    }
}

#[test]
fn whole_runs() {
    for model in Model::all() {
        let pipeline = model.pipeline(DType::F32);
        // Skipping counts from 1 here and from 0 in diffusers.
        let bare = model.draft().with(|draft| {
            draft.text.negative_prompt = None;
            draft.text.clip_skip = Some(2);
            draft.guidance.rescale = Some(0.7);
        });
        for (run, draft) in [("run", model.draft()), ("bare", bare)] {
            let request = model.request(&draft);
            let generated = generate(&pipeline, &request, &[request.seed]);
            model.assert_close(&format!("{run}.latents"), &generated[0].latents, CLOSE_AFTER_A_RUN);
            let (largest, _) = levels_off(&model.golden(&format!("{run}.image")), &generated[0]);
            assert!(largest <= 1.0, "{} {run}: the image is off by {largest} levels", model.name);
        }
    }
}

/// Each stage rounds a few dozen times on its longest way; the errors add up as a random walk does.
const ROUNDINGS: f64 = 8.0;

#[test]
fn half_precision_is_near() {
    for model in Model::all() {
        for dtype in [DType::F16, DType::BF16] {
            for i in 0..model.checkpoint.spec().text_encoders.len() {
                let encoder = model.text_encoder(i, dtype);
                let ids: Vec<Vec<u32>> = model.texts().into_iter().map(|text| encoder.tokenize(text).expect("tokens").ids).collect();
                model.assert_near(&format!("text.{i}.hidden"), &encoder.encode(&ids, 0).expect("embeddings").hidden, dtype, ROUNDINGS);
            }
            let unet = model.unet(dtype);
            for case in ["even", "odd"] {
                model.assert_near(&format!("unet.{case}.output"), &model.call_unet(&unet, case, dtype), dtype, ROUNDINGS);
            }
            let decoded = model.decoder(dtype).decode(&model.input("vae.latents", dtype)).expect("an image");
            model.assert_near("vae.decoded", &decoded, dtype, ROUNDINGS);
            let mean = model.encoder(dtype).encode_mean(&model.input("vae.image", dtype)).expect("latents");
            model.assert_near("vae.mean", &mean, dtype, ROUNDINGS);

            let request = model.request(&model.draft());
            let generated = generate(&model.pipeline(dtype), &request, &[request.seed]);
            // Guidance multiplies the difference of two rounded predictions.
            model.assert_near("run.latents", &generated[0].latents, dtype, ROUNDINGS * request.guidance.scale);
            let (largest, mean) = levels_off(&model.golden("run.image"), &generated[0]);
            say(&format!("{:13} image in {dtype:?}: largest {largest} levels, mean {mean:.2}", model.name));
            let tolerance = 255.0 * ROUNDINGS * unit_roundoff(dtype);
            assert!(mean <= tolerance, "{}: the image in {dtype:?} is off by {mean:.2} levels in the mean", model.name);
        }
    }
}

#[test]
fn a_single_step_in_bf16_generates_what_f32_generates() {
    // One evaluation from pure noise to the image: the network decides all of it, and no guidance multiplies its roundings.
    for model in Model::all().filter(|model| model.name != "sdxl-refiner") {
        let draft = model.draft().with(|draft| {
            draft.sampling.steps = Some(1);
            draft.guidance.scale = Some(1.0);
            draft.scheduler.sampler = Some("euler".into());
            draft.scheduler.timestep_spacing = Some(TimestepSpacing::Trailing);
        });
        let request = model.request(&draft);
        let [exact, rounded] = [DType::F32, DType::BF16].map(|dtype| {
            let pipeline = model.pipeline(dtype);
            let generated = generate(&pipeline, &request, &[request.seed]);
            numbers(&pipeline.decode(&generated[0].latents).expect("an image"))
        });
        let mean = exact.iter().sum::<f64>() / exact.len() as f64;
        let deviation = (exact.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / exact.len() as f64).sqrt();
        let off = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).sum::<f64>() / exact.len() as f64 / deviation;
        say(&format!("{:13} one step in bf16: {:.2} % off", model.name, 100.0 * off));
        assert!(off < 0.02, "{}: {:.2} % of the image's deviation", model.name, 100.0 * off);
    }
}

#[test]
fn every_tensor_is_used() {
    for model in Model::all() {
        let pipeline = model.pipeline(DType::F32);
        // A request only generates, so the autoencoder's other half stays unread.
        let half = |key: &String| key.starts_with("encoder.") || key.starts_with("quant_conv.");
        let unused = model.checkpoint.unused();
        assert!(!unused.is_empty() && unused.iter().all(half), "{}: unused: {unused:?}", model.name);
        assert_eq!(model.checkpoint.unknown(), Vec::<String>::new(), "{}", model.name);
        model.encoder(DType::F32);
        assert_eq!(model.checkpoint.unused(), Vec::<String>::new(), "{}", model.name);
        drop(pipeline);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for model in Model::all() {
        let pipeline = model.pipeline(DType::F32);
        let request = model.request(&model.draft().with(|draft| draft.scheduler.sampler = Some("euler-a".into())));
        let [first, again, other] = [7, 7, 8].map(|seed| generate(&pipeline, &request, &[seed]).remove(0));
        assert!(bits(&first.latents) == bits(&again.latents), "{}: the latents differ", model.name);
        assert!(first.image == again.image, "{}: the images differ", model.name);
        assert!(first.image != other.image, "{}: another seed generates the same image", model.name);
    }
}

/// With a sampler that draws noise at every step, guided and not, and in every dtype.
#[test]
fn a_image_does_not_depend_on_its_batch() {
    if !test_device().is_cpu() {
        // A GPU's libraries and kernels cut sums by the number of rows.
        say("skipped: to the last bit on the CPU only");
        return;
    }
    let seeds = [11, 12, 13];
    for model in Model::all() {
        for (dtype, guidance_scale) in [(DType::F32, 7.5), (DType::F32, 1.0), (DType::BF16, 7.5)] {
            let pipeline = model.pipeline(dtype);
            let draft = model.draft().with(|draft| {
                draft.scheduler.sampler = Some("euler-a".into());
                draft.sampling.steps = Some(2);
                draft.guidance.scale = Some(guidance_scale);
            });
            let request = model.request(&draft);
            let alone: Vec<GeneratedImage> = seeds.iter().flat_map(|&seed| generate(&pipeline, &request, &[seed])).collect();
            for batch in [&seeds[..2], &seeds[1..], &seeds[..]] {
                for together in generate(&pipeline, &request, batch) {
                    let single = alone.iter().find(|generated| generated.seed == together.seed).expect("generated alone");
                    let which = format!("{}: {} of {batch:?}, {dtype:?}, guidance {guidance_scale}", model.name, together.seed);
                    assert!(bits(&together.latents) == bits(&single.latents), "{which}");
                    assert!(together.image == single.image, "{which}");
                }
            }
        }
    }
}

#[test]
fn tiny_autoencoder() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/taesd");
    let golden = safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).expect("golden.safetensors");
    let wanted = numbers(&golden["image"]);
    let mean = wanted.iter().sum::<f64>() / wanted.len() as f64;
    let deviation = (wanted.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / wanted.len() as f64).sqrt();
    let decode = |tiny: &TinyAutoencoder| {
        let decoder = AutoencoderTinyDecoder::load(&Scope::root(tiny, DType::F32, &Device::Cpu), tiny.spec()).expect("a decoder");
        decoder.decode(&golden["latents"]).expect("an image")
    };
    let mut images = Vec::new();
    for name in ["diffusers.safetensors", "decoder.safetensors"] {
        let image = decode(&TinyAutoencoder::open(&folder.join(name)).expect(name));
        assert_eq!(image.dims(), golden["image"].dims(), "{name}");
        let largest = numbers(&image).iter().zip(&wanted).map(|(a, b)| (a - b).abs() / deviation).fold(0.0, f64::max);
        say(&format!("taesd         {name:22} largest {largest:.1e}"));
        assert!(largest <= CLOSE, "{name}: off by {largest:.1e} standard deviations");
        images.push(bits(&image));
    }
    // Both halves in the original's names, as its author's training script saves them.
    let decoder = safetensors::load(folder.join("decoder.safetensors"), &Device::Cpu).expect("decoder.safetensors");
    let both: HashMap<String, Tensor> = decoder.into_iter().map(|(key, value)| (format!("decoder.{key}"), value)).collect();
    let path = tempfile::tempdir().expect("a folder").keep().join("taesd.safetensors");
    safetensors::save(&both, &path).expect("a file");
    images.push(bits(&decode(&TinyAutoencoder::open(&path).expect("the third layout"))));
    std::fs::remove_dir_all(path.parent().expect("a folder")).expect("the folder goes");
    assert!(images[0] == images[1] && images[1] == images[2], "the layouts differ");

    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/sd15/vae/diffusion_pytorch_model.safetensors");
    let said = TinyAutoencoder::open(&model).expect_err("another autoencoder").to_string();
    assert!(said.contains("not a tiny autoencoder") && said.contains("taesd_decoder.safetensors"), "{said}");
}

/// Looks at every estimate.
#[derive(Default)]
struct Looking(Vec<image::RgbImage>);

impl Observer for Looking {
    fn stage(&mut self, _: Stage<'_>) -> sd_gen::Result<()> {
        Ok(())
    }

    fn warn(&mut self, _: &str) {}

    fn forming(&mut self, estimate: &Estimate<'_>) {
        self.0.extend(estimate().expect("an estimate"));
    }
}

#[test]
fn estimates_come_to_look_like_the_image() {
    let checkpoint = Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).expect("the built-in model");
    let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32, DType::F32, &mut Silent).expect("a pipeline");
    let draft = Draft::new("a red apple").with(|draft| draft.seed = Some(Seed::Is(1)));
    for (sampler, evaluated) in [("pndm", 25), ("heun", 25), ("dpm++2m", 25)] {
        let request = draft.clone().with(|draft| draft.scheduler.sampler = Some(sampler.into()));
        let request = request.resolve(checkpoint.spec()).expect("a request");
        let prompt = pipeline.encode_prompt(&request, &mut Silent).expect("an encoded prompt");
        let mut looking = Looking::default();
        let generated = pipeline.generate_batch(&BatchItem::of_seeds(&request, &prompt, &[1]), &mut looking).expect("an image").remove(0);
        assert_eq!(looking.0.len(), evaluated, "{sampler}");
        let small = image::imageops::resize(&generated.image, 16, 16, image::imageops::FilterType::Triangle);
        let off = |look: &image::RgbImage| -> f64 {
            let differences = look.as_raw().iter().zip(small.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            differences.sum::<f64>() / small.as_raw().len() as f64
        };
        let (first, last) = (off(&looking.0[0]), off(&looking.0[evaluated - 1]));
        say(&format!("{sampler}: the first estimate is {first:.1} levels off, the last {last:.1}"));
        assert!(last < 25.0 && first > last, "{sampler}: {first} {last}");
    }
    // A tiny autoencoder takes the map's place, and has the image's size.
    let request = draft.with(|draft| draft.sampling.steps = Some(2)).resolve(checkpoint.spec()).expect("a request");
    let prompt = pipeline.encode_prompt(&request, &mut Silent).expect("an encoded prompt");
    let taesd = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/taesd/decoder.safetensors");
    pipeline.estimate_with(&TinyAutoencoder::open(&taesd).expect("a tiny autoencoder")).expect("it fits");
    let mut looking = Looking::default();
    pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, &[1, 2]), &mut looking).expect("latents");
    assert_eq!((looking.0.len(), looking.0[0].dimensions()), (2 * 2, (128, 128)));
}

/// Networks that take turns on the device, and images that are decoded in tiles.
#[test]
fn little_memory_gives_the_same_image() {
    for name in MODELS {
        let model = Model::open(name);
        let request = model.request(&model.draft());
        let whole = generate(&model.pipeline(DType::F32), &request, &[request.seed]).remove(0);
        let shared: SharedModel = Arc::new(Model::open(name).checkpoint);
        let in_turn = || Pipeline::in_turn(shared.clone(), test_device(), DType::F32, DType::F32).expect("a pipeline");
        let again = generate(&in_turn(), &request, &[request.seed]).remove(0);
        assert!(bits(&whole.latents) == bits(&again.latents) && whole.image == again.image, "{name}: taking turns changes the image");

        let latents = whole.latents.to_device(test_device()).expect("latents");
        let decode = |tiling| numbers(&in_turn().with_vae_tiling(tiling).decode(&latents).expect("an image"));
        // An image that is not larger than a tile is not cut.
        assert!(decode(VaeTiling::On) == decode(VaeTiling::Off), "{name}");
    }
}

/// What a decoder sees of a tile is not the whole image; how much that changes is bounded here.
#[test]
fn a_image_in_tiles_is_near_the_whole_one() {
    for model in Model::all() {
        // The same latents over and over: what the norms see of a tile is like the whole.
        let latents = model.input("vae.latents", DType::F32);
        let (height, width) = (latents.dim(2).expect("height"), latents.dim(3).expect("width"));
        let latents = latents.repeat((1, 1, 96usize.div_ceil(height), 80usize.div_ceil(width))).expect("latents");
        let pipeline = model.pipeline(DType::F32);
        let whole = numbers(&pipeline.decode(&latents).expect("an image"));
        let tiled = numbers(&pipeline.with_vae_tiling(VaeTiling::On).decode(&latents).expect("an image"));
        let mean = whole.iter().sum::<f64>() / whole.len() as f64;
        let deviation = (whole.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / whole.len() as f64).sqrt();
        let off = whole.iter().zip(&tiled).map(|(a, b)| (a - b).abs()).sum::<f64>() / whole.len() as f64 / deviation;
        say(&format!("{:13} in tiles: off by {off:.1e} standard deviations in the mean", model.name));
        assert!(off > 0.0 && off < 0.02, "{}: {off}", model.name);
    }
}
