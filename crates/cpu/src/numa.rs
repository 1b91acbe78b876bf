//! Keeping threads, and with them the memory they touch first, on some of a machine's NUMA nodes.
//!
//! Weights are packed, and KV cache and workspace first touched, by threads that were started after [`bind`]; the system places
//! a page where it is first touched. So on a machine of several nodes one process a node is the fast way to use it all. One
//! process over several nodes is left to the system: weights are not copied to each of them.

use crate::config::CpuError;
use std::{fs, path::Path, str::FromStr};

/// On which nodes threads may run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Wherever the system lets them.
    #[default]
    Off,
    /// On the cores of these nodes, ascending.
    Nodes(Vec<usize>),
}

impl FromStr for Numa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => {
                parse_list(text).map(Self::Nodes).ok_or_else(|| "expected off, or nodes as 0 or 0,2 or 0-3".to_owned())
            }
        }
    }
}

/// Binds the calling thread, and so every thread it starts from now on. Says in words what came of it; `None` for
/// [`Numa::Off`].
///
/// # Errors
/// When the machine lacks a node, none of its cores may be used, or it cannot say what nodes it has.
pub fn bind(numa: &Numa) -> Result<Option<String>, CpuError> {
    let Numa::Nodes(wanted) = numa else { return Ok(None) };
    let nodes = nodes(Path::new("/sys/devices/system/node"));
    let names = |nodes: &[usize]| nodes.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let refused = |reason: String| CpuError::Numa { nodes: names(wanted), reason };
    let known: Vec<usize> = nodes.iter().map(|(node, _)| *node).collect();
    if known.is_empty() {
        return Err(refused("the system does not say what nodes it has".to_owned()));
    }
    if let Some(node) = wanted.iter().find(|node| !known.contains(node)) {
        return Err(refused(format!("there is no node {node}; there are {}", names(&known))));
    }
    let cores: Vec<usize> =
        nodes.iter().filter(|(node, _)| wanted.contains(node)).flat_map(|(_, cores)| cores).copied().collect();
    let bound = restrict(&cores).ok_or_else(|| refused("this process may use none of their cores".to_owned()))?;
    Ok(Some(match known.len() {
        1 => "this machine has one NUMA node: nothing to choose".to_owned(),
        all => format!("threads run on {bound} cores of NUMA nodes {} of {all}", names(wanted)),
    }))
}

/// The machine's nodes and their cores, ascending.
fn nodes(folder: &Path) -> Vec<(usize, Vec<usize>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut nodes: Vec<_> = entries
        .filter_map(|entry| {
            let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cores = fs::read_to_string(entry.path().join("cpulist")).ok()?;
            // A node of memory alone has an empty list.
            Some((node, parse_list(cores.trim()).unwrap_or_default()))
        })
        .collect();
    nodes.sort_unstable();
    nodes
}

/// `0-3,8`, ascending; the kernel's way to write sets.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    /// More numbers than any machine has cores.
    const MOST: usize = 1 << 16;
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// Keeps the calling thread on those of `cores` that it may use; how many these are, `None` if none.
#[cfg(target_os = "linux")]
fn restrict(cores: &[usize]) -> Option<usize> {
    // SAFETY: cpu_set_t is a plain bit set for which zeros are valid; the calls read and write no more than its size, and a
    // core past its end is left out.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let (mut allowed, mut kept): (libc::cpu_set_t, libc::cpu_set_t) = (std::mem::zeroed(), std::mem::zeroed());
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return None;
        }
        let usable = |core: &&usize| **core < libc::CPU_SETSIZE as usize && libc::CPU_ISSET(**core, &allowed);
        let usable: Vec<usize> = cores.iter().filter(usable).copied().collect();
        usable.iter().for_each(|&core| libc::CPU_SET(core, &mut kept));
        (!usable.is_empty() && libc::sched_setaffinity(0, size, &kept) == 0).then_some(usable.len())
    }
}

#[cfg(not(target_os = "linux"))]
fn restrict(_cores: &[usize]) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_kernels() {
        for (text, expected) in [
            ("0", Some(vec![0])),
            ("0-3,8", Some(vec![0, 1, 2, 3, 8])),
            ("5,1-2,2", Some(vec![1, 2, 5])),
            ("", None),
            ("3-1", None),
            ("0-99999999999", None),
            ("0-99999999", None),
            ("a", None),
        ] {
            assert_eq!(parse_list(text), expected, "{text:?}");
        }
        assert_eq!("off".parse(), Ok(Numa::Off));
        assert_eq!("1,0".parse(), Ok(Numa::Nodes(vec![0, 1])));
        assert!("auto".parse::<Numa>().is_err());
    }

    #[test]
    fn a_node_that_is_not_there_is_named_with_those_that_are() {
        let error = bind(&Numa::Nodes(vec![4095])).unwrap_err().to_string();
        assert!(error.contains("--numa 4095"), "{error}");
        assert_eq!(bind(&Numa::Off), Ok(None));
    }

    /// On a machine with several nodes this checks one of them; with one, that binding to it keeps all cores.
    #[test]
    #[cfg(target_os = "linux")]
    fn threads_started_later_are_bound() {
        let Some((node, cores)) =
            nodes(Path::new("/sys/devices/system/node")).into_iter().find(|(_, cores)| !cores.is_empty())
        else {
            eprintln!("skipped: this system does not say what nodes it has");
            return;
        };
        // In a thread of its own: the other tests keep their cores.
        std::thread::spawn(move || {
            assert!(bind(&Numa::Nodes(vec![node])).unwrap().is_some());
            let usable = std::thread::spawn(crate::pool::available_cores).join().unwrap();
            assert!(usable <= cores.len(), "{usable} cores on node {node}, which has {}", cores.len());
        })
        .join()
        .unwrap();
    }
}
