#!/usr/bin/env python3
"""Draws what looks like other pictures with diffusers' Redux and with `tch-flux --redux`, and compares the results.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_redux.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The transformer is that of the tiny model; SigLIP and the embedder are small
ones of random weights, in a folder as the official repository of Redux has it. diffusers' FluxPriorReduxPipeline reads the
pictures and the prompt. What it does with one picture is what the official code does; with several it sums. For pictures one
behind the other, as ComfyUI has them, its models run one by one and their tokens are joined here.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import compare_edits as edits
import compare_pipelines as compare
import numpy as np
import torch
from export_fixtures import randomise
from PIL import Image
from safetensors.torch import save_file

THRESHOLD = 45.0
# FluxPriorReduxPipeline knows no other.
LENGTH = 512
SIDE = 59
NEGATIVE = "a green square on a white background"


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


def theirs(name, model, **request):
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    diffusers.utils.logging.disable_progress_bar()
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    pipeline = getattr(diffusers, name).from_pretrained(model, dtype=torch.float32, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        height=edits.SIZE, width=edits.SIZE, num_inference_steps=edits.STEPS, guidance_scale=0.0, max_sequence_length=LENGTH,
        generator=torch.Generator("cpu").manual_seed(edits.SEED), output_type="pt", **request,
    ).images[0]  # fmt: skip
    return (127.5 * ((2.0 * result - 1.0) + 1.0)).byte().permute(1, 2, 0).numpy()


def ours(binary, model, out, *flags):
    command = "edit" if "--image" in flags else "generate"
    call = [binary, command, "--model", model, "--width", edits.SIZE, "--height", edits.SIZE, "--steps", edits.STEPS]
    call += ["--seed", edits.SEED, "--max-sequence-length", LENGTH, "--kind", "f32", "--quiet", "-o", out, *flags]
    subprocess.run([str(part) for part in call], check=True, stdin=subprocess.DEVNULL)
    return np.array(Image.open(out).convert("RGB"))


def cases(model, folder):
    """Name, diffusers' pipeline with its request, and ours: its prompt and flags."""
    prior = make_redux(model, folder)
    wide, tall = folder / "wide.png", folder / "tall.png"
    edits.picture(150, 61).save(wide)
    Image.fromarray(255 - np.array(edits.picture(33, 80))).save(tall)
    one, two = Image.open(wide), Image.open(tall)
    prompt = edits.PROMPT

    yield "one picture, no prompt", "FluxPipeline", summed(prior, [one], "", [1.0], [1.0]), [], ["--redux", wide]
    yield "one picture and a prompt", "FluxPipeline", summed(prior, [one], prompt, [1.0], [1.0]), [prompt], ["--redux", wide]
    flags = ["--redux", f"{wide}=0.6", "--redux-mix", "sum"]
    yield "one picture, weaker as diffusers has it", "FluxPipeline", summed(prior, [one], prompt, [0.6], [1.0]), [prompt], flags
    flags = ["--redux", f"{wide}=0.6", "--redux", f"{tall}=0.3,0.5", "--redux-mix", "sum"]
    both = summed(prior, [one, two], [prompt] * 2, [0.6, 0.3], [1.0, 0.5])
    yield "two pictures and a prompt, summed", "FluxPipeline", both, [prompt], flags
    flags = ["--redux", wide, "--redux", tall, "--redux-mix", "sum"]
    yield "two pictures, no prompt, summed", "FluxPipeline", summed(prior, [one, two], ["", ""], [1.0, 1.0], [1.0, 1.0]), [], flags
    flags = ["--redux", f"{wide}=0.4", "--redux", f"{tall}=0.7", "--redux-mix", "sum", "--redux-without-text"]
    yield "two pictures, no text encoders", "FluxPipeline", summed(prior, [one, two], None, [0.4, 0.7], [1.0, 1.0]), [], flags
    yield "one picture, no text encoders", "FluxPipeline", summed(prior, [one], None, [1.0], [1.0]), [], [
        "--redux", wide, "--redux-without-text",
    ]  # fmt: skip
    flags = ["--redux", f"{wide}=0.8", "--redux", tall]
    yield "two pictures and a prompt, appended", "FluxPipeline", appended(prior, [one, two], prompt, [0.8, 1.0]), [prompt], flags
    request = summed(prior, [one], prompt, [1.0], [1.0]) | {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0}
    flags = ["--redux", wide, "--negative-prompt", NEGATIVE, "--true-cfg-scale", "3"]
    yield "a picture, a prompt and a negative one", "FluxPipeline", request, [prompt], flags
    request = summed(prior, [two], prompt, [1.0], [1.0]) | {"image": one, "strength": 0.8}
    yield "image to image", "FluxImg2ImgPipeline", request, [prompt], ["--image", wide, "--strength", "0.8", "--redux", tall]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=edits.ROOT / "fixtures/tiny")
    args = parser.parse_args()
    torch.set_num_threads(2)

    failed = passed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = theirs("FluxPipeline", args.model, prompt=edits.PROMPT)
        for title, pipeline, request, prompts, flags in cases(args.model, folder):
            reference = theirs(pipeline, args.model, **request)
            flags = [*prompts, *flags, "--redux-model", folder]
            value = compare.psnr(reference, ours(args.binary, args.model, folder / "out.png", *flags))
            # A picture that Redux did not change would prove nothing.
            apart = compare.psnr(reference, plain)
            good = value >= THRESHOLD > apart
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok' if good else 'FAILED':6} {title}: {value:.2f} dB, {apart:.2f} dB from none", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
