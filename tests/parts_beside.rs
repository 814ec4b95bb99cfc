//! Models whose networks lie in files of their own.

#![allow(clippy::expect_used, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::pipeline::{BatchItem, Pipeline, SharedModel, Silent};
use sd_gen::settings::Draft;
use sd_gen::weights::{Checkpoint, OpenOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn parity(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
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
fn a_denoiser_alone_says_what_it_needs_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, tensors: &[(&str, &[usize])]| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
        let tensors: HashMap<String, Tensor> = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        let path = folder.path().join(name);
        safetensors::save(&tensors, &path).expect("a file");
        path
    };
    let (block, label) = ("output_blocks.0.0.in_layers.0.weight", "label_emb.0.0.weight");
    let projection = "input_blocks.1.1.proj_in.weight";
    let sd1 = file("sd1.safetensors", &[(block, &[32]), (projection, &[32, 32, 1, 1])]);
    let sd2 = file("sd2.safetensors", &[(block, &[32]), (projection, &[32, 32])]);
    let sdxl = file("sdxl.safetensors", &[(block, &[32]), (projection, &[32, 32]), (label, &[8, 8])]);
    let sd3 = file("sd3.safetensors", &[("joint_blocks.0.context_block.attn.qkv.weight", &[24, 8])]);
    let refused =
        |model: &Path, options: OpenOptions| Checkpoint::open_with(model, &options).expect_err("it is no whole model").to_string();
    for (model, wanted) in [
        (&sd1, "holds only a UNet; give the files of the rest with `clip-l` and `vae`"),
        (&sd2, "holds only a UNet of Stable Diffusion 2"),
        (&sdxl, "holds only a UNet; give the files of the rest with `clip-l` and `clip-g` and `vae`"),
        (&sd3, "holds only a transformer; give the files of the rest with `vae`"),
    ] {
        let said = refused(model, OpenOptions::default());
        assert!(said.contains(wanted), "{said}");
    }
    let given = || OpenOptions { clip_l: Some(sd1.clone()), vae: Some(sd1.clone()), ..OpenOptions::default() };
    let said = refused(&sd1, OpenOptions { t5: Some(sd1.clone()), ..given() });
    assert!(said.contains("takes no such text encoder"), "{said}");
    let said = refused(&sd1, given());
    assert!(said.contains("is no text encoder that is known"), "{said}");
    let clip = file("clip.safetensors", &[("text_model.embeddings.token_embedding.weight", &[8, 8])]);
    let said = refused(&sd1, OpenOptions { clip_l: Some(clip.clone()), ..given() });
    assert!(said.contains("is no autoencoder that is known"), "{said}");
    let vae = file("vae.safetensors", &[("decoder.conv_in.weight", &[8, 8, 3, 3]), ("decoder.conv_norm_out.weight", &[8])]);
    let said = refused(&sd1, OpenOptions { clip_l: Some(clip), vae: Some(vae), ..OpenOptions::default() });
    assert!(said.contains("diffusers' names"), "{said}");
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
