#!/usr/bin/env python3
"""Draws from pictures with diffusers' pipelines and with `tch-flux edit`, and compares the results, mode by mode.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_edits.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The models are the tiny one, what it became as Kontext and as Fill, and, for
Canny and Depth, that one with more input channels, whose weights are random, by themselves or by a LoRA. diffusers reads
the finetunes in its layout, as `tch-flux convert` writes it. What diffusers does not have is written here from its definition:
a canvas with more room around the picture, and several references, both as ComfyUI has them; true guidance of Fill and Control.
"""

import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from comparison import NEGATIVE, SIZE, Case, picture, run, theirs
from PIL import Image, ImageDraw
from safetensors.torch import save_file


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


def with_lora(path, strength, pipeline):
    """Puts a LoRA on a pipeline."""
    pipeline.load_lora_weights(str(path), adapter_name="lora")
    pipeline.set_adapters(["lora"], [strength])


def padded(image, left, top, right, bottom):
    """ComfyUI's `ImagePadForOutpaint` without feathering: grey around the picture, and the mask that is white there."""
    size = (left + image.width + right, top + image.height + bottom)
    canvas, area = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size, 255)
    canvas.paste(image, (left, top))
    area.paste(0, (left, top, left + image.width, top + image.height))
    return {"image": canvas, "mask_image": area, "width": size[0], "height": size[1]}


def edges(image):
    """What the official code's `CannyImageEncoder` finds."""
    return Image.fromarray(np.repeat(cv2.Canny(np.array(image), 50, 200)[:, :, None], 3, 2))


def beside(images, pipeline):
    """More references of Kontext, where ComfyUI's `Flux` puts them by its method "offset": right of those before where
    the whole is then lower than wide, else below them."""
    first = pipeline.prepare_latents

    def prepare_latents(image, *others):
        latents, patches, latent_ids, ids = first(image, *others)
        height, width = image.shape[-2] // 16, image.shape[-1] // 16
        for more in images:
            _, own, _, own_ids = first(pipeline.image_processor.preprocess(more, more.height, more.width), *others)
            h, w = more.height // 16, more.width // 16
            down, across = (0, width) if h + height > w + width else (height, 0)
            height, width = max(height, h + down), max(width, w + across)
            patches = torch.cat([patches, own], 1)
            ids = torch.cat([ids, own_ids + torch.tensor([0, down, across])])
        return latents, patches, latent_ids, ids

    pipeline.prepare_latents = prepare_latents


def led_away(scale, pipeline):
    """True guidance in a pipeline that has none, as the others have it."""
    states, pooled, _ = pipeline.encode_prompt(NEGATIVE, None, max_sequence_length=256)
    forward = pipeline.transformer.forward

    def both(**call):
        towards = forward(**call)[0]
        away = forward(**call | {"encoder_hidden_states": states, "pooled_projections": pooled})[0]
        return (away + scale * (towards - away),)

    pipeline.transformer.forward = both


def cases(binary, model, folder):
    square, wide, hole = folder / "square.png", folder / "wide.png", folder / "mask.png"
    tall, low = folder / "tall.png", folder / "low.png"
    picture(SIZE, SIZE).save(square)
    picture(96, 48).save(wide)
    Image.fromarray(255 - np.array(picture(32, 80))).save(tall)
    picture(80, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(low)
    mask(SIZE, SIZE).save(hole)
    image, area, second, third, fourth = (Image.open(path) for path in (square, hole, wide, tall, low))
    kontext, fill = [model.parent / f"tiny-{name}/flux1-{name}.safetensors" for name in ("kontext", "fill")]
    as_kontext, as_fill = [finetune(binary, model, own, Path(tempfile.mkdtemp(dir=folder))) for own in (kontext, fill)]
    control = widen(model, 128, Path(tempfile.mkdtemp(dir=folder)))
    away, aside = {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0}, ["--negative-prompt", NEGATIVE, "--true-cfg-scale", 3]

    def case(title, pipeline, model, request, command, *flags):
        return Case(title, partial(theirs, pipeline, model, **request), command, ["--model", model, *flags])

    yield case("true guidance", "FluxPipeline", model, away, "generate", *aside)
    yield case("two prompts", "FluxPipeline", model, {"prompt_2": NEGATIVE}, "generate", "--prompt-2", NEGATIVE)

    for strength in (0.3, 0.6, 1.0):
        request, flags = {"image": image, "strength": strength}, ["--image", square, "--strength", strength]
        yield case(f"image to image, {strength}", "FluxImg2ImgPipeline", model, request, "edit", *flags)
    request, flags = {"image": image, "strength": 0.6}, ["--image", square, "--strength", 0.6]
    yield case("image to image, true guidance", "FluxImg2ImgPipeline", model, request | away, "edit", *flags, *aside)
    request = {"image": image, "mask_image": area, "strength": 0.8}
    flags = ["--image", square, "--mask", hole, "--strength", 0.8]
    yield case("inpainting", "FluxInpaintPipeline", model, request, "edit", *flags)
    yield case("inpainting, true guidance", "FluxInpaintPipeline", model, request | away, "edit", *flags, *aside)
    around, pad = padded(second, 16, 0, 32, 16), ["--image", wide, "--pad", "16,0,32,16", "--width", 144, "--height", 64]
    request = around | {"strength": 0.8}
    yield case("inpainting around", "FluxInpaintPipeline", model, request, "edit", *pad, "--strength", 0.8)

    looks = ["--transformer", kontext, "--keep-size"]
    alone = {"max_area": SIZE * SIZE, "_auto_resize": False}
    for title, path in (("Kontext", square), ("Kontext, another shape", wide)):
        request = {"image": Image.open(path)} | alone
        yield case(title, "FluxKontextPipeline", as_kontext, request, "edit", "--image", path, *looks)
    request = {"image": image} | alone | away
    yield case("Kontext, true guidance", "FluxKontextPipeline", as_kontext, request, "edit", "--image", square, *looks, *aside)
    for title, paths in (("two", (square, wide)), ("two others", (wide, tall)), ("four", (low, square, tall, wide))):
        first, *others = (Image.open(path) for path in paths)
        request = {"image": first, "prepare": partial(beside, others)} | alone
        flags = [flag for path in paths for flag in ("--image", path)]
        yield case(f"Kontext, {title} references", "FluxKontextPipeline", as_kontext, request, "edit", *flags, *looks)

    fills = ["--transformer", fill]
    request, flags = {"image": image, "mask_image": area}, ["--image", square, "--mask", hole, *fills]
    yield case("Fill", "FluxFillPipeline", as_fill, request, "edit", *flags)
    request |= {"prepare": partial(led_away, 3.0)}
    yield case("Fill, true guidance", "FluxFillPipeline", as_fill, request, "edit", *flags, *aside)
    yield case("Fill, around", "FluxFillPipeline", as_fill, around, "edit", *pad, *fills)

    base, request = "FluxControlPipeline", {"control_image": image}
    yield case("Control", base, control, request, "edit", "--image", square)
    request |= {"prepare": partial(led_away, 3.0)}
    yield case("Control, true guidance", base, control, request, "edit", "--image", square, *aside)
    control_lora(model, lora := folder / "control.safetensors")
    request = {"control_image": image, "prepare": partial(with_lora, lora, 0.85)}
    yield case("Control, a LoRA", base, model, request, "edit", "--image", square, "--lora", f"{lora}:0.85")
    for title, path in (("Canny", square), ("Canny, another shape", wide)):
        seen = Image.open(path).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        yield case(title, base, control, {"control_image": edges(seen)}, "edit", "--image", path, "--canny")
    followed = {"control_image": depths(depth_model(folder / "depth"), image)}
    yield case("Depth", base, control, followed, "edit", "--image", square, "--depth", "--depth-model", folder / "depth")


if __name__ == "__main__":
    sys.exit(run(__doc__, cases))
