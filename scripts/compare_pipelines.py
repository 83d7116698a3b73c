#!/usr/bin/env python3
"""Draws the same pictures with diffusers' FluxPipeline and with `tch-flux generate`, and compares them.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_pipelines.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The two sum in different orders, so their latents differ in the last
bits: a few 8-bit values may come out one apart. 50 dB allows two in three; a wrong constant anywhere costs far more.

The model is a schnell-type one whose folder holds both layouts: diffusers' for the one, the official for the other.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# What the libraries have to say about themselves would hide the results.
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

SIZE = 64
THRESHOLD = 50.0
PROMPTS = [
    "a red circle on a blue background",
    "a yellow square on a black background",
    "a white ring on a purple background",
    "a green triangle on an orange background",
]
SEEDS = [0, 42]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of 8-bit pictures, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def load_pipeline(model: Path):
    from diffusers import FluxPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipeline = FluxPipeline.from_pretrained(model, dtype=torch.float32, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline, prompt: str, seed: int, steps: int) -> np.ndarray:
    picture = pipeline(
        prompt,
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=256,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    ).images[0]
    # diffusers rounds to 8 bits; the official code, which ours follows, cuts off. Compare pictures, not roundings.
    return (127.5 * ((2.0 * picture - 1.0) + 1.0)).byte().permute(1, 2, 0).numpy()


def ours(binary: Path, model: Path, prompt: str, seed: int, steps: int, out: Path) -> np.ndarray:
    command = [binary, "generate", prompt, "--model", model, "--width", SIZE, "--height", SIZE, "--steps", steps]
    command += ["--seed", seed, "--kind", "f32", "--quiet", "-o", out]
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL)
    return np.array(Image.open(out).convert("RGB"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures/tiny")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the lines")
    args = parser.parse_args()

    jobs = [(prompt, seed, args.steps) for prompt in args.prompts for seed in SEEDS]
    # Another schedule: twice the steps.
    jobs.append((args.prompts[0], SEEDS[0], 2 * args.steps))
    # The last bits depend on the number of threads; two is what the parity cases are made with.
    torch.set_num_threads(2)
    pipeline = load_pipeline(args.model)

    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for prompt, seed, steps in jobs:
            a = theirs(pipeline, prompt, seed, steps)
            b = ours(args.binary, args.model, prompt, seed, steps, Path(folder) / "out.png")
            value = psnr(a, b) if a.shape == b.shape else math.nan
            passed = value >= THRESHOLD
            result = f"{value:.2f} dB" if a.shape == b.shape else f"sizes differ: {a.shape[:2]} and {b.shape[:2]}"
            picture = {"prompt": prompt, "seed": seed, "steps": steps, "result": result, "passed": passed}
            # JSON has no infinity: null is identical, or not comparable; `passed` tells them apart.
            pictures.append(picture | {"psnr_db": round(value, 2) if math.isfinite(value) else None})
            if not args.json:
                verdict = "ok" if passed else "FAILED"
                print(f"{verdict:6} {prompt}, seed {seed}, {steps} steps: {result}", flush=True)

    failed = sum(not picture["passed"] for picture in pictures)
    if args.json:
        print(json.dumps({"threshold_db": THRESHOLD, "pictures": pictures}, indent=1))
    else:
        print(f"{len(pictures) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
