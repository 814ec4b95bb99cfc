//! Models whose networks lie in files of their own.

#![allow(clippy::expect_used, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::pipeline::{BatchItem, Pipeline, SharedModel, Silent};
use sd_gen::settings::Draft;
use sd_gen::weights::{Checkpoint, Layout, OpenOptions, WeightType, convert};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn parity(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Writes those tensors of a file whose names begin with `prefix`, by the rest of their names.
fn part(whole: &HashMap<String, Tensor>, prefix: &str, to: &Path) -> PathBuf {
    let own: HashMap<String, Tensor> =
        whole.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))).collect();
    assert!(own.len() > 10, "{prefix}");
    safetensors::save(&own, to).expect("a file");
    to.to_owned()
}

fn latents(model: Checkpoint) -> Vec<u32> {
    let model: SharedModel = Arc::new(model);
    let draft = Draft::new("a red apple").with(|draft| {
        draft.sampling.steps = Some(2);
        draft.text.t5_tokens = model.spec().t5.as_ref().map(|_| 24);
        draft.set_size(Some((32, 48)));
    });
    let request = draft.resolve(model.spec()).expect("a request");
    let pipeline = Pipeline::load_shared(model, &Device::Cpu, DType::F32, DType::F32, &mut Silent).expect("it loads");
    let prompt = pipeline.encode_prompt(&request, &mut Silent).expect("a prompt");
    let latents = pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, &[1]), &mut Silent).expect("latents");
    let latents: Vec<f32> = latents.flatten_all().and_then(|x| x.to_vec1()).expect("numbers");
    latents.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_denoiser_alone_is_a_model_with_the_rest_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["parity/sd15", "parity/sdxl"] {
        let model = parity(name);
        let whole = folder.path().join("whole.safetensors");
        std::fs::remove_file(&whole).ok();
        convert(&Checkpoint::open(&model).expect("a model"), &whole, Layout::Original, Some(WeightType::F32), &[]).expect("one file");
        let tokenizers = OpenOptions { tokenizers: Some(model.clone()), ..OpenOptions::default() };
        let wanted = latents(Checkpoint::open_with(&whole, &tokenizers).expect("one file opens"));
        let tensors = safetensors::load(&whole, &Device::Cpu).expect("tensors");
        let to = |part: &str| folder.path().join(format!("{part}.safetensors"));
        let unet = part(&tensors, "model.diffusion_model.", &to("unet"));
        let vae = part(&tensors, "first_stage_model.", &to("vae"));
        let (clip_l, clip_g) = (model.join("text_encoder/model.safetensors"), model.join("text_encoder_2/model.safetensors"));
        let xl = name.ends_with("sdxl");
        let given = OpenOptions { clip_l: Some(clip_l), vae: Some(vae.clone()), clip_g: xl.then_some(clip_g), ..tokenizers.clone() };
        let opened = Checkpoint::open_with(&unet, &given).expect("the parts open");
        assert!(opened.unknown().is_empty(), "{:?}", opened.unknown());
        assert!(latents(opened) == wanted, "{name}");
        // A whole model's file has an autoencoder in it, too.
        let from_whole = OpenOptions { vae: Some(whole.clone()), ..given.clone() };
        assert!(latents(Checkpoint::open_with(&unet, &from_whole).expect("the parts open")) == wanted, "{name}");
        let refused = |options: OpenOptions| Checkpoint::open_with(&unet, &options).expect_err("something is missing").to_string();
        let said = refused(OpenOptions::default());
        assert!(said.contains("holds only a UNet") && said.contains("`clip-l`") && said.contains("`vae`"), "{said}");
        assert_eq!(said.contains("`clip-g`"), xl, "{said}");
        let said = refused(OpenOptions { t5: Some(vae.clone()), ..given.clone() });
        assert!(said.contains("t5"), "{said}");
        let said = refused(OpenOptions { clip_l: Some(vae), ..given });
        assert!(said.contains("no text encoder"), "{said}");
    }
}

#[test]
fn t5_is_taken_under_the_names_of_llama_cpp() {
    let model = parity("parity_sd3/sd35-medium");
    let folder = tempfile::tempdir().expect("a folder");
    let names = [
        ("encoder.block.", "enc.blk."),
        ("encoder.final_layer_norm", "enc.output_norm"),
        ("shared", "token_embd"),
        ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
        ("layer.0.SelfAttention.", "attn_"),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.1.layer_norm", "ffn_norm"),
        ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
        ("layer.1.DenseReluDense.wi_1", "ffn_up"),
        ("layer.1.DenseReluDense.wo", "ffn_down"),
    ];
    let renamed = |name: &str| names.iter().fold(name.to_owned(), |name, (usual, theirs)| name.replace(usual, theirs));
    let t5 = safetensors::load(model.join("text_encoder_3/model.safetensors"), &Device::Cpu).expect("T5");
    let t5 = t5.into_iter().filter(|(name, _)| !name.ends_with("embed_tokens.weight"));
    let t5: HashMap<String, Tensor> = t5.map(|(name, tensor)| (renamed(&name), tensor)).collect();
    assert!(t5.contains_key("enc.blk.0.attn_q.weight") && t5.contains_key("token_embd.weight"), "{:?}", t5.keys());
    let file = folder.path().join("t5.safetensors");
    safetensors::save(&t5, &file).expect("a file");
    let own = latents(Checkpoint::open(&model).expect("a folder"));
    let given = OpenOptions { t5: Some(file), ..OpenOptions::default() };
    assert!(latents(Checkpoint::open_with(&model, &given).expect("a folder")) == own);
}
