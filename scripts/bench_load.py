#!/usr/bin/env python3
"""Loads one transformer with tch-flux and with Python in turn, and prints a table of both.

The file has FLUX.1-dev's widths, with random weights and as many blocks as are asked for. What is measured is the way
from the file to a model that could run: for Python without its imports, for tch-flux without the start of libtorch.
Run it as `scripts/with-libtorch --reference python scripts/bench_load.py`, with a release build of tch-flux.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

PYTHON = r"""
import json, sys, time
how, path, kind, times = sys.argv[1:]
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[kind]
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024
def load():
    if how == "from_pretrained":
        return FluxTransformer2DModel.from_pretrained(path, torch_dtype=dtype)
    state = load_file(path + "/diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(path))
    model.load_state_dict(state, assign=True)
    return model.to(dtype)
before, seconds = peak(), []
for _ in range(int(times)):
    start = time.perf_counter()
    model = load()
    seconds.append(time.perf_counter() - start)
    del model
print(json.dumps({
    "seconds": sorted(seconds)[len(seconds) // 2], "first_seconds": seconds[0], "peak_bytes_grown": peak() - before,
}))
"""


def official_file(path, depth, single):
    import torch
    from safetensors.torch import save_file

    tensors, generator = {}, torch.Generator().manual_seed(0)
    for line in (ROOT / "fixtures/layouts/flux1-dev.txt").read_text().splitlines():
        name, _, shape = line.split("\t")
        block = name.split(".")
        if block[0] == "double_blocks" and int(block[1]) >= depth:
            continue
        if block[0] == "single_blocks" and int(block[1]) >= single:
            continue
        shape = [int(d) for d in shape.split(",")]
        tensors[name] = torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def gguf_file(path, tensors):
    import gguf

    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 and values.shape[1] % 32 == 0 else None
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=2, help="double blocks (dev has 19)")
    parser.add_argument("--single", type=int, default=4, help="single blocks (dev has 38)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row, in turn")
    parser.add_argument("--times", type=int, default=5, help="loads in a process, of which the median counts")
    parser.add_argument("--binary", default=ROOT / "target/release/tch-flux")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TCH_FLUX_BENCH_DIR")) as folder:
        folder = pathlib.Path(folder)
        official, fp8 = folder / "official.safetensors", folder / "fp8.safetensors"
        gguf_path, diffusers = folder / "q8_0.gguf", folder / "diffusers"
        tensors = official_file(official, args.depth, args.single)
        gguf_file(gguf_path, tensors)
        del tensors
        convert = [args.binary, "convert"]
        subprocess.run([*convert, official, fp8, "--kind", "fp8-scaled"], check=True, stdout=sys.stderr)
        subprocess.run([*convert, official, diffusers, "--layout", "diffusers"], check=True, stdout=sys.stderr)

        times = str(args.times)

        def ours(path, *flags):
            return [args.binary, "bench", "load", path, "--json", "--repeat", times, *flags]

        def theirs(how, kind):
            return [sys.executable, "-c", PYTHON, how, diffusers, kind, times]

        rows = {
            "tch-flux, official file, bf16": ours(official),
            "tch-flux, diffusers' folder, bf16": ours(diffusers),
            "Python, load_file + load_state_dict(assign=True), bf16": theirs("load_file", "bf16"),
            "Python, from_pretrained, bf16": theirs("from_pretrained", "bf16"),
            "tch-flux, official file, bf16 to f32": ours(official, "--kind", "f32"),
            "Python, load_file + load_state_dict(assign=True), bf16 to f32": theirs("load_file", "f32"),
            "Python, from_pretrained, bf16 to f32": theirs("from_pretrained", "f32"),
            "tch-flux, scaled fp8 to bf16": ours(fp8, "--kind", "bf16"),
            "tch-flux, scaled fp8, kept": ours(fp8, "--kind", "bf16", "--keep-quantized"),
            "tch-flux, GGUF Q8_0 to bf16": ours(gguf_path, "--kind", "bf16"),
            "tch-flux, GGUF Q8_0, kept": ours(gguf_path, "--kind", "bf16", "--keep-quantized"),
        }
        found = {row: [] for row in rows}
        # The first round brings the files into the page cache.
        for turn in range(args.rounds + 1):
            for row, command in rows.items():
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                if turn > 0:
                    found[row].append(json.loads(done.stdout.splitlines()[-1]))
        size = official.stat().st_size
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.depth} double and {args.single} single blocks, {size / 1e9:.2f} GB in bf16; {args.rounds} rounds of {args.times}\n")
    print("| what | s | first time | peak memory | of the copy's speed |\n| --- | --- | --- | --- | --- |")
    for row, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        peak = statistics.median(run["peak_bytes_grown"] for run in runs)
        shares = [run["share_of_copy_speed"] for run in runs if run.get("share_of_copy_speed")]
        share = f"{100 * statistics.median(shares):.0f} %" if shares else ""
        first = statistics.median(run["first_seconds"] for run in runs)
        print(f"| {row} | {statistics.median(seconds):.3f} | {first:.3f} | {peak / 1e9:.2f} GB | {share} |")


if __name__ == "__main__":
    main()
