#!/usr/bin/env python3
"""Teaches the small FLUX.1 of `fixtures/tiny` to edit, and writes what became of its transformer in the official layout.

    scripts/with-libtorch --reference python scripts/train_tiny_edits.py kontext --out fixtures/tiny-kontext
    scripts/with-libtorch --reference python scripts/train_tiny_edits.py fill --out fixtures/tiny-fill

Kontext sees a picture beside the one that it draws and is told "make the circle green" or "make the background
yellow". Fill sees a picture with a hole and is told what the whole picture shows. All parts but the transformer are the
base's. What lies in `fixtures` was trained in several goes, each from what the one before had written (`--start`): Kontext for
half an hour of one CPU core in all, Fill for an hour and a quarter, whose last go was `--lr 8e-4 --pictures 12000 --minutes 45`.

The picture is all but decided by what the model sees, so noise is drawn at random and the paths to it are straight
nonetheless. Only where a hole hides all of a shape does the noise say the place, as it does for the base.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from official_names import transformer_from_diffusers
from tiny_language import COLOURS, PAIRS, SHAPES, SIZE, edit_prompt, judge, kept, prompt, render, same_shape
from train_tiny import SCALE_FACTOR, SHIFT_FACTOR, TEXT_LENGTH, Z_CHANNELS, image_ids, noise_for, pack, write

LENGTHS = [12, 16, 24]  # of the text while most is learned
TOKENS = (SIZE // 16) ** 2


class Base:
    """The parts that stay as they are."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5_tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Packed latents [N, 16, 64] of pictures in -1..1."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        latents = [self.vae.encode(x).latent_dist.mean for x in pictures.split(64)]
        return pack(SCALE_FACTOR * (torch.cat(latents) - SHIFT_FACTOR))

    @torch.no_grad()
    def decode(self, patches: torch.Tensor) -> np.ndarray:
        n = SIZE // 16
        x = patches.reshape(-1, n, n, Z_CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, Z_CHANNELS, 2 * n, 2 * n)
        y = self.vae.decode(x / SCALE_FACTOR + SHIFT_FACTOR).sample
        return eight_bits(y)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """CLIP's vectors, and T5's states for each length of the text."""
        ids = self.clip_tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = {}
        for length in [*LENGTHS, TEXT_LENGTH]:
            tokens = self.t5_tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
            assert tokens.shape[1] == length, "a prompt is longer"
            states[length] = torch.cat([self.t5(part).last_hidden_state for part in tokens.split(32)])
        return torch.cat([self.clip(part).pooler_output for part in ids.split(32)]), states


def eight_bits(pictures: torch.Tensor) -> np.ndarray:
    return (127.5 * (pictures.clamp(-1, 1) + 1)).to(torch.uint8).permute(0, 2, 3, 1).numpy()


class Kontext:
    """A shape in two colours before two backgrounds: each of the four pictures becomes two of the others."""

    PROMPTS = [edit_prompt(s, c) for s in (None, *range(len(SHAPES))) for c in range(len(COLOURS))]
    CHANNELS = 64

    def __init__(self, base: Base, count: int, generator: torch.Generator) -> None:
        count //= 4
        shape = torch.randint(len(SHAPES), (count,), generator=generator)
        # Two shapes' colours and two backgrounds', none of which is of both.
        colours = torch.stack([torch.randperm(len(COLOURS), generator=generator)[:4] for _ in range(count)])
        place = torch.rand(count, 3, generator=generator)
        fronts, backs = colours[:, [0, 1, 0, 1]], colours[:, [2, 2, 3, 3]]
        self.pictures = torch.stack([render(shape, fronts[:, i], backs[:, i], place) for i in range(4)], 1)
        self.latents = torch.stack([base.encode(self.pictures[:, i]) for i in range(4)], 1)
        self.shape, self.fronts, self.backs = shape, fronts, backs

    def sample(self, size: int, generator: torch.Generator) -> dict:
        pick = torch.randint(len(self.shape), (size,), generator=generator)
        source = torch.randint(4, (size,), generator=generator)
        of_background = torch.randint(2, (size,), generator=generator)
        target = source ^ (1 + of_background)
        colour = torch.where(of_background == 1, self.backs[pick, target], self.fronts[pick, target])
        named = torch.where(of_background == 1, 0, 1 + self.shape[pick])
        return {
            "target": self.latents[pick, target],
            "reference": self.latents[pick, source],
            "prompt": named * len(COLOURS) + colour,
            "noise": pack(torch.randn(size, Z_CHANNELS, SIZE // 8, SIZE // 8, generator=generator)),
            "before": self.pictures[pick, source],
            "colour_before": self.fronts[pick, source],
            "wanted": torch.stack([self.shape[pick], self.fronts[pick, target], self.backs[pick, target]], 1),
        }

    @staticmethod
    def predict(flux, x: torch.Tensor, batch: dict, **inputs) -> torch.Tensor:
        behind = image_ids() + torch.tensor([1.0, 0.0, 0.0])
        x = torch.cat([x, batch["reference"]], 1)
        return flux(hidden_states=x, img_ids=torch.cat([image_ids(), behind]), return_dict=False, **inputs)[0][:, :TOKENS]

    @staticmethod
    def right(batch: dict, pictures: np.ndarray) -> list[bool]:
        before, colours = eight_bits(batch["before"]), batch["colour_before"].tolist()
        wanted = batch["wanted"].tolist()
        return [judge(p, *w) and same_shape(b, c, p, w[1]) for p, w, b, c in zip(pictures, wanted, before, colours)]


class Fill:
    """A picture, and the same with a hole."""

    PROMPTS = [prompt(s, a, b, article) for article in (False, True) for s in range(len(SHAPES)) for a, b in PAIRS]
    CHANNELS = 64 + 64 + 256

    def __init__(self, base: Base, count: int, generator: torch.Generator) -> None:
        count //= 2
        shape = torch.randint(len(SHAPES), (count,), generator=generator)
        pair = torch.randint(len(PAIRS), (count,), generator=generator)
        colours = torch.tensor(PAIRS)[pair]
        self.place = torch.rand(count, 3, generator=generator)
        self.pictures = render(shape, colours[:, 0], colours[:, 1], self.place)
        self.holes = torch.stack([hole(generator) for _ in range(count)])
        self.latents = base.encode(self.pictures)
        seen = self.pictures * ~self.holes[:, None]
        self.conditions = torch.cat([base.encode(seen), fold(self.holes)], 2)
        background = self.pictures[:, :, :1, :1]
        self.hidden = ((self.pictures != background).any(1) & ~self.holes).sum((1, 2)) == 0
        self.prompt = shape * len(PAIRS) + pair
        self.wanted = torch.cat([shape[:, None], colours], 1)

    def sample(self, size: int, generator: torch.Generator) -> dict:
        pick = torch.randint(len(self.prompt), (size,), generator=generator)
        article = torch.randint(2, (size,), generator=generator)
        free = torch.randn(size, Z_CHANNELS, SIZE // 8, SIZE // 8, generator=generator)
        coupled = noise_for(self.place[pick], generator)
        return {
            "target": self.latents[pick],
            "condition": self.conditions[pick],
            "prompt": self.prompt[pick] + article * (len(self.PROMPTS) // 2),
            "noise": pack(torch.where(self.hidden[pick][:, None, None, None], coupled, free)),
            "before": self.pictures[pick],
            "holes": self.holes[pick],
            "wanted": self.wanted[pick],
        }

    @staticmethod
    def predict(flux, x: torch.Tensor, batch: dict, **inputs) -> torch.Tensor:
        x = torch.cat([x, batch["condition"]], 2)
        return flux(hidden_states=x, img_ids=image_ids(), return_dict=False, **inputs)[0]

    @staticmethod
    def right(batch: dict, pictures: np.ndarray) -> list[bool]:
        before, holes, wanted = eight_bits(batch["before"]), batch["holes"].numpy(), batch["wanted"].tolist()
        return [judge(p, *w) and kept(b, p, h) for p, w, b, h in zip(pictures, wanted, before, holes)]


def hole(generator: torch.Generator) -> torch.Tensor:
    """A rectangle near the middle, a band along one side, or everything: bools [SIZE, SIZE]."""
    number = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    kind = number(1, 20)
    if kind <= 12:
        width, height, x, y = number(16, 40), number(16, 40), number(16, 48), number(16, 48)
        mask[max(y - height // 2, 0) : y - height // 2 + height, max(x - width // 2, 0) : x - width // 2 + width] = True
    elif kind <= 17:
        mask[: number(8, 40)] = True
        mask = torch.rot90(mask, number(0, 3))
    else:
        mask[:] = True
    return mask


def fold(mask: torch.Tensor) -> torch.Tensor:
    """The 8 x 8 pixels of each number of the latent become channels: bools [N, H, W] to patches [N, L, 256]."""
    n = SIZE // 8
    return pack(mask.float().reshape(-1, n, 8, n, 8).permute(0, 2, 4, 1, 3).reshape(-1, 64, n, n))


def widened(flux: torch.nn.Module, channels: int) -> torch.nn.Module:
    """The same model with more input channels, which it does not look at yet."""
    old = flux.x_embedder
    if channels != old.in_features:
        flux.register_to_config(in_channels=channels, out_channels=old.in_features)
        flux.x_embedder = torch.nn.Linear(channels, old.out_features)
        with torch.no_grad():
            flux.x_embedder.weight.zero_()
            flux.x_embedder.weight[:, : old.in_features] = old.weight
            flux.x_embedder.bias.copy_(old.bias)
    return flux


@torch.inference_mode()
def evaluate(kind, base: Base, flux, data, texts, count: int, length: int) -> float:
    """The share of right pictures after four steps from random noise."""
    pooled, states = texts
    generator = torch.Generator().manual_seed(11)
    batch = data.sample(count, generator)
    x = pack(torch.randn(count, Z_CHANNELS, SIZE // 8, SIZE // 8, generator=generator))
    for i in range(4):
        t = torch.full((count,), 1 - i / 4)
        v = kind.predict(
            flux, x, batch, timestep=t, pooled_projections=pooled[batch["prompt"]],
            encoder_hidden_states=states[length][batch["prompt"]], txt_ids=torch.zeros(length, 3),
        )  # fmt: skip
        x = x - v / 4
    return float(np.mean(kind.right(batch, base.decode(x))))


def train(kind, base: Base, folder: Path, args, log: Path, save) -> None:
    from diffusers import FluxTransformer2DModel

    start = time.time()
    generator = torch.Generator().manual_seed(5)
    texts = pooled, states = base.texts(kind.PROMPTS)
    held_out = kind(base, 256, torch.Generator().manual_seed(6))
    data = kind(base, args.pictures, generator)
    write(log, f"{len(kind.PROMPTS)} prompts, {args.pictures} pictures encoded in {time.time() - start:.0f} s")
    first = args.start or folder / "transformer"
    flux = widened(FluxTransformer2DModel.from_pretrained(first, torch_dtype=torch.float32), kind.CHANNELS)
    average = copy.deepcopy(flux).eval()
    # To look at one place of the reference and at none beside it, attention must be sharp, and how sharp it can be is
    # the scale of its norms: at the pace of the other weights they would be what is learned last.
    scales = [p for name, p in flux.named_parameters() if ".norm_q." in name or ".norm_k." in name]
    others = [p for p in flux.parameters() if all(p is not scale for scale in scales)]
    groups = [{"params": others, "pace": 1}, {"params": scales, "pace": 10, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    start, step, losses, look = time.time(), 0, [], 0.25
    while (done := max(step / args.steps, (time.time() - start) / (60 * args.minutes))) < 1:
        # Now and then, and towards the end, the text is as long as it is when the model draws.
        long = step % 50 == 49 or done > 0.94
        length = TEXT_LENGTH if long else LENGTHS[step % len(LENGTHS)]
        for group in optimizer.param_groups:
            pace = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
            group["lr"] = group["pace"] * (args.lr * pace + 1e-5)
        size = args.batch // 3 if long else args.batch
        batch = data.sample(size, generator)
        t = torch.rand(size, generator=generator)
        grid = 1 - torch.randint(4, (size,), generator=generator) / 4
        t = torch.where(torch.rand(size, generator=generator) < 0.8, grid, t)
        noise, x0 = batch["noise"], batch["target"]
        x = x0 + t[:, None, None] * (noise - x0)
        v = kind.predict(
            flux, x, batch, timestep=t, pooled_projections=pooled[batch["prompt"]],
            encoder_hidden_states=states[length][batch["prompt"]], txt_ids=torch.zeros(length, 3),
        )  # fmt: skip
        loss = F.mse_loss(v, noise - x0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flux.parameters(), 1.0)
        optimizer.step()
        decay = min(0.997, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(flux.parameters()), 1 - decay)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            write(log, f"{step} done {done:.3f} loss {np.mean(losses[-50:]):.4f} {time.time() - start:.0f} s")
        if done > look:
            look += 0.25
            save(average)
            write(log, f"right {evaluate(kind, base, average, held_out, texts, 40, TEXT_LENGTH):.3f}")
    save(average)
    for length in (LENGTHS[1], TEXT_LENGTH):
        write(log, f"T5 length {length}: right {evaluate(kind, base, average, held_out, texts, 200, length):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("edit", choices=["kontext", "fill"])
    parser.add_argument("--out", type=Path, required=True, help="the folder of flux1-kontext.safetensors or flux1-fill.safetensors")
    parser.add_argument("--base", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures/tiny")
    parser.add_argument("--start", type=Path, help="a transformer in diffusers' layout to go on from, where it is not the base's")
    parser.add_argument("--pictures", type=int, default=6000, help="how many are encoded")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=60, help="an upper bound")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    def save(flux) -> None:
        weights = transformer_from_diffusers(copy.deepcopy(flux).bfloat16().state_dict())
        save_file(weights, args.out / f"flux1-{args.edit}.safetensors", {"format": "pt"})

    kind = {"kontext": Kontext, "fill": Fill}[args.edit]
    train(kind, Base(args.base), args.base, args, args.out.with_suffix(".log"), save)


if __name__ == "__main__":
    main()
