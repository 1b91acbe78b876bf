//! Libraries that are loaded when they are there.

use std::{env, fs, path::PathBuf};

/// Whether cuBLASLt can be used. Looks where the loader looks, and before that in the Python environment's NVIDIA wheels, which
/// are not on its path: once opened by its full name, the library is found by its short one.
pub(crate) fn cublaslt_present() -> bool {
    for path in wheel_folders().into_iter().map(|folder| folder.join("libcublasLt.so.13")) {
        if !path.is_file() {
            continue;
        }
        // SAFETY: NVIDIA's library; its initialisers only prepare itself.
        if let Ok(library) = unsafe { libloading::Library::new(&path) } {
            // It stays for the life of the process.
            std::mem::forget(library);
            break;
        }
    }
    // SAFETY: only probes whether the library can be loaded.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

fn wheel_folders() -> Vec<PathBuf> {
    let roots = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let pythons = roots.flat_map(|root| fs::read_dir(root.join("lib")).into_iter().flatten().flatten());
    pythons.map(|python| python.path().join("site-packages/nvidia/cu13/lib")).collect()
}
