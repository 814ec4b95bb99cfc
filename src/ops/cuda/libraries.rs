//! Shared libraries that are looked for when the program runs.
#![expect(unsafe_code, reason = "libraries are loaded by the system's loader")]

use std::ffi::{CStr, CString, c_void};

/// A library; it stays loaded.
pub(super) struct Library(*mut c_void);

impl Library {
    /// The first of `names` that the system's loader finds.
    pub(super) fn open(names: &[&str]) -> Option<Self> {
        names.iter().find_map(|name| {
            let name = CString::new(*name).ok()?;
            #[cfg(target_os = "linux")]
            // SAFETY: the name is a C string; what a library does when it is loaded is its makers' word.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            #[cfg(not(target_os = "linux"))]
            let handle = { drop(name); std::ptr::null_mut::<c_void>() };
            (!handle.is_null()).then_some(Self(handle))
        })
    }

    /// The address of a function.
    pub(super) fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        #[cfg(target_os = "linux")]
        // SAFETY: the library is loaded.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        #[cfg(not(target_os = "linux"))]
        let symbol = { let _ = (name, self.0); std::ptr::null_mut::<c_void>() };
        (!symbol.is_null()).then_some(symbol)
    }
}
