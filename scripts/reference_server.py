#!/usr/bin/env python3
"""A server around diffusers' FluxPipeline, as it is usually written: what scripts/bench_server.py compares with.

FastAPI runs the handler in its pool of threads; a lock lets one request at a time into the pipeline, which bears no
more. All weights stay in memory.
"""

import argparse
import base64
import io
import os
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import torch  # noqa: E402
import uvicorn  # noqa: E402
from diffusers import FluxPipeline  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

KINDS = {"f32": torch.float32, "bf16": torch.bfloat16}


class Generation(BaseModel):
    prompt: str = Field(min_length=1, max_length=32_000)
    n: int = Field(default=1, ge=1, le=10)
    size: str = Field(default="64x64", pattern=r"^\d{2,4}x\d{2,4}$")
    num_inference_steps: int = Field(default=4, ge=1, le=100)
    guidance_scale: float = Field(default=0.0, ge=0.0, le=30.0)
    seed: int = 0


def encoded(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def serve(pipeline):
    app, lock = FastAPI(), threading.Lock()

    @app.get("/ready")
    def ready():
        return {"status": "ready"}

    @app.post("/v1/images/generations")
    def generations(request: Generation):
        width, height = (int(side) for side in request.size.split("x"))
        with lock:
            pictures = pipeline(
                request.prompt, width=width, height=height, num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale, max_sequence_length=256, num_images_per_prompt=request.n,
                generator=[torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.n)],
            ).images  # fmt: skip
        data = [{"b64_json": encoded(picture), "seed": request.seed + i} for i, picture in enumerate(pictures)]
        return {"created": int(time.time()), "data": data, "output_format": "png", "size": request.size}

    return app


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures/tiny")
    parser.add_argument("--kind", choices=KINDS, default="f32")
    parser.add_argument("--threads", type=int, help="threads of an operation; otherwise torch's")
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipeline = FluxPipeline.from_pretrained(args.model, dtype=KINDS[args.kind], low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    uvicorn.run(serve(pipeline), host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
