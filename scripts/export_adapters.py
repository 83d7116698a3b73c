"""Parity cases of what runs beside diffusers' FLUX.1 transformer: ControlNets and IP-Adapters, and what they
add to it; and the vision model that IP-Adapters see with.

Run by `export_fixtures.py`, whose helpers come as `tools`.
"""

import random

import torch

# Small enough for the repository.
MAX_PARAMETERS = 60_000


def draw(rng: random.Random, tools, guidance: bool) -> dict:
    heads, head_dim, axes = tools.draw_heads(rng)
    return {
        "patch_size": 1,
        "in_channels": rng.choice([8, 16, 20]),
        "num_layers": rng.randint(1, 3),
        "num_single_layers": rng.randint(1, 3),
        "attention_head_dim": head_dim,
        "num_attention_heads": heads,
        "joint_attention_dim": rng.randint(8, 40),
        "pooled_projection_dim": rng.randint(8, 40),
        "guidance_embeds": guidance,
        "axes_dims_rope": axes,
    }


def draw_small(rng: random.Random, tools, build, guidance: bool, **own) -> dict:
    """Sizes of a model that is small."""
    while True:
        params = draw(rng, tools, guidance) | own
        with torch.device("meta"):
            model = build(params)
        if sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS:
            return params


def arguments(inputs: dict) -> dict:
    """Of a forward of diffusers, whose positions have no batch."""
    return {
        "hidden_states": inputs["img"],
        "encoder_hidden_states": inputs["txt"],
        "pooled_projections": inputs["y"],
        "timestep": inputs["timesteps"],
        "img_ids": inputs["img_ids"][0],
        "txt_ids": inputs["txt_ids"][0],
        "guidance": inputs["guidance"],
    }


def export(ex, tools):
    for kind, dtype in tools.DTYPES.items():
        for form in ("instantx", "union", "xlabs"):
            controlnet(ex, tools, form, kind, dtype)
        for repeat in (False, True):
            residuals(ex, tools, repeat, kind, dtype)
        ip_adapters(ex, tools, kind, dtype)


def controlnet(ex, tools, form, kind, dtype):
    from diffusers import FluxControlNetModel

    rng = ex.start(f"controlnet_{form}")
    guidance = rng.random() < 0.5
    modes = rng.randint(2, 10) if form == "union" else None
    own = {"num_mode": modes}
    if form == "xlabs":
        own |= {"conditioning_embedding_channels": 2, "in_channels": 8, "patch_size": 2, "num_single_layers": 0}
    params = draw_small(rng, tools, lambda p: FluxControlNetModel(**p), guidance, **own)
    channels = params["in_channels"]
    inputs = tools.transformer_inputs(
        rng, channels, params["joint_attention_dim"], params["pooled_projection_dim"], params["guidance_embeds"]
    )
    batch, tokens = inputs["img"].shape[:2]
    cond = torch.randn(batch, tokens, channels)
    if form == "xlabs":
        height, width = (int(inputs["img_ids"][0, :, axis].max()) + 1 for axis in (1, 2))
        cond = torch.rand(batch, 3, 16 * height, 16 * width) * 2 - 1
    inputs["controlnet_cond"] = cond
    net, inputs = tools.randomise(FluxControlNetModel(**params), dtype), tools.cast(inputs, dtype)
    call = {
        "controlnet_mode": rng.randrange(modes) if modes else None,
        "conditioning_scale": rng.choice([1.0, 0.7, 1.3]),
    }
    mode = call["controlnet_mode"]
    mode = None if mode is None else torch.full((batch, 1), mode, device=tools.DEVICE)
    double, single = net(
        **arguments(inputs),
        controlnet_cond=inputs["controlnet_cond"],
        controlnet_mode=mode,
        conditioning_scale=call["conditioning_scale"],
        return_dict=False,
    )
    outputs = {f"double.{i}": sample for i, sample in enumerate(double)}
    outputs |= {f"single.{i}": sample for i, sample in enumerate(single or [])}
    module = "diffusers.FluxControlNetModel"
    ex.write(f"controlnet_{form}_{kind}", module, params | call, inputs, outputs, net.state_dict())


def residuals(ex, tools, repeat, kind, dtype):
    """The transformer with fewer residuals than blocks."""
    from diffusers import FluxTransformer2DModel

    name = "flux_residuals_repeat" if repeat else "flux_residuals"
    rng = ex.start(name)
    own = {"num_layers": 3, "num_single_layers": 1 if repeat else 3, "num_attention_heads": 1}
    own |= {"attention_head_dim": 16, "axes_dims_rope": [4, 6, 6]}
    params = draw(rng, tools, rng.random() < 0.5) | own
    inputs = tools.transformer_inputs(
        rng, params["in_channels"], params["joint_attention_dim"], params["pooled_projection_dim"], params["guidance_embeds"]
    )
    shape = *inputs["img"].shape[:2], 16
    inputs |= {f"block_samples.{i}": torch.randn(shape) for i in range(2)}
    inputs |= {f"single_block_samples.{i}": torch.randn(shape) for i in range(0 if repeat else 2)}
    net, inputs = tools.randomise(FluxTransformer2DModel(**params), dtype), tools.cast(inputs, dtype)
    samples = [[v for k, v in inputs.items() if k.startswith(f"{which}.")] for which in ("block_samples", "single_block_samples")]
    output = net(
        **arguments(inputs),
        controlnet_block_samples=samples[0],
        controlnet_single_block_samples=samples[1] or None,
        controlnet_blocks_repeat=repeat,
    ).sample
    params |= {"controlnet_blocks_repeat": repeat}
    ex.write(f"{name}_{kind}", "diffusers.FluxTransformer2DModel", params, inputs, output, net.state_dict())


def xlabs_adapter(clip: int, context: int, hidden: int, depth: int) -> dict:
    """An IP-Adapter as XLabs' files have it."""
    tokens = 4
    shapes = {"ip_adapter_proj_model.proj.weight": (tokens * context, clip), "ip_adapter_proj_model.norm.weight": (context,)}
    for i in range(depth):
        for which in "kv":
            shapes[f"double_blocks.{i}.processor.ip_adapter_double_stream_{which}_proj.weight"] = (hidden, context)
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items()}
    scale = {name: 0.2 if len(shape) == 1 else shape[1] ** -0.5 for name, shape in shapes.items()}
    one = "ip_adapter_proj_model.norm.weight"
    return {name: torch.randn(shape) * scale[name] + (name == one) for name, shape in shapes.items()}


def as_diffusers(adapter: dict) -> dict:
    """The same as `load_ip_adapter` reads it from the file."""
    image_proj, ip_adapter = {}, {}
    for name, tensor in adapter.items():
        rest = name.split(".", 1)[1]
        if name.startswith("ip_adapter_proj_model."):
            image_proj[rest] = tensor
        else:
            rest = rest.replace("ip_adapter_double_stream_k_proj", "to_k_ip").replace("ip_adapter_double_stream_v_proj", "to_v_ip")
            ip_adapter[rest.replace("processor.", "")] = tensor
    return {"image_proj": image_proj, "ip_adapter": ip_adapter}


def ip_adapters(ex, tools, kind, dtype):
    """The transformer with two IP-Adapters, the first of which sees two pictures and is weaker in some blocks."""
    from diffusers import FluxTransformer2DModel

    rng = ex.start("flux_ip_adapters")
    params = draw(rng, tools, rng.random() < 0.5) | {"num_layers": 2, "num_single_layers": 1}
    params |= {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6]}
    inputs = tools.transformer_inputs(
        rng, params["in_channels"], params["joint_attention_dim"], params["pooled_projection_dim"], params["guidance_embeds"]
    )
    batch, clip = inputs["img"].shape[0], rng.randint(6, 20)
    inputs |= {"image_embeds.0": torch.randn(batch, 2, clip), "image_embeds.1": torch.randn(batch, 1, clip)}
    net, inputs = tools.randomise(FluxTransformer2DModel(**params), dtype), tools.cast(inputs, dtype)
    weights = dict(net.state_dict())
    adapters = [xlabs_adapter(clip, params["joint_attention_dim"], 32, 2) for _ in range(2)]
    adapters = [{name: tensor.to(tools.DEVICE, dtype) for name, tensor in adapter.items()} for adapter in adapters]
    net._load_ip_adapter_weights([as_diffusers(adapter) for adapter in adapters], low_cpu_mem_usage=False)
    net = net.to(tools.DEVICE, dtype)
    scales = [[0.7, 1.2], [0.5]]
    for i, processor in enumerate(list(net.attn_processors.values())[:2]):
        processor.scale = [scale[i % len(scale)] for scale in scales]
    embeds = [inputs["image_embeds.0"], inputs["image_embeds.1"]]
    output = net(**arguments(inputs), joint_attention_kwargs={"ip_adapter_image_embeds": embeds}).sample
    for i, adapter in enumerate(adapters):
        weights |= {f"ip_adapter.{i}.{name}": tensor for name, tensor in adapter.items()}
    module = "diffusers.FluxIPAdapterAttnProcessor"
    ex.write(f"flux_ip_adapters_{kind}", module, params | {"scales": scales}, inputs, output, weights)


def export_vision(ex, tools):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    for kind, dtype in tools.DTYPES.items():
        rng = ex.start("clip_vision")
        heads, patch = rng.randint(1, 4), rng.choice([2, 4, 7])
        params = {
            "hidden_size": 8 * heads * rng.randint(1, 2),
            "intermediate_size": 8 * rng.randint(3, 12),
            "projection_dim": rng.randint(8, 40),
            "num_hidden_layers": rng.randint(1, 3),
            "num_attention_heads": heads,
            "image_size": patch * rng.randint(2, 5),
            "patch_size": patch,
            "hidden_act": rng.choice(["quick_gelu", "gelu"]),
            "layer_norm_eps": 1e-5,
        }
        model = tools.randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**params)), dtype)
        pixels = torch.randn(rng.randint(1, 3), 3, params["image_size"], params["image_size"]).to(tools.DEVICE, dtype)
        outputs = {"image_embeds": model(pixel_values=pixels).image_embeds}
        module = "transformers.CLIPVisionModelWithProjection"
        ex.write(f"clip_vision_{kind}", module, params, {"pixel_values": pixels}, outputs, model.state_dict())
