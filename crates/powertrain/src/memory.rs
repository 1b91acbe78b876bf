//! How much memory there is for the KV cache: what the machine and the control groups around this process leave free.

use std::{fs, path::Path};

/// Bytes that this process may still take without swapping or being killed; `None` where the system does not say
/// (then `--kv-cache-memory` has its own default).
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = meminfo_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = cgroup_available(Path::new("/sys/fs/cgroup"), &own);
    Some(group.map_or(machine, |group| machine.min(group)))
}

/// `MemAvailable` of /proc/meminfo: free memory and what the kernel would give back.
fn meminfo_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least that is left in this process's control group and those above it; `None` when none has a limit.
fn cgroup_available(root: &Path, own: &str) -> Option<u64> {
    let unified = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let v1 = own.lines().find_map(|line| line.split_once(":memory:/").map(|(_, path)| path));
    let mut least = unified.and_then(|path| least_left(root, path, "memory.max", "memory.current", "inactive_file"));
    if let Some(path) = v1 {
        let root = root.join("memory");
        let left = least_left(&root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
        least = [least, left].into_iter().flatten().min();
    }
    least
}

/// From the group at `path` up to the root. Inside a container the path may be the host's: the root counts in any case.
fn least_left(root: &Path, path: &str, limit: &str, usage: &str, reclaimable: &str) -> Option<u64> {
    let group = root.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(root));
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = groups.filter_map(|group| {
        let limit = number(&group.join(limit))?;
        let used = number(&group.join(usage))?;
        // Page cache counts as used, but is given back on demand.
        let cached = fs::read_to_string(group.join("memory.stat")).ok().and_then(|stat| {
            let line = stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.strip_prefix(' '))?;
            line.trim().parse::<u64>().ok()
        });
        Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
    });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        assert_eq!(meminfo_available("MemTotal: 10 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_available("MemTotal: 10 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("pod/container");
        fs::create_dir_all(&group).unwrap();
        let write = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        let check = |own: &str, expected| assert_eq!(cgroup_available(root.path(), own), expected, "{own}");
        check("0::/pod/container\n", None);
        write("pod/container/memory.max", "max\n");
        write("pod/memory.max", "1000\n");
        write("pod/memory.current", "700\n");
        check("0::/pod/container\n", Some(300));
        write("pod/memory.stat", "active_file 9\ninactive_file 200\n");
        check("0::/pod/container\n", Some(500));
        write("pod/container/memory.max", "400\n");
        write("pod/container/memory.current", "100\n");
        check("0::/pod/container\n", Some(300));
        check("12:memory:/pod\n", None);
    }
}
