#!/usr/bin/env python3
"""Draws the pictures of `docs/modes.md` by the commands that stand there.

    cargo build --release
    scripts/with-libtorch --reference python scripts/draw_modes.py --binary target/release/tch-flux

The masks, the picture with a hole, the part of a picture, the edges and the depths, from which some of them begin, are made
here.
"""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import torch
from PIL import Image

from tiny_language import SHAPES, canny, relief, render
from train_tiny_edits import eight_bits

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs/pictures"
MIDDLE, CORNER = (12, 12, 52, 52), (32, 32, 64, 64)


def commands() -> list[list[str]]:
    """Every command of the page, in its order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/modes.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def draw_mask(name: str, box: tuple[int, int, int, int]) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, box)
    mask.save(PICTURES / name)


def draw_beginnings() -> None:
    """What is left of the first picture."""
    whole = Image.open(PICTURES / "generate.png").convert("RGB")
    whole.crop((0, 0, 40, 64)).save(PICTURES / "part.png")
    whole.paste((128, 128, 128), CORNER)
    whole.save(PICTURES / "hole.png")


def draw_followed() -> None:
    """The edges of one shape, and how far away another is."""
    place = torch.tensor([[0.8, 0.2, 0.9]])
    cross = render(torch.tensor([SHAPES.index("cross")]), torch.tensor([0]), torch.tensor([2]), place)
    square = relief(torch.tensor([SHAPES.index("square")]), torch.tensor([[0.1, 0.7, 0.6]]))
    for name, pictures in (("edges.png", canny(eight_bits(cross))), ("depths.png", square)):
        Image.fromarray(eight_bits(pictures)[0]).save(PICTURES / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    args = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    draw_mask("middle.png", MIDDLE)
    draw_mask("corner.png", CORNER)
    draw_followed()
    for i, [program, *flags] in enumerate(commands()):
        assert program == "tch-flux", program
        subprocess.run([args.binary.resolve(), *flags, "--force", "--quiet"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        if i == 0:
            draw_beginnings()


if __name__ == "__main__":
    main()
