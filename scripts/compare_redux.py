#!/usr/bin/env python3
"""Draws what looks like other pictures with diffusers' Redux and with `tch-flux --redux`, and compares the results.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_redux.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The transformer is that of the tiny model; SigLIP and the embedder are small
ones of random weights, in a folder as the official repository of Redux has it. diffusers' FluxPriorReduxPipeline reads the
pictures and the prompt. What it does with one picture is what the official code does; with several it sums. For pictures one
behind the other, as ComfyUI has them, its models run one by one and their tokens are joined here.
"""

import sys
from functools import partial

import comparison
import numpy as np
import torch
from compare_adapters import lora
from compare_edits import with_lora
from comparison import NEGATIVE, PROMPT, Case, picture
from export_fixtures import randomise
from PIL import Image
from safetensors.torch import save_file

# FluxPriorReduxPipeline knows no other.
LENGTH = 512
SIDE = 59


def make_redux(model, folder):
    """Small models of random weights in both layouts, and diffusers' pipeline over them."""
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux import ReduxImageEncoder
    from transformers import CLIPTextModel, CLIPTokenizer, SiglipVisionConfig, SiglipVisionModel, T5EncoderModel, T5TokenizerFast
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(11)
    # Three pixels of each row and column are left over.
    config = SiglipVisionConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=7
    )
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    text_encoder_2 = T5EncoderModel.from_pretrained(model / "text_encoder_2", dtype=torch.float32)
    embedder = randomise(ReduxImageEncoder(redux_dim=48, txt_in_features=text_encoder_2.config.d_model))
    pipeline = FluxPriorReduxPipeline(
        image_encoder=randomise(SiglipVisionModel(config)),
        feature_extractor=SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        image_embedder=embedder,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder_2=text_encoder_2,
        tokenizer_2=T5TokenizerFast.from_pretrained(model / "tokenizer_2"),
    )
    pipeline.image_encoder.save_pretrained(folder / "image_encoder")
    save_file(embedder.state_dict(), folder / "flux1-redux-dev.safetensors")
    embedder.save_pretrained(folder / "image_embedder")
    return pipeline


def summed(prior, images, prompt, scales, pooled):
    """Redux as diffusers has it. Where it has no text encoders, its zeros are of the real models' sizes; ours are here."""
    request = {"prompt": prompt}
    if prompt is None:
        width, pool = prior.text_encoder_2.config.d_model, prior.text_encoder.config.hidden_size
        zeros = torch.zeros(len(images), LENGTH, width), torch.zeros(len(images), pool)
        request = {"prompt_embeds": zeros[0], "pooled_prompt_embeds": zeros[1]}
    with torch.no_grad():
        return dict(prior(images, prompt_embeds_scale=scales, pooled_prompt_embeds_scale=pooled, **request))


def appended(prior, images, prompt, strengths):
    """The tokens of the pictures one behind the other, each times its strength."""
    with torch.no_grad():
        text, pooled, _ = prior.encode_prompt(prompt, max_sequence_length=LENGTH)
        tokens = [prior.image_embedder(prior.encode_image(image, "cpu", 1)).image_embeds for image in images]
    tokens = [x * strength for x, strength in zip(tokens, strengths)]
    return {"prompt_embeds": torch.cat([text, *tokens], 1), "pooled_prompt_embeds": pooled}


def cases(binary, model, folder):
    prior = make_redux(model, folder)
    wide, tall = folder / "wide.png", folder / "tall.png"
    picture(150, 61).save(wide)
    Image.fromarray(255 - np.array(picture(33, 80))).save(tall)
    one, two = Image.open(wide), Image.open(tall)

    def case(title, request, prompt, *flags, pipeline="FluxPipeline"):
        request = {"max_sequence_length": LENGTH} | request
        command = "edit" if "--image" in flags else "generate"
        flags = ["--redux-model", folder, "--max-sequence-length", LENGTH, *flags]
        return Case(title, partial(comparison.theirs, pipeline, model, **request), command, flags, prompt)

    alone = summed(prior, [one], PROMPT, [1.0], [1.0])
    yield case("one picture, no prompt", summed(prior, [one], "", [1.0], [1.0]), None, "--redux", wide)
    yield case("one picture and a prompt", alone, PROMPT, "--redux", wide)
    request = summed(prior, [one], PROMPT, [0.6], [1.0])
    yield case("one picture, weaker as diffusers has it", request, PROMPT, "--redux", f"{wide}=0.6", "--redux-mix", "sum")
    flags = ["--redux", f"{wide}=0.6", "--redux", f"{tall}=0.3,0.5", "--redux-mix", "sum"]
    request = summed(prior, [one, two], [PROMPT] * 2, [0.6, 0.3], [1.0, 0.5])
    yield case("two pictures and a prompt, summed", request, PROMPT, *flags)
    request = summed(prior, [one, two], ["", ""], [1.0, 1.0], [1.0, 1.0])
    yield case("two pictures, no prompt, summed", request, None, "--redux", wide, "--redux", tall, "--redux-mix", "sum")
    flags = ["--redux", f"{wide}=0.4", "--redux", f"{tall}=0.7", "--redux-mix", "sum", "--redux-without-text"]
    yield case("two pictures, no text encoders", summed(prior, [one, two], None, [0.4, 0.7], [1.0, 1.0]), None, *flags)
    request = summed(prior, [one], None, [1.0], [1.0])
    yield case("one picture, no text encoders", request, None, "--redux", wide, "--redux-without-text")
    request = appended(prior, [one, two], PROMPT, [0.8, 1.0])
    yield case("two pictures and a prompt, appended", request, PROMPT, "--redux", f"{wide}=0.8", "--redux", tall)
    request = alone | {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0}
    flags = ["--redux", wide, "--negative-prompt", NEGATIVE, "--true-cfg-scale", "3"]
    yield case("a picture, a prompt and a negative one", request, PROMPT, *flags)
    request = summed(prior, [two], PROMPT, [1.0], [1.0]) | {"image": one, "strength": 0.8}
    flags = ["--image", wide, "--strength", "0.8", "--redux", tall]
    yield case("image to image", request, PROMPT, *flags, pipeline="FluxImg2ImgPipeline")
    added = lora(model, folder / "lora.safetensors")
    request = alone | {"prepare": partial(with_lora, added, 0.8)}
    yield case("a picture and a LoRA", request, PROMPT, "--redux", wide, "--lora", f"{added}:0.8")


if __name__ == "__main__":
    # What a picture adds may be little.
    sys.exit(comparison.run(__doc__, cases, apart=comparison.THRESHOLD))
