//! The part of the CUDA driver the executor needs, owned and checked: context, stream, memory, modules, events, graphs.
//!
//! Everything here belongs to one context and is used by one thread at a time (the engine's); [`Context::enter`] makes the context
//! current on it.

use crate::error::CudaError;
use cudarc::driver::sys::{self as cu, CUresult};
use std::ffi::{CStr, CString, c_void};

/// An address in device memory.
pub(crate) type DevicePointer = cu::CUdeviceptr;

/// Whether a call that failed so was merely refused. All else is taken for the end of the context: the driver reports sticky errors of earlier
/// launches at whatever call comes next, and a list of those would never be whole.
fn is_refusal(result: CUresult) -> bool {
    use CUresult as R;
    matches!(
        result,
        R::CUDA_ERROR_INVALID_VALUE
            | R::CUDA_ERROR_INVALID_HANDLE
            | R::CUDA_ERROR_NOT_FOUND
            | R::CUDA_ERROR_NOT_READY
            | R::CUDA_ERROR_NOT_SUPPORTED
            | R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | R::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | R::CUDA_ERROR_NO_BINARY_FOR_GPU
            | R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    )
}

/// `Ok`, or the call's name with CUDA's words.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<(), CudaError> {
    match result {
        CUresult::CUDA_SUCCESS => return Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(CudaError::Exhausted { call }),
        _ => {}
    }
    let mut text = std::ptr::null();
    // SAFETY: `text` is a place for a pointer to a static string; on failure it stays null.
    unsafe { cu::cuGetErrorString(result, &mut text) };
    let words = if text.is_null() {
        String::new()
    } else {
        // SAFETY: CUDA gave a static, NUL-terminated string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let reason = format!("{result:?}: {words}");
    Err(if is_refusal(result) { CudaError::Call { call, reason } } else { CudaError::Lost { call, reason } })
}

/// Calls a driver function by name and checks it.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::driver::check(stringify!($function), cudarc::driver::sys::$function($($argument),*))
    };
}

/// One device and its primary context.
#[derive(Debug)]
pub(crate) struct Context {
    device: cu::CUdevice,
    context: cu::CUcontext,
    /// As the driver names it.
    pub(crate) name: String,
    /// Compute capability.
    pub(crate) capability: (i32, i32),
    pub(crate) multiprocessors: u32,
    /// Bytes of shared memory a block may ask for.
    pub(crate) shared_memory_max: usize,
}

// SAFETY: a context handle may be used from any thread that makes it current.
unsafe impl Send for Context {}

impl Context {
    /// Opens device `ordinal`.
    pub(crate) fn open(ordinal: u32) -> Result<Self, CudaError> {
        // SAFETY: only probes whether the library can be loaded.
        if !unsafe { cu::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let (mut count, mut device, mut context) = (0, 0, std::ptr::null_mut());
        let mut name = [0 as std::ffi::c_char; 128];
        // SAFETY: out-pointers to locals of the right type; the name's length is given.
        unsafe {
            driver!(cuInit(0))?;
            driver!(cuDeviceGetCount(&mut count))?;
            if ordinal as i32 >= count {
                return Err(CudaError::NoDevice { ordinal, count: count as u32 });
            }
            driver!(cuDeviceGet(&mut device, ordinal as i32))?;
            driver!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
            // The engine thread waits for each step: spinning gives it back soonest.
            driver!(cuDevicePrimaryCtxSetFlags_v2(device, cu::CUctx_flags::CU_CTX_SCHED_SPIN as u32))?;
            driver!(cuDevicePrimaryCtxRetain(&mut context, device))?;
            driver!(cuCtxSetCurrent(context))?;
        }
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: out-pointer to a local.
            unsafe { driver!(cuDeviceGetAttribute(&mut value, attribute, device)) }.map(|()| value)
        };
        use cu::CUdevice_attribute as A;
        let capability = (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        // SAFETY: CUDA wrote a NUL-terminated name.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        if capability.0 != 9 {
            return Err(CudaError::TooOld { name, major: capability.0, minor: capability.1 });
        }
        Ok(Self {
            device,
            context,
            name,
            capability,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_memory_max: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        })
    }

    /// The driver, in words: the CUDA version it speaks, and the kernel module's own line where the system shows it.
    pub(crate) fn driver(&self) -> String {
        let mut version = 0;
        // SAFETY: out-pointer to a local. On failure it stays 0.
        let _ = unsafe { driver!(cuDriverGetVersion(&mut version)) };
        let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let module = module.lines().next().unwrap_or_default();
        format!("CUDA {version}, {}", module.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Makes the context current on this thread.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { driver!(cuCtxSetCurrent(self.context)) }
    }

    /// Free and total bytes of device memory.
    pub(crate) fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: out-pointers to locals.
        unsafe { driver!(cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. A failure at the end of the process changes nothing.
        let _ = unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Device memory.
#[derive(Debug)]
pub(crate) struct Buffer {
    pointer: DevicePointer,
    bytes: usize,
}

impl Buffer {
    /// Allocates; `what` and `remedy` name it when it does not fit.
    pub(crate) fn allocate(context: &Context, bytes: usize, what: &'static str) -> Result<Self, CudaError> {
        let mut pointer = 0;
        // SAFETY: out-pointer to a local.
        match unsafe { cu::cuMemAlloc_v2(&mut pointer, bytes.max(256)) } {
            CUresult::CUDA_SUCCESS => Ok(Self { pointer, bytes }),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, _) = context.memory()?;
                Err(CudaError::OutOfMemory {
                    what,
                    needed_mib: bytes as u64 >> 20,
                    free_mib: free >> 20,
                    remedy: "free the GPU, or lower --max-num-seqs, --max-num-batched-tokens or --max-model-len".into(),
                })
            }
            other => check("cuMemAlloc_v2", other).map(|()| unreachable!("success was matched above")),
        }
    }

    /// Allocates and copies.
    pub(crate) fn of<T: Copy>(context: &Context, values: &[T], what: &'static str) -> Result<Self, CudaError> {
        let buffer = Self::allocate(context, size_of_val(values), what)?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from the host, waiting for it.
    pub(crate) fn write<T: Copy>(&self, at_bytes: usize, values: &[T]) -> Result<(), CudaError> {
        assert!(at_bytes + size_of_val(values) <= self.bytes, "write past the end of a device buffer");
        // The call returns when the values are staged; our streams do not wait for what it puts on the default one.
        // SAFETY: the range was checked, and `values` is readable for its size; the null stream is the default one.
        unsafe {
            driver!(cuMemcpyHtoD_v2(self.pointer + at_bytes as u64, values.as_ptr().cast(), size_of_val(values)))?;
            driver!(cuStreamSynchronize(std::ptr::null_mut()))
        }
    }

    /// Copies to the host, waiting for it and for all work before.
    pub(crate) fn read<T: Copy + Default>(&self, at_bytes: usize, count: usize) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); count];
        assert!(at_bytes + size_of_val(&values[..]) <= self.bytes, "read past the end of a device buffer");
        // SAFETY: the range was checked; `values` is writable for its size, and any bytes are a `T` (plain numbers).
        unsafe {
            driver!(cuCtxSynchronize())?;
            driver!(cuMemcpyDtoH_v2(
                values.as_mut_ptr().cast(),
                self.pointer + at_bytes as u64,
                size_of_val(&values[..])
            ))?;
        }
        Ok(values)
    }

    /// Gives the memory back although it is still used: for a check of what follows.
    pub(crate) fn free_early(&self) -> Result<(), CudaError> {
        // SAFETY: allocated by us. What reads it after this faults on the device, as the check wants it to.
        unsafe { driver!(cuMemFree_v2(self.pointer)) }
    }

    /// Zeroes all of it.
    pub(crate) fn clear(&self, stream: &Stream) -> Result<(), CudaError> {
        self.fill(stream, 0)
    }

    /// Sets all of its bytes.
    pub(crate) fn fill(&self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        // SAFETY: the whole of our own allocation.
        unsafe { driver!(cuMemsetD8Async(self.pointer, byte, self.bytes, stream.0)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by us, freed once. cuMemFree waits for work that uses it.
        let _ = unsafe { cu::cuMemFree_v2(self.pointer) };
    }
}

/// Page-locked host memory that the device reads and writes directly, as words.
#[derive(Debug)]
pub(crate) struct Pinned {
    pointer: *mut u32,
    words: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn allocate(words: usize) -> Result<Self, CudaError> {
        let mut pointer: *mut c_void = std::ptr::null_mut();
        // SAFETY: out-pointer to a local; the memory is zeroed before it is read as words.
        unsafe {
            driver!(cuMemHostAlloc(&mut pointer, words.max(1) * 4, cu::CU_MEMHOSTALLOC_DEVICEMAP))?;
            std::ptr::write_bytes(pointer.cast::<u32>(), 0, words.max(1));
        }
        Ok(Self { pointer: pointer.cast(), words })
    }

    /// Its words; the caller has made sure that the device is done with them.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: allocated with this length, initialised, and not written by the device now (see above).
        unsafe { std::slice::from_raw_parts(self.pointer, self.words) }
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as `words`, and exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.words) }
    }

    /// Where the device finds it: with unified addressing, at the same place.
    pub(crate) fn device_address(&self) -> u64 {
        self.pointer as u64
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by cuMemHostAlloc, freed once.
        let _ = unsafe { cu::cuMemFreeHost(self.pointer.cast()) };
    }
}

/// A queue of device work.
#[derive(Debug)]
pub(crate) struct Stream(pub(crate) cu::CUstream);

// SAFETY: a handle, used by one thread at a time.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn create() -> Result<Self, CudaError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: out-pointer to a local.
        unsafe { driver!(cuStreamCreate(&mut stream, cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32)) }?;
        Ok(Self(stream))
    }

    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: our own stream.
        unsafe { driver!(cuStreamSynchronize(self.0)) }
    }

    /// Holds up all later work until a word that nobody writes is the largest there is: for a check of what follows.
    pub(crate) fn wait_for_ever(&self, at: &Pinned) -> Result<(), CudaError> {
        let never = cu::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_EQ as u32;
        // SAFETY: the word is in page-locked memory that the device reads.
        unsafe { driver!(cuStreamWaitValue32_v2(self.0, at.device_address(), u32::MAX - 1, never)) }
    }

    /// Copies the first `words` of pinned memory to the start of a buffer, in order with the stream's work.
    pub(crate) fn copy_to_device(&self, to: &Buffer, from: &Pinned, words: usize) -> Result<(), CudaError> {
        assert!(words <= from.words && words * 4 <= to.bytes, "staged {words} words past the end");
        // SAFETY: both ranges were checked; the caller keeps `from` unchanged until the step's event.
        unsafe { driver!(cuMemcpyHtoDAsync_v2(to.pointer, from.pointer.cast(), words * 4, self.0)) }
    }

    /// Copies from device memory into pinned memory, in order with the stream's work.
    pub(crate) fn copy_to_host(
        &self,
        to: &Pinned,
        to_word: usize,
        from: &Buffer,
        from_byte: usize,
        words: usize,
    ) -> Result<(), CudaError> {
        assert!(to_word + words <= to.words && from_byte + words * 4 <= from.bytes, "copy past the end");
        // SAFETY: both ranges were checked; nobody reads `to` before the step's event.
        unsafe {
            driver!(cuMemcpyDtoHAsync_v2(
                to.pointer.add(to_word).cast(),
                from.pointer + from_byte as u64,
                words * 4,
                self.0
            ))
        }
    }

    /// Records what `work` puts on the stream, instead of running it.
    pub(crate) fn capture(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our own stream; capture is ended below on every path.
        unsafe { driver!(cuStreamBeginCapture_v2(self.0, mode)) }?;
        let done = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: out-pointer to a local.
        let ended = unsafe { driver!(cuStreamEndCapture(self.0, &mut graph)) };
        ended?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was just captured, whole or not; destroying it leaves the executable whole.
        let others = unsafe {
            let others = done.and_then(|()| nodes_beside_kernels(graph));
            let made = others
                .and_then(|others| driver!(cuGraphInstantiateWithFlags(&mut executable, graph, 0)).map(|()| others));
            driver!(cuGraphDestroy(graph))?;
            made?
        };
        let graph = Graph { executable, others };
        // SAFETY: our own handles.
        unsafe { driver!(cuGraphUpload(graph.executable, self.0)) }?;
        Ok(graph)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: our own stream, destroyed once.
        let _ = unsafe { cu::cuStreamDestroy_v2(self.0) };
    }
}

/// How many nodes of a captured graph are no kernels.
///
/// # Safety
/// The graph lives.
unsafe fn nodes_beside_kernels(graph: cu::CUgraph) -> Result<usize, CudaError> {
    let mut count = 0;
    // SAFETY: without room for nodes the call tells how many there are; then there is room for as many.
    let nodes = unsafe {
        driver!(cuGraphGetNodes(graph, std::ptr::null_mut(), &mut count))?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            driver!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count))?;
        }
        nodes.truncate(count);
        nodes
    };
    let mut others = 0;
    for node in nodes {
        let mut kind = cu::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL;
        // SAFETY: a node of the graph, out-pointer to a local.
        unsafe { driver!(cuGraphNodeGetType(node, &mut kind)) }?;
        others += usize::from(kind != cu::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
    }
    Ok(others)
}

/// Recorded work, to be launched in one call.
#[derive(Debug)]
pub(crate) struct Graph {
    executable: cu::CUgraphExec,
    others: usize,
}

// SAFETY: a handle, used by one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    pub(crate) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: what it works on lives as long as the executor that owns both.
        unsafe { driver!(cuGraphLaunch(self.executable, stream.0)) }
    }

    /// Nodes that are no kernels, such as counters of a library's that are set first: kernels overlap with kernels alone.
    pub(crate) fn others(&self) -> usize {
        self.others
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: our own, destroyed once.
        let _ = unsafe { cu::cuGraphExecDestroy(self.executable) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(crate) struct Event(cu::CUevent);

// SAFETY: a handle, used by one thread at a time.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn create() -> Result<Self, CudaError> {
        Self::with(cu::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// One that is only waited for, which costs less to record.
    pub(crate) fn untimed() -> Result<Self, CudaError> {
        Self::with(cu::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(flags: cu::CUevent_flags) -> Result<Self, CudaError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: out-pointer to a local.
        unsafe { driver!(cuEventCreate(&mut event, flags as u32)) }?;
        Ok(Self(event))
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: our own handles.
        unsafe { driver!(cuEventRecord(self.0, stream.0)) }
    }

    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: our own handle.
        unsafe { driver!(cuEventSynchronize(self.0)) }
    }

    /// Milliseconds of device time from `earlier` to here; both have passed.
    pub(crate) fn milliseconds_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: out-pointer to a local; our own handles.
        unsafe { driver!(cuEventElapsedTime_v2(&mut milliseconds, earlier.0, self.0)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: our own, destroyed once.
        let _ = unsafe { cu::cuEventDestroy_v2(self.0) };
    }
}

/// A loaded cubin.
#[derive(Debug)]
pub(crate) struct Module(cu::CUmodule);

// SAFETY: a handle, used by one thread at a time.
unsafe impl Send for Module {}

impl Module {
    pub(crate) fn load(image: &[u8]) -> Result<Self, CudaError> {
        if image.is_empty() {
            return Err(CudaError::NoKernels);
        }
        // The driver reads ELF headers: give it the alignment that they assume.
        let mut aligned = vec![0u64; image.len().div_ceil(8)];
        for (word, bytes) in aligned.iter_mut().zip(image.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(eight);
        }
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a cubin made by nvcc; its ELF header holds its length.
        unsafe { driver!(cuModuleLoadData(&mut module, aligned.as_ptr().cast())) }?;
        Ok(Self(module))
    }

    pub(crate) fn function(&self, name: &str) -> Result<Function, CudaError> {
        let name = CString::new(name)
            .map_err(|_| CudaError::Call { call: "cuModuleGetFunction", reason: "NUL in a name".into() })?;
        let mut function = std::ptr::null_mut();
        // SAFETY: out-pointer to a local; the name is NUL-terminated.
        unsafe { driver!(cuModuleGetFunction(&mut function, self.0, name.as_ptr())) }?;
        Ok(Function(function))
    }
}

/// A kernel; valid while its module is loaded, which is as long as the executor lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(cu::CUfunction);

// SAFETY: a handle, used by one thread at a time.
unsafe impl Send for Function {}

/// A launch's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: (u32, u32, u32),
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Blocks, neighbours along x, that share their memory; 0 leaves it to the kernel.
    pub(crate) cluster: u32,
    /// Whether it may start before the work in front of it is done: it then waits by itself (programmatic dependent launch).
    pub(crate) overlap: bool,
}

impl Shape {
    fn attributes(&self) -> Vec<cu::CUlaunchAttribute> {
        let attribute = |id| cu::CUlaunchAttribute {
            id,
            // SAFETY: a union of plain data, for which zeros are valid.
            ..unsafe { std::mem::zeroed() }
        };
        let mut attributes = Vec::with_capacity(2);
        if self.overlap {
            let mut overlap = attribute(cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
            overlap.value.programmaticStreamSerializationAllowed = 1;
            attributes.push(overlap);
        }
        if self.cluster > 0 {
            let mut cluster = attribute(cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            cluster.value.clusterDim = cu::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
            attributes.push(cluster);
        }
        attributes
    }

    fn config(&self, stream: cu::CUstream, attributes: &mut [cu::CUlaunchAttribute]) -> cu::CUlaunchConfig {
        cu::CUlaunchConfig {
            gridDimX: self.grid.0,
            gridDimY: self.grid.1,
            gridDimZ: self.grid.2,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }
}

impl Function {
    /// Lets blocks ask for up to `bytes` of dynamic shared memory.
    pub(crate) fn allow_shared(&self, bytes: usize) -> Result<(), CudaError> {
        let attribute = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a valid function.
        unsafe { driver!(cuFuncSetAttribute(self.0, attribute, bytes as i32)) }
    }

    /// Puts one launch on the stream.
    ///
    /// # Safety
    /// `arguments` point to values of exactly the types of the kernel's parameters, and device pointers among them are valid for
    /// what the kernel does with them.
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let mut attributes = shape.attributes();
        let config = shape.config(stream.0, &mut attributes);
        // SAFETY: the caller's promise; the configuration lives through the call.
        unsafe { driver!(cuLaunchKernelEx(&config, self.0, arguments.as_mut_ptr(), std::ptr::null_mut())) }
    }

    /// How many clusters of a launch of this shape run at once on the whole device.
    pub(crate) fn clusters_at_once(&self, shape: Shape) -> Result<usize, CudaError> {
        let mut attributes = shape.attributes();
        let config = shape.config(std::ptr::null_mut(), &mut attributes);
        let mut count = 0;
        // SAFETY: out-pointer to a local; the configuration lives through the call.
        unsafe { driver!(cuOccupancyMaxActiveClusters(&mut count, self.0, &config)) }?;
        Ok(count.max(0) as usize)
    }
}
