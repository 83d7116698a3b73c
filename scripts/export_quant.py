#!/usr/bin/env python3
"""Makes fixtures/quant: stored bytes, and the numbers that the packages which store them make of them.

    python scripts/export_quant.py [fixtures/quant]

Needs torch, numpy, safetensors, gguf==0.19.0 and bitsandbytes==0.50.*.

`gguf.safetensors`: for every type of block `<type>.bytes` and `<type>.numbers` (f32). The first blocks are random bytes
with scales of every sort; the rest are quantised normal numbers, where the package can quantise. `bitsandbytes.safetensors`:
weights of four bits as a file has them, under `<type>.<case>.weight…`, with `….numbers`; `int8.weight`, `int8.SCB` and
`int8.numbers`. `fp8.safetensors`: what torch makes of each of the 256 bytes, and bytes of f32 numbers.
"""

import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file

BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Where the f16 scales lie in a block.
SCALES = {
    **{name: [0] for name in ["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"]},
    **{name: [0, 2] for name in ["Q4_1", "Q5_1", "Q4_K", "Q5_K"]},
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q6_K": [208],
}
# Zero, minus zero, subnormal, the smallest normal, the greatest, and ordinary ones.
ODD = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00, 0x1234, 0x9ABC, 0x2E66]


def blocks(rng):
    out = {}
    for name in BLOCKS:
        kind = Type[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = len(ODD) if elements == 32 else 6
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for i, row in enumerate(raw):
            for j, at in enumerate(SCALES[name]):
                row[at : at + 2] = np.array([ODD[(i + 5 * j) % len(ODD)]], dtype=np.uint16).view(np.uint8)
        # Ordinary scales for as many again.
        more = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for row in more:
            for at in SCALES[name]:
                row[at : at + 2] = rng.normal(0, 0.01, 1).astype(np.float16).view(np.uint8)
        stored = [raw, more]
        try:
            numbers = rng.normal(0, 0.02, (count, elements)).astype(np.float32)
            stored.append(gguf.quants.quantize(numbers, kind))
        except NotImplementedError:
            pass
        stored = np.concatenate(stored)
        out[f"{name}.bytes"] = torch.from_numpy(stored)
        out[f"{name}.numbers"] = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    return out


def four_bit():
    out = {}
    cases = {
        "plain": ((12, 64), 64, False, torch.float32),
        "nested": ((36, 256), 32, True, torch.bfloat16),
        "odd": ((7, 37), 32, False, torch.float32),
        "odd_nested": ((5, 301), 128, True, torch.float32),
    }
    for kind in ["nf4", "fp4"]:
        for case, (shape, block, nested, dtype) in cases.items():
            weight = (torch.randn(shape) * 0.02).to(dtype)
            stored, state = bnb.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=nested)
            out[f"{kind}.{case}.weight"] = stored
            for key, tensor in state.as_dict(packed=True).items():
                out[f"{kind}.{case}.weight.{key}"] = tensor
            state.dtype = torch.float32
            out[f"{kind}.{case}.numbers"] = bnb.dequantize_4bit(stored, state)
    return out


def int8():
    weight = (torch.randn(9, 48) * 0.02).half()
    stored, scale, _ = bnb.int8_vectorwise_quant(weight)
    numbers = bnb.int8_vectorwise_dequant(stored, scale)
    return {"int8.weight": stored, "int8.SCB": scale, "int8.numbers": numbers}


def fp8():
    every = torch.arange(256, dtype=torch.uint8)
    out = {}
    for name, kind in {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}.items():
        out[f"{name}.numbers"] = every.view(kind).float()
    # Every number of e4m3fn, what lies between them and beside the middle, and normal ones.
    exact = out["e4m3.numbers"][:127]
    middle = (exact[1:] + exact[:-1]) / 2
    beside = [torch.nextafter(middle, torch.full_like(middle, end)) for end in (0.0, 1e9)]
    wide = torch.randn(2000) * torch.exp2(torch.randint(-12, 7, (2000,)).float())
    numbers = torch.cat([exact, middle, *beside, wide.clamp(-448, 448)])
    numbers = torch.cat([numbers, -numbers])
    out["to_e4m3.numbers"] = numbers
    out["to_e4m3.bytes"] = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    return out


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "fixtures/quant")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(blocks(np.random.default_rng(0)), folder / "gguf.safetensors")
    save_file(four_bit() | int8(), folder / "bitsandbytes.safetensors")
    save_file(fp8(), folder / "fp8.safetensors")


if __name__ == "__main__":
    main()
