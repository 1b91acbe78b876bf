"""Rewrites a GGUF so that its matrices are stored in f16: a trained model that `--dtype auto` computes in f16.

    f16.py FROM.gguf TO.gguf

Matrices in F32, F16, BF16, Q4_0, Q4_1, Q6_K or Q8_0 are dequantised in f32 and rounded to the nearest f16; one with a value that f16 does not hold
is refused, as is any other format. Vectors (norms, biases) become F32. Metadata is copied byte for byte, but general.file_type, where there is one,
says F16. TO.gguf appears whole or not at all. Needs numpy. Ends with 1 and the reason if it refuses.
"""

import math
import os
import struct
import sys
from pathlib import Path

import numpy as np

F16_MAX = 65504.0
# How tensor types are numbered in GGUF.
F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16 = 0, 1, 2, 3, 8, 14, 30
# general.file_type: all matrices in F16.
MOSTLY_F16 = 1
# Metadata values by their type's number: what struct reads. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, UINT32 = 8, 9, 4


class Refused(Exception):
    """Why the file cannot be rewritten."""


class Reader:
    """The header, read in order."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, count):
        if count > len(self.data) - self.at:
            raise Refused(f"the file ends within its header, at byte {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, letter):
        return struct.unpack("<" + letter, self.bytes(struct.calcsize("<" + letter)))[0]

    def string(self):
        return self.bytes(self.number("Q"))

    def value(self, kind):
        """A metadata value; of an array, none but its end."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise Refused(f"metadata of type {kind}, which GGUF does not have, before byte {self.at}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            self.bytes(count * struct.calcsize("<" + SCALARS[inner]))
        else:
            for _ in range(count):
                self.value(inner)
        return None


def halves(blocks, at):
    """The f16 at this byte of each block, as a column of f32."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def q4_0(blocks):
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return halves(blocks, 0) * (nibbles.astype(np.float32) - 8)


def q4_1(blocks):
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return halves(blocks, 0) * nibbles.astype(np.float32) + halves(blocks, 2)


def q8_0(blocks):
    return halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def q6_k(blocks):
    # Two halves of 128 values, each four runs of 32: the low nibbles of 64 bytes, then the high ones; two more bits from 32 bytes.
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    bits = high >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1) & 3
    values = (nibbles | bits << 4).astype(np.float32) - 32
    scales = halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (values.reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


# By type: values in a block, its bytes, and what makes rows of blocks f32.
FORMATS = {
    F32: (1, 4, lambda blocks: blocks.view("<f4")),
    F16: (1, 2, lambda blocks: blocks.view("<f2").astype(np.float32)),
    BF16: (1, 2, lambda blocks: (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)),
    Q4_0: (32, 18, q4_0),
    Q4_1: (32, 20, q4_1),
    Q8_0: (32, 34, q8_0),
    Q6_K: (256, 210, q6_k),
}


class Tensor:
    def __init__(self, reader):
        self.name = reader.string()
        self.shape = [reader.number("Q") for _ in range(reader.number("I"))]
        self.format, self.offset = reader.number("I"), reader.number("Q")
        self.label = self.name.decode(errors="replace")
        if self.format not in FORMATS:
            raise Refused(f"{self.label} is stored in GGUF's type {self.format}; read are F32, F16, BF16, Q4_0, Q4_1, Q6_K and Q8_0")
        if not self.shape or self.shape[0] % FORMATS[self.format][0]:
            raise Refused(f"{self.label} of shape {self.shape} has rows that are no whole blocks of {FORMATS[self.format][0]} values")

    @property
    def new_format(self):
        return F32 if len(self.shape) == 1 else F16

    @property
    def new_bytes(self):
        return math.prod(self.shape) * FORMATS[self.new_format][1]

    def values(self, data):
        """In f32; `data` is what follows the header."""
        block_values, block_bytes, dequantised = FORMATS[self.format]
        length = math.prod(self.shape) // block_values * block_bytes
        if self.offset + length > len(data):
            raise Refused(f"the file ends within {self.label}")
        # No view of the file: its offsets need not suit the values.
        blocks = np.array(data[self.offset : self.offset + length]).reshape(-1, block_bytes)
        return dequantised(blocks).reshape(-1)

    def rewritten(self, data):
        values = self.values(data)
        if self.new_format == F16 and not np.all(np.abs(values) <= F16_MAX):
            raise Refused(f"{self.label} has values beyond {F16_MAX:.0f} or NaN, which f16 does not hold")
        return values.astype("<f4" if self.new_format == F32 else "<f2").tobytes()


def padding(length, alignment):
    return bytes(-length % alignment)


def rewrite(data, out):
    reader = Reader(data)
    if reader.bytes(4) != b"GGUF":
        raise Refused("it is no GGUF: its first bytes are not the letters")
    version = reader.number("I")
    if version not in (2, 3):
        raise Refused(f"GGUF version {version}; read are 2 and 3, little-endian")
    tensor_count, pair_count = reader.number("Q"), reader.number("Q")
    alignment, pairs = 32, []
    for _ in range(pair_count):
        begin = reader.at
        key, kind = reader.string(), reader.number("I")
        value_at = reader.at
        value = reader.value(kind)
        pair = data[begin : reader.at].tobytes()
        if key == b"general.alignment":
            alignment = value
        if key == b"general.file_type":
            if kind != UINT32:
                raise Refused(f"general.file_type is of type {kind}, not {UINT32}")
            pair = pair[: value_at - begin] + struct.pack("<I", MOSTLY_F16)
        pairs.append(pair)
    if not isinstance(alignment, int) or alignment < 1:
        raise Refused(f"general.alignment is {alignment}")
    tensors = [Tensor(reader) for _ in range(tensor_count)]
    data = data[reader.at + len(padding(reader.at, alignment)) :]

    header = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, pair_count) + b"".join(pairs)
    offset = 0
    for tensor in tensors:
        header += struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.new_format, offset)
        offset += tensor.new_bytes + len(padding(tensor.new_bytes, alignment))
    out.write(header + padding(len(header), alignment))
    for tensor in tensors:
        out.write(tensor.rewritten(data) + padding(tensor.new_bytes, alignment))
    return sum(tensor.new_format == F16 for tensor in tensors), tensor_count


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(beside, "xb") as out:
            matrices, tensors = rewrite(np.memmap(source, np.uint8, "r"), out)
        os.replace(beside, target)
    except (Refused, OSError, ValueError) as error:
        sys.exit(f"f16.py: {source}: {error}")
    finally:
        beside.unlink(missing_ok=True)
    print(f"{target}: {matrices} matrices of {tensors} tensors stored in f16")


if __name__ == "__main__":
    main()
