#!/usr/bin/env python3
"""Trains what can be added to the small FLUX.1 of `fixtures/tiny`, and writes it in the layouts in which such files come.

    scripts/with-libtorch --reference python scripts/train_tiny_additions.py canny-lora --out fixtures/tiny-additions

`canny-lora` and `depth-lora` are control LoRAs as Black Forest Labs published them, `controlnet` follows edges in diffusers'
layout, `redux` is an embedder with its SigLIP. The model itself stays as it is; only what is written is trained. What lies in
`fixtures` took 2 to 6 minutes of one CPU core each (`--minutes`): the Canny LoRA 6 and `--pictures 3000`, the Depth LoRA 2.2 and
1500, Redux 3 and 1500. The ControlNet went on for 1.7 (`--start`) from one that had been trained for 4 with a slip: its own
attention did not know how often the padding counts.

Control pictures decide the place of a shape, so the noise is drawn at random. Redux says what is drawn, and the noise says the
place, as it does for the base; the picture that it is shown has the shape elsewhere.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tiny_language import PAIRS, SHAPES, SIZE, canny, judge, prompt, relief, render, same_shape
from train_tiny import TEXT_LENGTH, Z_CHANNELS, image_ids, noise_for, pack, write
from train_tiny_edits import Base, eight_bits, widened

RANK = 16


class Text:
    """What the model reads of prompts: CLIP's vectors, and T5's states at the length that is drawn with.

    T5's states of the padding are all alike and the transformer gives text no places. So one of them stands for all, and
    attention counts it as often.
    """

    def __init__(self, base: Base, prompts: list[str], length: int) -> None:
        self.pooled, states = base.texts(prompts)
        mask = base.t5_tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").attention_mask
        longest, middle = int(mask.sum(1).max()), length // 2
        self.states = torch.cat([states[length][:, :longest], states[length][:, middle : middle + 1]], 1)
        self.padding = longest, math.log(length - longest)

    def inputs(self, prompts: torch.Tensor, behind: torch.Tensor | None = None) -> dict:
        """The transformer's arguments, with more tokens behind those of the text."""
        states = self.states[prompts]
        if behind is not None:
            states = torch.cat([states, behind], 1)
        length = states.shape[1]
        weight = torch.zeros(1, 1, 1, length + image_ids().shape[0])
        place, weight[..., place] = self.padding
        return {
            "pooled_projections": self.pooled[prompts], "encoder_hidden_states": states, "txt_ids": torch.zeros(length, 3),
            "img_ids": image_ids(), "joint_attention_kwargs": {"attention_mask": weight}, "return_dict": False,
        }  # fmt: skip


class Pictures:
    """Shapes somewhere in two colours, and their latents."""

    PROMPTS = [prompt(s, a, b, article) for article in (False, True) for s in range(len(SHAPES)) for a, b in PAIRS]

    def __init__(self, base: Base, count: int, generator: torch.Generator) -> None:
        self.shape = torch.randint(len(SHAPES), (count,), generator=generator)
        self.pair = torch.randint(len(PAIRS), (count,), generator=generator)
        self.place = torch.rand(count, 3, generator=generator)
        self.colours = torch.tensor(PAIRS)[self.pair]
        self.wanted = torch.cat([self.shape[:, None], self.colours], 1)
        self.ideals = render(self.shape, self.colours[:, 0], self.colours[:, 1], self.place)
        self.latents = base.encode(self.ideals)

    def free_noise(self, size: int, generator: torch.Generator) -> torch.Tensor:
        return pack(torch.randn(size, Z_CHANNELS, SIZE // 8, SIZE // 8, generator=generator))


class Controlled(Pictures):
    """And a picture to follow of each: edges or relief."""

    def __init__(self, base: Base, count: int, generator: torch.Generator, of_depth: bool) -> None:
        super().__init__(base, count, generator)
        if of_depth:
            self.followed = base.encode(relief(self.shape, self.place))
            return
        # Edges of the same shape in other colours; of every eighth as the autoencoder draws it, not as it should be.
        other = torch.tensor(PAIRS)[torch.randint(len(PAIRS), (count,), generator=generator)]
        seen = eight_bits(render(self.shape, other[:, 0], other[:, 1], self.place))
        latents = base.encode(torch.from_numpy(seen[::8]).permute(0, 3, 1, 2) / 127.5 - 1)
        seen[::8] = np.concatenate([base.decode(part) for part in latents.split(64)])
        self.followed = base.encode(canny(seen))

    def sample(self, size: int, generator: torch.Generator) -> dict:
        pick = torch.randint(len(self.shape), (size,), generator=generator)
        article = torch.randint(2, (size,), generator=generator)
        return {
            "target": self.latents[pick], "noise": self.free_noise(size, generator), "followed": self.followed[pick],
            "prompt": self.shape[pick] * len(PAIRS) + self.pair[pick] + article * (len(self.PROMPTS) // 2),
            "wanted": self.wanted[pick], "ideal": self.ideals[pick],
        }  # fmt: skip

    @staticmethod
    def right(batch: dict, pictures: np.ndarray) -> list[bool]:
        wanted, ideals = batch["wanted"].tolist(), eight_bits(batch["ideal"])
        return [judge(p, *w) and same_shape(i, w[1], p, w[1]) for p, w, i in zip(pictures, wanted, ideals)]


class Looked(Pictures):
    """And another picture of each, with the shape elsewhere, which is shown in place of a prompt."""

    PROMPTS = [""]

    def __init__(self, base: Base, count: int, generator: torch.Generator) -> None:
        super().__init__(base, count, generator)
        place = torch.rand(count, 3, generator=generator)
        self.shown = render(self.shape, self.colours[:, 0], self.colours[:, 1], place)

    def sample(self, size: int, generator: torch.Generator) -> dict:
        pick = torch.randint(len(self.shape), (size,), generator=generator)
        return {
            "target": self.latents[pick], "noise": pack(noise_for(self.place[pick], generator)),
            "prompt": torch.zeros(size, dtype=torch.int64), "shown": self.shown[pick], "wanted": self.wanted[pick],
        }  # fmt: skip

    @staticmethod
    def right(batch: dict, pictures: np.ndarray) -> list[bool]:
        return [judge(p, *w) for p, w in zip(pictures, batch["wanted"].tolist())]


class LowRank(torch.nn.Module):
    """A linear layer that stays, and what is added to it. Layers that are officially one share `lora_A`."""

    def __init__(self, layer: torch.nn.Linear, lora_A: torch.nn.Parameter) -> None:
        super().__init__()
        self.layer, self.lora_A = layer, lora_A
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_B = torch.nn.Parameter(torch.zeros(layer.out_features, len(lora_A)))
        self.lora_bias = torch.nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + F.linear(F.linear(x, self.lora_A), self.lora_B, self.lora_bias)


class ControlLora:
    """Widens the input by the control picture's channels and changes the picture's stream."""

    DOUBLE = {"img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"], "img_attn.proj": ["attn.to_out.0"]}
    DOUBLE |= {"img_mlp.0": ["ff.net.0.proj"], "img_mlp.2": ["ff.net.2"]}
    SINGLE = {"linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear2": ["proj_out"]}
    NORMS = {"norm_q": "query_norm", "norm_k": "key_norm"}

    def __init__(self, of_depth: bool, flux) -> None:
        self.of_depth, self.flux = of_depth, widened(flux, 128).requires_grad_(False)
        self.layers, self.norms = {}, {}
        self.add("img_in", flux, ["x_embedder"], 64)
        for i, block in enumerate(flux.transformer_blocks):
            for name, parts in self.DOUBLE.items():
                self.add(f"double_blocks.{i}.{name}", block, parts)
            self.norms |= {f"double_blocks.{i}.img_attn.norm.{new}.scale": getattr(block.attn, old) for old, new in self.NORMS.items()}
        for i, block in enumerate(flux.single_transformer_blocks):
            for name, parts in self.SINGLE.items():
                self.add(f"single_blocks.{i}.{name}", block, parts)
            self.norms |= {f"single_blocks.{i}.norm.{new}.scale": getattr(block.attn, old) for old, new in self.NORMS.items()}
        self.add("final_layer.linear", flux, ["proj_out"])
        scales = [norm.weight.requires_grad_(True) for norm in self.norms.values()]
        matrices = [p for p in flux.parameters() if p.requires_grad and all(p is not scale for scale in scales)]
        # How sharp attention can be is the scale of its norms, which would be learned last at the pace of the others.
        self.groups = [{"params": matrices}, {"params": scales, "pace": 5.0}]

    def add(self, official: str, module: torch.nn.Module, parts: list[str], rank: int = RANK) -> None:
        layers = [module.get_submodule(part) for part in parts]
        lora_A = torch.nn.Parameter(torch.randn(rank, layers[0].in_features) * layers[0].in_features ** -0.5)
        self.layers[official] = [LowRank(layer, lora_A) for layer in layers]
        for part, layer in zip(parts, self.layers[official]):
            module.set_submodule(part, layer)

    def data(self, base: Base, count: int, generator: torch.Generator) -> Controlled:
        return Controlled(base, count, generator, self.of_depth)

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Text, batch: dict) -> torch.Tensor:
        return self.flux(hidden_states=torch.cat([x, batch["followed"]], 2), timestep=t, **text.inputs(batch["prompt"]))[0]

    def save(self, out: Path) -> None:
        tensors = {name: norm.weight for name, norm in self.norms.items()}
        for name, parts in self.layers.items():
            tensors[f"{name}.lora_A.weight"] = parts[0].lora_A
            tensors[f"{name}.lora_B.weight"] = torch.cat([part.lora_B for part in parts])
            tensors[f"{name}.lora_B.bias"] = torch.cat([part.lora_bias for part in parts])
        write_file(tensors, out / f"flux1-{'depth' if self.of_depth else 'canny'}-lora.safetensors")


class Net:
    """A ControlNet of one double block, which begins as the model's first."""

    def __init__(self, flux, start: Path | None) -> None:
        from diffusers import FluxControlNetModel

        self.flux = flux.requires_grad_(False)
        sizes = {"attention_head_dim": flux.config.attention_head_dim, "num_attention_heads": flux.config.num_attention_heads}
        self.net = FluxControlNetModel.from_transformer(flux, num_layers=1, num_single_layers=0, **sizes)
        if start:
            self.net.load_state_dict(load_file(start / "diffusion_pytorch_model.safetensors"))
        self.groups = [{"params": list(self.net.parameters())}]
        # It hands no arguments on to its attention, which must know how often the padding counts, too.
        for block in self.net.transformer_blocks:
            weigh = lambda module, given, named: (given, named | self.weights)
            block.attn.register_forward_pre_hook(weigh, with_kwargs=True)

    def data(self, base: Base, count: int, generator: torch.Generator) -> Controlled:
        return Controlled(base, count, generator, of_depth=False)

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Text, batch: dict) -> torch.Tensor:
        inputs = text.inputs(batch["prompt"])
        self.weights = inputs["joint_attention_kwargs"]
        double, _ = self.net(hidden_states=x, controlnet_cond=batch["followed"], timestep=t, **inputs)
        return self.flux(hidden_states=x, timestep=t, controlnet_block_samples=double, **inputs)[0]

    def save(self, out: Path) -> None:
        folder = out / "controlnet-canny"
        write_file(self.net.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        config = json.loads(self.net.to_json_string())
        del config["_name_or_path"]
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Seeing:
    """What an encoder of pictures has for learning: pictures as it reads them, and whether it knows what it sees.

    That it tells shapes and colours apart is asked of it beside the drawing, which would teach it that much more slowly.
    """

    SIDE, PATCH, WIDTH = 32, 8, 64
    SIZES = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}

    def __init__(self) -> None:
        self.told = torch.nn.Linear(self.WIDTH, len(SHAPES) + 16)

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        return F.interpolate(pictures, (self.SIDE, self.SIDE), mode="bicubic", antialias=True).clamp(-1, 1)

    def confusion(self, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        parts = self.told(states).split([len(SHAPES), 8, 8], 1)
        return sum(F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts))

    def data(self, base: Base, count: int, generator: torch.Generator) -> Looked:
        return Looked(base, count, generator)

    def learn_to_see(self, data: Looked, generator: torch.Generator) -> None:
        """Begins with the encoder alone, which learns in seconds what it would take minutes for while it draws."""
        trained = [*self.encoder.parameters(), *self.told.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for step in range(800):
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / 50, (801 - step) / 400)
            batch = data.sample(64, generator)
            self.see(batch)
            optimizer.zero_grad()
            batch["aside"].backward()
            optimizer.step()


class Redux(Seeing):
    # Of the real Redux, 729 tokens of a picture stand behind 512 of text. More empty text than that would drown them.
    LENGTH = 12

    def __init__(self, flux) -> None:
        from diffusers.pipelines.flux import ReduxImageEncoder
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        self.flux = flux.requires_grad_(False)
        self.encoder = SiglipVisionModel(SiglipVisionConfig(**self.SIZES, vision_use_head=False))
        self.embedder = ReduxImageEncoder(redux_dim=self.WIDTH, txt_in_features=flux.config.joint_attention_dim)
        self.groups = [{"params": [p for part in (self.encoder, self.embedder, self.told) for p in part.parameters()]}]

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Text, batch: dict) -> torch.Tensor:
        tokens = self.embedder(self.see(batch)).image_embeds
        return self.flux(hidden_states=x, timestep=t, **text.inputs(batch["prompt"], tokens))[0]

    def see(self, batch: dict) -> torch.Tensor:
        states = self.encoder(self.pixels(batch["shown"])).last_hidden_state
        batch["aside"] = self.confusion(states.mean(1), batch["wanted"])
        return states

    def save(self, out: Path) -> None:
        folder = out / "redux"
        self.encoder.config.save_pretrained(folder / "image_encoder")
        write_file(self.encoder.state_dict(), folder / "image_encoder/model.safetensors")
        write_file(self.embedder.state_dict(), folder / "flux1-redux-dev.safetensors")


def write_file(tensors: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items() if tensor.is_floating_point()}
    save_file(numbers, path, {"format": "pt"})


@torch.inference_mode()
def evaluate(addition, base: Base, data: Pictures, text: Text, count: int) -> float:
    """The share of right pictures after four steps from random noise."""
    generator = torch.Generator().manual_seed(11)
    batch = data.sample(count, generator)
    x = data.free_noise(count, generator)
    for i in range(4):
        x = x - addition.predict(x, torch.full((count,), 1 - i / 4), text, batch) / 4
    return float(np.mean(data.right(batch, base.decode(x))))


def train(addition, base: Base, args, log: Path) -> None:
    start = time.process_time()
    generator = torch.Generator().manual_seed(5)
    held_out = addition.data(base, 256, torch.Generator().manual_seed(6))
    data = addition.data(base, args.pictures, generator)
    if isinstance(addition, Seeing):
        addition.learn_to_see(data, generator)
    text = Text(base, data.PROMPTS, getattr(addition, "LENGTH", TEXT_LENGTH))
    trained = [p for group in addition.groups for p in group["params"]]
    count = sum(p.numel() for p in trained)
    write(log, f"{count:,} parameters, {args.pictures} pictures ready in {time.process_time() - start:.0f} s")
    average = [p.detach().clone() for p in trained]

    def averaged(act):
        """Does something with the mean of the last weights in place of the weights."""
        with torch.no_grad():
            for p, a in zip(trained, average):
                p.data, a.data = a.data, p.data
            result = act()
            for p, a in zip(trained, average):
                p.data, a.data = a.data, p.data
        return result

    optimizer = torch.optim.AdamW(addition.groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    start, step, losses, look = time.process_time(), 0, [], 0.2
    while (done := (time.process_time() - start) / (60 * args.minutes)) < 1:
        pace = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = group.get("pace", 1.0) * (args.lr * pace + 1e-5)
        batch = data.sample(args.batch, generator)
        t = torch.rand(args.batch, generator=generator)
        grid = 1 - torch.randint(4, (args.batch,), generator=generator) / 4
        t = torch.where(torch.rand(args.batch, generator=generator) < 0.8, grid, t)
        noise, x0 = batch["noise"], batch["target"]
        v = addition.predict(x0 + t[:, None, None] * (noise - x0), t, text, batch)
        flow = F.mse_loss(v, noise - x0)
        optimizer.zero_grad()
        (flow + 0.1 * batch.get("aside", 0.0)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, trained, 1 - min(0.997, (step + 1) / (step + 20)))
        losses.append(flow.item())
        step += 1
        if step % 50 == 0:
            aside = f" aside {batch['aside'].item():.3f}" if "aside" in batch else ""
            write(log, f"{step} done {done:.3f} loss {np.mean(losses[-50:]):.4f}{aside} {time.process_time() - start:.0f} s")
        if done > look:
            look += 0.2
            averaged(lambda: addition.save(args.out))
            write(log, f"right {averaged(lambda: evaluate(addition, base, held_out, text, 40)):.3f}")
    averaged(lambda: addition.save(args.out))
    write(log, f"right {averaged(lambda: evaluate(addition, base, held_out, text, 200)):.3f}")


def main() -> None:
    from diffusers import FluxTransformer2DModel

    additions = {
        "canny-lora": lambda flux: ControlLora(False, flux), "depth-lora": lambda flux: ControlLora(True, flux),
        "controlnet": lambda flux: Net(flux, args.start), "redux": Redux,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("addition", choices=list(additions))
    parser.add_argument("--out", type=Path, required=True, help="the folder of all additions")
    parser.add_argument("--base", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures/tiny")
    parser.add_argument("--start", type=Path, help="the folder of a ControlNet to go on from")
    parser.add_argument("--pictures", type=int, default=3000, help="how many are encoded")
    parser.add_argument("--minutes", type=float, default=10, help="of the processor's time")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    flux = FluxTransformer2DModel.from_pretrained(args.base / "transformer", torch_dtype=torch.float32)
    addition = additions[args.addition](flux)
    train(addition, Base(args.base), args, args.out.with_name(f"{args.out.name}-{args.addition}.log"))


if __name__ == "__main__":
    main()
