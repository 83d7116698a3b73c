#!/usr/bin/env python3
"""Draws with folders whose configs say something else, with diffusers' pipelines and with `tch-flux`, and compares.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_configs.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The weights are the tiny model's; its folder's `scheduler_config.json` and
`config.json` are changed key by key. scipy, which diffusers asks for its beta schedule, is stood in for by mpmath.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import comparison
import diffusers.schedulers.scheduling_flow_match_euler_discrete as euler
import mpmath
import torch
from compare_adapters import controlnet
from compare_edits import mask
from compare_taef1 import taef1
from comparison import SIZE, Case, picture
from PIL import Image

comparison.THRESHOLD = 80.0
PARTS = ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"]
DYNAMIC = {"use_dynamic_shifting": True}


def beta_quantile(share, alpha, beta):
    """scipy.stats.beta.ppf"""
    if share in (0, 1):
        return float(share)
    left = lambda x: mpmath.betainc(alpha, beta, 0, x, regularized=True) - share
    return float(mpmath.findroot(left, (1e-9, 1 - 1e-9), solver="anderson"))


def with_beta():
    euler.is_scipy_available = lambda: True
    euler.scipy = types.SimpleNamespace(stats=types.SimpleNamespace(beta=types.SimpleNamespace(ppf=beta_quantile)))


def changed(model, folder, index=None, **configs):
    """The model with some keys of its parts' configs changed; what is None is taken away."""
    own = folder / f"model-{len(list(folder.iterdir()))}"
    own.mkdir()
    for part in PARTS:
        if part not in configs:
            (own / part).symlink_to(model / part)
            continue
        (own / part).mkdir()
        for path in (model / part).iterdir():
            if not path.name.endswith("config.json"):
                (own / part / path.name).symlink_to(path)
                continue
            config = json.loads(path.read_text()) | configs[part]
            (own / part / path.name).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    told = json.loads((model / "model_index.json").read_text()) | (index or {})
    (own / "model_index.json").write_text(json.dumps(told))
    return own


def cases(binary, model, folder):
    model = model.resolve()
    with_beta()
    square, hole = folder / "square.png", folder / "mask.png"
    picture(SIZE, SIZE).save(square)
    mask(SIZE, SIZE).save(hole)
    image, area = Image.open(square), Image.open(hole)

    def case(title, own, *flags, pipeline="FluxPipeline", command="generate", **request):
        drawn = partial(comparison.theirs, pipeline, own, **request)
        return Case(title, drawn, command, ["--model", own, *flags])

    def scheduled(title, *flags, steps=6, index=None, **config):
        own = changed(model, folder, index, scheduler=config)
        return case(title, own, "--steps", steps, *flags, num_inference_steps=steps)

    yield scheduled("as usual")
    yield scheduled("static shift", shift=3.0)
    yield scheduled("static shift below 1", shift=0.4)
    yield scheduled("as dev", shift=3.0, **DYNAMIC)
    yield scheduled("dynamic", base_shift=0.9, max_shift=1.6, **DYNAMIC)
    yield scheduled("dynamic, other lengths", base_image_seq_len=8, max_image_seq_len=24, **DYNAMIC)
    yield scheduled("dynamic, linear", time_shift_type="linear", base_shift=1.5, max_shift=2.5, **DYNAMIC)
    yield scheduled("linear without dynamic", time_shift_type="linear", shift=2.0)
    yield scheduled("terminal", shift_terminal=0.1)
    yield scheduled("terminal, dynamic", shift_terminal=0.02, **DYNAMIC)
    yield scheduled("Karras", use_karras_sigmas=True)
    yield scheduled("Karras, shifted", use_karras_sigmas=True, shift=2.0)
    yield scheduled("exponential", use_exponential_sigmas=True)
    yield scheduled("exponential, dynamic, terminal", use_exponential_sigmas=True, shift_terminal=0.05, **DYNAMIC)
    yield scheduled("beta", use_beta_sigmas=True)
    yield scheduled("beta, shifted", use_beta_sigmas=True, shift=3.0)
    yield scheduled("Karras, one step", use_karras_sigmas=True, steps=1)
    yield scheduled("other timesteps", num_train_timesteps=700)
    yield scheduled("inverted", invert_sigmas=True)
    dpm = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    index = {"scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}
    yield scheduled("DPM-Solver++", index=index, **dpm, **DYNAMIC)
    yield scheduled("DPM-Solver++, 20 steps", index=index, steps=20, max_shift=2.0, base_shift=1.0, **dpm, **DYNAMIC)

    shifted = {"shift": 2.5, "use_karras_sigmas": True}
    own = changed(model, folder, scheduler=shifted)
    flags = ["--image", square, "--strength", 0.6, "--steps", 6]
    request = {"image": image, "strength": 0.6, "num_inference_steps": 6}
    yield case("image to image, shifted", own, *flags, pipeline="FluxImg2ImgPipeline", command="edit", **request)
    request |= {"mask_image": area}
    yield case("inpainting, shifted", own, *flags, "--mask", hole, pipeline="FluxInpaintPipeline", command="edit", **request)

    factors = {"scaling_factor": 0.5, "shift_factor": 0.05}
    own = changed(model, folder, vae=factors)
    yield case("the autoencoder's factors", own)
    request = {"image": image, "strength": 0.6}
    flags = ["--image", square, "--strength", 0.6]
    yield case("image to image, other factors", own, *flags, pipeline="FluxImg2ImgPipeline", command="edit", **request)
    # Settings that change nothing in diffusers.
    own = changed(model, folder, vae={"force_upcast": True, "latents_mean": [0.5] * 16, "sample_size": 32})
    yield case("settings without effect", own)
    tiny = taef1(folder)
    tiny.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    tiny.save_pretrained(folder / "taef1")
    drawn = partial(comparison.theirs, "FluxPipeline", model, {"vae": tiny})
    yield Case("TAEF1's factors", drawn, "generate", ["--vae", folder / "taef1"])

    yield case("other axes", changed(model, folder, transformer={"axes_dims_rope": [8, 12, 12]}))
    yield case("CLIP with gelu", changed(model, folder, text_encoder={"hidden_act": "gelu"}))
    own = changed(model, folder, text_encoder={"num_attention_heads": 2, "layer_norm_eps": 0.01, "eos_token_id": 2})
    yield case("CLIP with other heads", own)
    own = changed(model, folder, text_encoder_2={"relative_attention_max_distance": 20, "layer_norm_epsilon": 0.01})
    yield case("T5 with other distances", own)
    own = changed(model, folder, text_encoder_2={"num_decoder_layers": None, "is_gated_act": None, "dense_act_fn": None})
    yield case("T5 that says less", own)
    everything = {
        "scheduler": {"shift": 2.0}, "vae": factors, "transformer": {"axes_dims_rope": [8, 12, 12]},
        "text_encoder": {"hidden_act": "gelu"}, "text_encoder_2": {"relative_attention_max_distance": 20},
    }  # fmt: skip
    yield case("all at once", changed(model, folder, **everything))

    net, path = controlnet(folder, "controlnet", axes_dims_rope=[8, 12, 12])
    parts = {"controlnet": net}
    drawn = partial(comparison.theirs, "FluxControlNetPipeline", model, parts, control_image=image)
    yield Case("a ControlNet's axes", drawn, "generate", ["--controlnet", path, "--control-image", square])


if __name__ == "__main__":
    sys.exit(comparison.run(__doc__, cases))
