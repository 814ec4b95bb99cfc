//! Shared libraries that are looked for when the program runs, so that one binary starts with and without a GPU.
//!
//! The crate below candle links CUDA's libraries in the ordinary way, and a program that does so does not even start where one of them
//! is missing. So every function of theirs that is linked is defined here: a jump through a slot, which [`load_cuda`] fills. With all
//! of them defined, the linker (`--as-needed`) leaves the libraries out of what the program asks the system's loader for.
#![expect(unsafe_code, reason = "libraries are loaded by the system's loader, and their functions are called by their addresses")]

use std::ffi::{CStr, CString, c_void};

/// A library; it stays loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library(*mut c_void);

impl Library {
    /// The first of `names` that the system's loader finds.
    pub(crate) fn open(names: &[&str]) -> Option<Self> {
        names.iter().find_map(|name| {
            let name = CString::new(*name).ok()?;
            let handle = load(&name);
            (!handle.is_null()).then_some(Self(handle))
        })
    }

    /// The address of a function.
    pub(crate) fn symbol(self, name: &CStr) -> Option<*mut c_void> {
        let symbol = find(self.0, name);
        (!symbol.is_null()).then_some(symbol)
    }
}

#[cfg(target_os = "linux")]
fn load(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string; what a library does when it is loaded is its makers' word.
    unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) }
}

#[cfg(target_os = "linux")]
fn find(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is loaded.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

#[cfg(not(target_os = "linux"))]
fn load(_: &CStr) -> *mut c_void {
    std::ptr::null_mut()
}

#[cfg(not(target_os = "linux"))]
fn find(_: *mut c_void, _: &CStr) -> *mut c_void {
    std::ptr::null_mut()
}

/// Loads CUDA's libraries.
///
/// # Errors
/// One is not there; the sentence says which, and where it can be had.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn load_cuda() -> Result<(), String> {
    use std::sync::OnceLock;
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(slots::fill).clone()
}

/// Elsewhere the system's loader has loaded them before the program began.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn load_cuda() -> Result<(), String> {
    Ok(())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod slots {
    use super::Library;
    use std::ffi::{CString, c_char, c_void};
    use std::sync::atomic::{AtomicPtr, Ordering};

    /// What is called as long as a library is not loaded: CUDA's code for an unknown error.
    extern "C" fn absent() -> usize {
        999
    }

    /// The same for a function that returns a text.
    extern "C" fn absent_text() -> *const c_char {
        c"the CUDA runtime is not loaded".as_ptr()
    }

    /// What is called for a function before its library is there.
    const fn stand_in(name: &str) -> *mut c_void {
        match name.as_bytes() {
            b"cudaGetErrorName" | b"cudaGetErrorString" => absent_text as *mut c_void,
            _ => absent as *mut c_void,
        }
    }

    macro_rules! jumps {
        ($($library:ident { $($name:ident)* })*) => {
            /// Where each function is.
            #[expect(non_upper_case_globals, reason = "named after the functions")]
            mod slot {
                use super::{AtomicPtr, c_void, stand_in};
                $($(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(stand_in(stringify!($name)));)*)*
            }

            $($(std::arch::global_asm!(
                concat!(".hidden ", stringify!($name)),
                concat!(".globl ", stringify!($name)),
                concat!(".type ", stringify!($name), ",@function"),
                concat!(stringify!($name), ":"),
                "jmp qword ptr [rip + {slot}]",
                slot = sym slot::$name,
            );)*)*

            $(fn $library(library: Library) {
                $(if let Some(address) = CString::new(stringify!($name)).ok().and_then(|name| library.symbol(&name)) {
                    slot::$name.store(address, Ordering::Release);
                })*
            })*
        };
    }

    include!("cuda_functions.rs");

    /// A library: its file names, what it is filled by, where it comes from, and whether the program goes without.
    type LibraryRow = (&'static [&'static str], fn(Library), &'static str, bool);

    const LIBRARIES: [LibraryRow; 5] = [
        // Only kernels of candle's that this program never calls want it; registering them at the start goes nowhere.
        (&[], cudart, "the CUDA toolkit brings it", false),
        (&["libcuda.so.1"], cuda, "the NVIDIA driver brings it", true),
        (&["libcublasLt.so.13", "libcublasLt.so.12"], cublaslt, "cuBLAS brings it", true),
        (&["libcublas.so.13", "libcublas.so.12"], cublas, "the CUDA toolkit or the Python package nvidia-cublas brings it", true),
        (&["libcurand.so.10"], curand, "the CUDA toolkit or the Python package nvidia-curand brings it", true),
    ];

    pub(super) fn fill() -> Result<(), String> {
        for (names, fill, origin, needed) in LIBRARIES {
            match Library::open(names) {
                Some(library) => fill(library),
                None if needed => {
                    let name = names.first().copied().unwrap_or_default();
                    return Err(format!("the library {name} is not found; {origin}, and LD_LIBRARY_PATH says where it is"));
                }
                None => {}
            }
        }
        Ok(())
    }
}
