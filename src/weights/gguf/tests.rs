use super::super::{Checkpoint, Layout, WeightType, convert, decode};
use super::super::{WeightFile, file::Blob};
use super::*;
use crate::spec::Component;
use crate::weights::TensorSource;
use candle_core::{DType, Device};
use std::path::Path;

const TYPES: &[u8] = include_bytes!("../../../tests/data/gguf/types.gguf");

fn open(bytes: Vec<u8>) -> Result<WeightFile> {
    WeightFile::new("file.gguf".into(), Blob::Owned(bytes))
}

/// A text as the format has it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A header of so many tensors and fields, and what follows.
fn header(tensors: u64, fields: u64, rest: &[&[u8]]) -> Vec<u8> {
    [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &fields.to_le_bytes(), &rest.concat()].concat()
}

fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let rank = (dims.len() as u32 / 8).to_le_bytes();
    [&text(name)[..], &rank, &dims, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

#[test]
fn every_type_has_the_numbers_that_the_python_package_makes() {
    let file = open(TYPES.to_vec()).unwrap();
    let expected =
        candle_core::safetensors::load_buffer(include_bytes!("../../../tests/data/gguf/types.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(file.entries().len(), 14);
    let buffers = ReadBuffers::default();
    for entry in file.entries() {
        let numbers = decode::numbers::<f32>(&file.bytes(entry).unwrap(), entry.dtype);
        let expected = &expected[&entry.name];
        assert_eq!(entry.shape, expected.dims(), "{}", entry.name);
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&numbers) == bits(&expected), "{}", entry.name);
        if entry.packed.is_some() {
            assert_eq!(entry.number_bytes(), numbers.len() * 4);
            // A part that begins and ends inside blocks.
            let part = file.part(entry, 20..entry.number_bytes() - 44, &buffers).unwrap();
            assert!(decode::numbers::<f32>(&part, Dtype::F32)[..] == numbers[5..numbers.len() - 11], "{}", entry.name);
        }
    }
}

#[test]
fn a_whole_checkpoint_is_the_same_model_as_the_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let emoji = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    convert(&emoji, &path, Layout::Original, Some(WeightType::F32), &[]).unwrap();
    let packed = folder.path().join("a.gguf");
    convert(&emoji, &packed, Layout::Gguf, Some(WeightType::F32), &[]).unwrap();
    let bytes = std::fs::read(&packed).unwrap();
    // Of one name, because the evidence has it.
    let (one, other) = (Checkpoint::open(&path).unwrap(), Checkpoint::from_bytes(&path.display().to_string(), bytes).unwrap());
    assert_eq!(one.spec(), other.spec());
    for component in [Component::UNET, Component::VAE, Component::text_encoder(0)] {
        for name in one.part(component).unwrap().names() {
            let shape = one.component(component).shape(name).unwrap();
            let read = |model: &Checkpoint| {
                let tensor = model.component(component).tensor(name, &shape, DType::F32, &Device::Cpu).unwrap();
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert!(read(&one) == read(&other), "{name}");
        }
    }
}

#[test]
fn blocks_are_made_as_the_python_package_makes_them() {
    let made = candle_core::safetensors::load_buffer(include_bytes!("../../../tests/data/gguf/quantised.safetensors"), &Device::Cpu);
    let made = made.unwrap();
    let values = made["values"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for kind in [BlockKind::Q8_0, BlockKind::Q5_1, BlockKind::Q5_0, BlockKind::Q4_1, BlockKind::Q4_0] {
        let expected = made[&format!("{kind:?}")].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert!(quantised(&values, kind).unwrap() == expected, "{kind:?}");
    }
}

#[test]
fn a_quantised_checkpoint_is_near_the_model_and_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let emoji = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    let mut last = u64::MAX;
    // How far weights may be apart, as a part of their deviation.
    for (kind, apart) in [
        ("f16", 1e-3),
        ("q8_0", 0.01),
        ("q6_k", 0.03),
        ("q5_1", 0.05),
        ("q5_k", 0.05),
        ("q4_1", 0.09),
        ("q4_k", 0.1),
        ("q4_0", 0.11),
        ("q3_k", 0.2),
        ("q2_k", 0.4),
    ] {
        let path = folder.path().join(format!("{kind}.gguf"));
        let report = convert(&emoji, &path, Layout::Gguf, kind.parse().ok(), &[]).unwrap();
        assert!(report.bytes <= last || kind.ends_with("_1") || kind.ends_with("_k"), "{kind}");
        last = report.bytes;
        let again = Checkpoint::open(&path).unwrap();
        let (one, other) = (emoji.spec(), again.spec());
        assert_eq!((one.family, &one.unet, &one.vae), (other.family, &other.unet, &other.vae));
        let quantised = again.files[0].entries().iter().filter(|entry| entry.packed.is_some()).count();
        assert_eq!(quantised > 20, kind != "f16", "{kind}: {quantised}");
        for component in [Component::UNET, Component::VAE, Component::text_encoder(0)] {
            for name in emoji.part(component).unwrap().names() {
                let shape = emoji.component(component).shape(name).unwrap();
                let read = |model: &Checkpoint| {
                    let tensor = model.component(component).tensor(name, &shape, DType::F32, &Device::Cpu).unwrap();
                    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                let (one, other) = (read(&emoji), read(&again));
                let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
                let (own, error) = (square(&mut one.iter().copied()), square(&mut one.iter().zip(&other).map(|(a, b)| a - b)));
                assert!(error.sqrt() <= apart * own.sqrt() + 1e-6, "{kind} {name}: {}", (error / own).sqrt());
            }
        }
    }
}

#[test]
fn broken_and_hostile_headers_are_refused_in_one_sentence() {
    let zeros = [0; 256];
    let field = |key: &str, rest: &[&[u8]]| [&text(key)[..], &rest.concat()].concat();
    let (eight, nine, five) = (8u32.to_le_bytes(), 9u32.to_le_bytes(), 5u32.to_le_bytes());
    let (many, huge, one) = ((1u64 << 40).to_le_bytes(), u64::MAX.to_le_bytes(), 1u64.to_le_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGUF".to_vec(), "truncated"),
        (b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "version"),
        (header(u64::MAX, 0, &[]), "claims 18446744073709551615 tensors"),
        (header(0, u64::MAX, &[]), "18446744073709551615 fields"),
        (header(1_000_000, 0, &[]), "truncated"),
        (header(0, 1, &[&huge]), "text of 18446744073709551615 bytes"),
        (header(0, 1, &[&field("a", &[&eight, &many])]), "text of 1099511627776 bytes"),
        (header(0, 1, &[&field("a", &[&nine, &five, &huge])]), "truncated"),
        (header(0, 1, &[&field("a", &[&nine, &eight, &huge])]), "truncated"),
        (header(0, 1, &[&field("a", &[&nine, &nine, &one, &nine, &one])]), "arrays in an array"),
        (header(0, 1, &[&field("a", &[&99u32.to_le_bytes()])]), "unknown type 99"),
        (header(0, 2, &[&field("a", &[&eight, &text("x")]), &field("a", &[&eight, &text("x")])]), "twice"),
        (header(0, 1, &[&field("general.alignment", &[&4u32.to_le_bytes(), &3u32.to_le_bytes()])]), "power of two"),
        (header(0, 1, &[&field("general.alignment", &[&4u32.to_le_bytes(), &[0; 4]])]), "power of two"),
        (header(0, 1, &[&field("comfy.gguf.orig_shape.a", &[&nine, &five, &many])]), "dimensions"),
        (header(0, 1, &[&field("comfy.gguf.orig_shape.a", &[&nine, &five, &one, &[255; 4]])]), "negative"),
        (header(1, 0, &[&info("a", &[1 << 32, 1 << 32], 0, 0), &zeros]), "too large"),
        (header(1, 0, &[&info("a", &[1 << 40], 0, 0), &zeros]), "truncated"),
        (header(1, 0, &[&info("a", &[1; 17], 0, 0), &zeros]), "dimensions"),
        (header(1, 0, &[&info("a", &[33], 8, 0), &zeros]), "multiple"),
        (header(1, 0, &[&info("a", &[32], 16, 0), &zeros]), "type 16"),
        (header(1, 0, &[&info("a", &[1], 0, u64::MAX), &zeros]), "truncated"),
        (header(1, 0, &[&info("a", &[1], 0, 4), &zeros]), "multiple of 32"),
        (header(2, 0, &[&info("a", &[16], 0, 0), &info("b", &[1], 0, 32), &zeros]), "overlaps"),
        (header(2, 0, &[&info("a", &[1], 0, 0), &info("a", &[1], 0, 32), &zeros]), "twice"),
        (
            header(1, 1, &[&field("comfy.gguf.orig_shape.a", &[&nine, &five, &one, &[9, 0, 0, 0]]), &info("a", &[8], 0, 0), &zeros]),
            "cannot be",
        ),
    ];
    for (bytes, words) in cases {
        let message = open(bytes).unwrap_err().to_string();
        assert!(message.contains("file.gguf") && message.contains(words), "{message:?} does not say {words:?}");
        assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    }
    // Their number looks like the brace with which a safetensors file's header begins.
    let infos: Vec<u8> = (0..123).flat_map(|i| info(&i.to_string(), &[0], 0, 0)).collect();
    assert_eq!(open(header(123, 0, &[&infos, &zeros])).unwrap().entries().len(), 123);
    // Behind the last tensor there is only padding.
    let end = open(TYPES.to_vec()).unwrap().entries().iter().map(|entry| entry.range.end).max().unwrap();
    for length in 0..end {
        assert!(open(TYPES[..length].to_vec()).is_err(), "{length}");
    }
}

/// Opens so many damaged copies of a file with every type, and reads what opens; gives how many opened.
fn damaged(inputs: u64) -> usize {
    let mut state = 16u64;
    let mut random = |below: usize| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % below.max(1) as u64) as usize
    };
    let numbers =
        [0, 1, 2, 8, 9, 31, 32, 255, 1 << 16, 1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 40, 1 << 63, u64::MAX, TYPES.len() as u64];
    // Nearly all of what is decided stands before the data.
    let head = open(TYPES.to_vec()).unwrap().entries().iter().map(|entry| entry.range.start).min().unwrap();
    let mut opened = 0;
    for _ in 0..inputs {
        let mut bytes = TYPES.to_vec();
        for _ in 0..1 + random(4) {
            let within = if random(8) > 0 { head.min(bytes.len()) } else { bytes.len() };
            // The magic stays: without it another reader is asked.
            let at = 4 + random(within.saturating_sub(4));
            match random(6) {
                0 => bytes.truncate(at),
                1 => {
                    let (from, len) = (random(head), random(64));
                    let part = bytes.get(from..from + len).unwrap_or_default().to_vec();
                    bytes.splice(at.min(bytes.len())..at.min(bytes.len()), part);
                }
                2 => drop(bytes.drain(at.min(bytes.len())..(at + random(32)).min(bytes.len()))),
                3 => {
                    let number = numbers[random(numbers.len())].to_le_bytes();
                    let width = [4, 8][random(2)];
                    bytes.iter_mut().skip(at).zip(&number[..width]).for_each(|(byte, new)| *byte = *new);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random(8);
                    }
                }
            }
        }
        let length = bytes.len();
        match open(bytes) {
            Ok(file) => {
                opened += 1;
                for entry in file.entries() {
                    assert!(entry.range.end <= length && entry.number_bytes() <= 13 * entry.range.len() + 64);
                    let _ = file.bytes(entry);
                }
            }
            Err(error) => {
                let message = error.to_string();
                assert!(!message.contains('\n') && message.len() < 2000, "{message}");
            }
        }
    }
    opened
}

#[test]
fn damaged_files_are_read_or_refused() {
    let opened = damaged(10_000);
    assert!((500..9_500).contains(&opened), "{opened} of 10000 opened: they are damaged too much, or too little");
}

#[test]
#[ignore = "minutes: a million inputs"]
fn a_million_damaged_files_are_read_or_refused() {
    assert!(damaged(1_000_000) > 50_000);
}
