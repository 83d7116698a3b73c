#!/usr/bin/env python3
"""Draws with a tiny autoencoder in place of the full one, with diffusers' pipelines and with tch-flux, and compares.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_taef1.py --binary target/release/tch-flux

The transformer is the small one, the autoencoder one of TAEF1's sizes with random weights, in diffusers' file and in the two
files of its author. Both run in f32 on the CPU from the same noise.
"""

import math
import sys
from functools import partial
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import SIZE, Case, picture
from PIL import Image
from safetensors.torch import save_file


def taef1(folder: Path):
    """A random one whose pictures use the whole range, in diffusers' layout and in its author's."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(5)
    model = AutoencoderTiny(latent_channels=16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                gain = 0.3 if ".conv.4." in name else 1.0
                parameter.normal_(0, gain * math.sqrt(2 / parameter[0].numel()))
            else:
                parameter.normal_(0, 0.05)
        for half, given, spread in [(model.encoder, torch.rand(1, 3, 64, 64), 1.0), (model.decoder, torch.randn(1, 16, 8, 8), 0.3)]:
            last = half.layers[-1]
            # Of what it is given, the last layer makes numbers of this spread.
            seen = half.layers[:-1](given)
            last.weight.mul_(spread / last(seen).std())
            last.bias.sub_(last(seen).mean((0, 2, 3)) - (0.5 if half is model.decoder else 0.0))
    model.save_pretrained(folder / "taef1")
    halves = {"encoder": 0, "decoder": 1}
    for half, shift in halves.items():
        state = {}
        for name, tensor in getattr(model, half).state_dict().items():
            _, number, rest = name.split(".", 2)
            # The author's decoder begins with what clamps the latent.
            state[f"{int(number) + shift}.{rest}"] = tensor.contiguous()
        save_file(state, folder / f"taef1_{half}.safetensors")
    return model


def inside(drawn, said):
    return f", {np.mean((drawn > 0) & (drawn < 255)):.0%} between black and white"


def cases(binary, model, folder):
    parts = {"vae": taef1(folder)}
    square, decoder = folder / "square.png", folder / "taef1_decoder.safetensors"
    picture(SIZE, SIZE).save(square)
    drawn = partial(comparison.theirs, "FluxPipeline", model, parts)
    yield Case("diffusers' file", drawn, "generate", ["--autoencoder", folder / "taef1"])
    yield Case("its author's decoder", drawn, "generate", ["--vae", decoder])
    drawn = partial(comparison.theirs, "FluxImg2ImgPipeline", model, parts, image=Image.open(square), strength=0.6)
    yield Case("image to image", drawn, "edit", ["--vae", decoder, "--image", square, "--strength", "0.6"])


if __name__ == "__main__":
    sys.exit(comparison.run(__doc__, cases, note=inside))
