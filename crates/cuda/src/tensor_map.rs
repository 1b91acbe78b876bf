//! Tensor maps: how the copy engine finds a box of a matrix in device memory (`TensorMap` of hopper.cuh).

use crate::{
    driver::{DevicePointer, check},
    error::CudaError,
};
use cudarc::driver::sys as cu;
use std::ffi::c_void;

/// Elements of a box's rows: 128 bytes of bf16, the widest the 128-byte swizzle takes.
pub(crate) const BOX_COLUMNS: usize = 64;

/// Rows that the 128-byte swizzle takes together.
pub(crate) const ROWS_TOGETHER: usize = 8;

/// One dimension of a map: how many there are, how far apart, and how many of them a box takes.
#[derive(Clone, Copy, Debug)]
struct Dimension {
    size: usize,
    bytes: usize,
    taken: usize,
}

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
        let rows = Dimension { size: rows, bytes: columns * 2, taken: box_rows };
        Self::encode(pointer, &[Dimension { size: columns, bytes: 2, taken: box_columns }, rows])
    }

    /// bf16 heads `[positions, heads, head_dim]` without gaps, taken in boxes of `box_positions` by one head by [`BOX_COLUMNS`].
    pub(crate) fn heads(
        pointer: DevicePointer,
        positions: usize,
        heads: usize,
        head_dim: usize,
        box_positions: usize,
    ) -> Result<Self, CudaError> {
        Self::encode(
            pointer,
            &[
                Dimension { size: head_dim, bytes: 2, taken: BOX_COLUMNS },
                Dimension { size: heads, bytes: head_dim * 2, taken: 1 },
                Dimension { size: positions, bytes: heads * head_dim * 2, taken: box_positions },
            ],
        )
    }

    /// Keys and values, each `[slots, kv_heads, head_dim]` without gaps, taken in boxes of the keys of `box_slots` slots of one head, then their values. In
    /// shared memory these are matrices of `box_slots` by [`BOX_COLUMNS`], first all of keys. Coordinates: 0, slot, 0, 0, head.
    pub(crate) fn keys_and_values(
        [keys, values]: [DevicePointer; 2],
        slots: usize,
        kv_heads: usize,
        head_dim: usize,
        box_slots: usize,
    ) -> Result<Self, CudaError> {
        let [columns, parts, heads] = parts_of_heads(kv_heads, head_dim);
        let slots = Dimension { size: slots, bytes: kv_heads * head_dim * 2, taken: box_slots };
        let kinds = Dimension { size: 2, bytes: (values - keys) as usize, taken: 2 };
        Self::encode(keys, &[columns, slots, parts, kinds, heads])
    }

    /// Keys or values `[slots, kv_heads, head_dim]` without gaps, taken in boxes of `box_slots` slots of one head. In shared memory each [`ROWS_TOGETHER`] slots lie
    /// together, as matrices of those by [`BOX_COLUMNS`]. Coordinates: 0, 0, 0, slot / [`ROWS_TOGETHER`], head.
    pub(crate) fn keys(
        keys: DevicePointer,
        slots: usize,
        kv_heads: usize,
        head_dim: usize,
        box_slots: usize,
    ) -> Result<Self, CudaError> {
        let [columns, parts, heads] = parts_of_heads(kv_heads, head_dim);
        let slot_bytes = kv_heads * head_dim * 2;
        let rows = Dimension { size: ROWS_TOGETHER, bytes: slot_bytes, taken: ROWS_TOGETHER };
        let groups = Dimension {
            size: slots / ROWS_TOGETHER,
            bytes: slot_bytes * ROWS_TOGETHER,
            taken: box_slots / ROWS_TOGETHER,
        };
        Self::encode(keys, &[columns, rows, parts, groups, heads])
    }

    /// Innermost first.
    fn encode<const RANK: usize>(pointer: DevicePointer, dimensions: &[Dimension; RANK]) -> Result<Self, CudaError> {
        let mut map = Self([0; 16]);
        let swizzle = match dimensions[0].taken < BOX_COLUMNS {
            true => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            false => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut strides = dimensions.map(|dimension| dimension.bytes as u64);
        // The innermost dimension's is what an element takes, and not passed.
        strides.rotate_left(1);
        // SAFETY: the map has the size and alignment the driver asks for; the arrays have `RANK` entries, strides one fewer read. The
        // address is only recorded.
        let result = unsafe {
            cu::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                pointer as *mut c_void,
                dimensions.map(|dimension| dimension.size as u64).as_ptr(),
                strides.as_ptr(),
                dimensions.map(|dimension| dimension.taken as u32).as_ptr(),
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

/// Elements of [`BOX_COLUMNS`] of a head, all of them, and heads: what maps of the cache have in common.
fn parts_of_heads(kv_heads: usize, head_dim: usize) -> [Dimension; 3] {
    let parts = head_dim / BOX_COLUMNS;
    [
        Dimension { size: BOX_COLUMNS, bytes: 2, taken: BOX_COLUMNS },
        Dimension { size: parts, bytes: BOX_COLUMNS * 2, taken: parts },
        Dimension { size: kv_heads, bytes: head_dim * 2, taken: 1 },
    ]
}
