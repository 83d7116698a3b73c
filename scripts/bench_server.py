#!/usr/bin/env python3
"""Measures `tch-flux serve` against a FastAPI server around diffusers' FluxPipeline, both in turn.

    scripts/with-libtorch --reference python scripts/bench_server.py
    scripts/with-libtorch --reference python scripts/bench_server.py --binary target/release/tch-flux --json --check

Each round starts either server, one after the other, in a process of its own, with the same weights, the same number of
threads, and all weights in memory: tch-flux in bf16, the kind of the files, and the reference in bf16 and in f32, of
which the faster one counts at each number of clients. The reference has one pipeline, which bears one request at a time,
on all threads; tch-flux has one queue before workers that share the threads out among them. So many clients, all in this
process, each on a connection that it keeps, ask for a picture of 64 × 64 in 4 steps, and for the next one when they have
it; every request has a prompt and a seed of its own. Requests that were answered while a server warmed up do not count.
The throughput is the median of the rounds; the latencies are those of all rounds together.

The bar at each number of clients: at least 4 times the throughput, and at most half of its 99th percentile. Ends with
1 where a request failed or, with --check, the bar is missed.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from http_load import GENERATIONS, ROOT, Connection, Lost, free_port, median, percentile, prompt, release_binary, serving

THROUGHPUT, LATENCY = 4.0, 0.5
OURS, REFERENCE = "tch-flux", "reference"
KINDS = ["bf16", "f32"]


class Failed(Exception):
    pass


def body(i):
    return json.dumps({"prompt": prompt(i), "size": "64x64", "num_inference_steps": 4, "seed": i}).encode()


async def client(address, numbers, until, answers):
    """Asks for a picture after the other; when each answer came, and how long it took."""
    connection = await Connection.open(address)
    while time.perf_counter() < until:
        answer = await connection.request("POST", GENERATIONS, body(next(numbers)))
        if answer.status != 200 or not answer.json()["data"][0]["b64_json"]:
            raise Failed(f"{answer.status}: {answer.body[:300].decode(errors='replace')}")
        answers.append((time.perf_counter(), answer.seconds))
        if not connection.reusable:
            connection = await Connection.open(address)
    connection.leave()


async def load(server, clients, args, numbers):
    """What so many clients saw: pictures per second, and seconds of each; and what a picture cost the server."""
    cpu, started = server.cpu_seconds(), time.perf_counter() + args.warmup
    until, answers = started + args.seconds, []
    await asyncio.gather(*(client(server.address, numbers, until, answers) for _ in range(clients)))
    cpu = (server.cpu_seconds() - cpu) / len(answers)
    # What was under way when the time was up has a latency, but is no throughput of that time.
    counted = [(at, took) for at, took in answers if at >= started]
    in_time = sum(at < until for at, _ in counted)
    return {"per_s": in_time / args.seconds, "latencies": [took for _, took in counted], "cpu_s": cpu}


def sides(args):
    """Which server, in which kind."""
    return [(side, kind) for side in args.sides for kind in (args.kind if side == OURS else args.reference_kind)]


def command(side, kind, args, port):
    common = ["--model", args.model, "--port", port, "--kind", kind]
    if side == OURS:
        threads = ["--device", ",".join(["cpu"] * args.workers), "--threads", args.threads // args.workers]
        return [args.binary, "serve", *common, *threads, *args.serve]
    threads = ["--threads", args.reference_threads or args.threads]
    return [sys.executable, ROOT / "scripts/reference_server.py", *common, *threads]


def measure(args):
    """All servers in turn; what each answered at each number of clients."""
    found = {one: {clients: [] for clients in args.clients} for one in sides(args)}
    numbers = itertools.count()
    for turn in range(args.rounds):
        for one in found:
            port, name = free_port(), " ".join(one)
            log = args.logs / f"{'-'.join(one)}-{turn}.log" if args.logs else None
            with serving(command(*one, args, port), port, log) as server:
                for clients in args.clients:
                    found[one][clients].append(asyncio.run(load(server, clients, args, numbers)))
                    rate = found[one][clients][-1]["per_s"]
                    print(f"round {turn + 1}, {name}, {clients} clients: {rate:.2f}/s", file=sys.stderr)
    return found


def summary(rounds):
    latencies = [took for found in rounds for took in found["latencies"]]
    rates = [found["per_s"] for found in rounds]
    return {
        "per_s": median(rates),
        "per_s_min": min(rates),
        "per_s_max": max(rates),
        "p50_s": percentile(latencies, 50),
        "p99_s": percentile(latencies, 99),
        "cpu_s": median([found["cpu_s"] for found in rounds]),
        "pictures": len(latencies),
    }


def report(found, args):
    rows = []
    for clients in args.clients:
        row = {"clients": clients}
        for side in args.sides:
            kinds = [summary(found[one][clients]) | {"kind": one[1]} for one in found if one[0] == side]
            row[side] = max(kinds, key=lambda kind: kind["per_s"])
            row[f"other {side}"] = [kind for kind in kinds if kind is not row[side]]
        if len(args.sides) == 2:
            ours, theirs = row[OURS], row[REFERENCE]
            row["throughput_ratio"] = ours["per_s"] / theirs["per_s"]
            row["p99_ratio"] = ours["p99_s"] / theirs["p99_s"]
            row["passed"] = row["throughput_ratio"] >= THROUGHPUT and row["p99_ratio"] <= LATENCY
        rows.append(row)
    setting = {"workers": args.workers}
    setting |= {"threads": args.threads, "reference_threads": args.reference_threads or args.threads}
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "fastapi", "uvicorn")}
    return {"machine": machine(), "rounds": args.rounds, "seconds": args.seconds} | setting | packages | {"rows": rows}


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of an {names[0] if names else platform.processor()}"


def markdown(result, sides):
    lines = [
        "| clients | server | pictures/s | rounds | p50 | p99 | CPU a picture | throughput | p99 | bar |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        for side, one in ((side, one) for side in sides for one in [row[side], *row[f"other {side}"]]):
            ratios = ["", "", ""]
            if one is row.get(OURS) and "passed" in row:
                verdict = "met" if row["passed"] else "**missed**"
                ratios = [f"{row['throughput_ratio']:.2f} ×", f"{row['p99_ratio']:.2f} ×", verdict]
            spread = f"{one['per_s_min']:.2f} to {one['per_s_max']:.2f}"
            times = [f"{1000 * one[key]:.0f} ms" for key in ("p50_s", "p99_s", "cpu_s")]
            cells = [str(row["clients"]), f"{side} {one['kind']}", f"{one['per_s']:.2f}", spread, *times, *ratios]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--binary", type=Path, help="tch-flux; otherwise the release binary of this tree is built")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="starts of either server, in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load that count, at each number of clients")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of load before those, which do not")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of either side, in all")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of tch-flux, which share the threads out among them")
    parser.add_argument("--reference-threads", type=int, help="another number for the reference, where it is faster with it")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS[:1], help="of the arithmetic of tch-flux")
    parser.add_argument("--reference-kind", nargs="+", choices=KINDS, default=KINDS, help="of the reference's")
    parser.add_argument("--sides", nargs="+", choices=[OURS, REFERENCE], default=[OURS, REFERENCE], help="to measure one alone")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest goes to `tch-flux serve`")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the servers say")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--check", action="store_true", help="fail where the bar is missed")
    args = parser.parse_args()
    if args.threads % args.workers:
        parser.error("--threads must be a multiple of --workers")
    return args


def main():
    args = arguments()
    if OURS in args.sides:
        args.binary = args.binary or release_binary()
    try:
        result = report(measure(args), args)
    except (Failed, Lost, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if args.json else markdown(result, args.sides))
    return 1 if args.check and not all(row["passed"] for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
