//! Every weight format against the PyPI `gguf` package, bit for bit. `fixtures/make_formats.py` made the expectations.

use powertrain_model::format::dequantize;
use powertrain_model::weights::WeightFormat;

/// Reads one fixture: the stored blocks and their elements.
fn fixture(format: WeightFormat) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/tests/fixtures/formats/{format}.bin", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (elements, stored) = (word(0), word(4));
    let expected = bytes[8 + stored..].as_chunks().0.iter().map(|&element| f32::from_le_bytes(element)).collect();
    let expected: Vec<f32> = expected;
    assert_eq!(expected.len(), elements);
    (bytes[8..8 + stored].to_vec(), expected)
}

#[test]
fn every_format_unpacks_as_the_gguf_package_does() {
    for format in WeightFormat::ALL {
        let (stored, expected) = fixture(format);
        let mut unpacked = vec![f32::NAN; expected.len()];
        dequantize(format, &stored, &mut unpacked);
        for (index, (unpacked, expected)) in unpacked.iter().zip(&expected).enumerate() {
            assert_eq!(
                unpacked.to_bits(),
                expected.to_bits(),
                "{format} element {index}: {unpacked:e} is not {expected:e}"
            );
        }
    }
}

#[test]
fn rows_are_whole_blocks() {
    let bytes = |format: WeightFormat, columns| format.row_bytes(columns);
    assert_eq!(bytes(WeightFormat::F32, 5), Some(20));
    assert_eq!(bytes(WeightFormat::Q4_1, 576), Some(576 / 32 * 20));
    assert_eq!(bytes(WeightFormat::Q8_0, 640), Some(640 / 32 * 34));
    assert_eq!(bytes(WeightFormat::Q4_0, 100), None);
    assert_eq!(bytes(WeightFormat::Q4K, 576), None, "576 is no multiple of 256");
    assert_eq!(bytes(WeightFormat::Q6K, 512), Some(2 * 210));
    assert_eq!(bytes(WeightFormat::F32, usize::MAX), None, "overflow");
}

#[test]
#[should_panic(expected = "Q4_0: 32 elements do not take 17 bytes")]
fn a_wrong_length_is_refused() {
    dequantize(WeightFormat::Q4_0, &[0; 17], &mut [0.0; 32]);
}
