//! GGUF files, right and wrong: what is read, and what is said.

mod support;

use std::path::Path;

use powertrain_model::Checkpoint;
use powertrain_model::bytes::FileBytes;
use powertrain_model::gguf;
use powertrain_model::weights::WeightFormat;
use support::{GgufTensor, GgufWriter, string};

fn open(bytes: Vec<u8>) -> Checkpoint {
    Checkpoint::from_gguf(FileBytes::Owned(bytes), Path::new("tiny.gguf")).unwrap()
}

fn error(bytes: Vec<u8>) -> String {
    Checkpoint::from_gguf(FileBytes::Owned(bytes), Path::new("tiny.gguf")).unwrap_err().to_string()
}

/// A file with one of everything.
fn good() -> GgufWriter {
    GgufWriter::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .raw("a.u8", 0, [200])
        .raw("a.i8", 1, (-3i8).to_le_bytes())
        .raw("a.u16", 2, 60_000u16.to_le_bytes())
        .raw("a.i16", 3, (-300i16).to_le_bytes())
        .raw("a.i32", 5, 7i32.to_le_bytes())
        .raw("a.u64", 10, (1u64 << 40).to_le_bytes())
        .raw("a.i64", 11, (-1i64).to_le_bytes())
        .raw("a.f64", 12, 0.5f64.to_le_bytes())
        .strs("tokenizer.ggml.tokens", &["a", "", "ĠΩ"])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.5])
        .i32s("tokenizer.ggml.token_type", &[1, 3])
        .array("a.bad_utf8", 8, 1, &string(b"\xFF"))
        .f32_tensor("output_norm.weight", &[3], &[1.0, 2.0, 3.0])
        .tensor("blk.0.ffn_up.weight", &[64, 2], 8, vec![7; 4 * 34])
}

#[test]
fn metadata_is_typed() {
    let checkpoint = open(good().bytes());
    let metadata = checkpoint.metadata().unwrap();
    assert_eq!(metadata.get_str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.require_u32("llama.block_count").unwrap(), 2);
    assert_eq!(metadata.get_u32("a.u8").unwrap(), Some(200));
    assert_eq!(metadata.get_u32("a.u16").unwrap(), Some(60_000));
    assert_eq!(metadata.get_u32("a.i32").unwrap(), Some(7));
    assert_eq!(metadata.get_u64("a.u64").unwrap(), Some(1 << 40));
    assert_eq!(metadata.get_f32("llama.rope.freq_base").unwrap(), Some(10000.0));
    assert_eq!(metadata.get_f32("a.f64").unwrap(), Some(0.5));
    assert_eq!(metadata.get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.get_strs("tokenizer.ggml.tokens").unwrap(), Some(vec!["a", "", "ĠΩ"]));
    assert_eq!(metadata.get_f32s("tokenizer.ggml.scores").unwrap(), Some(vec![0.0, -1.5]));
    assert_eq!(metadata.get_u32s("tokenizer.ggml.token_type").unwrap(), Some(vec![1, 3]));
    assert_eq!(metadata.value("a.i8"), Some(&gguf::Value::Signed(-3)));
    assert_eq!(metadata.value("a.i16"), Some(&gguf::Value::Signed(-300)));
    assert_eq!(metadata.value("a.i64"), Some(&gguf::Value::Signed(-1)));
    assert_eq!(metadata.get_u32("missing").unwrap(), None);
    assert_eq!(metadata.keys().count(), 16);
}

#[test]
fn a_wrong_value_is_named() {
    let checkpoint = open(good().bytes());
    let metadata = checkpoint.metadata().unwrap();
    let again = "; convert the model again with a current converter";
    let cases = [
        (
            metadata.get_u32("general.architecture").unwrap_err(),
            "general.architecture: found \"llama\", expected an integer from 0 to 4294967295",
        ),
        (metadata.get_u32("a.i8").unwrap_err(), "a.i8: found -3, expected an integer from 0 to 4294967295"),
        (
            metadata.get_u32("a.u64").unwrap_err(),
            "a.u64: found 1099511627776, expected an integer from 0 to 4294967295",
        ),
        (metadata.get_f32("a.u8").unwrap_err(), "a.u8: found 200, expected a floating-point number"),
        (metadata.get_bool("a.u8").unwrap_err(), "a.u8: found 200, expected a bool"),
        (metadata.get_str("a.u8").unwrap_err(), "a.u8: found 200, expected a UTF-8 string"),
        (
            metadata.get_strs("tokenizer.ggml.scores").unwrap_err(),
            "tokenizer.ggml.scores: found an array of 2 F32, expected an array of UTF-8 strings",
        ),
        (
            metadata.get_strs("a.bad_utf8").unwrap_err(),
            "a.bad_utf8: found an array of 1 String, expected an array of UTF-8 strings",
        ),
    ];
    for (error, expected) in cases {
        assert_eq!(error.to_string(), format!("tiny.gguf: {expected}{again}"));
    }
    assert_eq!(
        metadata.require_u32("llama.embedding_length").unwrap_err().to_string(),
        "tiny.gguf: llama.embedding_length: found nothing, expected an integer; \
         the file lacks a key its architecture needs: convert the model again"
    );
}

#[test]
fn tensors_are_found_where_they_lie() {
    for (version, alignment) in [(2, 32), (3, 32), (3, 64)] {
        let mut file = good();
        file.version = version;
        if alignment != 32 {
            file = file.u32("general.alignment", alignment as u32);
            file.alignment = alignment;
        }
        let checkpoint = open(file.bytes());
        assert_eq!(
            checkpoint.tensor_names().collect::<Vec<_>>(),
            ["blk.0.ffn_up.weight", "output_norm.weight"],
            "sorted"
        );
        let norm = checkpoint.tensor("output_norm.weight").unwrap();
        assert_eq!((norm.format, norm.rows, norm.columns), (WeightFormat::F32, 1, 3));
        assert_eq!(norm.data, [1.0f32, 2.0, 3.0].map(f32::to_le_bytes).as_flattened());
        let up = checkpoint.tensor("blk.0.ffn_up.weight").unwrap();
        assert_eq!((up.format, up.rows, up.columns), (WeightFormat::Q8_0, 2, 64));
        assert_eq!(up.data, [7; 4 * 34]);
        assert!(checkpoint.tensor("output.weight").is_none());
    }
}

#[test]
fn a_bad_header_is_explained() {
    let damaged = "; the file is damaged or incomplete: download it again";
    let bare = GgufWriter::new;
    let mut wrong_magic = bare();
    wrong_magic.magic = *b"GG\0F";
    let versioned = |version| {
        let mut file = bare();
        file.version = version;
        file.bytes()
    };
    let mut many_tensors = bare();
    many_tensors.tensor_count = Some(u64::MAX);
    let mut many_entries = bare();
    many_entries.entry_count = Some(1 << 40);
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (wrong_magic.bytes(), r#"magic: found "GG\x00F", expected "GGUF""#, "; this is not a GGUF file: name one"),
        (vec![], "magic: found the end of the file 0 bytes after byte 0, expected 4 bytes", damaged),
        (
            versioned(1),
            "GGUF version: found 1, expected 2 or 3",
            "; version 1 was replaced in 2023: convert the model again",
        ),
        (
            versioned(3u32.swap_bytes()),
            "GGUF version: found 50331648, expected 2 or 3",
            "; the file is big-endian: convert the model for little-endian machines",
        ),
        (versioned(9), "GGUF version: found 9, expected 2 or 3", "; the file is damaged, or newer than this program"),
        (
            many_tensors.bytes(),
            "tensor count: found 18446744073709551615, expected at most 0, as 16 bytes remain",
            damaged,
        ),
        (many_entries.bytes(), "metadata count: found 1099511627776, expected at most 0, as 8 bytes remain", damaged),
        (bare().u32("a", 1).u32("a", 2).bytes(), r#""a": found a second value, expected one value"#, damaged),
        (bare().raw("a", 13, [0; 8]).bytes(), r#"type of "a": found 13, expected a value type from 0 to 12"#, damaged),
        (bare().raw("a", 7, [2]).bytes(), r#""a": found 2, expected a bool, 0 or 1"#, damaged),
        (
            bare().raw("a", 8, u64::MAX.to_le_bytes()).bytes(),
            r#"length of "a": found 18446744073709551615, expected at most 19, as 19 bytes remain"#,
            damaged,
        ),
        (
            bare().array("a", 4, 1 << 62, &[0; 8]).bytes(),
            r#"length of "a": found 4611686018427387904, expected at most 3, as 15 bytes remain"#,
            damaged,
        ),
        (
            bare().array("a", 8, 2, &[string(b"b"), vec![0xFF; 8]].concat()).bytes(),
            r#"length of array "a": found 18446744073709551615, expected at most 30, as 30 bytes remain"#,
            damaged,
        ),
        (
            bare().array("a", 9, 1, &[0; 16]).bytes(),
            r#"element type of "a": found an array, expected a value type from 0 to 12 that is no array"#,
            damaged,
        ),
        (
            bare().array("a", 77, 1, &[0; 16]).bytes(),
            r#"element type of "a": found 77, expected a value type from 0 to 12 that is no array"#,
            damaged,
        ),
        (
            bare().raw("", 0, [0]).raw("b", 0, [0; 9]).bytes(),
            "metadata key 1 of 2: found 0 bytes at byte 32, expected 1 to 65535 bytes",
            damaged,
        ),
        (
            bare().raw(b"\xC0x", 0, [0]).bytes(),
            "metadata key 1 of 1: found \"\u{fffd}x\" at byte 32, expected UTF-8 text",
            damaged,
        ),
        (
            bare().u32("general.alignment", 24).bytes(),
            "general.alignment: found 24, expected a power of two up to 1048576",
            damaged,
        ),
        (
            bare().str("general.alignment", "x").bytes(),
            "general.alignment: found another type, expected a power of two up to 1048576",
            damaged,
        ),
        (
            bare().u32("split.count", 3).bytes(),
            "split.count: found 3, expected a model in one file",
            "; merge the parts with llama.cpp's llama-gguf-split --merge",
        ),
    ];
    for (bytes, expected, advice) in cases {
        let found = error(bytes);
        assert!(
            found.starts_with(&format!("tiny.gguf: {expected}{advice}")),
            "found    {found}\nexpected {expected}{advice}"
        );
    }
}

#[test]
fn a_bad_tensor_is_explained() {
    let line = |dims: &[u64], kind, offset, data: usize| {
        let tensor = GgufTensor { name: "w".into(), dims: dims.to_vec(), kind, offset, data: vec![0; data] };
        GgufWriter::new().table_line(tensor).bytes()
    };
    let cut = {
        let mut bytes = good().bytes();
        bytes.truncate(bytes.len() - 64);
        bytes
    };
    let formats = "one of F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K";
    let damaged = "the file is damaged or incomplete: download it again";
    let cases: Vec<(Vec<u8>, String)> = vec![
        (line(&[], 0, None, 32), format!(r#"rank of tensor "w": found 0, expected 1 to 4 dimensions; {damaged}"#)),
        (line(&[1; 5], 0, None, 32), format!(r#"rank of tensor "w": found 5, expected 1 to 4 dimensions; {damaged}"#)),
        (
            line(&[4, 0], 0, None, 32),
            format!(r#"shape of tensor "w": found [0, 4] of F32, expected dimensions of at least 1; {damaged}"#),
        ),
        (
            line(&[1 << 40, 1 << 40], 0, None, 32),
            format!(
                r#"shape of tensor "w": found [1099511627776, 1099511627776] of F32, expected at most {} bytes; {damaged}"#,
                isize::MAX
            ),
        ),
        (
            line(&[1 << 62], 0, None, 32),
            format!(
                r#"shape of tensor "w": found [4611686018427387904] of F32, expected at most {} bytes; {damaged}"#,
                isize::MAX
            ),
        ),
        (
            line(&[576, 2], 12, None, 32),
            format!(
                r#"shape of tensor "w": found [2, 576] of Q4_K, expected rows of a multiple of 256 elements; {damaged}"#
            ),
        ),
        (
            line(&[256], 23, None, 136),
            format!(
                r#"type of tensor "w": found IQ4_XS (type 23), expected {formats}; use a file of another quantisation, such as Q4_K_M, Q8_0 or F16"#
            ),
        ),
        (
            line(&[256], 999, None, 136),
            format!(
                r#"type of tensor "w": found type 999, expected {formats}; the file is damaged, or newer than this program"#
            ),
        ),
        (
            line(&[8], 0, Some(4), 64),
            format!(r#"offset of tensor "w": found 4, expected a multiple of 32; {damaged}"#),
        ),
        (
            line(&[8], 0, Some(1 << 50), 32),
            r#"data of tensor "w": found 32 bytes at byte 64 + 1125899906842624, expected an end within the file's 96 bytes; the file is cut off or damaged: download it again"#.to_owned(),
        ),
        (
            line(&[8], 0, Some(u64::MAX - 31), 32),
            r#"data of tensor "w": found 32 bytes at byte 64 + 18446744073709551584, expected an end"#.to_owned(),
        ),
        (
            cut,
            r#"data of tensor "blk.0.ffn_up.weight": found 136 bytes at byte "#.to_owned(),
        ),
        (
            GgufWriter::new().f32_tensor("w", &[1], &[1.0]).f32_tensor("w", &[1], &[1.0]).bytes(),
            r#"tensor "w": found two entries, expected one; the file is damaged: download it again"#.to_owned(),
        ),
        (
            GgufWriter::new().f32_tensor(&"n".repeat(300), &[1], &[1.0]).bytes(),
            format!("name of tensor 1 of 1: found 300 bytes at byte 32, expected 1 to 255 bytes; {damaged}"),
        ),
    ];
    for (bytes, expected) in cases {
        let found = error(bytes);
        assert!(found.starts_with(&format!("tiny.gguf: {expected}")), "found    {found}\nexpected {expected}");
    }
}

#[test]
fn every_cut_is_an_error_and_no_panic() {
    let whole = good().bytes();
    // The last 24 bytes only pad the last tensor's 136 to 160.
    let needed = whole.len() - 24;
    open(whole[..needed].to_vec());
    for len in 0..needed {
        let found = error(whole[..len].to_vec());
        assert!(found.contains("download it again"), "cut at {len}: {found}");
    }
}

#[test]
fn long_text_from_the_file_is_cut_in_messages() {
    let found = error(GgufWriter::new().raw("k".repeat(5000), 99, [0; 8]).bytes());
    assert!(found.len() < 400 && found.contains("... (5000 bytes)"), "{found}");
}
