#!/usr/bin/env python3
"""Makes fixtures/formats: small quantised models, each written by the package that users' files come from.

    python scripts/export_formats.py [fixtures/formats]

Needs torch, numpy, safetensors, gguf==0.19.0, bitsandbytes==0.50.*, accelerate, diffusers and transformers.

`*.gguf` are written by gguf: a FLUX.1 of one block of each kind as dev, schnell and Fill, FLUX.2's names, a T5 in
llama.cpp's names, and tensors of the autoencoder. `*.diffusers.safetensors` and `t5.*.safetensors` are what diffusers and
transformers save after bitsandbytes has quantised a model; `comfy.nf4*.safetensors` are fused official names with
bitsandbytes' own tensors beside them, as ComfyUI's files have them.

`expected.json`: of every quantised tensor, by file and name, the FNV-1a hash of its numbers as little-endian f32, by the
package's own dequantisation.
"""

import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig as TransformersConfig
from transformers import T5Config, T5EncoderModel

LAYOUTS = Path(__file__).parent.parent / "fixtures" / "layouts"
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else LAYOUTS.parent / "formats")
# The sizes of the official models, and those of the small ones.
FLUX1 = {
    3072: 32, 6144: 64, 9216: 96, 12288: 128, 15360: 160, 18432: 192, 21504: 224,
    4096: 256, 768: 256, 256: 256, 128: 32, 64: 32, 384: 192,
}  # fmt: skip
# Rows of 256 numbers take the larger blocks, and others the smaller; a model mixes them as its maker likes. Vectors are
# F32 as a rule, and BF16 in some files.
KINDS = {
    "large": [Type.Q4_K, Type.Q6_K, Type.Q2_K, Type.Q3_K, Type.Q5_K, Type.IQ4_XS],
    "small": [Type.Q8_0, Type.Q4_0, Type.Q5_1, Type.Q4_1, Type.Q5_0, Type.IQ4_NL, Type.F16, Type.BF16],
    "vector": [Type.F32, Type.BF16],
}
# Where the f16 scales lie in the blocks that the package cannot write: theirs are random bytes but for these.
SCALES = {
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q6_K: [208],
    Type.IQ4_XS: [0], Type.IQ4_NL: [0],
}  # fmt: skip

expected: dict[str, dict[str, str]] = {}
rng = np.random.default_rng(7)


def fnv(numbers) -> str:
    state = 0xCBF29CE484222325
    for byte in np.ascontiguousarray(numbers, dtype="<f4").tobytes():
        state = (state ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{state:016x}"


def stored(kind: Type, shape: list[int]) -> np.ndarray:
    """A matrix of that type, as bytes."""
    if kind not in SCALES:
        return gguf.quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = rng.normal(0, 0.002, rows.shape[:-1]).astype(np.float16)
        rows[..., at : at + 2] = scales[..., None].view(np.uint8)
    return rows.reshape(*shape[:-1], -1)


class Gguf:
    def __init__(self, name: str, arch: str = "flux"):
        self.name = name
        self.kinds = {key: itertools.cycle(kinds) for key, kinds in KINDS.items()}
        self.writer = gguf.GGUFWriter(OUT / name, arch)

    def add(self, name: str, shape: list[int], kind: Type | None = None) -> None:
        if kind is None:
            key = "vector" if len(shape) < 2 else "large" if shape[-1] % 256 == 0 else "small"
            kind = next(self.kinds[key])
        data = stored(kind, shape)
        self.writer.add_tensor(name, data, raw_dtype=kind)
        expected.setdefault(self.name, {})[name] = fnv(gguf.dequantize(data, kind))

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def layout(name: str):
    """The names and shapes of a model's first blocks."""
    for line in (LAYOUTS / f"{name}.txt").read_text().splitlines():
        name, _, shape = line.split("\t")
        fields = name.split(".")
        if not fields[0].endswith("_blocks") or fields[1] == "0":
            yield name, [int(d) for d in shape.split(",")]


def flux1(name: str, official: str) -> None:
    file = Gguf(name)
    for tensor, shape in layout(official):
        file.add(tensor, [FLUX1[d] for d in shape])
    file.close()


def flux2() -> None:
    file = Gguf("flux2.gguf")
    for tensor, shape in layout("flux2-dev"):
        file.add(tensor, [max(32, round(d / 6144) * 32) for d in shape])
    file.close()


def t5_gguf() -> None:
    file = Gguf("t5.gguf", "t5encoder")
    file.add("token_embd.weight", [40, 64], Type.Q8_0)
    for i in range(2):
        block = f"enc.blk.{i}."
        for name in ["attn_norm", "ffn_norm"]:
            file.add(f"{block}{name}.weight", [64], Type.F32)
        for name in ["attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down"]:
            shape = [64, 96] if name == "ffn_down" else [96 if name.startswith("ffn") else 64, 64]
            file.add(f"{block}{name}.weight", shape)
    file.add("enc.blk.0.attn_rel_b.weight", [32, 2], Type.F16)
    file.add("enc.output_norm.weight", [64], Type.F32)
    file.close()


def autoencoder_gguf() -> None:
    file = Gguf("ae.gguf", "pig")
    file.add("encoder.down.0.block.0.conv1.weight", [8, 4, 3, 3], Type.F16)
    file.add("encoder.down.0.block.0.conv1.bias", [8], Type.F32)
    # Kernels of 3 are no whole blocks, so they are stored as rows that are.
    file.add("decoder.mid.block_1.conv1.weight", [36, 32], Type.Q8_0)
    file.writer.add_array("comfy.gguf.orig_shape.decoder.mid.block_1.conv1.weight", [8, 16, 3, 3])
    file.add("decoder.mid.attn_1.q.weight", [8, 8, 1, 1], Type.BF16)
    file.close()


def four_bits(path: Path) -> dict[str, str]:
    tensors = load_file(path)
    hashes = {}
    for name in tensors:
        if ".quant_state." in name:
            weight = name[: name.index(".quant_state.")]
            parts = {k[len(weight) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{weight}.")}
            state = bnb.QuantState.from_dict(parts, device="cpu")
            state.dtype = torch.float32
            # On the CPU, bitsandbytes 0.50 goes astray where a row is shorter than a block.
            state.shape = torch.Size([tensors[weight].numel() * 2 // state.blocksize, state.blocksize])
            hashes[weight] = fnv(bnb.dequantize_4bit(tensors[weight], state).numpy())
        elif name.endswith(".SCB"):
            weight = f"{name[:-4]}.weight"
            hashes[weight] = fnv(bnb.int8_vectorwise_dequant(tensors[weight], tensors[name]).numpy())
    return hashes


# diffusers insists on a GPU; bitsandbytes itself does not.
for quantizer in [bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer]:
    quantizer.validate_environment = lambda self, *a, **k: None
    quantizer.update_device_map = lambda self, device_map: device_map

CASES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def through(model, load, config, target: str) -> None:
    """Saves a model, loads it quantised, and saves that."""
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as quantised:
        model.to(torch.bfloat16).save_pretrained(plain)
        loaded = load(plain, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"})
        loaded.save_pretrained(quantised)
        (file,) = Path(quantised).glob("*.safetensors")
        shutil.copy(file, OUT / target)
    expected[target] = four_bits(OUT / target)


def diffusers(case: str) -> None:
    torch.manual_seed(3)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=32,
        num_attention_heads=1, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    load = lambda path, dtype, **k: FluxTransformer2DModel.from_pretrained(path, torch_dtype=dtype, **k)  # noqa: E731
    through(model, load, BitsAndBytesConfig(**CASES[case]), f"flux1.{case}.diffusers.safetensors")


def transformers(case: str) -> None:
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=40, d_model=64, d_kv=32, d_ff=96, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    load = T5EncoderModel.from_pretrained
    through(T5EncoderModel(config), load, TransformersConfig(**CASES[case]), f"t5.{case}.safetensors")


def comfy(double: bool) -> None:
    torch.manual_seed(5)
    prefix, tensors = "model.diffusion_model.", {}
    for name, shape in layout("flux1-schnell"):
        weight = torch.randn([FLUX1[d] // (8 if d in (4096, 768) else 1) for d in shape]).to(torch.float16)
        if weight.dim() < 2 or "img_in" in name:
            tensors[prefix + name] = weight
            continue
        packed, state = bnb.quantize_4bit(weight * 0.1, quant_type="nf4", compress_statistics=double)
        tensors[prefix + name] = packed
        tensors |= {f"{prefix}{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
    target = f"comfy.nf4{'-double' if double else ''}.safetensors"
    save_file(tensors, OUT / target)
    expected[target] = four_bits(OUT / target)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    flux1("dev.gguf", "flux1-dev")
    flux1("fill.gguf", "flux1-fill-dev")
    flux1("schnell.gguf", "flux1-schnell")
    flux2()
    t5_gguf()
    autoencoder_gguf()
    for case in ["nf4", "nf4-double", "int8"]:
        diffusers(case)
    for case in ["fp4", "int8"]:
        transformers(case)
    comfy(False)
    comfy(True)
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


main()
