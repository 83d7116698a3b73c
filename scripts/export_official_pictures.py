#!/usr/bin/env python3
"""Draws with the small model as the official command line draws, for `tests/numerics/official.rs`.

    PYTHONPATH=<black-forest-labs/flux>/src python scripts/export_official_pictures.py fixtures/tiny fixtures/official

The official `flux` package runs the transformer and the autoencoder, transformers the text encoders, all in bf16 with
the decoder under bf16 autocast. Each picture is drawn twice: with the autoencoder in bf16 as it is stored, and in f32,
which is the kind of the official `ae.safetensors`.
"""

import json
import platform
import sys
from pathlib import Path

import torch
from einops import rearrange, repeat
from flux.model import Flux, FluxParams
from flux.modules.autoencoder import AutoEncoder, AutoEncoderParams
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

PICTURES = [
    ("a red circle on a blue background", 42, 4),
    ("a white ring on a black background", 7, 4),
    ("an orange cross on a green background", 123456789012, 4),
    ("a yellow triangle on a purple background", 3, 7),
]
PARAMS = FluxParams(
    in_channels=64, out_channels=64, vec_in_dim=64, context_in_dim=64, hidden_size=128, mlp_ratio=4.0, num_heads=4, depth=2,
    depth_single_blocks=4, axes_dim=[4, 14, 14], theta=10_000, qkv_bias=True, guidance_embed=False,
)  # fmt: skip
AE_PARAMS = AutoEncoderParams(
    resolution=256, in_channels=3, ch=32, out_ch=3, ch_mult=[1, 1, 2, 2], num_res_blocks=1, z_channels=16, scale_factor=0.3611,
    shift_factor=0.1159,
)  # fmt: skip


def cpu_vendor() -> str:
    """As the CPU says it; elsewhere the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("vendor_id")), platform.machine())


class Official:
    def __init__(self, model: Path) -> None:
        self.t5 = T5EncoderModel.from_pretrained(model / "text_encoder_2", dtype=torch.bfloat16).eval()
        self.clip = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.bfloat16).eval()
        self.t5_tokenizer = T5Tokenizer.from_pretrained(model / "tokenizer_2")
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.flux = Flux(PARAMS).to(torch.bfloat16)
        self.flux.load_state_dict(load_file(model / "flux1-schnell.safetensors"), strict=True)
        weights = load_file(model / "ae.safetensors")
        self.autoencoders = {}
        for kind in (torch.bfloat16, torch.float32):
            self.autoencoders[kind] = AutoEncoder(AE_PARAMS).to(kind)
            self.autoencoders[kind].load_state_dict({k: v.to(kind) for k, v in weights.items()}, strict=True)

    def states(self, model, tokenizer, prompt: str, length: int, key: str) -> torch.Tensor:
        ids = tokenizer([prompt], truncation=True, max_length=length, padding="max_length", return_tensors="pt").input_ids
        return model(input_ids=ids, attention_mask=None)[key].bfloat16()

    def latent(self, prompt: str, seed: int, steps: int) -> torch.Tensor:
        txt = self.states(self.t5, self.t5_tokenizer, prompt, 256, "last_hidden_state")
        vec = self.states(self.clip, self.clip_tokenizer, prompt, 77, "pooler_output")
        generator = torch.Generator("cpu").manual_seed(seed)
        x = torch.randn(1, 16, 8, 8, dtype=torch.bfloat16, generator=generator)
        img = rearrange(x, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=2, pw=2)
        img_ids = torch.zeros(4, 4, 3)
        img_ids[..., 1] += torch.arange(4)[:, None]
        img_ids[..., 2] += torch.arange(4)[None, :]
        img_ids = repeat(img_ids, "h w c -> b (h w) c", b=1)
        timesteps = torch.linspace(1, 0, steps + 1).tolist()
        for t_curr, t_prev in zip(timesteps[:-1], timesteps[1:]):
            t_vec = torch.full((1,), t_curr, dtype=img.dtype)
            pred = self.flux(
                img=img, img_ids=img_ids, txt=txt, txt_ids=torch.zeros(1, 256, 3), y=vec, timesteps=t_vec, guidance=t_vec
            )
            img = img + (t_prev - t_curr) * pred
        return rearrange(img.float(), "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=4, w=4, ph=2, pw=2)

    def picture(self, latent: torch.Tensor, kind: torch.dtype) -> Image.Image:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.autoencoders[kind].decode(latent)
        x = rearrange(x.clamp(-1, 1).float()[0], "c h w -> h w c")
        return Image.fromarray((127.5 * (x + 1.0)).byte().numpy())


@torch.inference_mode()
def main() -> None:
    model, out = map(Path, sys.argv[1:3])
    torch.set_num_threads(2)
    official = Official(model)
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for i, (prompt, seed, steps) in enumerate(PICTURES):
        latent = official.latent(prompt, seed, steps)
        for name, kind in (("bf16", torch.bfloat16), ("f32", torch.float32)):
            official.picture(latent, kind).save(out / f"{i}-{name}.png")
            listed.append({"file": f"{i}-{name}.png", "autoencoder": name, "prompt": prompt, "seed": seed, "steps": steps})
    bf16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": bf16,
        "cpu_vendor": cpu_vendor(),
    }
    (out / "pictures.json").write_text(json.dumps({"machine": machine, "pictures": listed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
