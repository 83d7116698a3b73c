#!/usr/bin/env python3
"""Draws with ControlNets and IP-Adapters in diffusers' pipelines and in `tch-flux`, and compares the results.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_adapters.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise, with the tiny model and with ControlNets, IP-Adapters and an image
encoder whose weights are random.
"""

import sys
from functools import partial

import comparison
import export_adapters
import torch
from compare_edits import edges, mask, with_lora
from comparison import NEGATIVE, SIZE, Case, picture
from PIL import Image
from safetensors.torch import save_file

TINY = {
    "attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": [4, 14, 14], "joint_attention_dim": 64,
    "pooled_projection_dim": 64, "in_channels": 64, "num_layers": 2, "num_single_layers": 2,
}  # fmt: skip


def randomise(model, seed):
    """Weights of a trained model's scale, where a fresh ControlNet says nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            # What is added to the streams is smaller than they are.
            value = noise / parameter[0].numel() ** 0.5 * (0.2 if name.startswith("controlnet_") else 1.0)
        else:
            value = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
        parameter.data = value
    return model.eval()


def controlnet(folder, name, **own):
    """A ControlNet in diffusers' layout, and its folder."""
    from diffusers import FluxControlNetModel

    net = randomise(FluxControlNetModel(**(TINY | own)), sum(name.encode()))
    if net.union:
        # One token among many: what the picture is must show.
        net.controlnet_mode_embedder.weight.data *= 30
    net.save_pretrained(folder / name)
    return net, folder / name


def as_xlabs(net, path):
    """The same ControlNet in XLabs' own layout."""
    blocks = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        "attn.norm_q.weight": "img_attn.norm.query_norm.scale", "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale", "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2", "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    }  # fmt: skip
    outside = {
        "controlnet_x_embedder": "pos_embed_input", "x_embedder": "img_in", "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer", "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer", "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "input_hint_block.conv_in": "input_hint_block.0", "input_hint_block.conv_out": "input_hint_block.14",
    }  # fmt: skip
    outside |= {f"input_hint_block.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(6)}
    theirs, ours = net.state_dict(), {}
    for name in list(theirs):
        if name.startswith("transformer_blocks."):
            _, i, rest = name.split(".", 2)
            for stream, parts in {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}.items():
                if rest.startswith(f"attn.{parts[0]}."):
                    kind = rest.rsplit(".", 1)[1]
                    rows = [theirs[f"transformer_blocks.{i}.attn.{part}.{kind}"] for part in parts]
                    ours[f"double_blocks.{i}.{stream}_attn.qkv.{kind}"] = torch.cat(rows)
            for old, new in blocks.items():
                if rest == old or rest.startswith(old + "."):
                    ours[f"double_blocks.{i}.{new}{rest.removeprefix(old)}"] = theirs[name]
        else:
            old = next((old for old in outside if name.startswith(old + ".")), None)
            ours[name.replace(old, outside[old], 1) if old else name] = theirs[name]
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, path)
    return path


def ip_adapter(folder, name):
    """An IP-Adapter of the tiny model in XLabs' layout."""
    torch.manual_seed(sum(name.encode()))
    tensors = export_adapters.xlabs_adapter(32, 64, 128, 2)
    save_file(tensors, folder / name)
    return folder / name


def image_encoder(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 64, "intermediate_size": 96, "projection_dim": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    model = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)), 5)
    model.save_pretrained(folder / "image_encoder")
    return folder / "image_encoder"


def load_adapters(pipeline, folder, names, scales, encoder):
    pipeline.load_ip_adapter(
        str(folder), weight_name=names, image_encoder_pretrained_model_name_or_path=str(encoder),
        image_encoder_dtype=torch.float32, low_cpu_mem_usage=False,
    )  # fmt: skip
    pipeline.set_ip_adapter_scale(scales)


def lora(model, path, seed=4):
    """Of random weights, for a layer of each kind of block."""
    from diffusers import FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(model / "transformer")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.2
    weights = {}
    for layer, rows, columns in (
        ("transformer_blocks.0.attn.to_q", width, width), ("transformer_blocks.1.ff.net.2", width, 4 * width),
        ("single_transformer_blocks.0.attn.to_v", width, width), ("single_transformer_blocks.1.proj_mlp", 4 * width, width),
    ):  # fmt: skip
        weights |= {f"transformer.{layer}.lora_A.weight": draw(4, columns), f"transformer.{layer}.lora_B.weight": draw(rows, 4)}
    save_file(weights, path)
    return path


def cases(binary, model, folder):
    square, other, hole = folder / "square.png", folder / "other.png", folder / "mask.png"
    picture(SIZE, SIZE).save(square)
    picture(96, 48).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((SIZE, SIZE)).save(other)
    mask(SIZE, SIZE).save(hole)
    first, second, area = (Image.open(path) for path in (square, other, hole))

    def case(title, pipeline, parts, guidance, request, command, flags):
        request = {"parts": parts, "guidance_scale": guidance} | request
        return Case(title, partial(comparison.theirs, pipeline, model, **request), command, flags)

    plain, plain_path = controlnet(folder, "instantx")
    again, again_path = controlnet(folder, "another")
    guided, guided_path = controlnet(folder, "guided", guidance_embeds=True, num_layers=1, num_single_layers=3)
    union, union_path = controlnet(folder, "union", num_mode=7, num_single_layers=0)
    hint = {"conditioning_embedding_channels": 16, "patch_size": 2, "num_single_layers": 0, "num_layers": 1}
    xlabs, xlabs_path = controlnet(folder, "xlabs", **hint)
    xlabs_file = as_xlabs(xlabs, folder / "xlabs.safetensors")

    base, image = "FluxControlNetPipeline", {"control_image": first}
    flags = ["--controlnet", plain_path, "--control-image", square]
    yield case("InstantX", base, {"controlnet": plain}, 0.0, image, "generate", flags)
    yield case("InstantX, 0.5", base, {"controlnet": plain}, 0.0, image | {"controlnet_conditioning_scale": 0.5}, "generate", [
        *flags, "--control-strength", 0.5,
    ])  # fmt: skip
    window = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    yield case("InstantX, guided, in the middle", base, {"controlnet": guided}, 3.5, image | window, "generate", [
        "--controlnet", guided_path, "--control-image", square, "--control-start", 0.25, "--control-end", 0.75, "--guidance", 3.5,
    ])  # fmt: skip
    yield case("InstantX, true guidance", base, {"controlnet": plain}, 0.0, image | {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0}, "generate", [
        *flags, "--negative-prompt", NEGATIVE, "--true-cfg-scale", 3,
    ])  # fmt: skip
    for number, name in ((0, "canny"), (4, "pose")):
        yield case(f"union, {name}", base, {"controlnet": union}, 0.0, image | {"control_mode": number}, "generate", [
            "--controlnet", union_path, "--control-image", square, "--control-mode", name,
        ])  # fmt: skip
    for layout, path in (("diffusers'", xlabs_path), ("their own", xlabs_file)):
        yield case(f"XLabs in {layout} names", base, {"controlnet": xlabs}, 0.0, image, "generate", [
            "--controlnet", path, "--control-image", square,
        ])  # fmt: skip
    several = {"control_image": [first, second], "controlnet_conditioning_scale": [0.8, 0.4]}
    yield case("two ControlNets", base, {"controlnet": [plain, again]}, 0.0, several, "generate", [
        *flags, "--controlnet", again_path, "--control-image", other, "--control-strength", 0.8, "--control-strength", 0.4,
    ])  # fmt: skip
    from diffusers import FluxMultiControlNetModel

    both = several | {"control_mode": [2, 3], "control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 1.0]}
    yield case("a union with two pictures", base, {"controlnet": FluxMultiControlNetModel([union])}, 0.0, both, "generate", [
        "--controlnet", union_path, "--control-image", square, "--control-image", other, "--control-strength", 0.8,
        "--control-strength", 0.4, "--control-mode", "depth", "--control-mode", 3,
    ])  # fmt: skip
    yield case("image to image", "FluxControlNetImg2ImgPipeline", {"controlnet": plain}, 0.0, image | {"image": second, "strength": 0.6}, "edit", [
        "--image", other, "--strength", 0.6, *flags,
    ])  # fmt: skip
    yield case("inpainting", "FluxControlNetInpaintPipeline", {"controlnet": plain}, 0.0, image | {
        "image": second, "mask_image": area, "strength": 0.8,
    }, "edit", ["--image", other, "--mask", hole, "--strength", 0.8, *flags])  # fmt: skip

    encoder = image_encoder(folder)
    liked, again = ip_adapter(folder, "liked.safetensors"), ip_adapter(folder, "again.safetensors")
    wide = folder / "wide.png"
    picture(150, 90).save(wide)
    third = Image.open(wide)
    flags = ["--ip-image-encoder", encoder, "--ip-adapter", liked, "--ip-image", wide]

    def alone(scale):
        return {"prepare": lambda pipeline: load_adapters(pipeline, folder, "liked.safetensors", scale, encoder)}

    plain_flux = "FluxPipeline"
    yield case("IP-Adapter", plain_flux, {}, 0.0, alone(1.0) | {"ip_adapter_image": third}, "generate", flags)
    yield case("IP-Adapter, by blocks", plain_flux, {}, 0.0, alone([0.9, 0.2]) | {"ip_adapter_image": third}, "generate", [
        *flags, "--ip-strength", "0.9,0.2",
    ])  # fmt: skip
    yield case("IP-Adapter, two pictures", plain_flux, {}, 0.0, alone(0.8) | {"ip_adapter_image": [[third, first]]}, "generate", [
        *flags, "--ip-image", square, "--ip-strength", 0.8,
    ])  # fmt: skip
    away = {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0, "ip_adapter_image": third}
    yield case("IP-Adapter, true guidance", plain_flux, {}, 0.0, alone(1.0) | away, "generate", [
        *flags, "--negative-prompt", NEGATIVE, "--true-cfg-scale", 3,
    ])  # fmt: skip
    yield case("IP-Adapter, away from a picture", plain_flux, {}, 0.0, alone(1.0) | away | {"negative_ip_adapter_image": second}, "generate", [
        *flags, "--negative-prompt", NEGATIVE, "--true-cfg-scale", 3, "--ip-negative-image", other,
    ])  # fmt: skip
    both = {"ip_adapter_image": [third, second]}
    both["prepare"] = lambda pipeline: load_adapters(pipeline, folder, [liked.name, again.name], [0.9, 0.4], encoder)
    yield case("two IP-Adapters", plain_flux, {}, 0.0, both, "generate", [
        *flags, "--ip-adapter", again, "--ip-image", other, "--ip-strength", 0.9, "--ip-strength", 0.4,
    ])  # fmt: skip
    yield case("ControlNet and IP-Adapter", base, {"controlnet": plain}, 0.0, image | alone(1.0) | {"ip_adapter_image": third}, "generate", [
        *flags, "--controlnet", plain_path, "--control-image", square,
    ])  # fmt: skip

    found, wanted = {"control_image": edges(second)}, ["--controlnet", plain_path, "--control-image", other, "--control-canny"]
    yield case("the edges of a picture", base, {"controlnet": plain}, 0.0, found, "generate", wanted)
    added = lora(model, folder / "lora.safetensors")
    beside = {"prepare": partial(with_lora, added, 0.8)}
    yield case("ControlNet and LoRA", base, {"controlnet": plain}, 0.0, image | beside, "generate", [
        "--controlnet", plain_path, "--control-image", square, "--lora", f"{added}:0.8",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(comparison.run(__doc__, cases, apart=35))
