#!/usr/bin/env python3
"""Fits factors from a latent's channels to colours, with which previews take no time.

    scripts/with-libtorch --reference python scripts/fit_latent_rgb.py ae.safetensors factors.json PICTURE...
    scripts/with-libtorch --reference python scripts/fit_latent_rgb.py fixtures/tiny/ae.safetensors factors.json
    tch-flux generate "…" --previews 4 --preview-factors factors.json

The autoencoder is a file in the official names, or a folder of diffusers. Pictures are encoded, and each place of the latent
is fitted by least squares, with a bias, to the mean colour of the pixels that the decoder makes of it. Without pictures
it draws some: gradients with shapes on them.

The file says of itself how well it fits: `r2` is the share of the colours' variance that it explains, of the very latents
that were fitted and, where there are enough, of a tenth that were not.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

FORMAT = "latent-rgb/1"


def load(path: Path):
    """diffusers' autoencoder of a file or a folder, in f32, with FLUX.1's factors where nothing says others."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    if path.is_dir():
        return AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down."))
    channels = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    config = {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": sum(f"encoder.down.0.block.{i}.conv1.weight" in state for i in range(16)),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    model = AutoencoderKL(**config)
    model.load_state_dict(convert_ldm_vae_checkpoint(state, config))
    return model.eval()


def opened(paths: list[Path], side: int):
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = min(1.0, side / max(image.size))
        yield image.resize([max(64, round(pixels * scale / 16) * 16) for pixels in image.size], Image.LANCZOS)


def drawn(count: int, side: int, seed: int):
    """Shapes of random colours on random gradients, some of them noisy."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    for _ in range(count):
        corners = rng.uniform(0, 255, (3, 3))
        shades = corners[0] + across[..., None] * (corners[1] - corners[0]) + down[..., None] * (corners[2] - corners[0])
        shades += rng.normal(0, rng.choice([0, 0, 8, 24]), shades.shape)
        image = Image.fromarray(shades.clip(0, 255).astype(np.uint8))
        for _ in range(rng.integers(1, 5)):
            left, top = rng.uniform(-0.2, 0.8, 2) * side
            box = [left, top, left + rng.uniform(0.1, 0.8) * side, top + rng.uniform(0.1, 0.8) * side]
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            draw = ImageDraw.Draw(image)
            rng.choice([draw.ellipse, draw.rectangle])(box, fill=colour)
        yield image


def encoded(model, image) -> torch.Tensor:
    """The latent of a picture, as a transformer has it: scaled and shifted."""
    pixels = torch.from_numpy(np.array(image)).float()[None].permute(0, 3, 1, 2) / 127.5 - 1.0
    return (model.encode(pixels).latent_dist.mean - model.config.shift_factor) * model.config.scaling_factor


def explained(x: torch.Tensor, y: torch.Tensor, solution: torch.Tensor) -> float:
    rest = (y - x @ solution).square().sum()
    return round(float(1.0 - rest / (y - y.mean(0)).square().sum()), 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("autoencoder", type=Path, help="a file in the official names, or a folder of diffusers")
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("pictures", type=Path, nargs="*")
    parser.add_argument("--side", type=int, default=512, help="pictures are made no larger than this")
    parser.add_argument("--drawn", type=int, default=64, help="how many are drawn, where none are given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = load(args.autoencoder)
    pictures = opened(args.pictures, args.side) if args.pictures else drawn(args.drawn, min(args.side, 128), args.seed)
    inputs, colours = [], []
    with torch.no_grad():
        for image in pictures:
            latent = encoded(model, image)
            picture = model.decode(latent / model.config.scaling_factor + model.config.shift_factor).sample
            small = torch.nn.functional.adaptive_avg_pool2d(picture.clamp(-1, 1), latent.shape[2:])
            inputs.append(latent[0].flatten(1).T)
            colours.append(small[0].flatten(1).T)
    x, y = torch.cat(inputs).double(), torch.cat(colours).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    # Neighbours are alike, so what is held back are whole pieces.
    held = torch.arange(len(x)) // 64 % 10 == 9
    fitted = torch.linalg.lstsq(x[~held], y[~held]).solution
    report = {"r2": explained(x[~held], y[~held], fitted)}
    if held.any():
        report["r2_held_back"] = explained(x[held], y[held], fitted)
    numbers = [[round(value, 6) for value in row] for row in fitted.tolist()]
    made_of = f"{len(args.pictures)} pictures" if args.pictures else f"{args.drawn} drawn pictures, seed {args.seed}"
    result = {"format": FORMAT, "autoencoder": args.autoencoder.name, "fitted_to": made_of, **report}
    args.out.write_text(json.dumps({**result, "factors": numbers[:-1], "bias": numbers[-1]}, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
