"""The official names of FLUX.1's transformer and autoencoder, from diffusers' state dicts."""

import re

import torch

MODULES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
DOUBLE_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
SINGLE_JOINED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def transformer_from_diffusers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    left = dict(state)
    out = {}

    def move(source: str, target: str, kinds=("weight", "bias")) -> None:
        for kind in kinds:
            if f"{source}.{kind}" in left:
                out[f"{target}.{kind}"] = left.pop(f"{source}.{kind}").contiguous()

    def join(sources: list[str], target: str) -> None:
        for kind in ("weight", "bias"):
            if f"{sources[0]}.{kind}" in left:
                out[f"{target}.{kind}"] = torch.cat([left.pop(f"{s}.{kind}") for s in sources])

    for source, target in MODULES.items():
        move(source, target)
    for kind in ("weight", "bias"):
        # diffusers puts the scale first, the official code the shift.
        scale, shift = left.pop(f"norm_out.linear.{kind}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    blocks = (
        ("transformer_blocks", "double_blocks", DOUBLE, DOUBLE_JOINED, DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", SINGLE, SINGLE_JOINED, SINGLE_NORMS),
    )
    for theirs, ours, plain, joined, norms in blocks:
        numbers = {int(m[1]) for k in state if (m := re.match(rf"{theirs}\.(\d+)\.", k))}
        for i in sorted(numbers):
            for source, target in plain.items():
                move(f"{theirs}.{i}.{source}", f"{ours}.{i}.{target}")
            for target, sources in joined.items():
                join([f"{theirs}.{i}.{s}" for s in sources], f"{ours}.{i}.{target}")
            for source, target in norms.items():
                out[f"{ours}.{i}.{target}.scale"] = left.pop(f"{theirs}.{i}.{source}.weight")
    if left:
        raise ValueError(f"no official name for {sorted(left)}")
    return out


AUTOENCODER = [
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r"decoder.up.{level}.block.\2."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.{level}.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
]


def autoencoder_from_diffusers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    levels = 1 + max(int(m[1]) for k in state if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", k)))
    out = {}
    for name, tensor in state.items():
        new = name
        for pattern, target in AUTOENCODER:
            if m := re.search(pattern, new):
                level = levels - 1 - int(m[1]) if "{level}" in target else 0
                new = re.sub(pattern, target.replace("{level}", str(level)), new)
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", new)
        out[new] = (tensor[:, :, None, None] if is_projection and tensor.ndim == 2 else tensor).contiguous()
    return out
