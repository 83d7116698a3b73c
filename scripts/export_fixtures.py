#!/usr/bin/env python3
"""Makes fresh parity cases: the reference implementations, run on sizes and weights drawn from a seed.

    scripts/with-libtorch --reference python scripts/export_fixtures.py OUT_DIR [--seed N] [--reference flux,...]
    cargo run --release -- parity OUT_DIR

With `--device cuda` on both, the bits of PyTorch on a GPU are compared.

Each case is one safetensors file: the weights (`w.<state_dict name>`), the inputs (`in.<argument>`), the results
(`out.<result>`), and in its metadata what was run, with which arguments, by which implementation, on which machine.

The references are `transformers` and `diffusers` (both in `requirements.txt`) and `flux`, the official code, where a
checkout of black-forest-labs/flux is on PYTHONPATH (its `src` folder). Unless told, every one that is there is run.

A case depends on the seed and on its own name alone, so leaving out a reference does not change the other cases.
"""

import argparse
import json
import platform
import math
import random
import sys
import time
import zlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import export_adapters
import torch
from safetensors.torch import save_file

# Where the references run. Weights and inputs are drawn on the CPU, so that they are the same everywhere.
DEVICE = "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Keeps an f32 file below 3 MB.
MAX_PARAMETERS = 700_000


def cpu_vendor() -> str:
    """As the CPU says it; elsewhere the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("vendor_id")), platform.machine())


class Exporter:
    """Draws sizes (`rng`) and tensors (torch's own generator), and writes the cases of one reference."""

    def __init__(self, out: Path, seed: int, reference: str):
        self.out, self.seed, self.reference = out, seed, reference
        self.count = 0

    def start(self, name: str) -> random.Random:
        """Everything drawn from here on belongs to the case `name`."""
        torch.manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        return random.Random(f"{self.seed} {name}")

    def write(self, name, module, params, inputs=None, outputs=None, weights=None):
        """Tensors that are `None` are left out; a single result is named `output`."""
        if isinstance(outputs, torch.Tensor):
            outputs = {"output": outputs}
        groups = {"w": weights or {}, "in": inputs or {}, "out": outputs}
        tensors = {
            # A clone, since safetensors refuses tensors that share memory.
            f"{group}.{key}": tensor.detach().cpu().clone().contiguous()
            for group, items in groups.items()
            for key, tensor in items.items()
            if tensor is not None
        }
        machine = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "cpu_vendor": cpu_vendor(),
        }
        metadata = {
            "format": "parity-case/1",
            "module": module,
            "params": json.dumps(params),
            "reference": f"{self.reference}, torch {torch.__version__} {DEVICE.upper()}",
            "machine": json.dumps(machine),
        }
        save_file(tensors, self.out / f"{name}.safetensors", metadata)
        self.count += 1


# ---------------------------------------------------------------- drawing


def randomise(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Weights of a trained model's scale: a fresh model's zeros and ones would hide mistakes."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if parameter.ndim > 1:
            value = noise / math.sqrt(parameter[0].numel())
        else:
            value = 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
        parameter.data = value.to(dtype)
    return model.eval().to(DEVICE)


def draw_fitting(rng: random.Random, draw, build):
    """Draws until the model is small enough; building on "meta" allocates nothing."""
    while True:
        params = draw(rng)
        with torch.device("meta"):
            model = build(params)
        if sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS:
            return params


def draw_heads(rng: random.Random) -> tuple[int, int, list[int]]:
    """Number of heads, size of a head, and the even sizes of the three axes, which sum to it."""
    heads, head_dim = rng.choice([1, 2, 3, 4]), rng.choice([16, 24, 32, 40])
    first, second = sorted(rng.sample(range(1, head_dim // 2), 2))
    return heads, head_dim, [2 * first, 2 * (second - first), head_dim - 2 * second]


def grid_ids(batch: int, height: int, width: int, index: int = 0) -> torch.Tensor:
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = index
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.reshape(1, -1, 3).repeat(batch, 1, 1)


def transformer_inputs(rng: random.Random, channels: int, context: int, pooled: int, guidance: bool) -> dict:
    batch, height, width, words = rng.randint(1, 3), rng.randint(2, 5), rng.randint(2, 6), rng.randint(1, 9)
    return {
        "img": torch.randn(batch, height * width, channels),
        "img_ids": grid_ids(batch, height, width),
        "txt": torch.randn(batch, words, context),
        "txt_ids": torch.zeros(batch, words, 3),
        "timesteps": torch.rand(batch),
        "y": torch.randn(batch, pooled),
        "guidance": torch.full((batch,), rng.choice([1.0, 2.5, 3.5, 30.0])) if guidance else None,
    }


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """Positions stay f32 whatever the model runs in, and so does what is made from them."""
    exact = ("ids", "pe", "freqs_cis", "pos")
    return {k: v if v is None else v.to(DEVICE, None if k.endswith(exact) else dtype) for k, v in inputs.items()}


# ---------------------------------------------------------------- the official code


def import_flux():
    """The official modules: math, layers, autoencoder, model, sampling."""
    # sampling.py imports these for other work than what runs here: one needs OpenCV, one makes a folder when imported.
    for name in ("flux.util", "flux.modules.conditioner", "flux.modules.image_embedders"):
        sys.modules.setdefault(name, MagicMock())
    import flux.math
    import flux.model
    import flux.modules.autoencoder
    import flux.modules.layers
    import flux.sampling

    return flux.math, flux.modules.layers, flux.modules.autoencoder, flux.model, flux.sampling


def draw_flux(rng: random.Random, guidance: bool, conditions: int = 0) -> dict:
    heads, head_dim, axes = draw_heads(rng)
    channels = rng.choice([8, 16, 20])
    return {
        "in_channels": channels + conditions,
        "out_channels": channels,
        "vec_in_dim": rng.randint(8, 40),
        "context_in_dim": rng.randint(8, 40),
        "hidden_size": heads * head_dim,
        "mlp_ratio": rng.choice([2.0, 3.0, 4.0]),
        "num_heads": heads,
        "depth": rng.randint(1, 3),
        "depth_single_blocks": rng.randint(1, 3),
        "axes_dim": axes,
        "theta": rng.choice([10000, 10000, 500]),
        "qkv_bias": rng.random() < 0.8,
        "guidance_embed": guidance,
    }


def export_flux(ex: Exporter):
    math_, layers, ae, model, sampling = import_flux()
    flux_functions(ex, math_, layers, sampling)
    flux_layers(ex, math_, layers)
    flux_autoencoder(ex, ae)
    flux_models(ex, model, sampling)


def flux_functions(ex: Exporter, math_, layers, sampling):
    for index in range(2):
        rng = ex.start(name := f"rope_{index}")
        dim, theta = 2 * rng.randint(2, 40), rng.choice([10000, 2000, 300])
        pos = torch.randint(0, 64, (rng.randint(1, 3), rng.randint(2, 20))).float().to(DEVICE)
        params = {"dim": dim, "theta": theta}
        ex.write(name, "flux.math.rope", params, {"pos": pos}, math_.rope(pos, dim, theta))

    rng = ex.start(name := "embed_nd")
    heads, head_dim, axes = draw_heads(rng)
    params = {"dim": head_dim, "theta": rng.choice([10000, 500]), "axes_dim": axes}
    ids = grid_ids(rng.randint(1, 3), rng.randint(2, 5), rng.randint(2, 6), index=rng.randint(0, 2)).to(DEVICE)
    ex.write(name, "flux.modules.layers.EmbedND", params, {"ids": ids}, layers.EmbedND(**params)(ids))

    for kind, dtype in DTYPES.items():
        rng = ex.start("attention")
        heads, head_dim, axes = draw_heads(rng)
        batch, height, width = rng.randint(1, 3), rng.randint(2, 5), rng.randint(2, 6)
        pe = layers.EmbedND(head_dim, 10000, axes)(grid_ids(batch, height, width).to(DEVICE))
        q, k, v = (torch.randn(batch, heads, height * width, head_dim).to(DEVICE, dtype) for _ in range(3))
        rotated = math_.apply_rope(q, k, pe)
        inputs, outputs = {"xq": q, "xk": k, "freqs_cis": pe}, dict(zip("qk", rotated))
        ex.write(f"apply_rope_{kind}", "flux.math.apply_rope", {}, inputs, outputs)
        inputs = {"q": q, "k": k, "v": v, "pe": pe}
        ex.write(f"attention_{kind}", "flux.math.attention", {}, inputs, math_.attention(**inputs))

    embedding = "flux.modules.layers.timestep_embedding"
    for kind, dtype in {**DTYPES, "odd": torch.float32, "period": torch.float32, "int": torch.int64}.items():
        rng = ex.start(name := f"timestep_embedding_{kind}")
        params = {"dim": 2 * rng.randint(5, 128) + (kind == "odd")}
        if kind == "period":
            params |= {"max_period": rng.choice([100, 5000]), "time_factor": rng.choice([1.0, 10.0])}
        t = torch.randint(0, 50, (rng.randint(1, 9),)) if kind == "int" else torch.rand(rng.randint(1, 9)).to(dtype)
        t = t.to(DEVICE)
        ex.write(name, embedding, params, {"t": t}, layers.timestep_embedding(t, **params))

    for index, dtype in enumerate(["bfloat16", "bfloat16", "float32", "float32"]):
        rng = ex.start(name := f"get_noise_{index}")
        params = {
            "num_samples": rng.randint(1, 3),
            "height": rng.randint(8, 100),
            "width": rng.randint(8, 100),
            "seed": rng.choice([rng.randrange(1000), rng.randrange(2**32), rng.randrange(2**60)]),
            "dtype": dtype,
        }
        noise = sampling.get_noise(**{**params, "dtype": getattr(torch, dtype)}, device="cpu")
        # torch up to 2.11 drew bf16 noise by another rule; the case says so, whatever libtorch it is later run on.
        if dtype == "bfloat16" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
            params["rule"] = "legacy"
        ex.write(name, "flux.sampling.get_noise", params, outputs=noise)

    for index, shift in enumerate([False, True, True]):
        rng = ex.start(name := f"get_schedule_{index}")
        params = {"num_steps": rng.randint(1, 60), "image_seq_len": rng.randint(16, 8192), "shift": shift}
        schedule = torch.tensor(sampling.get_schedule(**params), dtype=torch.float64)
        ex.write(name, "flux.sampling.get_schedule", params, outputs=schedule)

    # One prompt for several pictures, and several prompts for one noise: the official code repeats the single one.
    for name, images, prompts in [("prepare", 2, 2), ("prepare_one_image", 1, 3), ("prepare_one_prompt", 2, 1)]:
        rng = ex.start(name)
        img = torch.randn(images, rng.choice([4, 16]), 2 * rng.randint(1, 5), 2 * rng.randint(1, 5))
        txt = torch.randn(prompts, rng.randint(1, 9), rng.randint(8, 40))
        vec = torch.randn(prompts, rng.randint(8, 40))
        # The text encoders are the caller's: any function from prompts to tensors.
        outputs = sampling.prepare(lambda _: txt, lambda _: vec, img, "" if prompts == 1 else [""] * prompts)
        ex.write(name, "flux.sampling.prepare", {}, {"img": img, "txt": txt, "vec": vec}, outputs)

    rng = ex.start(name := "unpack")
    params = {"height": rng.randint(8, 100), "width": rng.randint(8, 100)}
    tokens = math.ceil(params["height"] / 16) * math.ceil(params["width"] / 16)
    x = torch.randn(rng.randint(1, 3), tokens, 64)
    ex.write(name, "flux.sampling.unpack", params, {"x": x}, sampling.unpack(x, **params))


def flux_layers(ex: Exporter, math_, layers):
    for kind, dtype in DTYPES.items():

        def case(name, cls, params, inputs, names=None):
            module, inputs = randomise(getattr(layers, cls)(**params), dtype), cast(inputs, dtype)
            outputs = module(**inputs)
            if cls == "Modulation":
                parts = [(i, part) for i, part in enumerate(outputs) if part is not None]
                outputs = {f"{i}.{k}": getattr(part, k) for i, part in parts for k in ("shift", "scale", "gate")}
            elif names:
                outputs = dict(zip(names, outputs))
            ex.write(f"{name}_{kind}", f"flux.modules.layers.{cls}", params, inputs, outputs, module.state_dict())

        rng = ex.start("layers")
        heads, head_dim, axes = draw_heads(rng)
        dim, batch, height, width, words = heads * head_dim, rng.randint(1, 3), 3, rng.randint(2, 6), rng.randint(1, 9)
        tokens, mlp_ratio = height * width, rng.choice([2.0, 3.0, 4.0])
        ids = grid_ids(batch, height, width).to(DEVICE)
        embed = layers.EmbedND(head_dim, 10000, axes)
        pe, joint_pe = embed(ids), embed(torch.cat((torch.zeros(batch, words, 3, device=DEVICE), ids), dim=1))
        x, vec = torch.randn(batch, tokens, dim), torch.randn(batch, dim)
        q, k, v = (torch.randn(batch, heads, tokens, head_dim) for _ in range(3))
        narrow = rng.randint(8, 40)

        case("mlp_embedder", "MLPEmbedder", {"in_dim": narrow, "hidden_dim": dim}, {"x": torch.randn(batch, narrow)})
        case("rms_norm", "RMSNorm", {"dim": head_dim}, {"x": q})
        case("qk_norm", "QKNorm", {"dim": head_dim}, {"q": q, "k": k, "v": v}, ["q", "k"])
        for suffix, bias in [("bias", True), ("nobias", False)]:
            params = {"dim": dim, "num_heads": heads, "qkv_bias": bias}
            case(f"self_attention_{suffix}", "SelfAttention", params, {"x": x, "pe": pe})
        case("modulation_single", "Modulation", {"dim": dim, "double": False}, {"vec": vec})
        case("modulation_double", "Modulation", {"dim": dim, "double": True}, {"vec": vec})
        params = {"hidden_size": dim, "num_heads": heads, "mlp_ratio": mlp_ratio}
        inputs = {"img": x, "txt": torch.randn(batch, words, dim), "vec": vec, "pe": joint_pe}
        case("double_stream_block", "DoubleStreamBlock", params | {"qkv_bias": True}, inputs, ["img", "txt"])
        joint = torch.randn(batch, words + tokens, dim)
        case("single_stream_block", "SingleStreamBlock", params, {"x": joint, "vec": vec, "pe": joint_pe})
        params = {"hidden_size": dim, "patch_size": 1, "out_channels": rng.choice([8, 16, 20])}
        case("last_layer", "LastLayer", params, {"x": x, "vec": vec})


def draw_levels(rng: random.Random) -> tuple[list[int], int]:
    """Channel multipliers of an autoencoder's levels, and its blocks per level."""
    return rng.choice([([1], 2), ([1, 1], 1), ([1, 1], 2), ([1, 2], 1), ([1, 1, 1], 1)])


def autoencoder_inputs(rng: random.Random, levels: int, latent: int) -> dict:
    step = 2 ** (levels - 1)
    return {
        "x": 2 * torch.rand(rng.randint(1, 2), 3, step * rng.randint(2, 6), step * rng.randint(2, 6)) - 1,
        "z": torch.randn(rng.randint(1, 2), latent, rng.randint(2, 6), rng.randint(2, 6)),
    }


def flux_autoencoder(ex: Exporter, ae):
    module = "flux.modules.autoencoder"
    for kind, dtype in DTYPES.items():
        rng = ex.start("ae_blocks")
        shape = rng.randint(1, 2), 32 * rng.randint(1, 2), rng.randint(2, 7), rng.randint(2, 7)
        x, params = torch.randn(shape).to(DEVICE, dtype), {"in_channels": shape[1]}
        block = randomise(ae.AttnBlock(**params), dtype)
        ex.write(f"ae_attn_block_{kind}", f"{module}.AttnBlock", params, {"x": x}, block(x), block.state_dict())
        params |= {"out_channels": 32 * rng.randint(1, 2)}
        block = randomise(ae.ResnetBlock(**params), dtype)
        ex.write(f"ae_resnet_block_{kind}", f"{module}.ResnetBlock", params, {"x": x}, block(x), block.state_dict())

        rng = ex.start("autoencoder")
        ch_mult, blocks = draw_levels(rng)
        params = {"resolution": 32, "in_channels": 3, "ch": 32, "out_ch": 3, "ch_mult": ch_mult}
        params |= {"num_res_blocks": blocks, "z_channels": rng.randint(2, 8)}
        params |= {"scale_factor": rng.choice([0.3611, 0.5]), "shift_factor": rng.choice([0.1159, 0.0, -0.3])}
        auto = randomise(ae.AutoEncoder(ae.AutoEncoderParams(**params)), dtype)
        inputs = cast(autoencoder_inputs(rng, len(ch_mult), params["z_channels"]), dtype)
        outputs = {"encode": auto.encode(inputs["x"]), "decode": auto.decode(inputs["z"])}
        ex.write(f"autoencoder_{kind}", f"{module}.AutoEncoder", params, inputs, outputs, auto.state_dict())


def flux_models(ex: Exporter, model, sampling):
    def build(params):
        return model.Flux(model.FluxParams(**params))

    for kind, dtype in DTYPES.items():
        for form, guidance, conditions in [("dev", True, 0), ("schnell", False, 0), ("fill", True, 32)]:
            rng = ex.start(f"flux_{form}")
            params = draw_fitting(rng, lambda r: draw_flux(r, guidance, conditions), build)
            inputs = transformer_inputs(
                rng, params["in_channels"], params["context_in_dim"], params["vec_in_dim"], guidance
            )
            net, inputs = randomise(build(params), dtype), cast(inputs, dtype)
            ex.write(f"flux_{form}_{kind}", "flux.model.Flux", params, inputs, net(**inputs), net.state_dict())

        for form, guidance, conditions, sequence in [
            ("guided", True, 0, False),
            ("schnell", False, 0, False),
            ("channel_cond", True, 24, False),
            ("kontext", True, 0, True),
        ]:
            rng = ex.start(f"denoise_{form}")
            params = draw_fitting(rng, lambda r: draw_flux(r, guidance, conditions), build)
            inputs = transformer_inputs(
                rng, params["out_channels"], params["context_in_dim"], params["vec_in_dim"], guidance=False
            )
            del inputs["timesteps"], inputs["guidance"]
            inputs["vec"] = inputs.pop("y")
            batch, tokens = inputs["img"].shape[:2]
            if conditions:
                inputs["img_cond"] = torch.randn(batch, tokens, conditions)
            if sequence:
                height, width = rng.randint(2, 4), rng.randint(2, 4)
                inputs["img_cond_seq"] = torch.randn(batch, height * width, params["out_channels"])
                inputs["img_cond_seq_ids"] = grid_ids(batch, height, width, index=1)
            steps, strength = rng.randint(2, 6), rng.choice([1.0, 2.5, 30.0])
            timesteps = sampling.get_schedule(steps, rng.randint(16, 4096), shift=guidance)
            net, inputs = randomise(build(params), dtype), cast(inputs, dtype)
            output = sampling.denoise(net, **inputs, timesteps=timesteps, guidance=strength)
            inputs["timesteps"] = torch.tensor(timesteps, dtype=torch.float64)
            params |= {"num_steps": steps, "guidance": strength}
            ex.write(f"denoise_{form}_{kind}", "flux.sampling.denoise", params, inputs, output, net.state_dict())

        rng = ex.start("flux_lora")
        lora = {"lora_rank": rng.randint(1, 8), "lora_scale": rng.choice([0.5, 0.8, 1.0])}

        def build_lora(params):
            return model.FluxLoraWrapper(**lora, params=model.FluxParams(**params))

        params = draw_fitting(rng, lambda r: draw_flux(r, guidance=True), build_lora)
        inputs = transformer_inputs(rng, params["in_channels"], params["context_in_dim"], params["vec_in_dim"], True)
        net, inputs = randomise(build_lora(params), dtype), cast(inputs, dtype)
        # Two files in one: the base model's, and the LoRA's as the official control LoRAs come.
        weights = {f"lora.{k}" if ".lora_" in k else k: v for k, v in net.state_dict().items()}
        ex.write(f"flux_lora_{kind}", "flux.model.FluxLoraWrapper", params | lora, inputs, net(**inputs), weights)


# ---------------------------------------------------------------- diffusers


def export_diffusers(ex: Exporter):
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from diffusers.pipelines.flux import ReduxImageEncoder

    def draw(rng: random.Random, guidance: bool) -> dict:
        heads, head_dim, axes = draw_heads(rng)
        return {
            "patch_size": 1,
            "in_channels": rng.choice([8, 16, 20]),
            "num_layers": rng.randint(1, 3),
            "num_single_layers": rng.randint(1, 3),
            "attention_head_dim": head_dim,
            "num_attention_heads": heads,
            "joint_attention_dim": rng.randint(8, 40),
            "pooled_projection_dim": rng.randint(8, 40),
            "guidance_embeds": guidance,
            "axes_dims_rope": axes,
        }

    for kind, dtype in DTYPES.items():
        for form, guidance in [("guided", True), ("schnell", False)]:
            rng = ex.start(f"diffusers_flux_{form}")
            params = draw_fitting(rng, lambda r: draw(r, guidance), lambda p: FluxTransformer2DModel(**p))
            inputs = transformer_inputs(
                rng, params["in_channels"], params["joint_attention_dim"], params["pooled_projection_dim"], guidance
            )
            net, inputs = randomise(FluxTransformer2DModel(**params), dtype), cast(inputs, dtype)
            output = net(
                hidden_states=inputs["img"],
                encoder_hidden_states=inputs["txt"],
                pooled_projections=inputs["y"],
                timestep=inputs["timesteps"],
                # diffusers' positions have no batch.
                img_ids=inputs["img_ids"][0],
                txt_ids=inputs["txt_ids"][0],
                guidance=inputs["guidance"],
            ).sample
            module = "diffusers.FluxTransformer2DModel"
            ex.write(f"diffusers_flux_{form}_{kind}", module, params, inputs, output, net.state_dict())

        rng = ex.start("redux_image_encoder")
        params = {"redux_dim": rng.randint(8, 80), "txt_in_features": rng.randint(8, 80)}
        embedder = randomise(ReduxImageEncoder(**params), dtype)
        x = torch.randn(rng.randint(1, 3), rng.randint(1, 40), params["redux_dim"]).to(DEVICE, dtype)
        output = {"image_embeds": embedder(x).image_embeds}
        module = "diffusers.ReduxImageEncoder"
        ex.write(f"redux_image_encoder_{kind}", module, params, {"x": x}, output, embedder.state_dict())

    export_adapters.export(ex, sys.modules[__name__])

    # f32 alone: in bf16, diffusers and the official code themselves lie 1 to 2 % apart here.
    rng = ex.start("diffusers_autoencoder")
    ch_mult, blocks = draw_levels(rng)
    params = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(ch_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(ch_mult),
        "block_out_channels": [32 * m for m in ch_mult],
        "layers_per_block": blocks,
        "latent_channels": rng.randint(2, 8),
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": rng.choice([0.3611, 0.5]),
        "shift_factor": rng.choice([0.1159, -0.3]),
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    auto = randomise(AutoencoderKL(**params))
    inputs = cast(autoencoder_inputs(rng, len(ch_mult), params["latent_channels"]), torch.float32)
    scale, shift = params["scaling_factor"], params["shift_factor"]
    outputs = {
        "encode": (auto.encode(inputs["x"]).latent_dist.mean - shift) * scale,
        "decode": auto.decode(inputs["z"] / scale + shift).sample,
    }
    ex.write("diffusers_autoencoder_f32", "diffusers.AutoencoderKL", params, inputs, outputs, auto.state_dict())
    diffusers_samplers(ex)
    tiny_autoencoder(ex)


def diffusers_samplers(ex: Exporter):
    """The schedulers, along the velocities tanh(W x + t b): what a step makes of them, not of a model."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        FlowMatchLCMScheduler,
        FluxPipeline,
    )

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
    schedulers = {
        "euler": FlowMatchEulerDiscreteScheduler(shift=1.0),
        "heun": FlowMatchHeunDiscreteScheduler(shift=1.5),
        "dpmpp_2m": DPMSolverMultistepScheduler(**flow, flow_shift=1.7, solver_order=2),
        "lcm": FlowMatchLCMScheduler(shift=2.0),
    }
    for name, scheduler in schedulers.items():
        rng = ex.start(f"diffusers_sampler_{name}")
        height, width, seed = 16 * rng.randint(1, 3), 16 * rng.randint(1, 3), rng.randrange(2**32)
        pack = lambda x: FluxPipeline._pack_latents(x, 1, 16, height // 8, width // 8)
        unpack = lambda x: FluxPipeline._unpack_latents(x, height, width, 8)
        weights = {"weight": torch.randn(64, 64) / 8, "bias": torch.randn(64)}
        velocity = lambda x, t: unpack(torch.tanh(pack(x) @ weights["weight"].T + t * weights["bias"]))
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 16, height // 8, width // 8, generator=generator)
        scheduler.set_timesteps(rng.randint(5, 9))
        # Heun's times stand there twice.
        times = torch.unique_consecutive(scheduler.sigmas)
        inputs = {"img": pack(x), "times": times.double()}
        for t in scheduler.timesteps:
            # DPMSolver's times are rounded to whole numbers; its steps go by its sigmas.
            at = scheduler.sigmas[scheduler.step_index or 0] if name == "dpmpp_2m" else t / 1000
            more = {"generator": generator} if name == "lcm" else {}
            x = scheduler.step(velocity(x, at), t, x, **more).prev_sample
        params = {"sampler": name, "height": height, "width": width, "seed": seed}
        ex.write(f"diffusers_sampler_{name}_f32", "diffusers.schedulers", params, inputs, pack(x), weights)


def tiny_autoencoder(ex: Exporter):
    from diffusers import AutoencoderTiny

    for kind, dtype in DTYPES.items():
        rng = ex.start("tiny_autoencoder")
        stages, width = rng.randint(2, 4), 4 * rng.randint(2, 6)
        params = {
            "in_channels": 3,
            "out_channels": 3,
            "encoder_block_out_channels": [width] * stages,
            "decoder_block_out_channels": [width] * stages,
            "num_encoder_blocks": [rng.randint(0, 2) for _ in range(stages)],
            "num_decoder_blocks": [rng.randint(0, 2) for _ in range(stages)],
            "latent_channels": rng.randint(2, 16),
            "scaling_factor": rng.choice([1.0, 0.5]),
            "shift_factor": rng.choice([0.0, -0.3]),
        }
        # At least one block in each half, to tell it by.
        params["num_encoder_blocks"][0] = params["num_decoder_blocks"][0] = rng.randint(1, 2)
        auto = randomise(AutoencoderTiny(**params), dtype)
        inputs = cast(autoencoder_inputs(rng, stages, params["latent_channels"]), dtype)
        scale, shift = params["scaling_factor"], params["shift_factor"]
        outputs = {
            "encode": (auto.encode(inputs["x"]).latents - shift) * scale,
            "decode": auto.decode(inputs["z"] / scale + shift).sample,
        }
        name = f"diffusers_tiny_autoencoder_{kind}"
        ex.write(name, "diffusers.AutoencoderTiny", params, inputs, outputs, auto.state_dict())


# ---------------------------------------------------------------- transformers


def export_transformers(ex: Exporter):
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel, T5Config, T5EncoderModel

    for kind, dtype in DTYPES.items():
        rng = ex.start("t5_encoder")
        params = {
            "vocab_size": rng.randint(50, 200),
            "d_model": 8 * rng.randint(2, 8),
            "d_kv": 8 * rng.randint(1, 3),
            "d_ff": 8 * rng.randint(3, 12),
            "num_layers": rng.randint(1, 4),
            "num_heads": rng.randint(1, 5),
            "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": rng.choice([16, 32]),
            "relative_attention_max_distance": rng.choice([64, 128]),
            "layer_norm_epsilon": 1e-6,
        }
        encoder = randomise(T5EncoderModel(T5Config(**params)), dtype)
        # Long enough for the last bucket, which all greater distances share.
        ids = torch.randint(0, params["vocab_size"], (rng.randint(1, 3), rng.randint(8, 160))).to(DEVICE)
        output = {"last_hidden_state": encoder(input_ids=ids).last_hidden_state}
        # The embedding has two names in memory; files hold one.
        weights = {k: v for k, v in encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}
        ex.write(f"t5_encoder_{kind}", "transformers.T5EncoderModel", params, {"input_ids": ids}, output, weights)

        rng = ex.start("clip_text")
        heads, vocab, length = rng.randint(1, 5), rng.randint(50, 200), rng.randint(8, 77)
        params = {
            "vocab_size": vocab,
            "hidden_size": 8 * heads * rng.randint(1, 2),
            "intermediate_size": 8 * rng.randint(3, 12),
            "num_hidden_layers": rng.randint(1, 4),
            "num_attention_heads": heads,
            "max_position_embeddings": length,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": vocab - 1,
            "bos_token_id": vocab - 2,
            "pad_token_id": vocab - 1,
            "projection_dim": 16,
        }
        encoder = randomise(CLIPTextModel(CLIPTextConfig(**params)), dtype)
        ids = torch.randint(0, vocab - 2, (rng.randint(1, 3), length))
        ids[:, 0] = params["bos_token_id"]
        for row in ids:
            row[rng.randint(1, length - 1) :] = params["eos_token_id"]
        result = encoder(input_ids=ids.to(DEVICE))
        outputs = {"last_hidden_state": result.last_hidden_state, "pooler_output": result.pooler_output}
        # Published files have the prefix; transformers 5 drops it in memory.
        weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()}
        ex.write(f"clip_text_{kind}", "transformers.CLIPTextModel", params, {"input_ids": ids}, outputs, weights)

        rng = ex.start("siglip_vision")
        heads, patch = rng.randint(1, 5), rng.choice([4, 6, 7])
        params = {
            "hidden_size": 8 * heads * rng.randint(1, 2),
            "intermediate_size": 8 * rng.randint(3, 12),
            "num_hidden_layers": rng.randint(1, 4),
            "num_attention_heads": heads,
            # Some pixels may be left over, as 384 leaves 6 of patches of 14.
            "image_size": patch * rng.randint(2, 6) + rng.randint(0, patch - 1),
            "patch_size": patch,
            # The head's weights are in the file or not; its result is not read.
            "vision_use_head": rng.random() < 0.5,
        }
        encoder = randomise(SiglipVisionModel(SiglipVisionConfig(**params)), dtype)
        pixels = cast({"x": 2 * torch.rand(rng.randint(1, 3), 3, params["image_size"], params["image_size"]) - 1}, dtype)["x"]
        output = {"last_hidden_state": encoder(pixel_values=pixels).last_hidden_state}
        weights = {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in encoder.state_dict().items()}
        module = "transformers.SiglipVisionModel"
        ex.write(f"siglip_vision_{kind}", module, params, {"pixel_values": pixels}, output, weights)
    export_adapters.export_vision(ex, sys.modules[__name__])
    depth_anything(ex)


def depth_anything(ex: Exporter):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Backbone, Dinov2Config
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    def published(state: dict) -> dict:
        """Files have the names from before transformers 5."""
        names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
        names["o_proj"] = "output.dense"
        for new, old in names.items():
            state = {k.replace(f".attention.{new}.", f".attention.{old}."): v for k, v in state.items()}
        return state

    def draw_backbone(rng: random.Random, states: int) -> dict:
        heads, patch = rng.randint(1, 4), rng.choice([4, 7, 14])
        layers = rng.randint(states, states + 1)
        return {
            "hidden_size": 8 * heads * rng.randint(1, 2),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "mlp_ratio": rng.choice([2, 4]),
            "image_size": patch * rng.randint(2, 5),
            "patch_size": patch,
            "out_indices": sorted(rng.sample(range(layers + 1), states)),
            "apply_layernorm": rng.random() < 0.7,
            "reshape_hidden_states": False,
        }

    for kind, dtype in DTYPES.items():
        rng = ex.start("dinov2")
        params = draw_backbone(rng, rng.randint(1, 3))
        backbone = randomise(Dinov2Backbone(Dinov2Config(**params)), dtype)
        # The size that the positions are for.
        x = torch.randn(rng.randint(1, 2), 3, params["image_size"], params["image_size"]).to(DEVICE, dtype)
        outputs = {str(i): state for i, state in enumerate(backbone(x).feature_maps)}
        # What stood for hidden patches in training is read by nobody.
        weights = {k: v for k, v in published(backbone.state_dict()).items() if k != "embeddings.mask_token"}
        ex.write(f"dinov2_{kind}", "transformers.Dinov2Backbone", params, {"pixel_values": x}, outputs, weights)

        rng = ex.start("depth_anything")
        states = rng.randint(2, 4)
        backbone = draw_backbone(rng, states)
        metric = rng.random() < 0.3
        params = {
            "patch_size": backbone["patch_size"],
            "reassemble_hidden_size": backbone["hidden_size"],
            "reassemble_factors": [4, 2, 1, 0.5][-states:],
            "neck_hidden_sizes": [4 * rng.randint(1, 4) for _ in range(states)],
            "fusion_hidden_size": 2 * rng.randint(2, 8),
            "head_in_index": rng.choice([-1, -1, -2]),
            "head_hidden_size": rng.randint(2, 8),
            "depth_estimation_type": "metric" if metric else "relative",
            "max_depth": rng.choice([20, 80]) if metric else 1,
        }
        config = DepthAnythingConfig(backbone_config=Dinov2Config(**backbone), **params)
        model = randomise(DepthAnythingForDepthEstimation(config), dtype)
        # Half of them above 0, on average.
        model.head.conv3.bias.data.fill_(0.1)
        sides = [backbone["patch_size"] * rng.randint(3, 7) for _ in range(2)]
        x = torch.randn(rng.randint(1, 2), 3, *sides).to(DEVICE, dtype)
        output = {"predicted_depth": model(x).predicted_depth}
        params |= {"backbone_config": backbone}
        name, weights = "transformers.DepthAnythingForDepthEstimation", published(model.state_dict())
        ex.write(f"depth_anything_{kind}", name, params, {"pixel_values": x}, output, weights)

    rng = ex.start(name := "depth_pixels")
    # As depth-anything-large-hf configures it.
    settings = {"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
    settings |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    # Of a single row, the processor makes a picture without any, which it refuses.
    picture = torch.randint(0, 256, (rng.randint(2, 4), rng.randint(90, 130), 3), dtype=torch.uint8)
    pixels = DPTImageProcessorPil(**settings)(picture.permute(2, 0, 1), return_tensors="pt")["pixel_values"]
    ex.write(name, "transformers.DPTImageProcessorPil", {}, {"picture": picture}, pixels)

    for index, (low, high) in enumerate([(5, 30), (30, 90)]):
        rng = ex.start(name := f"bicubic_antialias_{index}")
        x = torch.randn(rng.randint(1, 2), 3, rng.randint(low, high), rng.randint(low, high)).to(DEVICE)
        params = {"height": rng.randint(16, 48), "width": rng.randint(16, 48)}
        size = (params["height"], params["width"])
        output = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
        ex.write(name, "torch.nn.functional.interpolate", params, {"x": x}, output)


# ---------------------------------------------------------------- the command


def reference_version(package: str) -> str | None:
    """`None` where the reference is not installed."""
    try:
        # Other packages are called flux, too.
        if find_spec("flux.modules.autoencoder" if package == "flux" else package) is None:
            return None
    except ImportError:
        return None
    name = "black-forest-labs/flux" if package == "flux" else package
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return f"{name} (checkout)"


def main() -> int:
    exports = {"flux": export_flux, "diffusers": export_diffusers, "transformers": export_transformers}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the cases")
    parser.add_argument("--seed", type=int, help="default: a new one each time; it is printed")
    parser.add_argument("--reference", help=f"comma-separated: {', '.join(exports)}; default: all that are installed")
    parser.add_argument("--threads", type=int, default=2, help="results depend on it in their last bits")
    parser.add_argument("--device", default=DEVICE, help="where the references run: cpu or cuda")
    args = parser.parse_args()
    globals()["DEVICE"] = args.device

    wanted = args.reference.split(",") if args.reference else list(exports)
    if unknown := [name for name in wanted if name not in exports]:
        parser.error(f"no such reference: {', '.join(unknown)}")
    versions = {name: reference_version(name) for name in wanted}
    missing = [name for name in wanted if versions[name] is None]
    if missing and (args.reference or len(missing) == len(wanted)):
        parser.error(f"not installed: {', '.join(missing)}")

    seed = time.time_ns() % 1_000_000 if args.seed is None else args.seed
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name in missing:
            print(f"{name}: skipped, not installed")
            continue
        exporter = Exporter(args.out, seed, versions[name])
        with torch.no_grad():
            exports[name](exporter)
        print(f"{name}: {exporter.count} cases from {versions[name]}, torch {torch.__version__}, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
