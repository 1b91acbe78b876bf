"""The same weights in other types: requantise.py SOURCE.gguf FOLDER. Writes FOLDER/{q4_0,q8_0,bf16}.gguf with all metadata copied.

Weights are dequantised from the source first, so nothing is better than the source; the peers get the layouts they are fastest on.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize, quants

TYPES = {"bf16": (Type.BF16, 32), "q8_0": (Type.Q8_0, 7), "q4_0": (Type.Q4_0, 2)}


def requantise(reader: GGUFReader, path: Path, tensor_type: Type, file_type: int) -> None:
    writer = GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if key == "general.file_type":
            writer.add_file_type(file_type)
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=element)
    for tensor in reader.tensors:
        shape = [int(size) for size in tensor.shape][::-1]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        if tensor.tensor_type == Type.F32:
            writer.add_tensor(tensor.name, values)
            continue
        # As llama.cpp's own quantiser does: the embedding, which is also the head, stays at 8 bits.
        embedding = tensor.name == "token_embd.weight" and tensor_type != Type.BF16
        chosen = Type.Q8_0 if embedding else tensor_type
        writer.add_tensor(tensor.name, quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    print("gguf", getattr(gguf, "__version__", ""), flush=True)
    for name, (tensor_type, file_type) in TYPES.items():
        partial = folder / f"{name}.partial"
        requantise(GGUFReader(source), partial, tensor_type, file_type)
        partial.rename(folder / f"{name}.gguf")
        print(name, flush=True)


main()
