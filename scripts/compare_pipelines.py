#!/usr/bin/env python3
"""Draws the same pictures with diffusers' FluxPipeline and with `tch-flux generate`, and compares them.

    cargo build --release
    scripts/with-libtorch --reference python scripts/compare_pipelines.py --binary target/release/tch-flux

Both run in f32 on the CPU from the same noise. The two sum in different orders, so their latents differ in the last
bits: a few 8-bit values may come out one apart. 50 dB allows two in three; a wrong constant anywhere costs far more.
Several pictures of a prompt, which diffusers draws in one batch, are each compared with what `tch-flux` draws alone, too.

The model is a schnell-type one whose folder holds both layouts: diffusers' for the one, the official for the other.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import comparison
import numpy as np
import torch
from PIL import Image

THRESHOLD = 50.0
PROMPTS = [
    "a red circle on a blue background",
    "a yellow square on a black background",
    "a white ring on a purple background",
    "a green triangle on an orange background",
]
SEEDS = [0, 42]
BATCH = 3


def several(pipeline, binary, model, folder, prompt, seed, steps):
    """Pictures of one call each, theirs and ours; and whether ours are what they are alone."""
    generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(BATCH)]
    batch = comparison.draw(
        pipeline, prompt=prompt, num_inference_steps=steps, num_images_per_prompt=BATCH, generator=generators
    )
    flags = ["--steps", steps, "--seed", seed, "-n", BATCH]
    comparison.call(binary, model, folder / "{index}.png", "generate", *flags, prompt=prompt)
    together = [np.array(Image.open(folder / f"{i}.png").convert("RGB")) for i in range(BATCH)]
    for i, (a, b) in enumerate(zip(batch, together)):
        flags = ["--steps", steps, "--seed", seed + i]
        alone, _ = comparison.ours(binary, model, folder / "out.png", "generate", *flags, prompt=prompt)
        yield i, a, b, np.array_equal(alone, b)


def main() -> int:
    parser = comparison.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=comparison.STEPS)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the lines")
    args = parser.parse_args()

    jobs = [(prompt, seed, args.steps) for prompt in args.prompts for seed in SEEDS]
    # Another schedule: twice the steps.
    jobs.append((args.prompts[0], SEEDS[0], 2 * args.steps))
    # The last bits depend on the number of threads; two is what the parity cases are made with.
    torch.set_num_threads(2)
    pipeline = comparison.load("FluxPipeline", args.model)

    pictures = []

    def compared(prompt, seed, steps, a, b, same=True):
        value = comparison.psnr(a, b)
        passed = value >= THRESHOLD and same
        result = f"{value:.2f} dB" if a.shape == b.shape else f"sizes differ: {a.shape[:2]} and {b.shape[:2]}"
        result += "" if same else ", and alone it is another one"
        picture = {"prompt": prompt, "seed": seed, "steps": steps, "result": result, "passed": passed}
        # JSON has no infinity: null is identical, or not comparable; `passed` tells them apart.
        pictures.append(picture | {"psnr_db": round(value, 2) if math.isfinite(value) else None})
        if not args.json:
            verdict = "ok" if passed else "FAILED"
            print(f"{verdict:6} {prompt}, seed {seed}, {steps} steps: {result}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for prompt, seed, steps in jobs:
            a = comparison.draw(pipeline, seed, prompt=prompt, num_inference_steps=steps)[0]
            flags = ["--steps", steps, "--seed", seed]
            b, _ = comparison.ours(args.binary, args.model, folder / "out.png", "generate", *flags, prompt=prompt)
            compared(prompt, seed, steps, a, b)
        prompt, seed = args.prompts[-1], SEEDS[-1]
        for i, a, b, same in several(pipeline, args.binary, args.model, folder, prompt, seed, args.steps):
            compared(f"{prompt}, in a batch", seed + i, args.steps, a, b, same)

    failed = sum(not picture["passed"] for picture in pictures)
    if args.json:
        print(json.dumps({"threshold_db": THRESHOLD, "pictures": pictures}, indent=1))
    else:
        print(f"{len(pictures) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
