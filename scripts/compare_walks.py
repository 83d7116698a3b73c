#!/usr/bin/env python3
"""Draws with times of one's own, with weights in the prompt and with step caches, here and in diffusers, and compares.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_walks.py --binary target/release/tch-flux

Both run the tiny model in f32 on the CPU from the same noise. A step cache skips the same steps or the pictures differ. What
diffusers does not have is written here from its definition: TeaCache, and ComfyUI's weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import compare_pipelines as compare
import numpy as np
import torch
from PIL import Image

THRESHOLD = 45.0
PROMPT = "a red circle on a blue background"
STEPS = 12
ROOT = Path(__file__).resolve().parent.parent
TEA_CACHE = np.poly1d([4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01])


def tea_cache(net, threshold, calls):
    """A forward that skips the blocks while the modulated input of the first one has changed little."""
    seen = {"call": 0, "sum": 0.0, "input": None, "rest": None, "skipped": 0}

    def forward(hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance=None, **_):
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
            for block in net.transformer_blocks:
                c, x = block(hidden_states=x, encoder_hidden_states=c, temb=temb, image_rotary_emb=rotary)
            for block in net.single_transformer_blocks:
                c, x = block(hidden_states=x, encoder_hidden_states=c, temb=temb, image_rotary_emb=rotary)
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


def theirs(model, steps=STEPS, cache=None, scheduler=None, parts=None, **request):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = compare.load_pipeline(model)
    net = pipeline.transformer
    if scheduler:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    text = weighed(pipeline, parts) if parts else {"prompt": PROMPT}
    forward = net.forward
    if isinstance(cache, float):
        net.forward, _ = tea_cache(net, cache, steps)
    elif cache:
        net.enable_cache(cache)
    result = pipeline(
        **text, height=compare.SIZE, width=compare.SIZE, num_inference_steps=steps, guidance_scale=0.0, max_sequence_length=256,
        generator=torch.Generator("cpu").manual_seed(7), output_type="pt", **request,
    ).images[0]  # fmt: skip
    net.forward = forward
    return (127.5 * ((2.0 * result - 1.0) + 1.0)).byte().permute(1, 2, 0).numpy()


def ours(binary, model, out, *flags, prompt=PROMPT):
    call = [binary, "generate", prompt, "--model", model, "--width", compare.SIZE, "--height", compare.SIZE, "--seed", 7]
    call += ["--kind", "f32", "--json", "-o", out, *flags]
    said = subprocess.run([str(part) for part in call], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return np.array(Image.open(out).convert("RGB")), json.loads(said.stdout)["cache"]


def cases():
    """Name, what diffusers is asked, the prompt, and our flags."""
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    steps = ["--steps", STEPS]
    sigmas = [1.0, 0.9, 0.55, 0.3, 0.1]
    yield "sigmas", {"sigmas": sigmas, "steps": len(sigmas)}, PROMPT, ["--sigmas", ",".join(map(str, sigmas))]
    shifted = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    yield "shifted", {"scheduler": shifted}, PROMPT, steps + ["--schedule", "shifted"]
    shifted = {"use_dynamic_shifting": True, "base_shift": -0.5, "max_shift": 2.0}
    yield "another shift", {"scheduler": shifted}, PROMPT, steps + ["--shift=-0.5,2"]
    parts = [("a ", 1.0), ("red", 1.4), (" circle on a ", 1.0), ("blue background", 0.6)]
    yield "weights", {"parts": parts}, "a (red:1.4) circle on a (blue background:0.6)", steps
    for threshold in (0.02, 0.1, 0.4):
        cache = {"cache": FirstBlockCacheConfig(threshold=threshold)}
        yield f"first block, {threshold}", cache, PROMPT, steps + ["--cache", f"first-block:{threshold}"]
    for threshold in (0.2, 0.6):
        yield f"TeaCache, {threshold}", {"cache": threshold}, PROMPT, steps + ["--cache", f"tea-cache:{threshold}"]
    for interval, order, warmup in ((5, 1, 3), (3, 2, 2), (2, 1, 1)):
        cache = TaylorSeerCacheConfig(
            cache_interval=interval, max_order=order, disable_cache_before_step=warmup,
            taylor_factors_dtype=torch.float32, use_lite_mode=True,
        )  # fmt: skip
        name = f"{interval},{order},{warmup}"
        yield f"TaylorSeer, {name}", {"cache": cache}, PROMPT, steps + ["--cache", f"taylor-seer:{name}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    args = parser.parse_args()
    torch.set_num_threads(2)

    failed = passed = 0
    with tempfile.TemporaryDirectory() as folder:
        for title, request, prompt, flags in cases():
            picture, cache = ours(args.binary, args.model, Path(folder) / "out.png", *flags, prompt=prompt)
            value = compare.psnr(theirs(args.model, **request), picture)
            passed, failed = passed + (value >= THRESHOLD), failed + (value < THRESHOLD)
            skipped = f", {cache['skipped']} of {cache['calls']} skipped" if cache else ""
            print(f"{'ok' if value >= THRESHOLD else 'FAILED':6} {title}: {value:.2f} dB{skipped}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
