//! Maps of depth against transformers' Depth Anything, on a small model whose random weights leave no part without an effect.
//!
//! `tests/data/depth/make_depth.py` made the networks and what they ought to compute.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::models::{DepthAnything, Scope};
use sd_gen::pipeline::{Silent, depth_map};
use sd_gen::weights::DepthFile;
use std::path::{Path, PathBuf};

/// How far off f32 may be: the largest difference over the golden tensor's standard deviation.
const CLOSE: f32 = 2e-5;

fn depth(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/depth").join(name)
}

/// The same weights in both layouts: a folder says how many heads it has, of a file one is concluded.
fn networks() -> [(&'static str, DepthFile); 2] {
    [("two", "transformers"), ("one", "original.safetensors")].map(|(name, file)| (name, DepthFile::open(&depth(file)).expect("a network")))
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().and_then(|x| x.to_vec1()).expect("numbers")
}

#[test]
fn a_depth_network_computes_what_transformers_computes() {
    let golden = safetensors::load(depth("golden.safetensors"), &Device::Cpu).expect("golden.safetensors");
    for (name, file) in networks() {
        let network = DepthAnything::load(&Scope::root(&file, DType::F32, &Device::Cpu), file.spec()).expect("a whole network");
        let made = {
            let mut parts = Vec::new();
            let made = network.forward(&golden["pixels"], &mut |done, all| {
                parts.push((done, all));
                Ok(())
            });
            let all = parts.len() - 1;
            assert!(all > 8 && parts.into_iter().eq((0..=all).map(|done| (done, all))));
            made.expect("a map")
        };
        assert_eq!(made.dims(), [1, 42, 28, 1]);
        let (made, wanted) = (numbers(&made), numbers(&golden[name]));
        let mean = wanted.iter().sum::<f32>() / wanted.len() as f32;
        let deviation = (wanted.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / wanted.len() as f32).sqrt();
        // What is not a number is not close.
        let apart = made.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / deviation).fold(0.0, |a, b| if b <= a { a } else { b });
        assert!(apart <= CLOSE, "{name}: off by {apart:.1e} standard deviations");
    }
}

#[test]
fn a_map_of_depth_is_transformers_within_a_level() {
    let read = |name: &str| image::open(depth(name)).expect("an image").to_rgb8();
    let picture = read("picture.png");
    for (name, file) in networks() {
        let made = depth_map(&file, &picture, &Device::Cpu, &mut Silent).expect("a map");
        let wanted = read(&format!("{name}-heads.png"));
        assert_eq!(made.dimensions(), wanted.dimensions());
        let apart = made.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart <= Some(1), "{name}: {apart:?} levels");
        assert!(made.contains(&255) && made.contains(&0));
    }
}

#[test]
fn what_is_no_depth_network_is_refused() {
    let said = |name: &str, bytes: Vec<u8>| DepthFile::from_bytes(name, bytes).expect_err("no network").to_string();
    let whole = std::fs::read(depth("original.safetensors")).expect("a file");
    let renamed = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|part| part == from.as_bytes()).expect("a name");
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert!(said("x", renamed("pretrained.blocks.0.norm1.weight", "pretrained.blocks.0.norm1.weighs")).contains("no depth network"));
    let error = said("x", renamed("pretrained.blocks.3.ls1.gamma", "pretrained.blocks.3.ls1.gammb"));
    assert!(error.contains("pretrained.blocks.3.ls1.gammb"), "{error}");
    let error = DepthFile::open(Path::new("depth_anything_v2_metric_hypersim_vits.safetensors")).expect_err("metres").to_string();
    assert!(error.contains("metres"), "{error}");
    let error = DepthFile::open(Path::new("depth_anything_v2_vits.pth")).expect_err("a pickle").to_string();
    assert!(error.contains("safetensors"), "{error}");
}
