//! A GPU with the project's kernels loaded, and how tensors on it are read, made and worked on.
#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use super::plan::{Address, Launch, Limits};
use super::profile;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, result, sys};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kernels of `kernels/kernels.cu`, for several architectures.
static KERNELS: &KernelImage<[u8]> = &KernelImage(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// Bytes at an address that a driver may read words from.
#[repr(C, align(64))]
struct KernelImage<T: ?Sized>(T);

/// Bytes that a product may work with; what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A GPU with the kernels loaded.
pub(super) struct Gpu {
    device: Device,
    stream: Arc<CudaStream>,
    module: sys::CUmodule,
    functions: Mutex<HashMap<String, Function>>,
    pub(super) limits: Limits,
    workspace: Tensor,
    pub(super) products: Mutex<super::linear::Products>,
    pub(super) cudnn: Option<Mutex<super::cudnn::Cudnn>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: the driver's handles may be used from any thread; what is not thread-safe is behind a mutex.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({:?})", self.device.location())
    }
}

/// A lock whose owner panicked protects caches only, which are as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernels on the GPU of this number, whose context is the thread's; loaded once for all of its streams.
fn module(number: usize) -> Result<sys::CUmodule> {
    struct LoadedModule(usize, sys::CUmodule);
    // SAFETY: the driver's handles may be used from any thread.
    unsafe impl Send for LoadedModule {}
    static LOADED: Mutex<Vec<LoadedModule>> = Mutex::new(Vec::new());
    let mut loaded = lock(&LOADED);
    if let Some(LoadedModule(_, module)) = loaded.iter().find(|LoadedModule(of, _)| *of == number) {
        return Ok(*module);
    }
    // SAFETY: the image is what nvcc made, and it is aligned; the driver copies it.
    let module = unsafe { result::module::load_data(KERNELS.0.as_ptr().cast()) };
    let module = module.map_err(|e| {
        let message = "this GPU or its driver does not take the program's kernels; they want compute capability 8.0 and a driver as new as the program's CUDA";
        candle_core::Error::Msg(format!("{message} ({e})"))
    })?;
    loaded.push(LoadedModule(number, module));
    Ok(module)
}

impl Gpu {
    /// The GPU that a tensor is on; its kernels are loaded at the first call.
    pub(super) fn of(x: &Tensor) -> Result<Arc<Self>> {
        static GPUS: Mutex<Vec<(DeviceId, Arc<Gpu>)>> = Mutex::new(Vec::new());
        let device = x.device().as_cuda_device()?;
        let mut gpus = lock(&GPUS);
        if let Some((_, gpu)) = gpus.iter().find(|(id, _)| *id == device.id()) {
            return Ok(gpu.clone());
        }
        let gpu = Arc::new(Self::new(device)?);
        gpus.push((device.id(), gpu.clone()));
        Ok(gpu)
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        use sys::CUdevice_attribute::{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT};
        if KERNELS.0.is_empty() {
            bail!("this program was built without its CUDA kernels: the nvcc of its build was only a stand-in");
        }
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().w()?;
        let limits = Limits {
            shared_bytes: context.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).w()?.unsigned_abs(),
            processors: context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).w()?.unsigned_abs(),
        };
        let module = module(context.ordinal())?;
        let device = Device::Cuda(device.clone());
        // SAFETY: a workspace has no contents.
        let workspace = unsafe { Tensor::empty(WORKSPACE, DType::U8, &device)? };
        let cudnn = super::cudnn::Cudnn::where_wanted(&stream)?.map(Mutex::new);
        let products = Mutex::new(super::linear::Products::new()?);
        Ok(Self { device, stream, module, functions: Mutex::new(HashMap::new()), limits, workspace, products, cudnn })
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Where a product may work, and the bytes there. One stream does one thing after the other, so all may share it.
    pub(super) fn workspace(&self) -> Result<(*mut c_void, usize)> {
        Ok((self.address(&self.workspace)? as *mut c_void, WORKSPACE))
    }

    /// A tensor whose numbers a kernel will write, all of them.
    pub(super) fn make<S: Into<Shape>>(&self, shape: S, dtype: DType) -> Result<Tensor> {
        // SAFETY: the caller launches a kernel that writes all of it.
        unsafe { Tensor::empty(shape, dtype, &self.device) }
    }

    /// Where the first number of a contiguous tensor is; good for as long as the tensor, whose memory is freed in the stream's order.
    pub(super) fn address(&self, x: &Tensor) -> Result<Address> {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor on {:?} where {self:?} computes", x.device().location()) };
        if !layout.is_contiguous() {
            bail!("a tensor of shape {:?} is not contiguous", x.shape());
        }
        let start = match x.dtype() {
            DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(&self.stream).0,
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream).0,
            DType::F16 => storage.as_cuda_slice::<f16>()?.device_ptr(&self.stream).0,
            DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&self.stream).0,
            dtype => bail!("{dtype:?} is not supported, only f32, bf16 and f16"),
        };
        Ok(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64)
    }

    /// The tensor with its numbers one after the other, from an address that whole chunks can be read from.
    pub(super) fn aligned(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        if self.address(&x)?.is_multiple_of(super::plan::CHUNK as u64) { Ok(x) } else { x.force_contiguous() }
    }

    fn function(&self, name: &str) -> Result<Function> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let c_name = CString::new(name).map_err(candle_core::Error::wrap)?;
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: the module is loaded and stays so.
        let function = unsafe { result::module::get_function(self.module, c_name) };
        let function = function.map_err(|e| candle_core::Error::Msg(format!("there is no CUDA kernel {name} ({e})")))?;
        let set = |attribute, value| {
            // SAFETY: the function was just found.
            unsafe { result::function::set_function_attribute(function, attribute, value) }.w()
        };
        // Its static shared memory is none, so that it may ask for all.
        set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.limits.shared_bytes as i32)?;
        if name.starts_with("product_") || name.starts_with("attention_") {
            // Several blocks of a processor then find room beside each other.
            set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        }
        functions.insert(name.to_owned(), Function(function));
        Ok(Function(function))
    }

    /// Puts a launch behind the work that was asked for before.
    pub(super) fn launch(&self, mut launch: Launch) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(&launch.kernel)?;
        self.stream.context().bind_to_thread().w()?;
        let grid = (launch.grid[0], launch.grid[1], launch.grid[2]);
        let (block, shared) = ((launch.threads, 1, 1), launch.shared_bytes);
        let mut arguments = launch.argument_pointers();
        // SAFETY: the plan gives the kernel the arguments of its signature; the emulation's tests hold it to that.
        let run = || unsafe { result::launch_kernel(function.0, grid, block, shared, self.stream.cu_stream(), &mut arguments) }.w();
        profile::timed(&self.stream, || launch.kernel.clone(), run)
    }
}
