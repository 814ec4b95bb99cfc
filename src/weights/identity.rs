//! What a model is by its content: the same wherever it lies and whatever it is called.

use super::checkpoint::Checkpoint;
use super::disk_file::ReadBuffers;
use crate::Result;
use crate::spec::Component;
use candle_core::DType;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Models up to this many bytes are hashed whole.
const SMALL: u64 = 256 << 20;

/// Bytes at either end of a tensor that are hashed of a larger model.
const END: usize = 4096;

impl Checkpoint {
    /// A digest of all that decides what the model generates: its networks' options, its tokenizers, and the names, types, shapes and bytes
    /// of its tensors. Of a model of more than 256 MiB, each tensor's first and last 4 KiB stand for its bytes, which takes a fraction
    /// of a second where all of them would take as long as loading: training, merging and conversion change every tensor
    /// that they touch from end to end. The model's own choice of a sampler is not part of it, since a request has its own.
    ///
    /// # Errors
    /// A tensor's bytes are not there.
    pub fn identity(&self) -> Result<String> {
        let spec = &self.spec;
        let options = (&spec.unet, &spec.vae, &spec.text_encoders, spec.zero_missing_negative, spec.aesthetic_score);
        let mut hash = Sha256::new();
        hash.update(format!("{options:?}{:?}", self.tokenizers));
        // What elder models do not have leaves their digests as they were.
        if spec.mmdit.is_some() {
            hash.update(format!("{:?}{:?}{:?}", spec.mmdit, spec.t5, self.t5_tokenizer));
        }
        let buffers = ReadBuffers::default();
        let total: u64 = self.files.iter().flat_map(|file| file.entries()).map(|entry| entry.range.len() as u64).sum();
        for file in &self.files {
            // In the order of the file, so that a disk reads it in one go.
            let mut entries: Vec<_> = file.entries().iter().collect();
            entries.sort_by_key(|entry| entry.range.start);
            for entry in entries {
                hash.update(format!("\n{:?} {:?} {:?}\n", entry.name, entry.dtype, entry.shape));
                if let Some(kind) = entry.packed {
                    hash.update(format!("{kind:?}\n"));
                }
                let len = entry.range.len();
                let parts: Vec<_> =
                    if total <= SMALL || len <= 2 * END { std::iter::once(0..len).collect() } else { vec![0..END, len - END..len] };
                for part in parts {
                    hash.update(&*file.stored(entry, part, &buffers)?);
                }
            }
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// The numbers that a network has.
    pub fn parameters(&self, component: Component) -> u64 {
        let stored = self.part(component).into_iter().flat_map(|part| part.stored(|_| true));
        stored.filter_map(|(file, i)| file.entries().get(i)).map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }

    /// The bytes that a network's weights take.
    pub fn weight_bytes(&self, component: Component, dtype: DType, vae_dtype: DType) -> u64 {
        let dtype = if component == Component::VAE { vae_dtype } else { dtype };
        self.parameters(component) * dtype.size_in_bytes() as u64
    }

    /// The bytes that a network's weights take at least, where its blocks are streamed: what is no block, and the largest block twice, as
    /// one is read while another computes.
    pub fn least_bytes(&self, component: Component, dtype: DType, vae_dtype: DType) -> u64 {
        let all = self.weight_bytes(component, dtype, vae_dtype);
        let Some(part) = self.part(component).filter(|_| [Component::UNET, Component::T5].contains(&component)) else { return all };
        let mut blocks: HashMap<&str, u64> = HashMap::new();
        for name in part.names() {
            if let Some(block) = block_of(name) {
                *blocks.entry(block).or_default() += part.shape(name).map_or(0, |shape| shape.iter().product::<usize>() as u64);
            }
        }
        let (sum, largest) = (blocks.values().sum::<u64>(), blocks.values().max().copied().unwrap_or(0));
        let width = dtype.size_in_bytes() as u64;
        all.saturating_sub(sum * width).saturating_add(2 * largest * width).min(all)
    }

    /// What is in memory at once where networks take turns and are streamed, at its largest: what people call it, and its bytes. All text
    /// encoders but T5 are one.
    pub fn least_turn(&self, dtype: DType, vae_dtype: DType) -> (&'static str, u64) {
        let bytes = |component| self.least_bytes(component, dtype, vae_dtype);
        let texts = Component::ALL.into_iter().filter(|component| component.is_text() && *component != Component::T5).map(bytes).sum();
        let alone = [Component::UNET, Component::VAE, Component::T5].map(|component| (component.title(), bytes(component)));
        alone.into_iter().fold((Component::text_encoder(0).title(), texts), |most, other| if other.1 > most.1 { other } else { most })
    }
}

/// The block that a tensor belongs to, of those that are streamed: the beginning of its name.
pub(crate) fn block_of(name: &str) -> Option<&str> {
    const BLOCKS: [&str; 5] = ["resnets", "transformer_blocks", "downsamplers", "upsamplers", "block"];
    let mut end = 0;
    let mut parts = name.split('.').map(|part| {
        end += part.len() + 1;
        (part, end - 1)
    });
    while let Some((part, _)) = parts.next() {
        if BLOCKS.contains(&part)
            && let Some((number, end)) = parts.next()
            && number.bytes().all(|digit| digit.is_ascii_digit())
        {
            return name.get(..end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::block_of;
    use crate::weights::Checkpoint;
    use std::path::Path;

    #[test]
    fn tensors_belong_to_blocks_by_their_names() {
        for (name, block) in [
            ("down_blocks.0.resnets.1.conv1.weight", Some("down_blocks.0.resnets.1")),
            ("up_blocks.1.attentions.0.transformer_blocks.12.ff.net.0.proj.weight", Some("up_blocks.1.attentions.0.transformer_blocks.12")),
            ("up_blocks.1.attentions.0.proj_in.weight", None),
            ("mid_block.attentions.0.transformer_blocks.0.norm1.bias", Some("mid_block.attentions.0.transformer_blocks.0")),
            ("down_blocks.0.downsamplers.0.conv.bias", Some("down_blocks.0.downsamplers.0")),
            ("transformer_blocks.3.attn.to_q.weight", Some("transformer_blocks.3")),
            ("encoder.block.11.layer.0.layer_norm.weight", Some("encoder.block.11")),
            ("encoder.block", None),
            ("conv_in.weight", None),
        ] {
            assert_eq!(block_of(name), block, "{name}");
        }
    }

    #[test]
    fn a_model_is_known_by_its_content_and_not_by_its_place() {
        let copy = |from: &Path, to: &Path| {
            fn walk(from: &Path, to: &Path) {
                std::fs::create_dir_all(to).unwrap();
                for entry in std::fs::read_dir(from).unwrap().flatten() {
                    let (path, to) = (entry.path(), to.join(entry.file_name()));
                    if path.is_dir() { walk(&path, &to) } else { std::fs::copy(&path, &to).map(drop).unwrap() }
                }
            }
            walk(from, to);
        };
        let identity = |path: &Path| Checkpoint::open(path).unwrap().identity().unwrap();
        let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
        let folder = tempfile::tempdir().unwrap();
        let moved = folder.path().join("moved");
        copy(&emoji, &moved);
        let same = identity(&emoji);
        assert_eq!(identity(&moved), same);
        let vae = moved.join("vae/diffusion_pytorch_model.safetensors");
        let mut bytes = std::fs::read(&vae).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&vae, bytes).unwrap();
        let other = identity(&moved);
        assert_ne!(other, same);
        std::fs::copy(emoji.join("vae/diffusion_pytorch_model.safetensors"), &vae).unwrap();
        assert_eq!(identity(&moved), same);
        let vocabulary = moved.join("tokenizer/merges.txt");
        let merges = std::fs::read_to_string(&vocabulary).unwrap();
        std::fs::write(&vocabulary, merges.trim_end().rsplit_once('\n').unwrap().0).unwrap();
        assert_ne!(identity(&moved), same);
    }
}
