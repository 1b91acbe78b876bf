//! Kernels on one thread, beside the ceilings measured in the same run: `cargo bench -p powertrain-cpu [-- LEVEL...]`.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use powertrain_cpu::{SimdLevel, measure};

fn main() {
    // Cargo passes flags of its own.
    let named: Vec<SimdLevel> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let levels = if named.is_empty() { vec![SimdLevel::detect()] } else { named };
    for level in levels {
        let Some(measured) = measure::kernels(level) else {
            println!("{level}: not on this machine");
            continue;
        };
        println!("{level}, one thread");
        println!("{:<44} {:>9} {:>9}", "", "GB/s", "GMAC/s");
        for kernel in measured {
            let number = |value: f64| if value == 0.0 { "-".to_owned() } else { format!("{value:.1}") };
            println!("{:<44} {:>9} {:>9}", kernel.name, number(kernel.gigabytes), number(kernel.giga_multiply_adds));
        }
    }
}
