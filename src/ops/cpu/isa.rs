//! Which instructions the kernels may use: found out once, when the program runs.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls functions compiled for instructions that were detected"))]

#[cfg(any(test, target_arch = "x86_64"))]
use super::amx;
use super::math::Math;
use super::microkernel::{self, Kernels};
use super::transform::{self, Transforms};
use candle_core::Result;
use std::sync::OnceLock;

/// Names the instruction set to use, to test or to compare; better ones are then left alone.
const VARIABLE: &str = "SD_GEN_CPU_ISA";

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// What every processor of the target has.
    Portable,
    /// aarch64 Advanced SIMD.
    Neon,
    /// Advanced SIMD with BF16 (Graviton 3, Ampere One, Apple M2 and later ones).
    NeonBf16,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and BMI2.
    Avx512,
    /// AVX-512 with BF16.
    Avx512Bf16,
    /// Tiles of bf16 (AMX), and AVX-512 with BF16 for the rest.
    Amx,
    /// The same with a model of the tiles, for tests on machines without.
    #[cfg(test)]
    AmxModel,
}

impl Isa {
    /// From the plainest to the best.
    const ALL: &[Self] = &[
        #[cfg(test)]
        Self::AmxModel,
        Self::Portable,
        Self::Neon,
        Self::NeonBf16,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Bf16,
        Self::Amx,
    ];

    /// The best that this processor has, or what the environment asks for.
    ///
    /// # Errors
    /// When the environment asks for one that is unknown or not here.
    pub(super) fn current() -> Result<Self> {
        static CURRENT: OnceLock<std::result::Result<Isa, String>> = OnceLock::new();
        match CURRENT.get_or_init(|| Self::choose(std::env::var(VARIABLE).ok().as_deref())) {
            Ok(isa) => Ok(*isa),
            // Without the places in the code: the user is at fault.
            Err(message) => Err(candle_core::Error::Msg(message.clone())),
        }
    }

    fn choose(wanted: Option<&str>) -> std::result::Result<Self, String> {
        let available = Self::available();
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
            return Ok(available.last().copied().unwrap_or(Self::Portable));
        };
        available.iter().copied().find(|isa| isa.name() == wanted).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            format!("{VARIABLE}={wanted}: this processor has {}", names.join(", "))
        })
    }

    /// All that this processor has, the plainest first.
    pub(super) fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonBf16 => "neonbf16",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            #[cfg(test)]
            Self::AmxModel => "amx-model",
        }
    }

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        #[cfg(target_arch = "x86_64")]
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("bmi2")
        };
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => std::arch::is_aarch64_feature_detected!("bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && amx::is_available(),
            #[cfg(test)]
            Self::AmxModel => true,
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::NeonBf16 => false,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx => false,
        }
    }

    /// Products of f32.
    pub(super) fn kernels(self) -> &'static Kernels {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &microkernel::AVX2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => &microkernel::AVX512,
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::NeonBf16 => &microkernel::NEON,
            _ => &microkernel::PORTABLE,
        }
    }

    /// The transforms of convolutions with 3 or 2 taps along an axis.
    pub(super) fn transforms(self, taps: usize) -> &'static Transforms {
        let [three, two] = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &transform::AVX2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => &transform::AVX512,
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::NeonBf16 => &transform::NEON,
            _ => &transform::PORTABLE,
        };
        if taps == 2 { two } else { three }
    }

    /// Products of pairs of bf16, where there is an instruction for them.
    pub(super) fn bf16_kernels(self) -> Option<&'static Kernels> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Some(&microkernel::AVX512_BF16),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Some(&amx::AMX),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => Some(&microkernel::NEON_BF16),
            #[cfg(test)]
            Self::AmxModel => Some(&amx::MODEL),
            _ => None,
        }
    }

    /// Runs `body` compiled for these instructions: its loops become vectors of their width, as far as everything
    /// in it is inlined. Mark the closure and what it calls `#[inline(always)]`.
    #[inline]
    pub(super) fn vectorize<R>(self, body: impl FnOnce(Math) -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2")]
            fn avx512_bf16<R>(body: impl FnOnce(Math) -> R) -> R {
                body(Math { fused: true, bf16: true, sixteens: true })
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
            fn avx512<R>(body: impl FnOnce(Math) -> R) -> R {
                body(Math { fused: true, bf16: false, sixteens: true })
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<R>(body: impl FnOnce(Math) -> R) -> R {
                body(Math { fused: true, bf16: false, sixteens: false })
            }
            match self {
                // SAFETY: an `Isa` other than `Portable` comes from `available`, which asked the processor.
                Self::Avx512Bf16 | Self::Amx => return unsafe { avx512_bf16(body) },
                // SAFETY: as above.
                Self::Avx512 => return unsafe { avx512(body) },
                // SAFETY: as above.
                Self::Avx2 => return unsafe { avx2(body) },
                _ => {}
            }
        }
        body(Math { fused: cfg!(target_arch = "aarch64"), bf16: false, sixteens: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses_among_what_is_there() {
        assert_eq!(Isa::choose(Some("portable")), Ok(Isa::Portable));
        assert_eq!(Isa::choose(None).ok(), Isa::available().last().copied());
        let message = Isa::choose(Some("avx1024")).err().unwrap_or_default();
        assert!(message.contains("SD_GEN_CPU_ISA=avx1024") && message.contains("portable"), "{message}");
    }
}
