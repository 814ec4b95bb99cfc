//! Any bytes are an image that something is made of, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::image::decode;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = decode(bytes) {
        assert!(image.alpha.as_ref().is_none_or(|alpha| alpha.dimensions() == image.rgb.dimensions()));
        assert_eq!(image.luma().dimensions(), image.rgb.dimensions());
    }
});
