#!/usr/bin/env python3
"""Draws from pictures with diffusers' pipelines and with `tch-flux edit`, and compares the results, mode by mode.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_edits.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The models are the tiny one, what it became as Kontext and as Fill, and,
for Canny and Depth, that one with more input channels, whose weights are random, by themselves or by a LoRA. diffusers reads
the finetunes in its layout, as `tch-flux convert` writes it. Where diffusers draws a sample of what the autoencoder's encoder says,
it is made to take the mean, as the official code does.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import compare_pipelines as compare
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

THRESHOLD = 45.0
PROMPT = "a red circle on a blue background"
SIZE = compare.SIZE
STEPS = 4
SEED = 7
ROOT = Path(__file__).resolve().parent.parent


def picture(width, height):
    """A ring on a gradient: something in every direction and colour."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, 3 * width // 4, 3 * height // 4], outline="white", width=4)
    return image


def mask(width, height):
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).rectangle([width // 3, height // 4, width - 9, height - 5], fill=255)
    return image


def widen(model, channels, folder):
    """The model with so many input channels, in diffusers' layout."""
    from diffusers import FluxTransformer2DModel

    for part in model.iterdir():
        if part.is_dir() and part.name != "transformer":
            shutil.copytree(part, folder / part.name)
    shutil.copy(model / "model_index.json", folder)
    narrow = FluxTransformer2DModel.from_pretrained(model / "transformer", torch_dtype=torch.float32)
    wide = FluxTransformer2DModel.from_config({**narrow.config, "in_channels": channels, "out_channels": narrow.config.in_channels})
    weights = narrow.state_dict()
    more = channels - narrow.config.in_channels
    embedder = weights["x_embedder.weight"]
    noise = torch.randn(embedder.shape[0], more, generator=torch.Generator().manual_seed(channels)) * embedder.std()
    wide.load_state_dict(weights | {"x_embedder.weight": torch.cat([embedder, noise], 1)})
    wide.save_pretrained(folder / "transformer")
    return folder


def depth_model(folder):
    """A small Depth Anything with random weights, whose numbers fill the range of bytes."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(6)
    backbone = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, image_size=70, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
    )
    sizes = {"reassemble_hidden_size": 24, "neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 16, "head_hidden_size": 8}
    model = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        model.backbone.embeddings.position_embeddings.normal_(0, 0.5)
        depth = model(depth_pixels(picture(SIZE, SIZE))).predicted_depth
        model.head.conv3.weight.mul_(255 / depth.max())
        model.head.conv3.bias.mul_(255 / depth.max())
    model.save_pretrained(folder)
    return model


def depth_pixels(image):
    """As depth-anything-large-hf configures the processor, of bytes that the official code had in -1..1 before."""
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    processor = DPTImageProcessorPil(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1.0
    return processor(((pixels + 1.0) * 127.5).byte(), return_tensors="pt")["pixel_values"]


def depths(model, image):
    """What the official code's `DepthImageEncoder` gives of a picture."""
    with torch.no_grad():
        depth = model(depth_pixels(image)).predicted_depth[:, None].expand(-1, 3, -1, -1)
    depth = torch.nn.functional.interpolate(depth, (image.height, image.width), mode="bicubic", antialias=True)
    return depth / 127.5 - 1.0


def finetune(binary, model, transformer, folder):
    """The model with another transformer, in diffusers' layout."""
    for part in model.iterdir():
        if part.is_dir() and part.name != "transformer":
            shutil.copytree(part, folder / part.name)
    shutil.copy(model / "model_index.json", folder)
    call = [binary, "convert", transformer, folder / "transformer", "--layout", "diffusers"]
    subprocess.run([str(part) for part in call], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return folder


def control_lora(model, path):
    """In the layout of the official control LoRAs: it widens the input, and has biases and scales of norms, too."""
    from diffusers import FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(model / "transformer")
    head, channels = config["attention_head_dim"], config["in_channels"]
    width, generator = config["num_attention_heads"] * head, torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.2
    attention, weights = "transformer_blocks.0.attn", {}
    for layer, columns in (("x_embedder", 2 * channels), (f"{attention}.to_q", width)):
        weights |= {f"{layer}.lora_A.weight": draw(4, columns), f"{layer}.lora_B.weight": draw(width, 4)}
        weights[f"{layer}.lora_B.bias"] = draw(width)
    weights[f"{attention}.norm_q.weight"] = 1 + draw(head)
    save_file({f"transformer.{name}": tensor for name, tensor in weights.items()}, path)


def theirs(name, model, lora=None, **request):
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    diffusers.utils.logging.disable_progress_bar()
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    pipeline = getattr(diffusers, name).from_pretrained(model, dtype=torch.float32, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        path, strength = lora
        pipeline.load_lora_weights(str(path), adapter_name="lora")
        pipeline.set_adapters(["lora"], [strength])
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


def cases(binary, model, folder):
    """Name, diffusers' pipeline with its model and request, and ours with its flags."""
    square, wide, hole = folder / "square.png", folder / "wide.png", folder / "mask.png"
    picture(SIZE, SIZE).save(square)
    picture(96, 48).save(wide)
    mask(SIZE, SIZE).save(hole)
    image, area = Image.open(square), Image.open(hole)
    negative = "a green square on a white background"
    kontext, fill = [model.parent / f"tiny-{name}/flux1-{name}.safetensors" for name in ("kontext", "fill")]
    as_kontext, as_fill = [finetune(binary, model, own, Path(tempfile.mkdtemp(dir=folder))) for own in (kontext, fill)]
    control = widen(model, 128, Path(tempfile.mkdtemp(dir=folder)))
    beside = {"max_area": SIZE * SIZE, "_auto_resize": False}
    yield "true guidance", "FluxPipeline", model, {"negative_prompt": negative, "true_cfg_scale": 3.0}, "generate", [
        "--negative-prompt", negative, "--true-cfg-scale", "3",
    ]  # fmt: skip
    other = {"prompt_2": negative}
    yield "two prompts", "FluxPipeline", model, other, "generate", ["--prompt-2", negative]
    for strength in (0.3, 0.6, 1.0):
        flags = ["--image", square, "--strength", strength]
        yield f"image to image, {strength}", "FluxImg2ImgPipeline", model, {"image": image, "strength": strength}, "edit", flags
    yield "inpainting", "FluxInpaintPipeline", model, {"image": image, "mask_image": area, "strength": 0.8}, "edit", [
        "--image", square, "--mask", hole, "--strength", "0.8",
    ]  # fmt: skip
    yield "Kontext", "FluxKontextPipeline", as_kontext, {"image": image} | beside, "edit", [
        "--image", square, "--transformer", kontext, "--keep-size",
    ]  # fmt: skip
    yield "Kontext, another shape", "FluxKontextPipeline", as_kontext, {"image": Image.open(wide)} | beside, "edit", [
        "--image", wide, "--transformer", kontext, "--keep-size",
    ]  # fmt: skip
    yield "Fill", "FluxFillPipeline", as_fill, {"image": image, "mask_image": area}, "edit", [
        "--image", square, "--mask", hole, "--transformer", fill,
    ]  # fmt: skip
    yield "Control", "FluxControlPipeline", control, {"control_image": image}, "edit", ["--image", square]
    control_lora(model, lora := folder / "control.safetensors")
    request = {"control_image": image, "lora": (lora, 0.85)}
    yield "Control, a LoRA", "FluxControlPipeline", model, request, "edit", ["--image", square, "--lora", f"{lora}:0.85"]
    followed = {"control_image": depths(depth_model(folder / "depth"), image)}
    yield "Depth", "FluxControlPipeline", control, followed, "edit", ["--image", square, "--depth", "--depth-model", folder / "depth"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    args = parser.parse_args()
    torch.set_num_threads(2)

    failed = passed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, pipeline, model, request, command, flags in cases(args.binary, args.model, folder):
            value = compare.psnr(theirs(pipeline, model, **request), ours(args.binary, model, folder / "out.png", command, *flags))
            passed, failed = passed + (value >= THRESHOLD), failed + (value < THRESHOLD)
            print(f"{'ok' if value >= THRESHOLD else 'FAILED':6} {title}: {value:.2f} dB", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
