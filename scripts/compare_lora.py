#!/usr/bin/env python3
"""Writes LoRAs of many makers, and the weights that diffusers and peft make of them, for tests/numerics/lora_reference.rs.

    scripts/with-libtorch --reference python scripts/compare_lora.py FOLDER

The models are small and random. FOLDER gets a `cases.json` and, for each case, a LoRA and the weights before and after
diffusers or peft has merged it, under diffusers' and transformers' names.

diffusers' converters for kohya, fal and the official control LoRAs know one width and one depth; here they run with
these numbers replaced, and are otherwise theirs.
"""

import inspect
import json
import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import torch  # noqa: E402
from diffusers import Flux2Transformer2DModel, FluxPipeline, FluxTransformer2DModel  # noqa: E402
from diffusers.loaders import lora_conversion_utils, lora_pipeline  # noqa: E402
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

WIDTH, RANK, STRENGTH = 32, 4, 0.75
SIZES = {"19": "1", "38": "1", "3072": str(WIDTH), "12288": str(4 * WIDTH)}

# Modules of one block of each kind: official name, rows and columns in widths.
DOUBLE = [
    (f"double_blocks.0.{stream}_{module}", rows, columns)
    for stream in ("img", "txt")
    for module, rows, columns in [
        ("attn.qkv", 3, 1),
        ("attn.proj", 1, 1),
        ("mlp.0", 4, 1),
        ("mlp.2", 1, 4),
        ("mod.lin", 6, 1),
    ]
]
SINGLE = [
    ("single_blocks.0.linear1", 7, 1),
    ("single_blocks.0.linear2", 1, 5),
    ("single_blocks.0.modulation.lin", 3, 1),
]
CLIP = "text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc2"


def small(name: str) -> None:
    """Replaces the sizes in one of diffusers' converters."""
    source = inspect.getsource(getattr(lora_conversion_utils, name))
    source = re.sub(r"\b(19|38|3072|12288)\b", lambda number: SIZES[number[0]], source)
    exec(compile(source, name, "exec"), vars(lora_conversion_utils))
    setattr(lora_pipeline, name, getattr(lora_conversion_utils, name))


def flux1() -> FluxTransformer2DModel:
    torch.manual_seed(1)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def flux2() -> Flux2Transformer2DModel:
    torch.manual_seed(2)
    return Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def clip() -> CLIPTextModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, max_position_embeddings=8, projection_dim=16, **sizes))


def matrices(rows: int, columns: int, down: str, up: str) -> dict:
    return {down: torch.randn(RANK, columns) / 4, up: torch.randn(rows, RANK) / 4}


def loras(modules, name, down="lora_A.weight", up="lora_B.weight", alpha=None) -> dict:
    """One LoRA for each module, `name` being its name in the file."""
    made = {}
    for module, rows, columns in modules:
        key = name(module)
        made |= matrices(rows, columns, f"{key}.{down}", f"{key}.{up}")
        if alpha is not None:
            made[f"{key}.alpha"] = torch.tensor(float(alpha))
    return made


def wide(modules) -> list:
    return [(module, rows * WIDTH, columns * WIDTH) for module, rows, columns in modules]


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}


def clip_loras(name, **spelling) -> dict:
    return loras([(CLIP[0], 16, 16), (CLIP[1], 16, 64)], name, **spelling)


def clip_mlp_loras(name, **spelling) -> dict:
    """diffusers drops the attention of CLIP in kohya's and ComfyUI's names."""
    return loras([(CLIP[1], 16, 64)], name, **spelling)


def flat(prefix: str):
    return lambda module: prefix + module.replace(".", "_")


def after(prefix: str):
    return lambda module: prefix + module


def flux1_files() -> dict:
    blocks = wide(DOUBLE + SINGLE)
    final = [("final_layer.linear", 4, WIDTH)]
    te1 = clip_mlp_loras(flat("lora_te1_"), alpha=8, **KOHYA)
    files = {
        "kohya": loras(blocks, flat("lora_unet_"), alpha=2, **KOHYA) | te1,
        "comfyui": loras(blocks, after("diffusion_model."), **KOHYA)
        | clip_mlp_loras(after("text_encoders.clip_l.transformer."), **KOHYA),
        "fal": loras(blocks + final, after("base_model.model.")),
    }
    diffusers = [
        ("transformer_blocks.0.attn.to_q", 1, 1),
        ("transformer_blocks.0.attn.add_k_proj", 1, 1),
        ("transformer_blocks.0.attn.to_out.0", 1, 1),
        ("single_transformer_blocks.0.attn.to_v", 1, 1),
    ]
    te1 = clip_loras(flat("lora_te1_"), alpha=8, **KOHYA)
    files["onetrainer"] = loras(wide(diffusers), flat("lora_transformer_"), alpha=2, **KOHYA) | te1
    more = [("single_transformer_blocks.0.proj_mlp", 4, 1), ("transformer_blocks.0.norm1_context.linear", 6, 1)]
    embedders = [("norm_out.linear", 2 * WIDTH, WIDTH), ("x_embedder", WIDTH, 4)]
    files["ai_toolkit"] = loras(wide(diffusers + more) + embedders, after("transformer."))

    xlabs = {"down": "down.weight", "up": "up.weight"}
    processors = [(f"double_blocks.0.processor.{kind}_lora{stream}", rows, 1) for stream in (1, 2) for kind, rows in
                  (("qkv", 3), ("proj", 1))]
    processors += [("single_blocks.0.processor.qkv_lora", 3, 1), ("single_blocks.0.processor.proj_lora", 1, 5)]
    files["xlabs"] = loras(wide(processors), after(""), **xlabs)

    vectors = [(f"{name}.{layer}", columns) for name, first in
               (("time_in", 256), ("vector_in", 20), ("guidance_in", 256))
               for layer, columns in (("in_layer", first), ("out_layer", WIDTH))]
    inputs = [("img_in", WIDTH, 8), ("txt_in", WIDTH, 24), ("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)]
    control = loras(blocks + final + inputs + [(name, WIDTH, columns) for name, columns in vectors], after(""))
    for key, up in list(control.items()):
        if key.endswith("lora_B.weight"):
            control[key.replace("weight", "bias")] = torch.randn(len(up))
    # diffusers swaps the halves of this first matrix too, where they are ranks and not rows: let them be the same.
    down = control["final_layer.adaLN_modulation.1.lora_A.weight"]
    down[RANK // 2 :] = down[: RANK // 2]
    for norm in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        for which in ("query", "key"):
            control[f"{norm}.norm.{which}_norm.scale"] = torch.randn(16)
    files["control"] = control
    return files


def flux2_files() -> dict:
    width = WIDTH
    blocks = [
        (f"double_blocks.0.{stream}_{module}", rows * width, columns * width)
        for stream in ("img", "txt")
        for module, rows, columns in [("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.0", 6, 1), ("mlp.2", 1, 3)]
    ] + [("single_blocks.0.linear1", 9 * width, width), ("single_blocks.0.linear2", width, 4 * width)]
    shared = [
        ("double_stream_modulation_img.lin", 6 * width, width),
        ("single_stream_modulation.lin", 3 * width, width),
        ("time_in.in_layer", width, 16),
        ("final_layer.linear", 8, width),
        ("img_in", width, 8),
    ]
    apart = [
        ("transformer_blocks.0.attn.to_k", width, width),
        ("transformer_blocks.0.attn.add_v_proj", width, width),
        ("transformer_blocks.0.ff_context.linear_in", 6 * width, width),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", 9 * width, width),
    ]
    whole, product = {}, {}
    for name, rows, columns in blocks:
        key = f"diffusion_model.{name}"
        whole[f"{key}.lokr_w1"] = torch.randn(4, 4)
        whole[f"{key}.lokr_w2"] = torch.randn(rows // 4, columns // 4)
        whole[f"{key}.alpha"] = torch.tensor(1e9)
    for name, rows, columns in apart:
        key = "lycoris_" + name.replace(".", "_")
        product[f"{key}.lokr_w1"] = torch.randn(4, 4)
        # LyCORIS and peft take a whole matrix where the rank is half of it or more.
        product[f"{key}.lokr_w2_a"] = torch.randn(rows // 4, 3)
        product[f"{key}.lokr_w2_b"] = torch.randn(3, columns // 4)
        product[f"{key}.alpha"] = torch.tensor(2.0)
    return {
        "flux2_kohya": loras(blocks, flat("lora_unet_"), alpha=2, **KOHYA),
        "flux2_ai_toolkit": loras(blocks + shared, after("diffusion_model.")),
        "flux2_peft": loras(blocks + shared, after("base_model.model.")),
        "flux2_diffusers": loras(apart, after("transformer.")),
        "flux2_ai_toolkit_lokr": whole,
        "flux2_lycoris_lokr": product,
    }


class Cases:
    """The cases that were written, in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.cases = folder, []

    def save(self, name: str, part: str, tensors: dict) -> str:
        path = self.folder / f"{name}.{part}.safetensors"
        save_file({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}, path)
        return path.name

    def add(self, name: str, lora: str, strength: float, models: dict) -> None:
        """`models`: for each of them the weights before and after."""
        case = {"name": name, "lora": lora, "strength": strength, "models": {}}
        for model, (before, after) in models.items():
            assert any(after[key].shape != b.shape or not torch.equal(after[key], b) for key, b in before.items()), name
            pair = self.save(name, f"{model}.before", before), self.save(name, f"{model}.after", after)
            case["models"][model] = pair
        self.cases.append(case)


def weights(model) -> dict:
    """Without what peft wraps them in."""
    state = {k.replace("base_layer.", ""): v for k, v in model.state_dict().items() if "lora_" not in k}
    # The rows of joined projections stand for those of the three that they were joined from.
    for name in [name for name in state if re.search(r"attn\.to_(added_)?qkv\.weight", name)]:
        parts = ("add_q_proj", "add_k_proj", "add_v_proj") if "added" in name else ("to_q", "to_k", "to_v")
        attn = name[: name.index("to_")]
        state |= {f"{attn}{part}.weight": rows for part, rows in zip(parts, state.pop(name).chunk(3))}
    return {name: tensor.clone() for name, tensor in state.items()}


def through_diffusers(cases: Cases, name: str, lora: str, text: bool) -> None:
    """Loads a FLUX.1 LoRA as users of diffusers do, and merges it."""
    pipe = FluxPipeline(None, None, clip(), None, None, None, flux1())
    before = weights(pipe.transformer), weights(pipe.text_encoder)
    pipe.load_lora_weights(cases.folder, weight_name=lora)
    components = ["transformer", "text_encoder"] if text else ["transformer"]
    pipe.fuse_lora(components=components, lora_scale=STRENGTH)
    models = {"transformer": (before[0], weights(pipe.transformer))}
    if text:
        models["clip"] = before[1], weights(pipe.text_encoder)
    cases.add(name, lora, STRENGTH, models)


def through_flux2(cases: Cases, name: str, lora: str) -> None:
    transformer = flux2()
    before = weights(transformer)
    mixin = lora_pipeline.Flux2LoraLoaderMixin
    state, metadata = mixin.lora_state_dict(cases.folder / lora, return_lora_metadata=True)
    if any("to_qkv." in key for key in state):
        transformer.fuse_qkv_projections()
    mixin.load_lora_into_transformer(state, transformer=transformer, metadata=metadata)
    transformer.fuse_lora(lora_scale=STRENGTH)
    after = weights(transformer)
    cases.add(name, lora, STRENGTH, {"transformer": (before, {key: after[key] for key in before})})


def through_save_lora_weights(cases: Cases) -> None:
    """What diffusers' training scripts save: the alphas are in the header."""
    pipe = FluxPipeline(None, None, clip(), None, None, None, flux1())
    patterns = {"alpha_pattern": {"attn.to_q": 1}, "rank_pattern": {"attn.to_q": 2}}
    config = LoraConfig(r=RANK, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_out.0", "linear"],
                        **patterns)
    text = LoraConfig(r=RANK, lora_alpha=10, init_lora_weights=False, target_modules=["q_proj"])
    torch.manual_seed(4)
    pipe.transformer.add_adapter(config)
    pipe.text_encoder.add_adapter(text)
    lora = "save_lora_weights.safetensors"
    FluxPipeline.save_lora_weights(
        cases.folder,
        weight_name=lora,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        transformer_lora_adapter_metadata=json.loads(json.dumps(config.to_dict(), default=list)),
        text_encoder_lora_adapter_metadata=json.loads(json.dumps(text.to_dict(), default=list)),
    )
    through_diffusers(cases, "save_lora_weights", lora, text=True)


def through_peft(cases: Cases, name: str, config) -> None:
    """What peft saves and merges by itself: the alphas are in a file beside it. There is no strength."""
    transformer = flux1()
    before = weights(transformer)
    torch.manual_seed(5)
    model = get_peft_model(transformer, config)
    for parameter in model.parameters():
        # Also what peft would begin with zeros.
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 8
    model.save_pretrained(cases.folder / name)
    cases.add(name, name, 1.0, {"transformer": (before, weights(model.merge_and_unload()))})


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in ("kohya_flux", "bfl_flux_control", "fal_kontext"):
        small(f"_convert_{name}_lora_to_diffusers")

    cases = Cases(folder)
    for name, tensors in flux1_files().items():
        text = any("text_model" in key for key in tensors)
        through_diffusers(cases, name, cases.save(name, "lora", tensors), text)
    for name, tensors in flux2_files().items():
        through_flux2(cases, name, cases.save(name, "lora", tensors))
    through_save_lora_weights(cases)

    modules = {"target_modules": ["to_k", "to_out.0", "proj_mlp", "norm_out.linear"]}
    low_rank = {"init_lora_weights": False, "r": RANK, "lora_alpha": 6} | modules
    through_peft(cases, "peft_dora", LoraConfig(use_dora=True, **low_rank))
    through_peft(cases, "peft_rslora", LoraConfig(use_rslora=True, **low_rank))
    lycoris = {"init_weights": False, "r": RANK, "alpha": 6} | modules
    through_peft(cases, "peft_loha", LoHaConfig(**lycoris))
    through_peft(cases, "peft_lokr", LoKrConfig(**lycoris))
    through_peft(cases, "peft_lokr_of_products", LoKrConfig(decompose_both=True, **(lycoris | {"r": 1})))
    through_peft(cases, "peft_lokr_of_whole_matrices", LoKrConfig(decompose_factor=16, **(lycoris | {"r": 64})))

    (folder / "cases.json").write_text(json.dumps(cases.cases, indent=1))
    print(f"{len(cases.cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
