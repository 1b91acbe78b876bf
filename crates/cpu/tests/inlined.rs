//! No instruction of a SIMD level is behind a call. What stands in a closure lacks the level's features and is not inlined into what has them:
//! results stay right, and dots became ninety times slower.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{fs, hint::black_box};

/// Where the ELF format (64 bits) has what, and the one type of section looked for.
const SECTIONS_AT: usize = 0x28;
const SECTION_BYTES_AT: usize = 0x3a;
const SECTIONS_COUNT_AT: usize = 0x3c;
const SYMBOLS: u64 = 2;
const SYMBOL_BYTES: usize = 24;

/// The names of all symbols of this program.
fn symbols() -> Vec<String> {
    let file = fs::read(std::env::current_exe().unwrap()).unwrap();
    let number = |at: usize, bytes: usize| {
        file[at..at + bytes].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let section = |index: u64| number(SECTIONS_AT, 8) as usize + index as usize * number(SECTION_BYTES_AT, 2) as usize;
    let range = |section: usize| (number(section + 0x18, 8) as usize, number(section + 0x20, 8) as usize);
    let table = (0..number(SECTIONS_COUNT_AT, 2)).map(section).find(|&section| number(section + 4, 4) == SYMBOLS);
    let table = table.expect("the test keeps its symbols");
    let (at, bytes) = range(table);
    let (names, _) = range(section(number(table + 0x28, 4)));
    let name = |symbol: usize| {
        let name = file[names + number(symbol, 4) as usize..].split(|&byte| byte == 0).next().unwrap();
        String::from_utf8_lossy(name).into_owned()
    };
    (at..at + bytes).step_by(SYMBOL_BYTES).map(name).collect()
}

#[test]
fn intrinsics_are_inlined() {
    // Links the kernels of all levels.
    black_box(powertrain_cpu::measure::kernels as fn(_, &_) -> _);
    let symbols = symbols();
    let is_kernel = |name: &&String| name.contains("powertrain_cpu") && name.contains("attend");
    assert!(symbols.iter().any(|name| is_kernel(&name)), "no kernel is in this program");
    let calls: Vec<&String> =
        symbols.iter().filter(|name| name.contains("core_arch") && name.contains("_mm")).collect();
    assert!(calls.is_empty(), "not inlined: {calls:#?}");
}
