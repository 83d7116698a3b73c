"""That diffusers loads what `tch-flux convert` writes, from `config.json` to a forward pass.

Small random models are built by diffusers and saved; the binary converts them to the official names, and back to a
folder for diffusers, in one file and in shards. `from_pretrained` must take the folder with every tensor in its place,
and the outputs must be the same bits. The same for LoRAs: what the loaded adapter adds is what the matrices say.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.loaders import Flux2LoraLoaderMixin, FluxLoraLoaderMixin
from safetensors.torch import load_file, save_file

FLUX1 = dict(
    in_channels=16, out_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=40, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(4, 14, 14),
)
FLUX2 = dict(
    in_channels=32, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=48, axes_dims_rope=(8, 8, 8, 8), guidance_embeds=True,
)
LEVELS = dict(
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(32, 64, 64), layers_per_block=2, latent_channels=4,
)


def flux1_inputs():
    rand = torch.Generator().manual_seed(1)
    return dict(
        hidden_states=torch.randn(1, 6, 16, generator=rand),
        encoder_hidden_states=torch.randn(1, 5, 40, generator=rand),
        pooled_projections=torch.randn(1, 24, generator=rand),
        timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]),
        img_ids=torch.randint(0, 4, (6, 3), generator=rand).float(), txt_ids=torch.zeros(5, 3),
    )


def flux2_inputs():
    rand = torch.Generator().manual_seed(2)
    return dict(
        hidden_states=torch.randn(1, 6, 32, generator=rand),
        encoder_hidden_states=torch.randn(1, 5, 48, generator=rand),
        timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]),
        img_ids=torch.randint(0, 4, (6, 4), generator=rand).float(), txt_ids=torch.zeros(5, 4),
    )


def picture():
    return dict(sample=torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)))


MODELS = {
    "FLUX.1": (FluxTransformer2DModel, FLUX1, flux1_inputs),
    "schnell": (FluxTransformer2DModel, FLUX1 | dict(guidance_embeds=False), flux1_inputs),
    "FLUX.2": (Flux2Transformer2DModel, FLUX2, flux2_inputs),
    "klein": (Flux2Transformer2DModel, FLUX2 | dict(guidance_embeds=False), flux2_inputs),
    "autoencoder": (
        AutoencoderKL,
        LEVELS | dict(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        picture,
    ),
    "autoencoder 2": (AutoencoderKLFlux2, LEVELS, picture),
}


class Check:
    def __init__(self, binary):
        self.binary, self.failed, self.passed = binary, 0, 0

    def convert(self, *arguments):
        subprocess.run([self.binary, "convert", *map(str, arguments)], check=True, capture_output=True)

    def say(self, what, good, why=""):
        print(f"{'ok    ' if good else 'FAILED'} {what} {why}")
        self.passed, self.failed = self.passed + good, self.failed + (not good)

    def model(self, name, folder):
        kind, config, inputs = MODELS[name]
        torch.manual_seed(0)
        model = kind(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / "theirs")
        self.convert(folder / "theirs", folder / "official.safetensors", "--layout", "official")
        official = load_file(folder / "official.safetensors")
        self.say(f"{name}: official names", not set(official) & set(model.state_dict()) - SAME)
        for shards in ([], ["--shard-size", "100kB"]):
            out = folder / ("sharded" if shards else "whole")
            self.convert(folder / "official.safetensors", out, "--layout", "diffusers", *shards)
            files = list(out.glob("*.safetensors"))
            self.say(f"{name}: {len(files)} files", (len(files) > 1) == bool(shards))
            loaded, info = kind.from_pretrained(out, output_loading_info=True)
            lost = {key: list(value) for key, value in info.items() if value}
            self.say(f"{name}: every tensor has its place", not lost, lost or "")
            own = {k: v for k, v in model.config.items() if not k.startswith("_")}
            new = {k: v for k, v in loaded.config.items() if not k.startswith("_")}
            differ = {k for k in own if norm(own[k]) != norm(new.get(k))} - SAID_BY_NO_SHAPE
            differ -= {"out_channels"} if own.get("out_channels") is None else set()
            self.say(f"{name}: the same settings", not differ, differ or "")
            given = inputs()
            if not config.get("guidance_embeds", True):
                given["guidance"] = None
            with torch.no_grad():
                a, b = (m.eval()(**given, return_dict=False)[0] for m in (model, loaded))
            self.say(f"{name}: the same output", torch.equal(a, b), f"{(a - b).abs().max():.1e}")

    def lora(self, name, loader, folder):
        kind, config, inputs = MODELS[name]
        torch.manual_seed(0)
        model = kind(**config).eval()
        rand = torch.Generator().manual_seed(4)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        chosen = [n for n in layers if any(s in n for s in (
            "blocks.0.attn.to_", "blocks.1.ff.", "norm_out.linear", "single_transformer_blocks.1.proj_",
        ))]
        tensors, deltas = {}, {}
        for layer in chosen:
            out, into = layers[layer].weight.shape
            rank = 4
            down, up = torch.randn(rank, into, generator=rand), torch.randn(out, rank, generator=rand)
            tensors[f"transformer.{layer}.lora_A.weight"] = down * 0.1
            tensors[f"transformer.{layer}.lora_B.weight"] = up * 0.1
            deltas[layer] = up @ down * 0.01 * 0.5
        save_file(tensors, folder / "plain.safetensors", metadata={"format": "pt", "lora_adapter_metadata": json.dumps({
            "transformer.r": 4, "transformer.lora_alpha": 2, "transformer.target_modules": chosen,
        })})
        self.convert(folder / "plain.safetensors", folder / "official.safetensors", "--layout", "official")
        self.convert(folder / "official.safetensors", folder / "back", "--layout", "diffusers")

        first = name == "FLUX.1"
        state = loader.lora_state_dict(
            folder / "back", weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True,
            **({"return_alphas": True} if first else {}),
        )
        loaded = kind(**config).eval()
        loaded.load_state_dict(model.state_dict())
        loader.load_lora_into_transformer(
            state[0], transformer=loaded, metadata=state[-1], low_cpu_mem_usage=False,
            **({"network_alphas": state[1]} if first else {}),
        )
        weights = model.state_dict()
        for layer, delta in deltas.items():
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + delta
        expected = kind(**config).eval()
        expected.load_state_dict(weights)
        with torch.no_grad():
            before, a, b = (m(**inputs(), return_dict=False)[0] for m in (model, expected, loaded))
        off, size = (a - b).abs().max(), (a - before).abs().max()
        self.say(f"{name}: a LoRA of {len(chosen)} layers", off < 1e-4 * size, f"{off:.1e} of {size:.1e}")


def norm(value):
    return list(value) if isinstance(value, (list, tuple)) else value


# Names that both layouts share.
SAME = {f"{part}.{conv}.{kind}" for part in ("encoder", "decoder") for conv in ("conv_in", "conv_out")
        for kind in ("weight", "bias")} | {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
SAID_BY_NO_SHAPE = {"sample_size"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    check = Check(parser.parse_args().binary)
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            check.model(name, Path(folder))
    for name, loader in (("FLUX.1", FluxLoraLoaderMixin), ("FLUX.2", Flux2LoraLoaderMixin)):
        with tempfile.TemporaryDirectory() as folder:
            check.lora(name, loader, Path(folder))
    print(f"{check.passed} passed, {check.failed} failed")
    sys.exit(check.failed > 0)


if __name__ == "__main__":
    main()
