//! Large zeroed memory: aligned to cache lines, in huge pages where the system grants them, shared between the threads
//! of a step by pointer.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    marker::PhantomData,
    num::NonZero,
    ptr::NonNull,
};

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// Elements for which all-zero bytes are a value.
///
/// # Safety
/// Zeroed memory must be a valid value of the type, and the type must not need dropping.
pub(crate) unsafe trait Zeroable: Copy {}
// SAFETY: plain numbers and arrays of them.
unsafe impl Zeroable for u8 {}
// SAFETY: as above.
unsafe impl Zeroable for u16 {}
// SAFETY: as above.
unsafe impl Zeroable for f32 {}
// SAFETY: as above.
unsafe impl Zeroable for crate::activations::QuantBlock {}

/// A fixed number of elements that several threads may write through pointers.
///
/// **Invariant:** whoever writes through [`as_mut_ptr`](Buffer::as_mut_ptr) keeps threads apart: between two barriers an
/// element is written by one thread and read by none other.
pub(crate) struct Buffer<T> {
    memory: Memory,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the elements are plain numbers; access from several threads is governed by the invariant above.
unsafe impl<T: Zeroable> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable> Sync for Buffer<T> {}

impl<T: Zeroable> Buffer<T> {
    /// `len` zeros, whose pages the system hands out when they are first touched. Ends the process when there is no memory,
    /// as all of Rust's allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        // One line more than asked, so that a 64-byte read may start at any element.
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(CACHE_LINE));
        let bytes = bytes.expect("a buffer's size fits the address space");
        let memory = if len == 0 { Memory::EMPTY } else { Memory::zeroed(bytes) };
        Self { memory, len, elements: PhantomData }
    }

    /// The first element.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.memory.start.as_ptr().cast()
    }

    /// Bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// A stretch of zeroed memory, aligned to cache lines, from 2 MiB on to huge pages.
struct Memory {
    start: NonNull<u8>,
    from: Source,
}

/// How the memory was had, and so how it goes back.
enum Source {
    Nowhere,
    Allocator(Layout),
    /// Mapped: the whole mapping, which starts before the aligned memory.
    #[cfg(unix)]
    Mapping(*mut libc::c_void, usize),
}

impl Memory {
    // The alignment is that of a cache line: dangling, but aligned for every element.
    const EMPTY: Self =
        Self { start: NonNull::without_provenance(NonZero::new(CACHE_LINE).unwrap()), from: Source::Nowhere };

    fn zeroed(bytes: usize) -> Self {
        #[cfg(unix)]
        if bytes >= HUGE_PAGE {
            return Self::mapped(bytes);
        }
        let layout = Layout::from_size_align(bytes, CACHE_LINE).expect("a buffer's size fits the address space");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, from: Source::Allocator(layout) }
    }

    /// Straight from the system: the allocator would write all the zeros of memory aligned like this.
    #[cfg(unix)]
    fn mapped(bytes: usize) -> Self {
        let size = bytes + HUGE_PAGE;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
        // SAFETY: a new private mapping touches no memory of ours.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            handle_alloc_error(Layout::from_size_align(bytes, HUGE_PAGE).unwrap_or(Layout::new::<u8>()));
        }
        let offset = mapping.align_offset(HUGE_PAGE);
        // SAFETY: at most HUGE_PAGE - 1 bytes into the mapping, which has that much to spare.
        let start = unsafe { mapping.add(offset) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies in the mapping; a refusal changes nothing.
        unsafe {
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE)
        };
        let Some(start) = NonNull::new(start.cast()) else { unreachable!("a mapping does not start at 0") };
        Self { start, from: Source::Mapping(mapping, size) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self.from {
            Source::Nowhere => {}
            // SAFETY: allocated with this layout.
            Source::Allocator(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            #[cfg(unix)]
            // SAFETY: mapped with this size.
            Source::Mapping(mapping, size) => unsafe {
                libc::munmap(mapping, size);
            },
        }
    }
}
