//! Kernels on one thread, beside the ceilings measured in the same run: `cargo bench -p powertrain-cpu [-- LEVEL...
//! matrices attention rows]`.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use powertrain_cpu::{
    SimdLevel,
    measure::{self, Group},
};

fn main() {
    // Cargo passes flags of its own.
    let named: Vec<SimdLevel> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let levels = if named.is_empty() { vec![SimdLevel::detect()] } else { named };
    let groups: Vec<Group> =
        Group::ALL.into_iter().filter(|group| std::env::args().any(|argument| argument == group.name())).collect();
    let groups = if groups.is_empty() { Group::ALL.to_vec() } else { groups };
    for level in levels {
        let Some(measured) = measure::kernels(level, &groups) else {
            println!("{level}: not on this machine");
            continue;
        };
        println!("{level}, one thread");
        println!("{:<44} {:>9} {:>9} {:>11}", "", "GB/s", "GOP/s", "of ceiling");
        for kernel in measured {
            let number = |value: f64| if value == 0.0 { "-".to_owned() } else { format!("{value:.1}") };
            let share = kernel.of_ceiling.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
            let (gigabytes, operations) = (number(kernel.gigabytes), number(kernel.giga_operations));
            println!("{:<44} {gigabytes:>9} {operations:>9} {share:>11}", kernel.name);
        }
    }
}
