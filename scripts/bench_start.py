#!/usr/bin/env python3
"""Measures how long `tch-flux serve` takes from its start to `/ready`, and from there to its first picture.

    scripts/with-libtorch scripts/bench_start.py [BINARY] [MODEL] [RUNS]

It prints the median and the least of some runs. The first may have to read libtorch from the disk.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request


def answer(url, body=None):
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def run(binary, model):
    begun = time.perf_counter()
    command = [binary, "serve", "--port", "0", "--model", model, "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            while answer(f"{url}/ready") != 200:
                time.sleep(0.005)
            ready = time.perf_counter()
            body = json.dumps({"prompt": "a red circle", "size": "64x64", "num_inference_steps": 1}).encode()
            if answer(f"{url}/v1/images/generations", body) != 200:
                sys.exit("the first picture was not drawn")
            return ready - begun, time.perf_counter() - ready
        finally:
            process.terminate()


def main():
    binary, model, runs = (sys.argv[1:] + ["target/release/tch-flux", "fixtures/tiny", "5"][len(sys.argv) - 1 :])[:3]
    times = [run(binary, model) for _ in range(int(runs))]
    for name, column in zip(("ready", "first picture"), zip(*times)):
        print(f"{name}: median {statistics.median(column):.3f} s, least {min(column):.3f} s")


if __name__ == "__main__":
    main()
