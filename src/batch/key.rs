//! What an image is, so that it can be known again: a hash of everything that decides its pixels, and of nothing else.

use crate::metadata::GeneratedBy;
use crate::pipeline::OUTPUT_VERSION;
use crate::settings::Request;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The SHA-256 of what decides an image's pixels, as JSON with its fields in one fixed order.
///
/// Part of it are the model's content (not its name or place), the dtypes, every setting that changes the image
/// ([`Request::canonical`]), the seed of this very image, and [`OUTPUT_VERSION`]. Not part of it are where the image goes, how many are generated at once, by how many threads, and on which device:
/// a device changes the last bits at most, and a night that moves from a GPU to another machine goes on instead of starting again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// The key of the image that `generator` makes of a request with a seed; `content` is its model's
    /// [`crate::weights::Checkpoint::identity`], as a label says nothing.
    ///
    /// # Errors
    /// The request holds a number that JSON has no word for; resolved requests hold none.
    pub(crate) fn of(content: &str, generator: &GeneratedBy, request: &Request, seed: u64) -> Result<Self> {
        let text = json!({
            "generates": OUTPUT_VERSION,
            "model": content,
            "dtype": generator.dtype.as_str(),
            "vae_dtype": generator.vae_dtype.as_str(),
            "request": request.canonical(),
            "seed": seed,
        });
        let text = serde_json::to_vec(&text).map_err(|e| Error::Input(format!("the request cannot be written as JSON: {e}")))?;
        Ok(Self(Sha256::digest(text).into()))
    }

    /// The key of an image that a server makes of settings, whose model is known by its name alone. It is no key of an image that is
    /// made here.
    pub(crate) fn of_settings(settings: &serde_json::Value, seed: u64) -> Self {
        let text = json!({ "generates": OUTPUT_VERSION, "by": "server", "settings": settings, "seed": seed }).to_string();
        Self(Sha256::digest(text).into())
    }

    /// Of an image that is asked for more than once, the key of the one of this number, which counts from 0.
    pub(crate) fn again(self, number: u32) -> Self {
        if number == 0 {
            return self;
        }
        Self(Sha256::new().chain_update(self.0).chain_update(number.to_le_bytes()).finalize().into())
    }

    /// Reads 64 hexadecimal digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Key::from_hex(&text).ok_or_else(|| serde::de::Error::custom("a key has 64 hexadecimal digits"))
    }
}

/// 32 bytes as hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 bytes from hexadecimal digits.
pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The seed of a line that names none: drawn from its prompt, and from how many lines before it have the same one.
///
/// So a line keeps its seed when a run is resumed, when lines are put before it, and in whatever shard it is, and a file generates the
/// same images everywhere. 32 bits, so that it can be typed again and is a seed for every other tool too.
pub(crate) fn seed_of(prompt: &str, earlier: u32) -> u64 {
    let hash = Sha256::new().chain_update(b"sd-gen seed\0").chain_update(earlier.to_le_bytes()).chain_update(prompt).finalize();
    hash.iter().take(4).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Rng;
    use crate::sampling::{PredictionType, SigmaSchedule, TimestepSpacing};
    use crate::settings::{BatchSize, Draft, Seed};
    use candle_core::DType;

    fn generator() -> GeneratedBy {
        GeneratedBy { label: "m".into(), dtype: DType::F32, vae_dtype: DType::F32, parts: Vec::new() }
    }

    fn request(change: impl FnOnce(&mut Draft)) -> Request {
        let draft = Draft::new("a cat").with(|d| d.scheduler.sampler = Some("euler-a".into())).with(change);
        draft.resolve(&crate::family::well_known("sd15").unwrap()).unwrap()
    }

    #[test]
    fn everything_that_decides_the_pixels_changes_the_key() {
        let mut keys = vec![Key::of("m", &generator(), &request(|_| ()), 1).unwrap()];
        let mut other = |generator: &GeneratedBy, request: Request, seed| keys.push(Key::of("m", generator, &request, seed).unwrap());
        for generator in [GeneratedBy { dtype: DType::BF16, ..generator() }, GeneratedBy { vae_dtype: DType::BF16, ..generator() }] {
            other(&generator, request(|_| ()), 1);
        }
        other(&generator(), request(|_| ()), 2);
        let changes: [fn(&mut Draft); 16] = [
            |d| d.prompts = vec!["a dog".into()],
            |d| d.text.negative_prompt = Some(String::new()),
            |d| d.text.negative_prompt = Some("blurry".into()),
            |d| d.canvas.width = Some(256),
            |d| d.canvas.height = Some(256),
            |d| d.sampling.steps = Some(7),
            |d| d.guidance.scale = Some(3.0),
            |d| d.guidance.rescale = Some(0.5),
            |d| d.scheduler.sampler = Some("dpm++2m".into()),
            |d| d.scheduler.schedule = Some(SigmaSchedule::Karras.into()),
            |d| d.scheduler.timestep_spacing = Some(TimestepSpacing::Trailing),
            |d| d.scheduler.prediction = Some(PredictionType::VPrediction),
            |d| d.scheduler.zero_snr = Some(true),
            |d| d.scheduler.eta = Some(0.25),
            |d| d.sampling.rng = Some(Rng::TorchCuda),
            |d| d.text.clip_skip = Some(2),
        ];
        for change in changes {
            other(&generator(), request(change), 1);
        }
        keys.push(Key::of("n", &generator(), &request(|_| ()), 1).unwrap());
        keys.extend([1, 2].map(|n| keys[0].again(n)));
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn how_it_is_generated_does_not_change_the_key() {
        let key = Key::of("m", &generator(), &request(|_| ()), 1).unwrap();
        let changes: [fn(&mut Draft); 3] =
            [|d| d.output.batch_size = Some(BatchSize(Some(8))), |d| d.output.images = Some(3), |d| d.seed = Some(Seed::Is(99))];
        for change in changes {
            assert_eq!(Key::of("m", &generator(), &request(change), 1).unwrap(), key);
        }
        // A name for what the model does by itself is the same.
        let named = request(|d| {
            d.scheduler.schedule = Some(SigmaSchedule::Discrete.into());
            d.scheduler.prediction = Some(PredictionType::Epsilon);
            d.scheduler.zero_snr = Some(false);
        });
        assert_eq!(Key::of("m", &generator(), &named, 1).unwrap(), key);
        // Where a scheduler's configuration was read from does not matter either.
        let mut moved = request(|_| ());
        moved.scheduler.source = Some("elsewhere/scheduler_config.json".into());
        assert_eq!(Key::of("m", &generator(), &moved, 1).unwrap(), key);
        assert_eq!((key.again(0), Key::from_hex(&key.to_string())), (key, Some(key)));
    }

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(Key::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn seeds_of_equal_lines_differ() {
        assert_eq!(seed_of("a cat", 0), seed_of("a cat", 0));
        assert_ne!(seed_of("a cat", 0), seed_of("a cat", 1));
        assert_ne!(seed_of("a cat", 0), seed_of("a dog", 0));
        assert!(seed_of("a cat", 0) <= u64::from(u32::MAX));
    }
}
