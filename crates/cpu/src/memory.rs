//! Large zeroed memory: aligned to cache lines, in huge pages where the system grants them, shared between the threads
//! of a step by pointer.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    marker::PhantomData,
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
    pointer: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: the elements are plain numbers; access from several threads is governed by the invariant above.
unsafe impl<T: Zeroable> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable> Sync for Buffer<T> {}

impl<T: Zeroable> Buffer<T> {
    /// `len` zeros. Ends the process when there is no memory, as all of Rust's allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else {
            return Self { pointer: NonNull::dangling(), len: 0, owns: PhantomData };
        };
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(memory.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE_PAGE {
            // SAFETY: the range is ours, and page-aligned because large layouts are; a refusal changes nothing.
            unsafe { libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self { pointer, len, owns: PhantomData }
    }

    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's size fits the address space");
        let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        (bytes > 0).then(|| {
            // One line more than asked, so that a 64-byte read may start at any element.
            Layout::from_size_align(bytes + CACHE_LINE, alignment).expect("a buffer's size fits the address space")
        })
    }

    /// The first element.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.pointer.as_ptr()
    }

    /// Bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
            // SAFETY: allocated by `zeroed` with this very layout; its construction succeeded then.
            unsafe {
                let layout = Layout::from_size_align_unchecked(bytes + CACHE_LINE, alignment);
                dealloc(self.pointer.as_ptr().cast(), layout);
            }
        }
    }
}
