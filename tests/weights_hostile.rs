//! Broken and hostile files: each is a clear error that names the culprit, and none is a panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod weights_models;

use candle_core::{DType, Device};
use proptest::prelude::*;
use sd_gen::Error;
use sd_gen::weights::{Checkpoint, Component, Layout, TensorSource, convert};
use serde_json::{Value, json};
use std::path::Path;
use weights_models::{file, original, sd1, sd2, sdxl};

/// A file with this header text and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The message of the error that the bytes are.
fn refused(bytes: Vec<u8>) -> String {
    match Checkpoint::from_bytes("file.safetensors", bytes) {
        Err(Error::Model(message)) => message,
        Err(other) => panic!("not a model error: {other}"),
        Ok(_) => panic!("was opened"),
    }
}

#[track_caller]
fn refused_with(bytes: Vec<u8>, words: &[&str]) {
    let message = refused(bytes);
    for word in ["file.safetensors"].iter().chain(words) {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
}

#[test]
fn broken_headers_are_refused() {
    let tensor = |shape: &str, from: &str, to: &str| format!(r#"{{"a.b":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#);
    let long_name = "n".repeat(100_000);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["empty"]),
        (vec![1, 2, 3], &["3 bytes"]),
        (u64::MAX.to_le_bytes().to_vec(), &["header of 18446744073709551615 bytes"]),
        ((1u64 << 40).to_le_bytes().to_vec(), &["header of 1099511627776 bytes", "truncated"]),
        (with_header("{}", 0)[..9].to_vec(), &["truncated"]),
        (with_header("", 0), &["header"]),
        (with_header("{", 0), &["header"]),
        (with_header("[]", 0), &["header"]),
        (with_header("nonsense", 0), &["header"]),
        (with_header("{\"a\":", 0), &["header"]),
        ([&4u64.to_le_bytes()[..], &[0xff, 0xfe, 0xfd, 0xfc]].concat(), &["UTF-8"]),
        (with_header(&"[".repeat(100_000), 0), &["header"]),
        (with_header(&format!("{{\"a\":{}", "{\"b\":".repeat(100_000)), 0), &["header"]),
        (with_header("{\"a.b\": 1}", 0), &["a.b"]),
        (with_header("{\"a.b\": {\"dtype\":\"F32\"}}", 0), &["a.b", "shape"]),
        (with_header(&tensor("[1]", "0", "4"), 0), &["a.b", "truncated"]),
        (with_header(&tensor("[1]", "0", "4"), 2), &["a.b", "truncated"]),
        (with_header(&tensor("[1]", "0", "4"), 6), &["2 bytes after"]),
        (with_header(&tensor("[2]", "0", "4"), 4), &["a.b", "do not agree"]),
        (with_header(&tensor("[-1]", "0", "4"), 4), &["a.b", "-1"]),
        (with_header(&tensor("[1.5]", "0", "4"), 4), &["a.b"]),
        (with_header(&tensor("[99999999999999999999]", "0", "4"), 4), &["a.b"]),
        (with_header(&tensor("[4294967296,4294967296,4294967296]", "0", "4"), 4), &["a.b", "do not agree"]),
        (with_header(&tensor("[9223372036854775807,4]", "0", "0"), 0), &["a.b", "do not agree"]),
        (with_header(&tensor("[1]", "4", "0"), 4), &["a.b", "before its begin"]),
        (with_header(&tensor("[1]", "-4", "0"), 4), &["a.b"]),
        (with_header(&tensor("[1]", "18446744073709551612", "18446744073709551615"), 4), &["a.b"]),
        (with_header(&tensor("[1]", "4", "8"), 8), &["a.b", "gap"]),
        (with_header(&tensor(&format!("[{}1]", "1,".repeat(50)), "0", "4"), 4), &["a.b", "more than 16 dimensions"]),
        (with_header(r#"{"a.b":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4), &["a.b", "F33"]),
        (with_header(r#"{"a.b":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, 1), &["a.b", "do not agree"]),
        (
            with_header(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                12,
            ),
            &["\"b\"", "overlaps"],
        ),
        (
            with_header(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1),
            &["\"a\"", "twice"],
        ),
        (with_header(&format!(r#"{{"{long_name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}}}"#), 4), &["nnn…", "truncated"]),
        (with_header("{\"__metadata__\": 3}", 0), &["__metadata__"]),
        (with_header("{}", 0), &["no tensors"]),
        (with_header(r#"{"\u001b[31m\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1), &["\\u{1b}[31m\\n"]),
    ];
    for (bytes, words) in cases {
        refused_with(bytes, words);
    }
}

#[test]
fn other_kinds_of_files_are_named() {
    let lfs = b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 4265146304\n".to_vec();
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (lfs, &["Git LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html></html>".to_vec(), &["web page"]),
        (b"\n  <HTML lang=en>".to_vec(), &["web page"]),
        (b"Access denied. Please log in.".to_vec(), &["text file"]),
        (b"{\"error\": \"not found\"}".to_vec(), &["text file"]),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00archive/data.pkl".to_vec(), &["pickle", "sandbox"]),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), &["pickle"]),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00".to_vec(), &["GGUF"]),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".to_vec(), &["gzip"]),
        (vec![0; 4096], &["header"]),
    ];
    for (bytes, words) in cases {
        refused_with(bytes, words);
    }
}

#[test]
fn other_kinds_of_models_are_named() {
    let one = |name: &str| file(&vec![(name.to_owned(), vec![2, 2])], &[]);
    let whole = |name: &str| {
        let mut shapes = original(&sd1());
        shapes.push((name.to_owned(), vec![1]));
        file(&shapes, &[])
    };
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (one("lora_unet_down_blocks_0.lora_up.weight"), &["LoRA"]),
        (one("unet.down_blocks.0.lora.up.weight"), &["LoRA"]),
        (one("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"), &["lacks the autoencoder"]),
        (one("double_blocks.0.img_attn.qkv.weight"), &["Flux"]),
        (one("control_model.time_embed.0.weight"), &["ControlNet"]),
        (one("emb_params"), &["textual inversion"]),
        (one("model.layers.0.mlp.gate_proj.weight"), &["no Stable Diffusion model", "model.layers.0"]),
        (one("conv_in.weight"), &["only a UNet", "whole model"]),
        (one("encoder.conv_in.weight"), &["only an autoencoder"]),
        (one("text_model.embeddings.token_embedding.weight"), &["only a text encoder"]),
        (one("model.diffusion_model.input_blocks.0.0.weight"), &["lacks", "autoencoder", "text encoder"]),
        (one("first_stage_model.decoder.conv_in.weight"), &["lacks", "UNet"]),
        (whole("edm_mean"), &["Playground"]),
        (whole("edm_vpred.sigma_max"), &["CosXL"]),
        (whole("X.comfy_quant"), &["quantised"]),
    ];
    for (bytes, words) in cases {
        refused_with(bytes, words);
    }
}

#[test]
fn more_layers_than_any_network_has_are_not_named_one_by_one() {
    use weights_models::{Plan, Text};
    let text = Text { prefix: "cond_stage_model.transformer.text_model.", open_clip: false, width: 64, layers: 130, projection: None };
    let plan = Plan { levels: vec![(32, 1)], blocks: 1, context: 64, text: vec![text], ..sd1() };
    // A tensor of a layer that was left out is an error since, which names the first of them and not all.
    let error = Checkpoint::from_bytes("file.safetensors", file(&original(&plan), &[])).unwrap_err().to_string();
    assert!(error.contains(".layers.128.") && error.contains("text encoder"), "{error}");
    assert_eq!(error.matches(".layers.").count(), 1, "{error}");
}

/// The shapes of a whole model after a change.
fn changed(change: impl Fn(&mut String, &mut Vec<usize>) -> bool) -> Vec<u8> {
    let mut shapes = original(&sd1());
    shapes.retain_mut(|(name, shape)| change(name, shape));
    file(&shapes, &[])
}

#[test]
fn models_that_do_not_fit_together_are_refused() {
    let reshaped = |key: &'static str, to: &'static [usize]| {
        changed(move |name, shape| {
            if name.ends_with(key) {
                *shape = to.to_vec();
            }
            true
        })
    };
    let without = |key: &'static str| changed(move |name, _| !name.contains(key));
    let three_encoders = {
        let mut shapes = original(&sd1());
        shapes.extend(original(&sd2()).into_iter().filter(|(name, _)| name.starts_with("cond_stage_model.model")));
        file(&shapes, &[])
    };
    let wide_xl = {
        let mut shapes = original(&sdxl());
        for (name, shape) in &mut shapes {
            if name.ends_with("label_emb.0.0.weight") {
                shape[1] = 2815;
            }
        }
        file(&shapes, &[])
    };
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (reshaped("diffusion_model.input_blocks.0.0.weight", &[32, 5, 3, 3]), &["5 input channels", "depth"]),
        (reshaped("diffusion_model.input_blocks.0.0.weight", &[32, 4]), &["input_blocks.0.0.weight", "[32, 4]"]),
        (reshaped("diffusion_model.input_blocks.0.0.weight", &[64, 4, 3, 3]), &["64 channels", "[32, 64, 64, 64]"]),
        (reshaped("diffusion_model.input_blocks.0.0.weight", &[0, 4, 3, 3]), &["input_blocks.0.0.weight", "[0, 4, 3, 3]"]),
        (reshaped("input_blocks.2.0.out_layers.3.weight", &[64, 32, 3, 3]), &["input_blocks.2.0", "64 channels in a level of 32"]),
        (reshaped("input_blocks.1.0.out_layers.3.weight", &[33, 32, 3, 3]), &["33 channels", "groups"]),
        (reshaped("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[32, 512]), &["width 512", "768"]),
        (reshaped("diffusion_model.out.2.weight", &[8, 32, 3, 3]), &["8 output channels", "4 channels"]),
        (reshaped("token_embedding.weight", &[96, 100]), &["token_embedding", "width of 100"]),
        (reshaped("decoder.conv_in.weight", &[64]), &["decoder.conv_in.weight", "[64]"]),
        (without("output_blocks."), &["on the way up"]),
        (without("attn2"), &["without cross-attention"]),
        (without("first_stage_model."), &["lacks the autoencoder"]),
        (without("cond_stage_model."), &["lacks the text encoder"]),
        (without("encoder.down."), &["encoder of 0 levels"]),
        (without("position_embedding"), &["position_embedding.weight", "missing"]),
        (three_encoders, &["2 text encoders", "without label_emb"]),
        (wide_xl, &["2815", "1280"]),
    ];
    for (bytes, words) in cases {
        refused_with(bytes, words);
    }
}

#[test]
fn what_is_missing_or_misshapen_inside_a_network_is_named_when_it_is_loaded() {
    let load = |bytes: Vec<u8>, name: &str, shape: &[usize]| {
        let model = Checkpoint::from_bytes("file.safetensors", bytes).unwrap();
        let error = model.component(Component::UNET).tensor(name, shape, DType::F32, &Device::Cpu).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    let error = load(changed(|name, _| !name.contains("middle_block.0.in_layers.2")), "mid_block.resnets.0.conv1.weight", &[64, 64, 3, 3]);
    for word in ["file.safetensors", "mid_block.resnets.0.conv1.weight", "the UNet", "Stable Diffusion 1.x was concluded"] {
        assert!(error.contains(word), "{error}");
    }
    let error = load(file(&original(&sd1()), &[]), "conv_in.weight", &[320, 4, 3, 3]);
    for word in ["model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight", "[32, 4, 3, 3]", "[320, 4, 3, 3]"] {
        assert!(error.contains(word), "{error}");
    }
    let model = Checkpoint::from_bytes("file.safetensors", file(&original(&sd1()), &[])).unwrap();
    assert!(model.component(Component::UNET).tensor("conv_in.weight", &[32, 4, 3, 3], DType::U8, &Device::Cpu).is_err());
    assert!(model.component(Component::text_encoder(7)).tensor("x", &[1], DType::F32, &Device::Cpu).is_err());
    assert_eq!(model.component(Component::text_encoder(7)).shape("x"), None);
}

#[test]
fn integer_weights_are_refused_by_name() {
    let mut bytes = file(&original(&sd1()), &[]);
    let entry = b"\"model.diffusion_model.out.2.bias\":{\"dtype\":\"";
    let start = bytes.windows(entry.len()).position(|window| window == entry).unwrap() + entry.len();
    bytes[start..start + 3].copy_from_slice(b"I16");
    let model = Checkpoint::from_bytes("file.safetensors", bytes).unwrap();
    let error = model.component(Component::UNET).tensor("conv_out.bias", &[4], DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("out.2.bias") && error.contains("I16"), "{error}");
}

#[test]
fn keys_of_no_network_are_reported_and_useless_ones_are_not() {
    let mut shapes = original(&sd1());
    for useless in
        ["model_ema.decay", "betas", "alphas_cumprod", "cond_stage_model.transformer.text_model.embeddings.position_ids", "global_step"]
    {
        shapes.push((useless.into(), vec![1]));
    }
    shapes.push(("something.else".into(), vec![1]));
    let model = Checkpoint::from_bytes("file.safetensors", file(&shapes, &[])).unwrap();
    assert_eq!(model.unknown(), ["something.else"]);
    let dir = tempfile::tempdir().unwrap();
    let report = convert(&model, &dir.path().join("x"), Layout::Original, None, &[]).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("something.else")), "{:?}", report.notes);
    assert_eq!(model.unused(), ["something.else"]);
    shapes.push(("model.diffusion_model.extra.weight".into(), vec![1]));
    let error = Checkpoint::from_bytes("file.safetensors", file(&shapes, &[])).unwrap_err().to_string();
    assert!(error.contains("extra.weight") && error.contains("layer"), "a tensor of a network that no layer takes: {error}");
}

/// A good folder, made once for each test that breaks it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = Checkpoint::from_bytes("model", file(&original(&sd1()), &[])).unwrap();
    convert(&model, &dir.path().join("m"), Layout::Diffusers, None, &[]).unwrap();
    dir
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[track_caller]
fn not_opened(path: &Path, words: &[&str]) {
    let error = Checkpoint::open(path).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error} does not say {word:?}");
    }
}

#[test]
fn fields_that_are_not_implemented_are_named() {
    let dir = folder();
    let root = dir.path().join("m");
    let huge = u64::MAX;
    let cases: &[(&str, &str, Value)] = &[
        ("unet", "act_fn", json!("gelu")),
        ("unet", "down_block_types", json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("unet", "down_block_types", json!(["DownBlock2D"])),
        ("unet", "down_block_types", json!("DownBlock2D")),
        ("unet", "up_block_types", json!(["SimpleCrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"])),
        ("unet", "mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("unet", "class_embed_type", json!("timestep")),
        ("unet", "num_class_embeds", json!(1000)),
        ("unet", "resnet_time_scale_shift", json!("scale_shift")),
        ("unet", "dual_cross_attention", json!(true)),
        ("unet", "only_cross_attention", json!([true, true, true, false])),
        ("unet", "encoder_hid_dim", json!(4096)),
        ("unet", "center_input_sample", json!(true)),
        ("unet", "addition_embed_type", json!("text_image")),
        ("unet", "conv_in_kernel", json!(1)),
        ("unet", "time_embedding_type", json!("fourier")),
        ("unet", "time_embedding_dim", json!(7)),
        ("unet", "attention_head_dim", json!(7)),
        ("unet", "attention_head_dim", json!(0)),
        ("unet", "attention_head_dim", json!([8, 8])),
        ("unet", "norm_num_groups", json!(0)),
        ("unet", "norm_num_groups", json!(31)),
        ("unet", "block_out_channels", json!([])),
        ("unet", "block_out_channels", json!([huge, huge, huge, huge])),
        ("unet", "block_out_channels", json!(vec![32; 100_000])),
        ("unet", "layers_per_block", json!(huge)),
        ("unet", "layers_per_block", json!(-1)),
        ("unet", "transformer_layers_per_block", json!(huge)),
        ("unet", "transformer_layers_per_block", json!([[1, 1], 1, 1, 1])),
        ("unet", "transformer_layers_per_block", json!("many")),
        ("unet", "sample_size", json!(huge)),
        ("unet", "norm_eps", json!("small")),
        ("unet", "_class_name", json!("UNet3DConditionModel")),
        ("vae", "act_fn", json!("mish")),
        ("vae", "latents_mean", json!([0.0, 0.0, 0.0, 0.0])),
        ("vae", "down_block_types", json!(["AttnDownEncoderBlock2D", "x", "x", "x"])),
        ("vae", "scaling_factor", json!(0.0)),
        ("vae", "layers_per_block", json!(huge)),
        ("vae", "_class_name", json!("AutoencoderOobleck")),
        ("vae", "out_channels", json!(4)),
        ("text_encoder", "hidden_act", json!("gelu_new")),
        ("text_encoder", "num_hidden_layers", json!(huge)),
        ("text_encoder", "num_attention_heads", json!(5)),
        ("text_encoder", "vocab_size", json!(0)),
    ];
    for (component, field, value) in cases {
        let path = root.join(component).join("config.json");
        let before = std::fs::read(&path).unwrap();
        edit(&path, |config| config[*field] = value.clone());
        not_opened(&root, &[field, "config.json"]);
        std::fs::write(&path, before).unwrap();
    }
    Checkpoint::open(&root).unwrap();
}

#[test]
fn broken_folders_are_refused() {
    let dir = folder();
    let root = dir.path().join("m");
    let breaks: Vec<(&str, Option<&str>, &[&str])> = vec![
        ("unet/config.json", None, &["unet", "config.json", "missing"]),
        ("unet/config.json", Some("{"), &["config.json", "JSON"]),
        ("unet/config.json", Some("[]"), &["config.json", "object"]),
        ("unet/config.json", Some("{}"), &["config.json", "block_out_channels"]),
        ("model_index.json", Some("\u{0}"), &["model_index.json", "JSON"]),
        ("model_index.json", Some(r#"{"unet": [null, null]}"#), &["lacks", "unet"]),
        ("model_index.json", Some(r#"{"transformer": ["diffusers", "FluxTransformer2DModel"]}"#), &["transformer"]),
        ("model_index.json", Some(r#"{"controlnet": ["diffusers", "ControlNetModel"]}"#), &["ControlNet"]),
        ("model_index.json", Some(r#"{"text_encoder": ["transformers", "T5EncoderModel"]}"#), &["T5EncoderModel"]),
        ("model_index.json", Some(r#"{"text_encoder": [null, null]}"#), &["lacks a text encoder"]),
        ("unet/diffusion_pytorch_model.safetensors", None, &["unet", "no weights"]),
        ("unet/diffusion_pytorch_model.safetensors", Some(""), &["diffusion_pytorch_model", "empty"]),
        ("scheduler/scheduler_config.json", Some("{\"_class_name\": 3}"), &["scheduler_config.json", "_class_name"]),
        ("tokenizer/special_tokens_map.json", Some("{\"pad_token\": 3}"), &["special_tokens_map.json", "pad_token"]),
    ];
    for (file, text, words) in breaks {
        let path = root.join(file);
        let before = std::fs::read(&path).unwrap();
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        not_opened(&root, words);
        std::fs::write(&path, before).unwrap();
    }
    Checkpoint::open(&root).unwrap();

    let weights = root.join("unet/diffusion_pytorch_model.safetensors");
    let pickle = root.join("unet/diffusion_pytorch_model.bin");
    std::fs::rename(&weights, &pickle).unwrap();
    not_opened(&root, &["diffusion_pytorch_model.bin", "pickle"]);
}

#[test]
fn an_index_of_shards_stays_in_its_folder() {
    let dir = folder();
    let root = dir.path().join("m");
    let unet = root.join("unet");
    std::fs::rename(unet.join("diffusion_pytorch_model.safetensors"), dir.path().join("outside.safetensors")).unwrap();
    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    let absolute = dir.path().join("outside.safetensors").display().to_string();
    for file in ["../../outside.safetensors", absolute.as_str(), "..", "", "a/b.safetensors", "a\\b.safetensors", "x.bin", ".x.safetensors"]
    {
        std::fs::write(&index, json!({ "weight_map": { "conv_in.weight": file } }).to_string()).unwrap();
        not_opened(&root, &["index.json", "weight_map", "same folder"]);
    }
    for (text, words) in [
        (json!({}), ["weight_map"]),
        (json!({ "weight_map": {} }), ["no file"]),
        (json!({ "weight_map": { "a": 1 } }), ["no file name"]),
        (json!({ "weight_map": { "a": "gone.safetensors" } }), ["gone.safetensors"]),
    ] {
        std::fs::write(&index, text.to_string()).unwrap();
        not_opened(&root, &words);
    }
    // The same tensor in two shards.
    std::fs::copy(dir.path().join("outside.safetensors"), unet.join("a.safetensors")).unwrap();
    std::fs::copy(dir.path().join("outside.safetensors"), unet.join("b.safetensors")).unwrap();
    std::fs::write(&index, json!({ "weight_map": { "x": "a.safetensors", "y": "b.safetensors" } }).to_string()).unwrap();
    not_opened(&root, &["a.safetensors", "b.safetensors", "both"]);
}

#[test]
fn paths_that_are_no_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    not_opened(&path("none"), &["none", "cannot be opened"]);
    not_opened(dir.path(), &["not a diffusers folder"]);
    std::fs::write(path("model.safetensors"), file(&original(&sd1()), &[])).unwrap();
    not_opened(dir.path(), &["not a diffusers folder", "model.safetensors"]);
    for extension in ["ckpt", "pt", "pth", "bin", "CKPT"] {
        std::fs::write(path(&format!("x.{extension}")), "PK").unwrap();
        not_opened(&path(&format!("x.{extension}")), &["pickle", "safetensors"]);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
        not_opened(&path("loop"), &["loop", "cannot be opened"]);
        not_opened(Path::new("/dev/zero"), &["not a regular file"]);
        std::os::unix::fs::symlink(path("model.safetensors"), path("link.safetensors")).unwrap();
        Checkpoint::open(&path("link.safetensors")).unwrap();
    }
}

#[test]
fn a_carried_configuration_is_not_trusted() {
    let with = |text: &str| file(&original(&sd1()), &[("sd-gen.configuration", text)]);
    refused_with(with("nonsense"), &["sd-gen.configuration"]);
    refused_with(with("{}"), &["lacks", "unet"]);
    refused_with(with(r#"{"unet/config.json": "{}", "vae/config.json": "{}"}"#), &["block_out_channels"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = file(&original(&sd1()), &[]);
    for keep in [8, 9, 100, 5_000, bytes.len() / 2, bytes.len() - 1] {
        refused_with(bytes[..keep].to_vec(), &["truncated"]);
    }
}

#[test]
fn a_model_that_is_changed_while_it_is_open_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let bytes = file(&original(&sd1()), &[]);
    let load = |model: &Checkpoint| {
        let (source, name) = (model.component(Component::UNET), "conv_in.weight");
        let in_place = source.in_place(name, &[32, 4, 3, 3]).map(|stored| stored.map(|stored| stored.bytes().to_vec()));
        (in_place, source.tensor(name, &[32, 4, 3, 3], DType::F32, &Device::Cpu))
    };
    let cut = |len: usize| std::fs::File::options().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
    let change: [&dyn Fn(); 3] = [&|| cut(bytes.len() / 2), &|| cut(0), &|| std::fs::write(&path, [&bytes[..], b"more"].concat()).unwrap()];
    for change in change {
        std::fs::write(&path, &bytes).unwrap();
        let model = Checkpoint::open(&path).unwrap();
        let (in_place, tensor) = load(&model);
        assert!(in_place.unwrap().is_some() && tensor.is_ok());
        change();
        let (in_place, tensor) = load(&model);
        for error in [in_place.unwrap_err(), tensor.unwrap_err(), model.identity().unwrap_err()] {
            assert!(error.exit_code() == 3 && error.to_string().contains("m.safetensors was truncated or overwritten"), "{error}");
        }
    }
}

/// What a run of the program that has so many kilobytes of memory says, and its exit code.
#[cfg(all(target_os = "linux", feature = "builtin-model"))]
fn run_within(kilobytes: u64, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let script = format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\"");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_sd-gen")]).args(arguments).current_dir(folder).env("RAYON_NUM_THREADS", "2");
    let output = command.output().unwrap();
    (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

#[cfg(all(target_os = "linux", feature = "builtin-model"))]
#[test]
fn a_hostile_file_takes_little_more_memory_than_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = "0,".repeat(15_000_000);
    std::fs::write(dir.path().join("a.safetensors"), with_header(&format!(r#"{{"__metadata__":{{"a":[{zeros}0]}}}}"#), 0)).unwrap();
    std::fs::write(dir.path().join("b.safetensors"), with_header(&format!(r#"{{"a":{{"dtype":"U8","shape":[{zeros}0]}}}}"#), 0)).unwrap();
    let words = format!("{{\"a\":{{\"b\":[{zeros}0]}}}}");
    std::fs::write(dir.path().join("c.safetensors"), file(&vec![("emb_params".into(), vec![1, 768])], &[("ss_tag_frequency", &words)]))
        .unwrap();
    for name in ["model_index.json", "unet/config.json"] {
        let path = dir.path().join("folder").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{{\"a\":[{zeros}0]}}")).unwrap();
    }
    for (name, words) in [
        ("a.safetensors", "holds no tensors"),
        ("b.safetensors", "more than 16 dimensions"),
        ("c.safetensors", "textual inversion"),
        ("folder", "too many for a configuration file"),
    ] {
        let (code, said) = run_within(700_000, dir.path(), &["inspect", "--no-hash", name]);
        assert!(code == Some(0) && said.contains(words), "{name}: {code:?} {said:.1000}");
    }
}

/// Does with a model what the program would; only panics count.
fn exercise(bytes: Vec<u8>) {
    let Ok(model) = Checkpoint::from_bytes("any", bytes) else { return };
    let _ = (model.unknown(), model.unused());
    for component in [Component::UNET, Component::VAE, Component::text_encoder(0), Component::text_encoder(1)] {
        let source = model.component(component);
        for name in ["conv_in.weight", "decoder.conv_in.weight", "text_model.final_layer_norm.weight", "text_projection.weight"] {
            if let Some(shape) = source.shape(name) {
                let _ = source.tensor(name, &shape, DType::F32, &Device::Cpu);
            }
        }
    }
}

/// A model that is as small as one can be.
fn tiny() -> Vec<u8> {
    use weights_models::{Plan, Text};
    let text = Text { prefix: "cond_stage_model.transformer.text_model.", open_clip: false, width: 64, layers: 1, projection: None };
    file(&original(&Plan { levels: vec![(32, 1)], blocks: 1, context: 64, text: vec![text], ..sd1() }), &[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_a_model_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        exercise(bytes);
    }

    #[test]
    fn any_header_is_a_model_or_an_error(header in ".{0,200}", data in 0usize..64) {
        exercise(with_header(&header, data));
    }

    #[test]
    fn any_entry_is_a_model_or_an_error(
        name in "[a-z_.]{0,20}",
        dtype in prop::sample::select(vec!["F32", "F16", "F8_E4M3", "I64", "F4", "X"]),
        shape in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..5),
        from in prop_oneof![0u64..16, any::<u64>()],
        to in prop_oneof![0u64..16, any::<u64>()],
        data in 0usize..16,
    ) {
        let header = json!({ name: { "dtype": dtype, "shape": shape, "data_offsets": [from, to] } });
        exercise(with_header(&header.to_string(), data));
    }

    #[test]
    fn a_changed_header_is_a_model_or_an_error(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = tiny();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in changes {
            let at = at.index(header + 8);
            bytes[at] = byte;
        }
        exercise(bytes);
    }

    #[test]
    fn a_changed_shape_is_a_model_or_an_error(
        which in any::<prop::sample::Index>(),
        shape in prop::collection::vec(prop_oneof![0usize..3, Just(32), Just(64), Just(100), Just(4096)], 0..5),
        gone in any::<prop::sample::Index>(),
    ) {
        use weights_models::{Plan, Text};
        let text = Text { prefix: "cond_stage_model.model.", open_clip: true, width: 64, layers: 1, projection: Some(64) };
        let mut shapes = original(&Plan { levels: vec![(64, 1)], blocks: 1, context: 64, linear: true, text: vec![text], ..sd1() });
        let n = shapes.len();
        if shape.iter().product::<usize>() < 1 << 22 {
            shapes[which.index(n)].1 = shape;
        }
        shapes.remove(gone.index(n));
        exercise(file(&shapes, &[]));
    }
}
