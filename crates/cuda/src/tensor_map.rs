//! Tensor maps: how the copy engine finds a box of a matrix in device memory (`TensorMap` of hopper.cuh).

use crate::{
    driver::{DevicePointer, check},
    error::CudaError,
};
use cudarc::driver::sys as cu;
use std::ffi::c_void;

/// Elements of a box's rows: 128 bytes of bf16, the widest the 128-byte swizzle takes.
pub(crate) const BOX_COLUMNS: usize = 64;

/// Encoded by the driver; passed to kernels by value.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct TensorMap([u64; 16]);

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TensorMap")
    }
}

impl TensorMap {
    /// A bf16 matrix `[rows, columns]` without gaps, taken in boxes of `box_rows` by [`BOX_COLUMNS`]. Boxes that reach past the end
    /// read zeros and write nothing there.
    pub(crate) fn matrix(
        pointer: DevicePointer,
        rows: usize,
        columns: usize,
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        Self::matrix_in(pointer, rows, columns, [box_rows, BOX_COLUMNS])
    }

    /// The same in boxes of so many rows and columns. What is narrower than [`BOX_COLUMNS`] lies in shared memory row by row, not swizzled.
    pub(crate) fn matrix_in(
        pointer: DevicePointer,
        rows: usize,
        columns: usize,
        [box_rows, box_columns]: [usize; 2],
    ) -> Result<Self, CudaError> {
        Self::encode(pointer, &[columns, rows], &[box_columns, box_rows])
    }

    /// bf16 heads `[positions, heads, head_dim]` without gaps, taken in boxes of `box_positions` by one head by [`BOX_COLUMNS`].
    pub(crate) fn heads(
        pointer: DevicePointer,
        positions: usize,
        heads: usize,
        head_dim: usize,
        box_positions: usize,
    ) -> Result<Self, CudaError> {
        Self::encode(pointer, &[head_dim, heads, positions], &[BOX_COLUMNS, 1, box_positions])
    }

    /// Sizes and boxes innermost first.
    fn encode<const RANK: usize>(
        pointer: DevicePointer,
        sizes: &[usize; RANK],
        boxes: &[usize; RANK],
    ) -> Result<Self, CudaError> {
        let mut map = Self([0; 16]);
        let dimensions = sizes.map(|size| size as u64);
        let mut strides = [0u64; RANK];
        let mut bytes = 2;
        let swizzle = match boxes[0] < BOX_COLUMNS {
            true => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            false => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        for (stride, size) in strides.iter_mut().zip(sizes) {
            bytes *= *size as u64;
            *stride = bytes;
        }
        // SAFETY: the map has the size and alignment the driver asks for; the arrays have `RANK` entries, strides one fewer read. The
        // address is only recorded.
        let result = unsafe {
            cu::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                pointer as *mut c_void,
                dimensions.as_ptr(),
                strides.as_ptr(),
                boxes.map(|size| size as u32).as_ptr(),
                [1u32; RANK].as_ptr(),
                cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result).map(|()| map)
    }
}
