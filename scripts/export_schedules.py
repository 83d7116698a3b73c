#!/usr/bin/env python3
"""Writes the times that diffusers' FluxPipeline walks by some scheduler_config.json, for `src/sampling/scheduler.rs`.

    scripts/with-libtorch --reference python scripts/export_schedules.py fixtures/schedules.json

scipy, which diffusers asks for its beta schedule, is stood in for by mpmath.
"""

import json
import sys

import diffusers
import numpy as np
from compare_configs import with_beta
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

EULER, LCM, DPM = "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "DPMSolverMultistepScheduler"
DYNAMIC = {"use_dynamic_shifting": True}
FLOW = DYNAMIC | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CONFIGS = [
    (EULER, {}),
    (EULER, {"shift": 3.0}),
    (EULER, {"shift": 0.3}),
    (EULER, {"shift": 3.0} | DYNAMIC),
    (EULER, {"base_shift": 0.9, "max_shift": 1.6} | DYNAMIC),
    (EULER, {"base_shift": -0.5, "max_shift": 2.0, "base_image_seq_len": 64, "max_image_seq_len": 16384} | DYNAMIC),
    (EULER, {"time_shift_type": "linear"} | DYNAMIC),
    (EULER, {"time_shift_type": "linear", "shift": 2.0}),
    (EULER, {"shift_terminal": 0.1}),
    (EULER, {"shift_terminal": 0.0, "shift": 2.0}),
    (EULER, {"shift_terminal": 0.02} | DYNAMIC),
    (EULER, {"use_karras_sigmas": True}),
    (EULER, {"use_karras_sigmas": True, "shift": 3.0, "shift_terminal": 0.05}),
    (EULER, {"use_exponential_sigmas": True}),
    (EULER, {"use_exponential_sigmas": True} | DYNAMIC),
    (EULER, {"use_beta_sigmas": True}),
    (EULER, {"use_beta_sigmas": True, "time_shift_type": "linear"} | DYNAMIC),
    (EULER, {"num_train_timesteps": 500, "shift": 2.0}),
    (EULER, {"invert_sigmas": True, "shift": 2.0}),
    (EULER, {"stochastic_sampling": True}),
    (LCM, {"shift": 2.0, "use_karras_sigmas": True}),
    (DPM, FLOW),
    (DPM, FLOW | {"base_shift": 1.0, "max_shift": 3.0, "num_train_timesteps": 2000}),
]


def walked(name, config, steps, image_seq_len):
    scheduler = getattr(diffusers, name).from_config(config)
    get = scheduler.config.get
    sigmas = None if get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    usual = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    mu = calculate_shift(image_seq_len, *(get(key, value) for key, value in usual.items()))
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    told = {"steps": steps, "image_seq_len": image_seq_len, "sigmas": scheduler.sigmas.tolist()}
    return told | {"timesteps": (timesteps / 1000).tolist()}


def main():
    with_beta()
    cases = []
    for name, config in CONFIGS:
        config = {"_class_name": name} | config
        # A terminal is not to be had with one step.
        shapes = [(4, 4096), (28, 1024), (9, 16)] + ([] if config.get("shift_terminal") else [(1, 256)])
        cases.append({"config": config, "walks": [walked(name, config, *shape) for shape in shapes]})
    with open(sys.argv[1], "w") as file:
        json.dump(cases, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
