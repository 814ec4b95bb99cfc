//! What OpenCV and A1111 make of generated images, from `tests/data/preprocess/make_preprocess.py`.

use super::*;
use base64::Engine;
use sha2::{Digest, Sha256};
use std::io::Read;

#[derive(serde::Deserialize)]
struct PreprocessCase {
    kind: String,
    width: u32,
    height: u32,
    sha256: String,
    canny: String,
    lineart: Option<String>,
    scribble: Option<String>,
}

fn cases() -> Vec<PreprocessCase> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/preprocess/goldens.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn unpacked(text: &str) -> Vec<u8> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let mut values = Vec::new();
    flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_end(&mut values).unwrap();
    values
}

/// As `picture` in the script.
fn picture(case: &PreprocessCase) -> RgbImage {
    let (width, height) = (i64::from(case.width), i64::from(case.height));
    let image = RgbImage::from_fn(case.width, case.height, |x, y| {
        let (x, y) = (i64::from(x), i64::from(y));
        let colours = match case.kind.as_str() {
            "waves" => [(x * x + 3 * y) / 7, (x * 5 + y * y) / 11, x * y / 5],
            "shapes" => {
                let inside = (x - width / 2).pow(2) + (y - height / 2).pow(2) < (width.min(height) / 3).pow(2);
                let stripe = (x + 2 * y) / 9 % 2;
                if inside { [220, 40 + x, 90] } else { [30 + 60 * stripe, 90, 200 - y] }
            }
            "noise" => {
                let n = (x * 1_103_515_245 + y * 12_345 + x * y * 2_654_435_761) % 65_536;
                [n, n / 7, n / 31]
            }
            _ => {
                let line = (x - y).rem_euclid(23) < 2 || (x * 3 + y) % 41 < 3;
                if line { [20 + x % 60, 30, 40 + y % 40] } else { [250, 245, 255] }
            }
        };
        ::image::Rgb(colours.map(|colour| colour.rem_euclid(256) as u8))
    });
    let hash: String = Sha256::digest(image.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, case.sha256, "{} {width}x{height} is another picture than the script's", case.kind);
    image
}

fn made(how: Preprocessor, image: &RgbImage) -> RgbImage {
    how.of(image, |_| unreachable!("needs no network")).unwrap()
}

/// The first colour of each pixel as bits.
fn bits(image: &RgbImage) -> Vec<u8> {
    let whites: Vec<u8> = image.pixels().map(|pixel| u8::from(pixel.0[0] > 0)).collect();
    let eight = |bits: &[u8]| (0..8).fold(0, |byte, i| byte << 1 | bits.get(i).copied().unwrap_or(0));
    whites.chunks(8).map(eight).collect()
}

#[test]
fn canny_finds_opencvs_edges_to_the_pixel() {
    let cases = cases();
    assert_eq!(cases.len(), 20);
    for case in &cases {
        let edges = made(Preprocessor::Canny, &picture(case));
        assert!(edges.pixels().all(|pixel| pixel.0 == [0; 3] || pixel.0 == [255; 3]));
        assert_eq!(bits(&edges), unpacked(&case.canny), "{} {}x{}", case.kind, case.width, case.height);
    }
    assert!(cases.iter().any(|case| unpacked(&case.canny).iter().any(|byte| *byte != 0)));
}

#[test]
fn lines_are_those_of_a1111() {
    let cases = cases();
    let mut seen = 0;
    for case in &cases {
        let (Some(lineart), Some(scribble)) = (&case.lineart, &case.scribble) else { continue };
        let image = picture(case);
        let own: Vec<u8> = made(Preprocessor::Lineart, &image).pixels().map(|pixel| pixel.0[0]).collect();
        let wanted = unpacked(lineart);
        let apart = own.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(own.len() == wanted.len() && apart <= Some(1), "{} {}x{}: {apart:?}", case.kind, case.width, case.height);
        let (own, wanted) = (bits(&made(Preprocessor::Scribble, &image)), unpacked(scribble));
        // A float's last bit decides at the threshold.
        let apart: u32 = own.iter().zip(&wanted).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert!(own.len() == wanted.len() && apart <= 2, "{} {}x{}: {apart} pixels", case.kind, case.width, case.height);
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn names_are_ours_and_a1111s() {
    for (own, theirs) in Preprocessor::NAMES.iter().zip(Preprocessor::A1111) {
        let how = Preprocessor::from_name(own).unwrap();
        assert_eq!((how.name(), how.a1111_name(), Preprocessor::from_name(theirs)), (*own, theirs, Ok(how)));
    }
    assert!(Preprocessor::from_name("depth_midas").unwrap_err().contains("needs a network"));
    let image = RgbImage::from_pixel(2, 2, ::image::Rgb([1, 2, 3]));
    assert_eq!(made(Preprocessor::Invert, &image).get_pixel(0, 0).0, [254, 253, 252]);
    assert_eq!(made(Preprocessor::Tile, &image), image);
}
