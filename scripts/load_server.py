#!/usr/bin/env python3
"""Puts `tch-flux serve` under load on the loopback and says whether it keeps its promises.

    scripts/with-libtorch python3 scripts/load_server.py --binary target/release/tch-flux
    scripts/with-libtorch python3 scripts/load_server.py --binary target/release/tch-flux burst

burst   200 requests at once: each is answered with 200 or 429, none is lost, and every picture is, bit by bit, the one
        that was made alone. Then the same, where whoever is refused comes again as it was told: all have their picture.
crowd   1,000 idle connections and 200 slow ones, in a process of their own, do not delay a picture by more than 20 %:
        medians with and without them, in turn.
leave   A client that leaves frees its place: while it waits, in a step, in a stream.

Ends with 1 where a promise is broken.
"""

import argparse
import asyncio
import collections
import json
import subprocess
import sys
import time
from pathlib import Path

from http_load import BROKEN, GENERATIONS, ROOT, Address, Connection, Lost
from http_load import allow_files, digests, free_port, median, metrics, percentile, prompt, release_binary, request, serving

WAITING, RUNNING, WORKERS = "tch_flux_queue_length", "tch_flux_jobs_running", "tch_flux_workers"
# What is drawn long enough to be left, in steps that are long beside a look at /metrics.
LONG = {"prompt": prompt(5), "size": "512x512", "num_inference_steps": 100, "seed": 5}


class Broken(Exception):
    """A promise that was not kept."""


def generation(**fields):
    return json.dumps(fields).encode()


async def draw(address, body, timeout=120.0):
    return await request(address, "POST", GENERATIONS, body, timeout=timeout)


# ---------------------------------------------------------------- all at once


async def burst(address, args):
    bodies = [generation(prompt=prompt(i), size="64x64", num_inference_steps=4, seed=i) for i in range(args.pictures)]
    alone = [digests((await draw(address, body)).json()) for body in bodies]
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(draw(address, bodies[i % len(bodies)]) for i in range(args.requests)), return_exceptions=True
    )
    took = time.perf_counter() - started
    lost = [str(answer) for answer in answers if isinstance(answer, BaseException)]
    if lost:
        raise Broken(f"{len(lost)} of {args.requests} requests are lost: {collections.Counter(lost).most_common(3)}")
    statuses = collections.Counter(answer.status for answer in answers)
    if set(statuses) - {200, 429}:
        raise Broken(f"answers other than 200 and 429: {dict(statuses)}")
    if [answer for answer in answers if answer.status == 429 and "retry-after" not in answer.headers]:
        raise Broken("a 429 without Retry-After")
    compare(answers, alone)
    again = await asyncio.gather(*(insist(address, bodies[i % len(bodies)]) for i in range(args.requests)))
    compare([answer for answer, _ in again], alone)
    return {
        "requests": args.requests,
        "seconds": took,
        "answers": dict(statuses),
        "drawn_p99_s": percentile([answer.seconds for answer in answers if answer.status == 200], 99),
        "refused_p99_s": percentile([answer.seconds for answer in answers if answer.status == 429], 99),
        "insisting_answers": len(again),
        "insisting_tries": sum(tries for _, tries in again),
    }


def compare(answers, alone):
    for i, answer in enumerate(answers):
        if answer.status == 200 and digests(answer.json()) != alone[i % len(alone)]:
            raise Broken(f"request {i} has another picture than the one made alone")


async def insist(address, body, tries=1000):
    """Comes again as often as it is refused, when it was told to; its picture, and the tries."""
    for attempt in range(1, tries + 1):
        answer = await draw(address, body)
        if answer.status == 200:
            return answer, attempt
        if answer.status != 429:
            raise Broken(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
        await asyncio.sleep(float(answer.headers["retry-after"]))
    raise Broken(f"refused {tries} times")


# ---------------------------------------------------------------- many connections


class Crowd:
    """Connections that are kept open; one that the server closes is opened anew."""

    def __init__(self, address):
        self.address, self.open, self.tasks = address, 0, []

    def add(self, count, speak):
        self.tasks += [asyncio.create_task(self.keep(speak)) for _ in range(count)]

    async def keep(self, speak):
        while True:
            try:
                connection = await Connection.open(self.address)
            except (*BROKEN, TimeoutError):
                await asyncio.sleep(0.5)
                continue
            self.open += 1
            try:
                await speak(connection)
            except BROKEN:
                pass
            finally:
                self.open -= 1
                connection.leave()


async def idle(connection):
    await connection.reader.read()


async def trickle(connection):
    """What was begun goes on with a byte a second, until the server has enough of it."""
    while not connection.reader.at_eof():
        connection.writer.write(b"x")
        await connection.writer.drain()
        await asyncio.sleep(1)


async def slow_head(connection):
    connection.writer.write(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    await trickle(connection)


async def slow_body(connection):
    head = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    connection.writer.write(b"POST /v1/images/generations HTTP/1.1\r\n" + head)
    await trickle(connection)


async def be_crowd(args):
    """The process that `crowd` starts: says when all are connected, and keeps them until its input ends."""
    crowd = Crowd(Address.of(args.url))
    crowd.add(args.idle, idle)
    crowd.add(args.slow // 2, slow_head)
    crowd.add(args.slow - args.slow // 2, slow_body)
    while crowd.open < args.idle + args.slow:
        await asyncio.sleep(0.05)
    print(crowd.open, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(crowd.open, flush=True)


def start_crowd(address, args):
    url = f"http://{address.host}:{address.port}"
    command = [sys.executable, __file__, "be-crowd", "--url", url, "--idle", str(args.idle), "--slow", str(args.slow)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline().strip() != str(args.idle + args.slow):
        raise Broken(f"{args.idle + args.slow} connections could not be opened")
    return process


def end_crowd(process):
    """Lets it go; how many connections were open then."""
    return int(process.communicate(timeout=60)[0])


async def pictures(address, limit):
    """Seconds of one picture after the other, for so long."""
    seconds, connection, started = [], await Connection.open(address), time.perf_counter()
    while time.perf_counter() - started < limit:
        i = len(seconds)
        body = generation(prompt=prompt(i), size="64x64", num_inference_steps=4, seed=i)
        answer = await connection.request("POST", GENERATIONS, body)
        if answer.status != 200:
            raise Broken(f"a normal request was answered with {answer.status}")
        seconds.append(answer.seconds)
    connection.leave()
    return seconds


async def crowd(address, args):
    alone, beside, held = [], [], []
    await pictures(address, 1)
    for _ in range(args.rounds):
        alone.append(await pictures(address, args.seconds))
        process = start_crowd(address, args)
        beside.append(await pictures(address, args.seconds))
        held.append(end_crowd(process))
    medians = [median(sum(runs, [])) for runs in (alone, beside)]
    found = {"alone_s": medians[0], "beside_s": medians[1], "ratio": medians[1] / medians[0], "open": held}
    found["ratios"] = [median(b) / median(a) for a, b in zip(alone, beside)]
    if found["ratio"] > args.delay:
        raise Broken(f"a crowd delays a picture: {json.dumps(found)}")
    return found


# ---------------------------------------------------------------- leaving


async def until(address, name, value, limit=30.0):
    """Seconds until a number of /metrics has a value."""
    started = time.perf_counter()
    while time.perf_counter() - started < limit:
        if (await metrics(address))[name] == value:
            return time.perf_counter() - started
        await asyncio.sleep(0.002)
    raise Broken(f"{name} is not {value:g} after {limit:g} s")


async def begin(address, **fields):
    connection = await Connection.open(address)
    await connection.send("POST", GENERATIONS, generation(**(LONG | fields)))
    return connection


async def step_seconds(address):
    """Of what is drawn long: the difference of two numbers of steps."""
    few, many = [(await draw(address, generation(**(LONG | {"num_inference_steps": n})))).seconds for n in (2, 12)]
    return (many - few) / 10


async def left_waiting(address):
    drawn = []
    for busy in range(1, int((await metrics(address))[WORKERS]) + 1):
        drawn.append(await begin(address))
        await until(address, RUNNING, busy)
    queued = await begin(address)
    await until(address, WAITING, 1)
    queued.leave()
    freed = await until(address, WAITING, 0)
    for connection in drawn:
        connection.leave()
    await until(address, RUNNING, 0)
    return freed


async def left_in_a_step(address):
    connection = await begin(address)
    await until(address, RUNNING, 1)
    await asyncio.sleep(0.3)
    connection.leave()
    return await until(address, RUNNING, 0)


async def left_in_a_stream(address):
    connection = await begin(address, stream=True, partial_images=3)
    await connection.head()
    async for event in connection.events():
        if event["type"] == "image_generation.partial_image":
            break
    connection.leave()
    return await until(address, RUNNING, 0)


async def leave(address, args):
    """Seconds until the place of a client that left was free, of some tries each."""
    step, found = await step_seconds(address), {}
    for way in (left_waiting, left_in_a_step, left_in_a_stream):
        seconds = [await way(address) for _ in range(args.rounds)]
        found[way.__name__] = seconds
        if median(seconds) > step:
            raise Broken(f"{way.__name__}: {seconds} s, and a step takes {step:.3f} s")
    return {"step_s": step} | found


# ---------------------------------------------------------------- the command line

PROMISES = {"burst": burst, "crowd": crowd, "leave": leave}


def add_serving(parser):
    parser.add_argument("--binary", type=Path, help="tch-flux; otherwise the release binary of this tree is built")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/tiny")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest goes to `tch-flux serve`")
    parser.add_argument("--log", type=Path, metavar="FILE", help="what the server says")


def start(args):
    port = free_port()
    command = [args.binary or release_binary(), "serve", "--model", args.model, "--port", port, *args.serve]
    return serving(command, port, log=args.log)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help="all of them without one")
    parser.add_argument("--requests", type=int, default=200, help="at once")
    parser.add_argument("--idle", type=int, default=1000, help="connections")
    parser.add_argument("--slow", type=int, default=200, help="connections")
    parser.add_argument("--delay", type=float, default=1.2, help="the most that a picture may take beside them")
    parser.add_argument("--pictures", type=int, default=20, help="different ones among those at once")
    # Longer than the server lets a connection idle, or a head take.
    parser.add_argument("--seconds", type=float, default=12.0, help="of pictures in a crowd, and without it, each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    add_serving(parser)
    args = parser.parse_args()
    if set(args.promises) - {*PROMISES, "be-crowd"}:
        parser.error(f"promises are {', '.join(PROMISES)}")
    return args


def main():
    args = arguments()
    allow_files(args.idle + args.slow + args.requests + 100)
    if args.promises == ["be-crowd"]:
        return asyncio.run(be_crowd(args))
    with start(args) as server:
        for name in args.promises or PROMISES:
            try:
                print(json.dumps({name: asyncio.run(PROMISES[name](server.address, args))}), flush=True)
            except (Broken, Lost) as broken:
                print(f"{name}: {broken}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
