#!/usr/bin/env python3
"""Draws with times of one's own, with weights in the prompt and with step caches, here and in diffusers, and compares.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_walks.py --binary target/release/tch-flux

Both run the tiny model in f32 on the CPU from the same noise. A step cache skips the same steps or the pictures differ. What
diffusers does not have is written here from its definition: TeaCache, and ComfyUI's weights. LoRAs for few steps are of random
weights, for the layers that the published ones are for.
"""

import math
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import comparison
import numpy as np
import torch
from compare_adapters import controlnet
from compare_edits import with_lora
from comparison import PROMPT, SIZE, Case, picture
from PIL import Image
from safetensors.torch import save_file

STEPS = 12
TEA_CACHE = np.poly1d([4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01])


def tea_cache(net, threshold, calls):
    """A forward that skips the blocks while the modulated input of the first one has changed little."""
    seen = {"call": 0, "sum": 0.0, "input": None, "rest": None, "skipped": 0}

    def forward(
        hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance=None,
        controlnet_block_samples=None, controlnet_single_block_samples=None, **_,
    ):  # fmt: skip
        x, c = net.x_embedder(hidden_states), net.context_embedder(encoder_hidden_states)
        temb = net.time_text_embed(timestep * 1000, pooled_projections)
        rotary = net.pos_embed(torch.cat([txt_ids, img_ids]))
        now = net.transformer_blocks[0].norm1(x, emb=temb)[0]
        skip = False
        if 0 < seen["call"] < calls - 1:
            seen["sum"] += TEA_CACHE(((now - seen["input"]).abs().mean() / seen["input"].abs().mean()).item())
            skip = seen["sum"] < threshold
        seen["input"], seen["call"] = now, seen["call"] + 1
        if skip:
            seen["skipped"] += 1
            x = x + seen["rest"]
        else:
            seen["sum"], before = 0.0, x
            for blocks, followed in (
                (net.transformer_blocks, controlnet_block_samples),
                (net.single_transformer_blocks, controlnet_single_block_samples),
            ):
                for i, block in enumerate(blocks):
                    c, x = block(hidden_states=x, encoder_hidden_states=c, temb=temb, image_rotary_emb=rotary)
                    if followed is not None:
                        x = x + followed[i // math.ceil(len(blocks) / len(followed))]
            seen["rest"] = x - before
        return (net.proj_out(net.norm_out(x, temb)),)

    return forward, seen


def weighed(pipeline, parts, length=256):
    """T5's states of a prompt whose parts weigh something, led away from those of an empty prompt; CLIP's of its text."""
    text = "".join(part for part, _ in parts)
    states, pooled, _ = pipeline.encode_prompt(text, None, max_sequence_length=length)
    empty, _, _ = pipeline.encode_prompt("", None, max_sequence_length=length)
    weights = torch.ones(length)
    place = 0
    for part, weight in parts:
        count = len(pipeline.tokenizer_2(part.strip(), add_special_tokens=False).input_ids)
        weights[place : place + count] = weight
        place += count
    states = empty + (states - empty) * weights[None, :, None]
    return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


def like_dev(model, folder):
    """The model with an embedder of random weights for the guidance, in diffusers' layout."""
    from diffusers import FluxTransformer2DModel

    for part in model.iterdir():
        if part.is_dir() and part.name != "transformer":
            shutil.copytree(part, folder / part.name)
    shutil.copy(model / "model_index.json", folder)
    plain = FluxTransformer2DModel.from_pretrained(model / "transformer", torch_dtype=torch.float32)
    torch.manual_seed(8)
    net = FluxTransformer2DModel.from_config({**plain.config, "guidance_embeds": True})
    net.load_state_dict(plain.state_dict(), strict=False)
    net.save_pretrained(folder / "transformer")
    return net


def few_steps(net, path, size, rank=4):
    """A LoRA with matrices for every linear layer, as those of Hyper-SD and Turbo-Alpha have them."""
    torch.manual_seed(9)
    weights = {}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weights[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features) / layer.in_features**0.5
            weights[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank) * size
    save_file(weights, path)
    return path


def fused(path, strength, pipeline):
    """As Hyper-SD's page has it."""
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora(lora_scale=strength)


def theirs(
    model, pipeline="FluxPipeline", steps=STEPS, cache=None, scheduler=None, weights=None, pieces=None, prepare=None, **request
):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = comparison.load(pipeline, model, **(pieces or {}))
    if prepare:
        prepare(pipeline)
    net = pipeline.transformer
    if scheduler:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    if weights:
        request |= weighed(pipeline, weights)
    if isinstance(cache, float):
        net.forward, _ = tea_cache(net, cache, steps)
    elif cache:
        net.enable_cache(cache)
        if pieces:
            # The pipelines of ControlNets do not say whose call of the transformer it is.
            forward = net.forward
            net.forward = lambda *call, **named: in_context(net, forward, call, named)
    return comparison.draw(pipeline, num_inference_steps=steps, **request)[0]


def in_context(net, forward, call, named):
    with net.cache_context("cond"):
        return forward(*call, **named)


def skipped(picture, said):
    cache = said["cache"]
    return f", {cache['skipped']} of {cache['calls']} skipped" if cache else ""


def cases(binary, model, folder):
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    def case(title, request, *flags, prompt=PROMPT):
        flags = [*flags, *([] if "--sigmas" in flags else ["--steps", STEPS])]
        return Case(title, partial(theirs, model, **request), "generate", flags, prompt)

    sigmas = [1.0, 0.9, 0.55, 0.3, 0.1]
    yield case("sigmas", {"sigmas": sigmas, "steps": len(sigmas)}, "--sigmas", ",".join(map(str, sigmas)))
    shifted = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    yield case("shifted", {"scheduler": shifted}, "--schedule", "shifted")
    shifted = {"use_dynamic_shifting": True, "base_shift": -0.5, "max_shift": 2.0}
    yield case("another shift", {"scheduler": shifted}, "--shift=-0.5,2")
    weights = [("a ", 1.0), ("red", 1.4), (" circle on a ", 1.0), ("blue background", 0.6)]
    yield case("weights", {"weights": weights}, prompt="a (red:1.4) circle on a (blue background:0.6)")
    for threshold in (0.02, 0.1, 0.4):
        cache = {"cache": FirstBlockCacheConfig(threshold=threshold)}
        yield case(f"first block, {threshold}", cache, "--cache", f"first-block:{threshold}")
    for threshold in (0.2, 0.6):
        yield case(f"TeaCache, {threshold}", {"cache": threshold}, "--cache", f"tea-cache:{threshold}")

    def taylor_seer(interval, order, warmup):
        return TaylorSeerCacheConfig(
            cache_interval=interval, max_order=order, disable_cache_before_step=warmup,
            taylor_factors_dtype=torch.float32, use_lite_mode=True,
        )  # fmt: skip

    for numbers in ((5, 1, 3), (3, 2, 2), (2, 1, 1)):
        name = ",".join(map(str, numbers))
        yield case(f"TaylorSeer, {name}", {"cache": taylor_seer(*numbers)}, "--cache", f"taylor-seer:{name}")

    picture(SIZE, SIZE).save(followed := folder / "followed.png")
    net, path = controlnet(folder, "controlnet")
    request = {"pipeline": "FluxControlNetPipeline", "pieces": {"controlnet": net}, "control_image": Image.open(followed)}
    flags = ["--controlnet", path, "--control-image", followed, "--cache"]
    yield case("ControlNet and TeaCache", request | {"cache": 0.6}, *flags, "tea-cache:0.6")
    yield case("ControlNet and TaylorSeer", request | {"cache": taylor_seer(3, 2, 2)}, *flags, "taylor-seer:3,2,2")

    # As their pages have it: Hyper-SD's is fused at 0.125, Turbo-Alpha is an adapter at 1.
    dev = Path(tempfile.mkdtemp(dir=folder))
    net = like_dev(model, dev)
    shifted = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    for title, size, strength, put_on in (("Hyper-SD", 1.0, 0.125, fused), ("Turbo-Alpha", 0.1, 1.0, with_lora)):
        path = few_steps(net, folder / "few-steps.safetensors", size)
        request = {"scheduler": shifted, "steps": 8, "guidance_scale": 3.5, "prepare": partial(put_on, path, strength)}
        drawn = partial(theirs, dev, **request)
        flags = ["--model", dev, "--lora", f"{path}:{strength}", "--steps", 8, "--guidance", 3.5]
        yield Case(f"as {title}, 8 steps", drawn, "generate", flags)


if __name__ == "__main__":
    sys.exit(comparison.run(__doc__, cases, note=skipped))
