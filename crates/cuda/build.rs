//! Compiles `kernels/*.cu` to cubins that the library embeds, where an nvcc can be found; elsewhere embeds nothing, and the executor says
//! so when it is asked to start. The host code compiles either way.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, a Python environment that holds the `nvidia-cuda-nvcc` wheel (`VIRTUAL_ENV`,
//! `CONDA_PREFIX`), `PATH` and `/usr/local/cuda`. The wheel works with these pins:
//! `nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// Those of elements, which are bf16 or f16 (common.cuh), and those that touch none.
const OF_ELEMENTS: [&str; 9] = ["attention", "best", "even", "flash", "gated", "gemv", "rope", "skinny", "step"];
const OF_NONE: [&str; 1] = ["sample"];

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = candidates().into_iter().find(|path| path.is_file());
    if nvcc.is_none() {
        println!("cargo:warning=no nvcc found: built without CUDA kernels, --device cuda will refuse to start");
    }
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    let of_elements = OF_ELEMENTS.into_iter().flat_map(|kernel| [(kernel, ""), (kernel, "-f16")]);
    let variants: Vec<_> = of_elements.chain(OF_NONE.map(|kernel| (kernel, ""))).collect();
    // Two at a time.
    let cubin_of = |(kernel, suffix): (&str, &str)| out.join(format!("{kernel}{suffix}.cubin"));
    for pair in variants.chunks(2) {
        thread::scope(|scope| {
            for &variant in pair {
                let (nvcc, cubin) = (&nvcc, cubin_of(variant));
                scope.spawn(move || match nvcc {
                    Some(nvcc) => compile(nvcc, variant, &cubin),
                    None => fs::write(&cubin, b"").expect("OUT_DIR is writable"),
                });
            }
        });
    }
    for variant in variants {
        let cubin = cubin_of(variant);
        let code = fs::read(&cubin).expect("it was just written");
        sum = code.iter().fold(sum, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    }
    // FNV-1a: choices between kernels hold for these alone.
    println!("cargo:rustc-env=POWERTRAIN_KERNELS={sum:016x}");
}

fn compile(nvcc: &Path, (kernel, suffix): (&str, &str), cubin: &Path) {
    let status = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-o"])
        .arg(cubin)
        .args((suffix == "-f16").then_some("-DELEMENT_F16"))
        .arg(format!("kernels/{kernel}.cu"))
        .status()
        .unwrap_or_else(|error| panic!("{} did not start: {error}", nvcc.display()));
    assert!(status.success(), "{} failed on kernels/{kernel}.cu", nvcc.display());
}

fn candidates() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    let mut found: Vec<PathBuf> = variable("NVCC").into_iter().collect();
    found.extend(["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin/nvcc")));
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        for python in fs::read_dir(root.join("lib")).into_iter().flatten().flatten() {
            found.push(python.path().join("site-packages/nvidia/cu13/bin/nvcc"));
        }
    }
    found.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join("nvcc")));
    found.push("/usr/local/cuda/bin/nvcc".into());
    found
}
