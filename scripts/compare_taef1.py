#!/usr/bin/env python3
"""Draws with a tiny autoencoder in place of the full one, with diffusers' pipelines and with tch-flux, and compares.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_taef1.py --binary target/release/tch-flux

The transformer is the small one, the autoencoder one of TAEF1's sizes with random weights, in diffusers' file and in the two
files of its author. Both run in f32 on the CPU from the same noise.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import compare_pipelines as compare
import numpy as np
import torch
from compare_edits import PROMPT, SEED, SIZE, STEPS, THRESHOLD, picture
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent


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


def theirs(name, model, autoencoder, **request):
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, name).from_pretrained(model, vae=autoencoder, dtype=torch.float32, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        prompt=PROMPT, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=0.0, max_sequence_length=256,
        generator=torch.Generator("cpu").manual_seed(SEED), output_type="pt", **request,
    ).images[0]  # fmt: skip
    return (127.5 * ((2.0 * result - 1.0) + 1.0)).byte().permute(1, 2, 0).numpy()


def ours(binary, model, out, command, *flags):
    call = [binary, command, PROMPT, "--model", model, "--width", SIZE, "--height", SIZE, "--steps", STEPS, "--seed", SEED]
    call += ["--kind", "f32", "--quiet", "-o", out, *flags]
    subprocess.run([str(part) for part in call], check=True, stdin=subprocess.DEVNULL)
    return np.array(Image.open(out).convert("RGB"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    args = parser.parse_args()
    torch.set_num_threads(2)

    failed = passed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = taef1(folder)
        picture(SIZE, SIZE).save(folder / "square.png")
        begin = {"image": Image.open(folder / "square.png"), "strength": 0.6}
        flags = ["--image", folder / "square.png", "--strength", "0.6"]
        cases = [
            ("diffusers' file", "FluxPipeline", {}, "generate", ["--autoencoder", folder / "taef1"]),
            ("its author's decoder", "FluxPipeline", {}, "generate", ["--vae", folder / "taef1_decoder.safetensors"]),
            ("image to image", "FluxImg2ImgPipeline", begin, "edit", ["--vae", folder / "taef1_decoder.safetensors", *flags]),
        ]
        for title, pipeline, request, command, more in cases:
            a = theirs(pipeline, args.model, tiny, **request)
            b = ours(args.binary, args.model, folder / "out.png", command, *more)
            value = compare.psnr(a, b)
            passed, failed = passed + (value >= THRESHOLD), failed + (value < THRESHOLD)
            inside = np.mean((a > 0) & (a < 255))
            print(f"{'ok' if value >= THRESHOLD else 'FAILED':6} {title}: {value:.2f} dB, {inside:.0%} between black and white", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
