#!/usr/bin/env python3
"""Writes the small GGUF files of `fixtures/gguf`, for `tests/files/gguf.rs`, with the package `gguf` of llama.cpp's authors.

    scripts/with-libtorch --reference python scripts/export_gguf.py fixtures/gguf

`values.safetensors` holds what the package's own reader finds in them, under FILE:TENSOR: numbers, or the bytes of blocks.
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize
from safetensors.numpy import save_file

PLAIN = [Type.F32, Type.F16, Type.BF16, Type.F64, Type.I8, Type.I16, Type.I32, Type.I64]
NUMPY = {
    Type.F64: np.float64, Type.I8: np.int8, Type.I16: np.int16, Type.I32: np.int32, Type.I64: np.int64,
}  # fmt: skip
# The package quantises to these; of the others it knows how to read them, and what is in them is random here.
BLOCKS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
RANDOM = {
    Type.Q2_K: 84, Type.Q3_K: 110, Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210, Type.IQ4_NL: 18, Type.IQ4_XS: 136,
}  # fmt: skip


def ramp(*shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.float32) % 61 - 30).reshape(shape) / 4


def write(path: str, fill, arch: str | None = "flux") -> None:
    writer = GGUFWriter(path, arch or "flux")
    if arch is None:
        writer.kv_data[0].clear()
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: GGUFWriter, name: str, kind: Type, values: np.ndarray) -> None:
    if kind in NUMPY:
        writer.add_tensor(name, values.astype(NUMPY[kind]))
    else:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def plain(writer: GGUFWriter) -> None:
    for kind in PLAIN:
        add(writer, f"{kind.name.lower()}.weight", kind, ramp(3, 5))
    add(writer, "vector", Type.BF16, ramp(7))
    writer.add_tensor("scalar", np.float32(2.5).reshape(()))
    add(writer, "four", Type.F32, ramp(2, 3, 4, 5))


def blocks(writer: GGUFWriter) -> None:
    writer.add_quantization_version(2)
    writer.add_file_type(14)
    for kind in BLOCKS:
        add(writer, f"{kind.name.lower()}.weight", kind, ramp(3, 64))
    rng = np.random.default_rng(0)
    for kind, size in RANDOM.items():
        row = 64 if kind == Type.IQ4_NL else 512
        data = rng.integers(0, 256, (3, row * size // (32 if kind == Type.IQ4_NL else 256)), dtype=np.uint8)
        writer.add_tensor(f"{kind.name.lower()}.weight", data, raw_dtype=kind)
    add(writer, "bias", Type.F32, ramp(3))


def metadata(writer: GGUFWriter) -> None:
    values = {
        "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4000000000, "i32": -2000000000,
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 1e300,
    }  # fmt: skip
    names = {"u": "UINT", "i": "INT", "f": "FLOAT"}
    for name, value in values.items():
        writer.add_key_value(f"test.{name}", value, GGUFValueType[names[name[0]] + name[1:]])
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "two\nlines, ünïcödé")
    writer.add_array("test.short", [1, -2, 3])
    writer.add_array("test.words", ["a", "b \"c\"", ""])
    writer.add_array("test.long", [float(i) for i in range(100)])
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(1000)])
    nested = [[1, 2], [3]]
    writer.add_key_value("test.nested", nested, GGUFValueType.ARRAY, GGUFValueType.ARRAY)
    writer.add_custom_alignment(64)
    add(writer, "weight", Type.F16, ramp(4, 6))
    add(writer, "bias", Type.F32, ramp(4))


def comfy(writer: GGUFWriter) -> None:
    """As ComfyUI-GGUF's `convert.py` keeps what is no matrix, or has rows of no whole blocks."""

    def shaped(name: str, shape: tuple[int, ...]) -> None:
        key = f"comfy.gguf.orig_shape.{name}"
        writer.add_key_value(key, shape, GGUFValueType.ARRAY, GGUFValueType.INT32)

    add(writer, "conv.weight", Type.Q8_0, ramp(2, 4, 4, 4).reshape(-1, 32))
    shaped("conv.weight", (2, 4, 4, 4))
    add(writer, "five.weight", Type.F16, ramp(2, 3, 2, 2, 4).reshape(-1, 4))
    shaped("five.weight", (2, 3, 2, 2, 4))
    add(writer, "img_in.bias", Type.F32, ramp(8))


def main() -> None:
    out = sys.argv[1]
    files = {
        "plain": (plain, None),
        "blocks": (blocks, "flux"),
        "metadata": (metadata, "pig"),
        "comfy": (comfy, "flux"),
        "empty": (lambda _: None, "cow"),
    }
    expected = {}
    for name, (fill, arch) in files.items():
        write(f"{out}/{name}.gguf", fill, arch)
        for tensor in GGUFReader(f"{out}/{name}.gguf").tensors:
            values = tensor.data
            if tensor.tensor_type == Type.BF16:
                values = dequantize(values, tensor.tensor_type)
            expected[f"{name}:{tensor.name}"] = np.ascontiguousarray(values)
    save_file(expected, f"{out}/values.safetensors")


if __name__ == "__main__":
    main()
