//! What weights can be written as.

use super::gguf::BlockKind;
use safetensors::Dtype;
use std::str::FromStr;

/// What `sd-gen convert --dtype` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightType(pub(super) StoredAs);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredAs {
    /// Every number has this type.
    Numbers(Dtype),
    /// Matrices are quantised in GGML's blocks.
    Blocks(BlockKind),
}

impl StoredAs {
    /// Bytes of so many numbers.
    pub(super) fn bytes(self, count: usize) -> usize {
        match self {
            StoredAs::Numbers(dtype) => count * (dtype.bitsize() / 8),
            StoredAs::Blocks(kind) => count / kind.numbers() * kind.bytes(),
        }
    }
}

impl WeightType {
    /// 32 bits.
    pub const F32: WeightType = WeightType(StoredAs::Numbers(Dtype::F32));
    /// 16 bits, of which 10 are the fraction's.
    pub const F16: WeightType = WeightType(StoredAs::Numbers(Dtype::F16));
    /// 16 bits, of which 7 are the fraction's.
    pub const BF16: WeightType = WeightType(StoredAs::Numbers(Dtype::BF16));
    /// 8 bits, of which 3 are the fraction's, up to 448; vectors are f16.
    pub const F8_E4M3: WeightType = WeightType(StoredAs::Numbers(Dtype::F8_E4M3));

    const fn blocks(kind: BlockKind) -> WeightType {
        WeightType(StoredAs::Blocks(kind))
    }

    /// Whether only a GGUF file can hold it.
    pub fn needs_gguf(self) -> bool {
        matches!(self.0, StoredAs::Blocks(_))
    }

    /// Whether a GGUF file can hold it.
    pub fn fits_gguf(self) -> bool {
        self != WeightType::F8_E4M3
    }
}

/// Names as people write them, and what they mean.
const NAMES: [(&str, WeightType); 19] = [
    ("f32", WeightType::F32),
    ("fp32", WeightType::F32),
    ("float32", WeightType::F32),
    ("f16", WeightType::F16),
    ("fp16", WeightType::F16),
    ("float16", WeightType::F16),
    ("bf16", WeightType::BF16),
    ("bfloat16", WeightType::BF16),
    ("f8_e4m3", WeightType::F8_E4M3),
    ("q8_0", WeightType::blocks(BlockKind::Q8_0)),
    ("q6_k", WeightType::blocks(BlockKind::Q6_K)),
    ("q5_k", WeightType::blocks(BlockKind::Q5_K)),
    ("q5_1", WeightType::blocks(BlockKind::Q5_1)),
    ("q5_0", WeightType::blocks(BlockKind::Q5_0)),
    ("q4_k", WeightType::blocks(BlockKind::Q4_K)),
    ("q4_1", WeightType::blocks(BlockKind::Q4_1)),
    ("q4_0", WeightType::blocks(BlockKind::Q4_0)),
    ("q3_k", WeightType::blocks(BlockKind::Q3_K)),
    ("q2_k", WeightType::blocks(BlockKind::Q2_K)),
];

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let known = NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, kind)| *kind).ok_or_else(|| {
            "give f32, f16, bf16 or f8_e4m3; for a .gguf file also q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k or q2_k".into()
        })
    }
}
