"""Who is measured: for each its model file, its command, and what it is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scratch import HERE, Scratch

# The same for everyone: 32 sequences of 768 tokens, that is 24,576 tokens of KV cache.
THREADS = 2
SEQUENCES = 32
SEQUENCE_TOKENS = 768
LONG_TOKENS = 4096
KV_CACHE_GIB = 1
ALL = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Subject:
    name: str
    engine: str
    weights: str
    group: str
    """Rows of one group stand in one table: `smollm2`, `q8_0`, `bf16`, `gemma3`."""
    model: str
    """Below the scratch folder's models."""
    command: Callable[[Scratch, Path, int], list[str]]
    """Of scratch folder, binary of ours, port."""
    long_command: Callable[[Scratch, Path, int], list[str]] | None = None
    """For the stage of long context where the server must be started otherwise for it."""
    environment: Callable[[Scratch], dict[str, str]] = lambda scratch: {}
    measures_long_context: bool = False
    levels: tuple[int, ...] = ALL
    """Numbers of clients."""
    starts: int = 1
    start_timeout_s: float = 60.0
    venv: str | None = None
    note: str = ""
    prompts: str = "smollm2"

    def is_ours(self) -> bool:
        return self.engine == "Powertrain"


def powertrain(
    name: str, weights: str, group: str, model: str, kv_cache: str, prompts: str = "smollm2"
) -> Subject:
    def command(scratch: Scratch, binary: Path, port: int) -> list[str]:
        return [
            *(str(binary), "serve", str(scratch.models / model), "--port", str(port), "--served-model-name", "model"),
            *("--threads", str(THREADS), "--max-num-seqs", str(SEQUENCES), "--kv-cache-memory", kv_cache),
            "--no-enable-prefix-caching",
        ]

    shared = Subject(name, "Powertrain", weights, group, model, command, measures_long_context=True, starts=3)
    return replace(shared, prompts=prompts)


def llama_cpp(
    name: str, weights: str, group: str, model: str, prompts: str = "smollm2"
) -> Subject:
    def command(sequences: int, tokens: int) -> Callable[[Scratch, Path, int], list[str]]:
        return lambda scratch, binary, port: [
            *(str(scratch.llama_tool("llama-server")), "-m", str(scratch.models / model), "--port", str(port), "-a", "model"),
            *("-t", str(THREADS), "-tb", str(THREADS), "-np", str(sequences), "-c", str(tokens), "--cache-ram", "0"),
            "--no-webui",
        ]

    # Its context is cut in equal slots, so a long prompt needs a server of one slot.
    served, long = command(SEQUENCES, SEQUENCES * SEQUENCE_TOKENS), command(1, LONG_TOKENS + 512)
    shared = Subject(name, "llama.cpp", weights, group, model, served, long, measures_long_context=True, starts=3)
    return replace(shared, prompts=prompts)


def openvino(name: str, weights: str, group: str, model: str, prompts: str = "smollm2") -> Subject:
    def command(scratch: Scratch, binary: Path, port: int) -> list[str]:
        return [
            *(str(scratch.python("openvino")), str(HERE / "thin" / "openvino_server.py"), str(port), str(scratch.models / model)),
            *(str(THREADS), str(SEQUENCES), str(KV_CACHE_GIB)),
        ]

    note = "no server in the package: thin one of ours"
    return Subject(
        name, "OpenVINO GenAI", weights, group, model, command, venv="openvino", note=note, prompts=prompts
    )


def vllm_command(scratch: Scratch, binary: Path, port: int) -> list[str]:
    return [
        *(str(scratch.python("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(scratch.models / "hf")),
        *("--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
        *("--max-model-len", "8192", "--max-num-seqs", str(SEQUENCES), "--no-enable-prefix-caching"),
    ]


def vllm_environment(scratch: Scratch) -> dict[str, str]:
    libraries = [
        scratch.venv("vllm") / "lib" / "libiomp5.so",
        *sorted(scratch.root.glob("debs/usr/lib/*/libtcmalloc_minimal.so.4")),
    ]
    return {
        "LD_PRELOAD": ":".join(str(path) for path in libraries if path.exists()),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        "VLLM_CACHE_ROOT": str(scratch.root / "vllm-cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def mistralrs_command(scratch: Scratch, binary: Path, port: int) -> list[str]:
    template = scratch.root / "mistralrs-template.jinja"
    server = str(HERE / "thin" / "mistralrs_server.py")
    return [str(scratch.python("mistralrs")), server, str(port), str(scratch.models / "hf"), str(SEQUENCES), str(template)]


def transformers_command(scratch: Scratch, binary: Path, port: int) -> list[str]:
    server = str(HERE / "thin" / "transformers_server.py")
    return [str(scratch.python("vllm")), server, str(port), str(scratch.models / "hf"), str(THREADS), str(SEQUENCES)]


def xllamacpp_command(scratch: Scratch, binary: Path, port: int) -> list[str]:
    server, model = str(HERE / "thin" / "xllamacpp_server.py"), str(scratch.models / "q4_1.gguf")
    tokens = str(SEQUENCES * SEQUENCE_TOKENS)
    return [str(scratch.python("xllamacpp")), server, str(port), model, str(THREADS), str(SEQUENCES), tokens]


SMOLLM2_KV = "288MiB"
GEMMA3_KV = "220MiB"

SUBJECTS: list[Subject] = [
    powertrain("powertrain", "Q4_1", "smollm2", "q4_1.gguf", SMOLLM2_KV),
    llama_cpp("llama.cpp-q4_1", "Q4_1", "smollm2", "q4_1.gguf"),
    llama_cpp("llama.cpp-q4_0", "Q4_0", "smollm2", "q4_0.gguf"),
    llama_cpp("llama.cpp-bf16", "BF16", "smollm2", "bf16.gguf"),
    openvino("openvino", "Q4_1", "smollm2", "q4_1.gguf"),
    Subject(
        *("vllm", "vLLM CPU", "BF16", "smollm2", "hf", vllm_command),
        environment=vllm_environment,
        start_timeout_s=400.0,
        venv="vllm",
        note="reads no GGUF: bf16 folder of the same weights",
    ),
    Subject(
        *("xllamacpp", "xllamacpp", "Q4_1", "smollm2", "q4_1.gguf", xllamacpp_command),
        venv="xllamacpp",
        note="prebuilt wheel, AVX2 only",
    ),
    Subject(
        *("mistralrs", "mistral.rs", "BF16 folder", "smollm2", "hf", mistralrs_command),
        venv="mistralrs",
        levels=(1, 4, 8),
        start_timeout_s=120.0,
        note="no server in the wheel: thin one of ours; concurrent GGUF prompts fail, so a folder; not tried beyond 8 clients, where "
        "it is a tenth of the best",
    ),
    Subject(
        *("transformers", "transformers", "BF16", "smollm2", "hf", transformers_command),
        venv="vllm",
        start_timeout_s=120.0,
        note="thin server of ours, static batches",
    ),
    powertrain("powertrain-q8_0", "Q8_0", "q8_0", "q8_0.gguf", SMOLLM2_KV),
    llama_cpp("llama.cpp-q8_0", "Q8_0", "q8_0", "q8_0.gguf"),
    openvino("openvino-q8_0", "Q8_0", "q8_0", "q8_0.gguf"),
    powertrain("powertrain-bf16", "BF16 safetensors", "bf16", "hf", SMOLLM2_KV),
    powertrain("powertrain-gemma3", "Q4_K_M", "gemma3", "gemma3.gguf", GEMMA3_KV, prompts="gemma3"),
    llama_cpp("llama.cpp-gemma3", "Q4_K_M", "gemma3", "gemma3.gguf", prompts="gemma3"),
    openvino("openvino-gemma3", "Q4_K_M", "gemma3", "gemma3.gguf", prompts="gemma3"),
]


def subjects_named(names: list[str]) -> list[Subject]:
    """By name or group; all of them for none."""
    if not names:
        return SUBJECTS
    unknown = [name for name in names if not any(name in (subject.name, subject.group) for subject in SUBJECTS)]
    if unknown:
        known = ", ".join(sorted({subject.name for subject in SUBJECTS} | {subject.group for subject in SUBJECTS}))
        raise SystemExit(f"--only {','.join(unknown)}: not known; known are {known}")
    return [subject for subject in SUBJECTS if subject.name in names or subject.group in names]
