#!/usr/bin/env python3
"""Measures PyTorch as `tch-flux bench` measures tch-flux: same shapes, kinds and threads, random weights.

    scripts/with-libtorch --reference python scripts/bench_reference.py step --depth 1 --single 2 --kind bf16

`step` is diffusers' FluxTransformer2DModel and `decode` its AutoencoderKL, or the official code where `--official` names
the folder `src` of a checkout of it; `text` is transformers' T5EncoderModel. They run eagerly, or through torch.compile
with frozen weights. `generate` draws a picture with diffusers' FluxPipeline, for whoever measures whole processes.

The last line is a JSON object with the keys of `tch-flux bench … --json`.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# What the libraries have to say about themselves would hide the results.
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# So many random numbers are drawn, and repeated throughout a model, as in `tch-flux bench`.
DRAWN = 1_048_583


# ---------------------------------------------------------------- weights


def build(args, make):
    """A model in the kind and on the device that were asked for, with random weights and no memory beside them."""
    with torch.device("meta"):
        model = make()
    model = model.to(KINDS[args.kind]).to_empty(device=args.device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    torch.manual_seed(0)
    drawn = torch.randn(DRAWN, device=args.device).to(KINDS[args.kind])
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        weight = parameters.get(name.removesuffix("bias") + "weight") if name.endswith("bias") else None
        like = parameter if weight is None else weight
        if like.dim() == 1:
            parameter.fill_(1.0 if weight is None else 0.0)
            continue
        for part in parameter.view(-1).split(DRAWN):
            part.copy_(drawn[: len(part)])
        parameter.mul_(1.0 / math.sqrt(like[0].numel()))
    return model.eval()


def normal(args, *size):
    return torch.randn(size, device=args.device).to(KINDS[args.kind])


def import_official(args):
    """Makes the package `flux` of the official checkout importable."""
    sys.path.insert(0, str(args.official))


# ---------------------------------------------------------------- the models


def step(args):
    heads = args.hidden_size // 128
    guided = args.preset == "flux1-dev"
    common = {"depth": args.depth, "single": args.single, "hidden_size": args.hidden_size}
    setting = {"preset": args.preset, **common, "image_tokens": args.image_tokens, "text_tokens": args.text_tokens}
    side = math.ceil(math.sqrt(args.image_tokens))
    places = torch.arange(args.image_tokens, device=args.device)
    img_ids = torch.stack([torch.zeros_like(places), places // side, places % side], -1).float()
    txt_ids = torch.zeros(args.text_tokens, 3, device=args.device)
    img, txt = normal(args, 1, args.image_tokens, 64), normal(args, 1, args.text_tokens, 4096)
    y = normal(args, 1, 768)
    times, guidance = torch.ones_like(y[:, 0]), torch.full_like(y[:, 0], 2.5)
    if args.official:
        import_official(args)
        from flux.model import Flux, FluxParams

        params = FluxParams(
            in_channels=64, out_channels=64, vec_in_dim=768, context_in_dim=4096, hidden_size=args.hidden_size, mlp_ratio=4.0,
            num_heads=heads, depth=args.depth, depth_single_blocks=args.single, axes_dim=[16, 56, 56], theta=10_000,
            qkv_bias=True, guidance_embed=guided,
        )  # fmt: skip
        model = build(args, lambda: Flux(params))
        inputs = {"img": img, "img_ids": img_ids[None], "txt": txt, "txt_ids": txt_ids[None]}
        inputs |= {"timesteps": times, "y": y, "guidance": guidance if guided else None}
    else:
        from diffusers import FluxTransformer2DModel

        model = build(args, lambda: FluxTransformer2DModel(
            num_layers=args.depth, num_single_layers=args.single, num_attention_heads=heads, guidance_embeds=guided,
        ))  # fmt: skip
        inputs = {"hidden_states": img, "img_ids": img_ids, "encoder_hidden_states": txt, "txt_ids": txt_ids}
        inputs |= {"timestep": times, "pooled_projections": y, "guidance": guidance if guided else None, "return_dict": False}
    return setting, model, model, inputs


def decode(args):
    setting = {"width": args.width, "height": args.height}
    z = normal(args, 1, 16, args.height // 8, args.width // 8)
    if args.official:
        import_official(args)
        from flux.modules.autoencoder import AutoEncoder, AutoEncoderParams

        params = AutoEncoderParams(
            resolution=256, in_channels=3, ch=128, out_ch=3, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=16,
            scale_factor=0.3611, shift_factor=0.1159,
        )  # fmt: skip
        model = build(args, lambda: AutoEncoder(params))
        return setting, model, model.decode, {"z": z}
    from diffusers import AutoencoderKL

    model = build(args, lambda: AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    ))  # fmt: skip
    return setting, model, lambda z: model.decode(z / 0.3611 + 0.1159, return_dict=False)[0], {"z": z}


def text(args):
    return clip(args) if args.encoder == "clip" else t5(args)


def clip(args):
    from transformers import CLIPTextConfig, CLIPTextModel

    layers, tokens = args.layers or 12, args.tokens or 77
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=12,
        max_position_embeddings=77,
    )  # fmt: skip
    model = build(args, lambda: CLIPTextModel(config))
    ids = torch.randint(config.vocab_size, (1, tokens), device=args.device)
    # A model that is built without memory has no positions of its own.
    inputs = {"input_ids": ids, "position_ids": torch.arange(tokens, device=args.device).unsqueeze(0)}
    return {"encoder": "clip", "layers": layers, "tokens": tokens}, model, model, inputs


def t5(args):
    from transformers import T5Config, T5EncoderModel

    layers, tokens = args.layers or 24, args.tokens or 512
    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=layers, num_heads=64,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    model = build(args, lambda: T5EncoderModel(config))
    ids = torch.randint(config.vocab_size, (1, tokens), device=args.device)
    return {"encoder": "t5", "layers": layers, "tokens": tokens}, model, model, {"input_ids": ids}


# ---------------------------------------------------------------- the clock and the memory


def status_bytes(field):
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def forget_peak():
    """Lets the system's peak start anew, and says what the process holds now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return status_bytes("VmRSS:")


def synchronize(args):
    if args.device.startswith("cuda"):
        torch.cuda.synchronize(args.device)


def measure(args, call, inputs):
    # The start of torch's threads and of the device is not the model's.
    ones = torch.ones(64, 64, dtype=KINDS[args.kind], device=args.device)
    ones @ ones
    synchronize(args)
    if args.compile:
        from torch._inductor import config

        config.freezing = True
        call = torch.compile(call)
    peak_before, held, seconds = status_bytes("VmHWM:"), forget_peak(), []
    for _ in range(args.warmup + args.repeat):
        started = time.perf_counter()
        call(**inputs)
        synchronize(args)
        seconds.append(time.perf_counter() - started)
    seconds, peak = seconds[args.warmup :], status_bytes("VmHWM:")
    known = args.device == "cpu" and held is not None
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "seconds": seconds,
        "peak_bytes": None if peak is None else max(peak_before, peak),
        "beyond_weights_bytes": peak - held if known else None,
    }


def implementation(args):
    """What is measured, in words."""
    if args.what == "text":
        package = f"transformers {version('transformers')}"
    else:
        package = "the official code" if getattr(args, "official", None) else f"diffusers {version('diffusers')}"
    return f"{package}, {'torch.compile, frozen' if getattr(args, 'compile', False) else 'eager'}"


def generate(args):
    from diffusers import FluxPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    started = time.perf_counter()
    pipeline = FluxPipeline.from_pretrained(args.model, dtype=KINDS[args.kind])
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        args.prompt, height=args.size, width=args.size, num_inference_steps=args.steps, guidance_scale=0.0,
        max_sequence_length=256, generator=torch.Generator("cpu").manual_seed(args.seed),
    ).images[0]  # fmt: skip
    picture.save(args.out)
    took = time.perf_counter() - started
    times = {"median_s": took, "min_s": took, "max_s": took, "seconds": [took]}
    return times | {"peak_bytes": status_bytes("VmHWM:"), "kind": args.kind}


# ---------------------------------------------------------------- the command line


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kind", choices=KINDS, default="bf16")
    common.add_argument("--threads", type=int, help="threads of an operation")
    passes = argparse.ArgumentParser(add_help=False, parents=[common])
    passes.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    passes.add_argument("--repeat", type=int, default=5, help="passes that count")
    passes.add_argument("--warmup", type=int, default=1, help="passes before those, which do not count")
    passes.add_argument("--compile", action="store_true", help="torch.compile with frozen weights")
    official = argparse.ArgumentParser(add_help=False, parents=[passes])
    official.add_argument("--official", type=Path, metavar="DIR", help="`src` of a checkout of the official code")

    command = what.add_parser("step", parents=[official], help="a step of the transformer")
    command.add_argument("--preset", choices=["flux1-dev", "flux1-schnell"], default="flux1-dev")
    command.add_argument("--depth", type=int, default=19, help="double blocks")
    command.add_argument("--single", type=int, default=38, help="single blocks")
    command.add_argument("--hidden-size", type=int, default=3072, help="a multiple of 128")
    command.add_argument("--image-tokens", type=int, default=4096)
    command.add_argument("--text-tokens", type=int, default=512)
    command = what.add_parser("decode", parents=[official], help="from latents to a picture")
    command.add_argument("--width", type=int, default=512)
    command.add_argument("--height", type=int, default=512)
    command = what.add_parser("text", parents=[passes], help="a text encoder's states of a prompt")
    command.add_argument("--encoder", choices=["t5", "clip"], default="t5")
    command.add_argument("--layers", type=int, help="T5 24, CLIP 12 without it")
    command.add_argument("--tokens", type=int, help="T5 512, CLIP 77 without it")
    command = what.add_parser("generate", parents=[common], help="a picture; its time is that of the whole pipeline")
    command.add_argument("prompt")
    command.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    command.add_argument("--size", type=int, default=64)
    command.add_argument("--steps", type=int, default=4)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


@torch.no_grad()
def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "generate":
        report = generate(args)
    else:
        setting, model, call, inputs = {"step": step, "decode": decode, "text": text}[args.what](args)
        held = {p.data_ptr(): p.nbytes for p in model.parameters()}
        report = measure(args, call, inputs) | setting
        report |= {"weight_bytes": sum(held.values()), "kind": args.kind, "numerics": None, "quantize": "none"}
        report |= {"device": args.device}
    report |= {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability().lower()}
    print(json.dumps(report | {"torch": torch.__version__, "implementation": implementation(args)}))


if __name__ == "__main__":
    main()
