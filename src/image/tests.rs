//! What Pillow, OpenCV and diffusers make of the same pixels: `tests/data/image/make_image_goldens.py`.

use super::*;
use ::image::{GrayImage, RgbImage};
use base64::Engine;
use serde_json::Value;

fn goldens() -> Value {
    serde_json::from_str(include_str!("../../tests/data/image/goldens.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn size(value: &Value) -> (u32, u32) {
    let side = |i: usize| value["size"][i].as_u64().unwrap() as u32;
    (side(0), side(1))
}

fn rgb(value: &Value) -> RgbImage {
    let (width, height) = size(value);
    RgbImage::from_raw(width, height, bytes(&value["bytes"])).unwrap()
}

fn grey(value: &Value) -> GrayImage {
    let (width, height) = size(value);
    GrayImage::from_raw(width, height, bytes(&value["bytes"])).unwrap()
}

/// The largest difference between two images of one size.
fn levels(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn files_are_read_as_pillow_reads_them() {
    for file in goldens()["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        let read = decode(&bytes(&file["file"])).unwrap_or_else(|e| panic!("{name}: {e}"));
        let wanted = rgb(&file["rgb"]);
        assert_eq!(read.rgb.dimensions(), wanted.dimensions(), "{name}");
        let levels = levels(read.rgb.as_raw(), wanted.as_raw());
        assert!(u64::from(levels) <= file["levels"].as_u64().unwrap(), "{name}: {levels} levels apart");
        if !file["alpha"].is_null() {
            assert_eq!(read.alpha.unwrap_or_else(|| panic!("{name}: no alpha")).as_raw(), grey(&file["alpha"]).as_raw(), "{name}");
        }
    }
}

#[test]
fn what_is_no_image_is_refused_in_one_sentence() {
    for file in goldens()["refused"].as_array().unwrap() {
        let said = decode(&bytes(&file["file"])).unwrap_err().to_string();
        assert!(said.contains(file["says"].as_str().unwrap()), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn an_image_of_enormous_sides_is_refused_before_a_pixel_is_read() {
    // A PNG header of 65535 by 65535 pixels, and nothing after it.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0".to_vec();
    let crc = png[12..].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    });
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    let said = decode(&png).unwrap_err().to_string();
    assert!(said.contains("65535x65535") || said.contains("too large"), "{said}");
}

#[test]
fn every_cut_of_a_file_is_an_image_or_an_error() {
    for file in goldens()["files"].as_array().unwrap() {
        let whole = bytes(&file["file"]);
        for end in (0..whole.len()).step_by(7) {
            let _ = decode(&whole[..end]);
        }
    }
}

#[test]
fn resizing_gives_pillows_bytes() {
    let goldens = goldens();
    for case in goldens["resized"].as_array().unwrap() {
        let filter = match case["filter"].as_str().unwrap() {
            "bicubic" => ResizeFilter::Bicubic,
            _ => ResizeFilter::Lanczos,
        };
        let (width, height) = size(case);
        let resized = resize(&rgb(&case["from"]), width, height, filter);
        assert_eq!(levels(resized.as_raw(), rgb(case).as_raw()), 0, "{filter:?} to {width}x{height}");
    }
    let case = &goldens["grey"];
    assert_eq!(resize(&grey(&case["from"]), size(case).0, size(case).1, ResizeFilter::Lanczos), grey(case));
}

#[test]
fn masks_are_cropped_filled_and_laid_over_as_diffusers_does() {
    let goldens = goldens();
    for case in goldens["regions"].as_array().unwrap() {
        let number = |value: &Value, i: usize| value[i].as_u64().unwrap() as u32;
        let mut mask = GrayImage::new(37, 23);
        for (x, y, pixel) in mask.enumerate_pixels_mut() {
            let inside = |from, at, to| (number(&case["box"], from)..number(&case["box"], to)).contains(&at);
            pixel.0[0] = u8::from(inside(0, x, 2) && inside(1, y, 3));
        }
        let of = (number(&case["of"], 0), number(&case["of"], 1));
        let region = masked_region(&mask, case["padding"].as_u64().unwrap() as u32, of).unwrap();
        let wanted: Vec<u32> = (0..4).map(|i| number(&case["region"], i)).collect();
        assert_eq!([region.x, region.y, region.width, region.height].as_slice(), wanted, "{case}");
    }
    assert_eq!(masked_region(&GrayImage::new(5, 5), 3, (8, 8)), None);
    for (key, made) in [("filled", resize_and_fill as fn(&RgbImage, u32, u32) -> RgbImage), ("cropped", resize_and_crop)] {
        for case in goldens[key].as_array().unwrap() {
            let (width, height) = size(case);
            assert_eq!(levels(made(&rgb(&case["from"]), width, height).as_raw(), rgb(case).as_raw()), 0, "{key} {width}x{height}");
        }
    }
    for case in goldens["overlays"].as_array().unwrap() {
        let mut generated = rgb(&case["generated"]);
        keep_unmasked(&mut generated, &rgb(&case["original"]), &grey(&case["mask"]));
        assert_eq!(levels(generated.as_raw(), rgb(case).as_raw()), 0);
    }
    assert_eq!(luma(&rgb(&goldens["luma"]["from"])), grey(&goldens["luma"]));
    assert!(is_empty_mask(&invert_mask(&GrayImage::from_pixel(3, 2, ::image::Luma([255])))));
}

#[test]
fn a_blurred_mask_is_opencvs_to_a_level() {
    for case in goldens()["blurred"].as_array().unwrap() {
        let blurred = blur_mask(&grey(&case["from"]), case["deviation"].as_f64().unwrap());
        assert!(levels(blurred.as_raw(), grey(case).as_raw()) <= 1, "{}", case["deviation"]);
    }
}

#[test]
fn a_grown_canvas_keeps_the_image_and_goes_on_from_its_edge() {
    let image = RgbImage::from_fn(24, 16, |x, y| ::image::Rgb([(x * 10) as u8, (y * 15) as u8, 90]));
    let growth = Growth { left: 8, right: 0, top: 0, bottom: 16 };
    let (canvas, mask) = grow(&image, growth, 7).unwrap();
    assert_eq!((canvas.dimensions(), mask.dimensions()), ((32, 32), (32, 32)));
    for (x, y, pixel) in image.enumerate_pixels() {
        assert_eq!((canvas.get_pixel(x + 8, y), mask.get_pixel(x + 8, y).0[0]), (pixel, 0));
    }
    let new = mask.as_raw().iter().filter(|v| **v == 255).count();
    assert_eq!(new, 32 * 32 - 24 * 16);
    for y in 0..16 {
        let (edge, beside) = (canvas.get_pixel(8, y).0, canvas.get_pixel(7, y).0);
        assert!(levels(&edge, &beside) <= 30, "row {y}: {edge:?} {beside:?}");
    }
    assert_eq!(grow(&image, growth, 7).unwrap().0, canvas, "the same seed, the same bytes");
    assert!(grow(&image, Growth { left: u32::MAX, ..growth }, 7).is_none());
}

#[test]
fn a_hole_is_filled_with_the_colours_around_it() {
    let mut image = RgbImage::from_pixel(40, 40, ::image::Rgb([200, 40, 10]));
    let mut mask = GrayImage::new(40, 40);
    for (x, y) in (12..28).flat_map(|x| (12..28).map(move |y| (x, y))) {
        image.put_pixel(x, y, ::image::Rgb([0, 255, 255]));
        mask.put_pixel(x, y, ::image::Luma([255]));
    }
    let filled = fill_from_around(&image, &mask);
    assert!(filled.pixels().all(|p| levels(&p.0, &[200, 40, 10]) <= 2), "{:?}", filled.get_pixel(20, 20));
}
