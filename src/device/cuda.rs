//! NVIDIA GPUs: how one is opened, what it says of its memory.
#![expect(unsafe_code, reason = "the driver is a C library")]

use super::Memory;
use super::library::load_cuda;
use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphMem_attribute as RecordedMemory, CUmemPool_attribute as Attribute};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The toolkit that this program was built with, 13000 for 13.0: a driver takes kernels of its own version and of older ones.
const BUILT_WITH: i32 = {
    let digits = env!("SD_GEN_CUDA_VERSION").as_bytes();
    let (mut version, mut i) = (0, 0);
    while i < digits.len() {
        version = version * 10 + (digits[i] - b'0') as i32;
        i += 1;
    }
    version
};

fn driver_version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: the version is written to where the pointer points.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    Some(version)
}

/// GPUs by their numbers.
type OpenGpus = Mutex<Vec<(usize, CudaDevice)>>;

/// A lock whose owner panicked protects lists only, which are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while a stream is made, which waits for all of the GPU's work, and while one records, which must not be waited for.
static UNDISTURBED: Mutex<()> = Mutex::new(());

/// Keeps other threads from waiting for the whole GPU as long as the value lives.
pub(crate) fn undisturbed() -> MutexGuard<'static, ()> {
    lock(&UNDISTURBED)
}

/// The GPU with a stream that nobody uses yet.
fn with_stream(number: usize) -> candle_core::Result<CudaDevice> {
    let _undisturbed = undisturbed();
    let device = CudaDevice::new_with_stream(number)?;
    // SAFETY: these events order the work of several streams. What is allocated on a stream is used there alone, but for what a network's
    // queue reads and writes before and behind its calls, where the two streams are made to wait for each other.
    unsafe { device.disable_event_tracking() };
    Ok(device)
}

/// Opens the GPU, or says in one sentence why it cannot be. Who opens it again gets the same.
pub(super) fn open(number: usize) -> Result<Device, String> {
    static OPENED: OpenGpus = Mutex::new(Vec::new());
    let mut opened = lock(&OPENED);
    if let Some((_, device)) = opened.iter().find(|(known, _)| *known == number) {
        return Ok(Device::Cuda(device.clone()));
    }
    let device = open_anew(number)?;
    opened.push((number, device.clone()));
    Ok(Device::Cuda(device))
}

fn open_anew(number: usize) -> Result<CudaDevice, String> {
    load_cuda()?;
    let driver = driver_version().ok_or("the driver does not say its version")?;
    if driver < BUILT_WITH {
        let said = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        let (driver, wanted) = (said(driver), said(BUILT_WITH));
        return Err(format!("the NVIDIA driver is of CUDA {driver} and this program wants {wanted} or newer; update the driver"));
    }
    let count = CudaContext::device_count().map_err(|error| explain(&error))?;
    if number >= usize::try_from(count).unwrap_or(0) {
        return Err(format!("there are {count} GPUs, counted from 0"));
    }
    // A stream of its own, which all threads share: what one thread asks for is done before what another asks for later.
    let device = with_stream(number).map_err(|error| first_line(&error.to_string()))?;
    let context = device.cuda_stream().context().clone();
    let capability = context.compute_capability().map_err(|error| explain(&error))?;
    if capability.0 < 8 {
        let name = context.name().unwrap_or_else(|_| "this GPU".to_owned());
        return Err(format!("{name} has compute capability {}.{}, and the program's kernels want 8.0 or more", capability.0, capability.1));
    }
    // Memory that was freed stays with the process until `release`: asking the driver anew would wait for the GPU.
    if let Some(pool) = Pool::of(&device) {
        pool.keep(u64::MAX);
    }
    Ok(device)
}

/// A queue of work on a GPU that one network has for itself.
///
/// A network that is gone leaves its queue to the next one.
#[derive(Debug)]
pub(crate) struct Queue {
    number: usize,
    device: CudaDevice,
}

static IDLE: OpenGpus = Mutex::new(Vec::new());

impl Queue {
    /// On the same GPU.
    ///
    /// # Errors
    /// The GPU has no memory for it.
    pub(crate) fn beside(device: &CudaDevice) -> candle_core::Result<Self> {
        let number = device.cuda_stream().context().ordinal();
        let mut idle = lock(&IDLE);
        let found = idle.iter().position(|(of, _)| *of == number).map(|at| idle.swap_remove(at));
        drop(idle);
        let device = match found {
            Some((_, device)) => {
                // What went wrong when its last network was freed is nothing to the next.
                let _ = device.cuda_stream().context().check_err();
                device
            }
            None => with_stream(number)?,
        };
        Ok(Self { number, device })
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn stream(&self) -> Arc<CudaStream> {
        self.device.cuda_stream()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What its network freed is then free indeed.
        let _ = self.stream().synchronize();
        lock(&IDLE).push((self.number, self.device.clone()));
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// What a code of the driver means to the user.
fn explain(error: &DriverError) -> String {
    use sys::cudaError_enum as Code;
    match error.0 {
        Code::CUDA_ERROR_NO_DEVICE => "the driver finds no GPU".to_owned(),
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the parts of the NVIDIA driver are of different versions; restart the machine".to_owned()
        }
        Code::CUDA_ERROR_STUB_LIBRARY => "the libcuda.so.1 that was found is a toolkit's stand-in for the driver".to_owned(),
        Code::CUDA_ERROR_OUT_OF_MEMORY => "its memory is full; end what else uses it".to_owned(),
        _ => format!("the driver says {error:?}"),
    }
}

/// The driver's pool that a device's tensors come from.
struct Pool(sys::CUmemoryPool);

impl Pool {
    fn of(device: &CudaDevice) -> Option<Self> {
        let stream = device.cuda_stream();
        if !stream.context().has_async_alloc() || stream.context().bind_to_thread().is_err() {
            return None;
        }
        // SAFETY: the context has a device.
        unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }.ok().map(Self)
    }

    fn keep(&self, mut bytes: u64) {
        let value = std::ptr::from_mut(&mut bytes).cast();
        // SAFETY: the pool lives as long as its device, and the attribute is 64 bits.
        // Where it is refused, memory goes back earlier, which is only slower.
        let _ = unsafe { result::mem_pool::set_attribute(self.0, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, value) };
    }

    fn get(&self, attribute: Attribute) -> Option<u64> {
        let mut bytes = 0u64;
        // SAFETY: the pool lives as long as its device, and the attribute is 64 bits.
        unsafe { result::mem_pool::get_attribute(self.0, attribute, std::ptr::from_mut(&mut bytes).cast()) }.ok()?;
        Some(bytes)
    }
}

/// What is free, that counted which the process has and does not use; and all.
pub(super) fn memory(device: &CudaDevice) -> Option<Memory> {
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    let idle = Pool::of(device).and_then(|pool| {
        let (held, used) =
            (pool.get(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?, pool.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
        Some(held.saturating_sub(used))
    });
    let free = free as u64 + idle.unwrap_or(0);
    Some(Memory { free, limit: free, total: total as u64 })
}

/// Bytes of tensors.
pub(super) fn taken(device: &CudaDevice) -> Option<u64> {
    Pool::of(device)?.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// Bytes of tensors at their most since [`reset_peak`]; those of recorded calls are counted beside the others, which they may not have been.
pub(super) fn peak(device: &CudaDevice) -> Option<u64> {
    let tensors = Pool::of(device)?.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
    let (number, mut recorded) = (device.cuda_stream().context().cu_device(), 0u64);
    let value = std::ptr::from_mut(&mut recorded).cast();
    // SAFETY: the attribute is 64 bits.
    let told = unsafe { sys::cuDeviceGetGraphMemAttribute(number, RecordedMemory::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, value) };
    Some(tensors + if told.result().is_ok() { recorded } else { 0 })
}

pub(super) fn reset_peak(device: &CudaDevice) {
    if let Some(pool) = Pool::of(device) {
        let mut zero = 0u64;
        let value = std::ptr::from_mut(&mut zero).cast();
        // SAFETY: the pool lives as long as its device, and the attribute is 64 bits, of which only 0 may be set.
        let _ = unsafe { result::mem_pool::set_attribute(pool.0, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, value) };
        let number = device.cuda_stream().context().cu_device();
        // SAFETY: as above.
        let _ = unsafe { sys::cuDeviceSetGraphMemAttribute(number, RecordedMemory::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, value) };
    }
}

/// Gives memory that is not used back to the driver, for other programs and for larger pieces.
pub(super) fn release(device: &CudaDevice) {
    if let Some(pool) = Pool::of(device) {
        let _ = device.cuda_stream().synchronize();
        // SAFETY: the pool lives as long as its device; what is used stays.
        let _ = unsafe { result::mem_pool::trim_to(pool.0, 0) };
        // SAFETY: the device is there; what a recorded call that is under way uses stays.
        let _ = unsafe { sys::cuDeviceGraphMemTrim(device.cuda_stream().context().cu_device()) };
    }
}

/// The name of a GPU, for people.
pub(super) fn name(device: &CudaDevice) -> Option<String> {
    device.cuda_stream().context().name().ok()
}

/// Marks in the GPU's work; [`WorkMarks::step`] waits for the last but one.
#[derive(Debug)]
pub(super) struct WorkMarks {
    stream: Arc<CudaStream>,
    last: Option<CudaEvent>,
}

impl WorkMarks {
    pub(super) fn new(device: &CudaDevice) -> Self {
        Self { stream: device.cuda_stream(), last: None }
    }

    pub(super) fn step(&mut self) -> candle_core::Result<()> {
        let mark = self.stream.record_event(None).w()?;
        if let Some(last) = self.last.replace(mark) {
            last.synchronize().w()?;
        }
        Ok(())
    }
}
