//! The instructions themselves, and whether this thread may use them.

use super::{AmxUnit, Config};
use std::arch::asm;
use std::sync::OnceLock;

pub(super) struct Instructions;

/// Compilers keep nothing in tile registers, so that what one instruction left there the next finds.
impl AmxUnit for Instructions {
    #[inline(always)]
    unsafe fn configure(config: &Config) {
        // SAFETY: the caller's promise; 64 bytes are read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) config, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, preserves_flags, nomem));
        }
    }

    #[inline(always)]
    unsafe fn zero<const TILE: u8>() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags, nomem)) }
    }

    #[inline(always)]
    unsafe fn load<const TILE: u8>(from: *const u8, stride: isize) {
        // SAFETY: the caller's promise.
        unsafe { asm!("tileloadd tmm{}, [{} + {}]", const TILE, in(reg) from, in(reg) stride, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    unsafe fn store<const TILE: u8>(to: *mut u8, stride: isize) {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilestored [{} + {}], tmm{}", in(reg) to, in(reg) stride, const TILE, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn multiply<const SUMS: u8, const ROWS: u8, const PANEL: u8>() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const ROWS, const PANEL, options(nostack, preserves_flags, nomem)) }
    }
}

/// Whether the processor multiplies tiles of bf16, and the system keeps them for this process.
pub(in super::super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_tiles() && system_keeps_tiles())
}

fn processor_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    // Saved by XSAVE: the tiles' configuration and their data.
    const STATE: u64 = 0b11 << 17;
    // AMX-BF16 and AMX-TILE.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    const XSAVE_IN_USE: u32 = 1 << 27;
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the feature is enabled here, and register 0 always exists.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & XSAVE_IN_USE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx & FEATURES == FEATURES;
    // SAFETY: XSAVE is in use, so `xgetbv` is there.
    features && unsafe { enabled() } & STATE == STATE
}

/// Linux gives the tiles' memory to processes that ask for it.
///
/// # Source
/// <https://docs.kernel.org/arch/x86/xstate.html>
#[cfg(target_os = "linux")]
fn system_keeps_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Elsewhere nobody has tried what to ask for.
#[cfg(not(target_os = "linux"))]
fn system_keeps_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use std::io::Write as _;

    /// Each instruction, never run: its bytes are read.
    #[inline(never)]
    unsafe extern "C" fn each(config: &Config, from: *const u8, to: *mut u8, stride: isize) {
        // SAFETY: it is not called.
        unsafe {
            Instructions::configure(config);
            Instructions::zero::<3>();
            Instructions::load::<4>(from, stride);
            Instructions::load::<7>(from, stride);
            Instructions::multiply::<0, 4, 6>();
            Instructions::multiply::<3, 5, 7>();
            Instructions::store::<2>(to, stride);
            Instructions::release();
        }
    }

    const EXPECTED: [&str; 8] = [
        "ldtilecfg",
        "tilezero tmm3",
        "tileloadd tmm4",
        "tileloadd tmm7",
        "tdpbf16ps tmm0 tmm4 tmm6",
        "tdpbf16ps tmm3 tmm5 tmm7",
        "tilestored tmm2",
        "tilerelease",
    ];

    fn code() -> &'static [u8] {
        // SAFETY: the function is longer than its eight instructions of at least 5 bytes, and what follows it in the program's text can
        // be read too.
        let bytes = unsafe { std::slice::from_raw_parts(each as *const u8, 200) };
        let last = bytes.windows(5).position(|bytes| bytes == [0xc4, 0xe2, 0x78, 0x49, 0xc0]);
        &bytes[..last.expect("tilerelease is C4 E2 78 49 C0") + 5]
    }

    /// # Source
    /// The opcode rows of Intel's manual: `VEX.128.pp.0F38.W0 op /r`.
    fn decode(bytes: &[u8]) -> Option<String> {
        let &[0xc4, map, prefix, opcode, form, ..] = bytes else { return None };
        if map & 0x1f != 2 || prefix & 0x84 != 0 {
            return None;
        }
        let (register, in_memory, other) = (form >> 3 & 7, form >> 6 != 3, form & 7);
        let third = !(prefix >> 3) & 15;
        let with_index = in_memory && other == 4;
        match (prefix & 3, opcode) {
            (0, 0x49) if in_memory && register == 0 => Some("ldtilecfg".into()),
            (0, 0x49) if form == 0xc0 => Some("tilerelease".into()),
            (3, 0x49) if !in_memory && other == 0 => Some(format!("tilezero tmm{register}")),
            (3, 0x4b) if with_index => Some(format!("tileloadd tmm{register}")),
            (2, 0x4b) if with_index => Some(format!("tilestored tmm{register}")),
            (2, 0x5c) if !in_memory => Some(format!("tdpbf16ps tmm{register} tmm{other} tmm{third}")),
            _ => None,
        }
    }

    #[test]
    fn the_instructions_are_encoded_as_the_manual_says() {
        let code = code();
        let found: Vec<String> = (0..code.len()).filter_map(|at| decode(&code[at..])).collect();
        assert_eq!(found, EXPECTED);
    }

    #[test]
    fn a_disassembler_reads_the_instructions_if_there_is_one() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(code()).expect("written");
        let objdump = std::process::Command::new("objdump").args(["-D", "-b", "binary", "-m", "i386:x86-64"]).arg(file.path()).output();
        let Ok(said) = objdump else { return };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        // AT&T order: the destination is last.
        let found: Vec<String> = said
            .lines()
            .filter_map(|line| line.rsplit('\t').next())
            .filter(|line| line.contains("tile") || line.contains("tdp"))
            .map(|line| {
                let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
                let mut shown = words.next().unwrap_or_default().to_owned();
                let tiles: Vec<&str> = words.filter(|word| word.starts_with("tmm")).collect();
                tiles.iter().rev().for_each(|tile| write!(shown, " {tile}").expect("a string"));
                shown
            })
            .collect();
        assert_eq!(found, EXPECTED, "{said}");
    }
}
