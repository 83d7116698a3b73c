"""What the scripts share that compare drawings: diffusers' pipelines, `tch-flux`, and the verdict.

Both run in f32 on the CPU from the same noise. The two sum in different orders, so their latents differ in the last
bits: a few 8-bit values may come out one apart. A wrong constant anywhere costs far more.
"""

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# What the libraries have to say about themselves would hide the results.
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# What two pictures that mean the same have at least, in dB.
THRESHOLD = 45.0
PROMPT = "a red circle on a blue background"
NEGATIVE = "a green square on a white background"
SIZE, STEPS, SEED, LENGTH = 64, 4, 7, 256


@dataclass
class Case:
    """A picture that is drawn twice: by a function in Python, and by `tch-flux COMMAND PROMPT FLAGS…`."""

    title: str
    theirs: Callable[[], np.ndarray]
    command: str
    flags: list = field(default_factory=list)
    prompt: str | None = PROMPT


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of 8-bit pictures, in dB; not a number where they differ in size."""
    if a.shape != b.shape:
        return math.nan
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def picture(width, height):
    """A ring on a gradient: something in every direction and colour."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, 3 * width // 4, 3 * height // 4], outline="white", width=4)
    return image


def load(name, model, **parts):
    """A pipeline of diffusers, some of whose parts may be others than its folder's.

    Where it draws a sample of what the autoencoder's encoder says, it is made to take the mean, as the official code does.
    """
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    diffusers.utils.logging.disable_progress_bar()
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    pipeline = getattr(diffusers, name).from_pretrained(model, dtype=torch.float32, low_cpu_mem_usage=False, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, seed=SEED, **request):
    """The pictures of a pipeline, in 8 bits."""
    usual = {} if "prompt_embeds" in request else {"prompt": PROMPT}
    usual |= {"height": SIZE, "width": SIZE, "num_inference_steps": STEPS, "guidance_scale": 0.0, "max_sequence_length": LENGTH}
    usual["generator"] = torch.Generator("cpu").manual_seed(seed)
    pictures = pipeline(**(usual | request), output_type="pt").images
    # diffusers rounds to 8 bits; the official code, which ours follows, cuts off. Compare pictures, not roundings.
    return (127.5 * ((2.0 * pictures - 1.0) + 1.0)).byte().permute(0, 2, 3, 1).numpy()


def theirs(name, model, parts=None, prepare=None, **request):
    """What a pipeline of diffusers draws, after `prepare` has put on it what its folder does not hold."""
    pipeline = load(name, model, **(parts or {}))
    if prepare:
        prepare(pipeline)
    return draw(pipeline, **request)[0]


def call(binary, model, out, command, *flags, prompt=PROMPT):
    """Runs `tch-flux`, and returns what it says about what it has drawn."""
    line = [binary, command] + ([] if prompt is None else [prompt])
    usual = {"--model": model, "--width": SIZE, "--height": SIZE, "--steps": STEPS, "--seed": SEED, "--kind": "f32"}
    usual["--max-sequence-length"] = LENGTH
    if "--sigmas" in flags:
        del usual["--steps"]
    for flag, value in usual.items():
        line += [] if flag in flags else [flag, value]
    line = [str(part) for part in [*line, "--quiet", "--json", "--force", "-o", out, *flags]]
    said = subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout)


def ours(binary, model, out, command, *flags, prompt=PROMPT):
    """What `tch-flux` draws, and what it says about that."""
    said = call(binary, model, out, command, *flags, prompt=prompt)
    return np.array(Image.open(out).convert("RGB")), said


def arguments(description):
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True, help="tch-flux")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    return parser


def run(description, cases, apart=None, note=lambda picture, said: ""):
    """Compares all that `cases(binary, model, folder)` names, says how alike each two are, and ends with the status.

    With `apart`, each picture must be farther than that from the one of the prompt alone: one that nothing was added to
    would agree with one that nothing was added to.
    """
    parser = arguments(description)
    parser.add_argument("--only", help="cases with this in their title")
    args = parser.parse_args()
    # The last bits depend on the number of threads; two is what the parity cases are made with.
    torch.set_num_threads(2)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        bare, _ = ours(args.binary, args.model, folder / "bare.png", "generate")
        for case in cases(args.binary, args.model, folder):
            if args.only and args.only not in case.title:
                continue
            drawn, said = ours(args.binary, args.model, folder / "out.png", case.command, *case.flags, prompt=case.prompt)
            value = psnr(case.theirs(), drawn)
            good, more = value >= THRESHOLD, note(drawn, said)
            if apart is not None:
                away = psnr(bare, drawn)
                good, more = good and not away >= apart, more + f", {away:.2f} dB from the prompt's alone"
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok' if good else 'FAILED':6} {case.title}: {value:.2f} dB{more}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
