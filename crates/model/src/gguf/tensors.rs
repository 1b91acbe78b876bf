//! The tensor table of a GGUF file.

use super::cursor::{ADVICE_DAMAGED, Cursor};
use crate::error::{ModelError, quoted};
use crate::tensors::StoredTensor;
use crate::weights::WeightFormat;

/// The smallest table entry: name length, one byte of name, rank, one dimension, type, offset.
pub(super) const ENTRY_BYTES_MIN: usize = 8 + 1 + 4 + 8 + 4 + 8;
/// Bytes of a tensor's name at most. GGML allows 63; some converters write longer ones.
const NAME_BYTES_MAX: usize = 255;
/// Dimensions at most, by the specification.
const RANK_MAX: u32 = 4;

/// An entry as it stands in the table: its offset can be placed only when the whole table has been read.
struct Entry<'a> {
    name: &'a str,
    format: WeightFormat,
    shape: Vec<usize>,
    len: usize,
    offset: u64,
}

/// Reads `count` entries and checks each tensor against the file's length.
pub(super) fn parse(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment_bytes: usize,
    file_bytes: usize,
) -> Result<Vec<StoredTensor>, ModelError> {
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        entries.push(parse_entry(cursor, index, count)?);
    }
    let data_start = cursor.position().next_multiple_of(alignment_bytes);
    entries.into_iter().map(|entry| place(entry, cursor, data_start, alignment_bytes, file_bytes)).collect()
}

fn parse_entry<'a>(cursor: &mut Cursor<'a>, index: usize, count: usize) -> Result<Entry<'a>, ModelError> {
    let name = cursor.name(NAME_BYTES_MAX, || format!("name of tensor {} of {count}", index + 1))?;
    let of = |part: &str| format!("{part} of tensor {}", quoted(name));
    let rank = cursor.u32(|| of("rank"))?;
    if !(1..=RANK_MAX).contains(&rank) {
        return Err(ModelError::invalid(
            cursor.path(),
            of("rank"),
            rank.to_string(),
            format!("1 to {RANK_MAX} dimensions"),
            ADVICE_DAMAGED,
        ));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        shape.push(cursor.u64(|| of("shape"))?);
    }
    // The file counts dimensions from the innermost; we from the outermost.
    shape.reverse();
    let format = parse_format(cursor, name)?;
    let offset = cursor.u64(|| of("offset"))?;
    let (shape, len) = match checked_len(&shape, format) {
        Ok(checked) => checked,
        Err(expected) => {
            return Err(ModelError::invalid(
                cursor.path(),
                of("shape"),
                format!("{shape:?} of {format}"),
                expected,
                ADVICE_DAMAGED,
            ));
        }
    };
    Ok(Entry { name, format, shape, len, offset })
}

/// The shape in `usize` and the tensor's bytes, or what had to be.
fn checked_len(shape: &[u64], format: WeightFormat) -> Result<(Vec<usize>, usize), String> {
    if shape.contains(&0) {
        return Err("dimensions of at least 1".to_owned());
    }
    let too_large = || format!("at most {} bytes", isize::MAX);
    let shape: Vec<usize> =
        shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>().map_err(|_| too_large())?;
    let (&columns, outer) = shape.split_last().expect("the rank is at least 1");
    let row_bytes = match format.row_bytes(columns) {
        Some(bytes) => bytes,
        None if columns % format.block_elements() == 0 => return Err(too_large()),
        None => return Err(format!("rows of a multiple of {} elements", format.block_elements())),
    };
    let bytes = outer.iter().try_fold(row_bytes, |bytes, &size| bytes.checked_mul(size));
    match bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) {
        Some(bytes) => Ok((shape, bytes)),
        None => Err(too_large()),
    }
}

fn parse_format(cursor: &mut Cursor<'_>, name: &str) -> Result<WeightFormat, ModelError> {
    let number = cursor.u32(|| format!("type of tensor {}", quoted(name)))?;
    format_of(number).ok_or_else(|| {
        let (found, advice) = match unsupported_name(number) {
            Some(known) => (
                format!("{known} (type {number})"),
                "use a file of another quantisation, such as Q4_K_M, Q8_0 or F16".to_owned(),
            ),
            None => (format!("type {number}"), "the file is damaged, or newer than this program".to_owned()),
        };
        let supported: Vec<&str> = WeightFormat::ALL.iter().map(|format| format.name()).collect();
        let field = format!("type of tensor {}", quoted(name));
        ModelError::invalid(cursor.path(), field, found, format!("one of {}", supported.join(" ")), advice)
    })
}

/// GGML's numbers (`enum ggml_type`) for the formats we read.
fn format_of(number: u32) -> Option<WeightFormat> {
    Some(match number {
        0 => WeightFormat::F32,
        1 => WeightFormat::F16,
        2 => WeightFormat::Q4_0,
        3 => WeightFormat::Q4_1,
        6 => WeightFormat::Q5_0,
        7 => WeightFormat::Q5_1,
        8 => WeightFormat::Q8_0,
        10 => WeightFormat::Q2K,
        11 => WeightFormat::Q3K,
        12 => WeightFormat::Q4K,
        13 => WeightFormat::Q5K,
        14 => WeightFormat::Q6K,
        30 => WeightFormat::BF16,
        _ => return None,
    })
}

/// Names of GGML types that exist and that we do not read.
fn unsupported_name(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

fn place(
    entry: Entry<'_>,
    cursor: &Cursor<'_>,
    data_start: usize,
    alignment_bytes: usize,
    file_bytes: usize,
) -> Result<StoredTensor, ModelError> {
    let Entry { name, format, shape, len, offset } = entry;
    let of = |part: &str| format!("{part} of tensor {}", quoted(name));
    if offset % alignment_bytes as u64 != 0 {
        return Err(ModelError::invalid(
            cursor.path(),
            of("offset"),
            offset.to_string(),
            format!("a multiple of {alignment_bytes}"),
            ADVICE_DAMAGED,
        ));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
    let range = start.and_then(|start| Some(start..start.checked_add(len)?));
    match range {
        Some(range) if range.end <= file_bytes => {
            Ok(StoredTensor { name: name.into(), format, shape, file: 0, bytes: range })
        }
        _ => Err(ModelError::invalid(
            cursor.path(),
            of("data"),
            format!("{len} bytes at byte {data_start} + {offset}"),
            format!("an end within the file's {file_bytes} bytes"),
            "the file is cut off or damaged: download it again",
        )),
    }
}
