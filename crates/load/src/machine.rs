//! The machine this client runs on: what may explain a difference between two runs.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs};

/// Settings of the kernel that change how fast programs run, by the name in [`Machine::kernel_settings`].
const KERNEL_SETTINGS: [(&str, &str); 10] = [
    ("transparent_hugepage", "/sys/kernel/mm/transparent_hugepage/enabled"),
    ("numa_balancing", "/proc/sys/kernel/numa_balancing"),
    ("swappiness", "/proc/sys/vm/swappiness"),
    ("overcommit_memory", "/proc/sys/vm/overcommit_memory"),
    ("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("smt", "/sys/devices/system/cpu/smt/active"),
    ("boost", "/sys/devices/system/cpu/cpufreq/boost"),
    ("no_turbo", "/sys/devices/system/cpu/intel_pstate/no_turbo"),
    ("isolated_cpus", "/sys/devices/system/cpu/isolated"),
    ("tcp_congestion_control", "/proc/sys/net/ipv4/tcp_congestion_control"),
];

/// This machine; none where the system does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: Option<String>,
    /// CPUs this process may use.
    pub cpus: Option<usize>,
    /// Memory.
    pub memory_gib: Option<f64>,
    /// Kernel version.
    pub kernel: Option<String>,
    /// The first CPU's frequency governor; `powersave` can double a client's TTFT.
    pub governor: Option<String>,
    /// Settings of the kernel, as it shows them; those that this machine lacks are left out.
    #[serde(default)]
    pub kernel_settings: BTreeMap<String, String>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load_average: Option<(f64, f64, f64)>,
}

impl Machine {
    /// Looks now.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let line = |path: &str| read(path).map(|text| text.trim().to_owned());
        Self {
            cpu: read("/proc/cpuinfo").and_then(|text| field(&text, "model name")),
            cpus: std::thread::available_parallelism().ok().map(|count| count.get()),
            memory_gib: read("/proc/meminfo").and_then(|text| {
                let kib: f64 = field(&text, "MemTotal")?.strip_suffix(" kB")?.trim().parse().ok()?;
                Some((kib / f64::from(1 << 20) * 10.0).round() / 10.0)
            }),
            kernel: line("/proc/sys/kernel/osrelease"),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            kernel_settings: KERNEL_SETTINGS
                .into_iter()
                .filter_map(|(name, path)| Some((name.to_owned(), chosen(&line(path)?).to_owned())))
                .collect(),
            load_average: read("/proc/loadavg").and_then(|text| {
                let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
                Some((numbers.next()?, numbers.next()?, numbers.next()?))
            }),
        }
    }
}

/// Of `always [madvise] never` the one in brackets; any other text as it is.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text, |(chosen, _)| chosen)
}

/// The value of `name : value` in the first line that has it.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 17\nmodel name\t: EPYC: 9\nmodel name\t: other\n";
        assert_eq!(field(text, "model name").as_deref(), Some("EPYC: 9"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn of_choices_the_one_in_brackets_is_taken() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("tsc"), "tsc");
    }
}
