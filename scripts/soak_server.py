#!/usr/bin/env python3
"""An hour of mixed load on `tch-flux serve`: steady memory, no wrong picture, no lost request.

    scripts/with-libtorch --reference python scripts/soak_server.py --binary target/release/tch-flux --json soak.json
    scripts/with-libtorch --reference python scripts/soak_server.py --binary target/release/tch-flux --seconds 300

Before the load, every picture that the load asks for is drawn alone. Then, all at once: pictures of several sizes,
numbers and formats, edits, addresses, streams with partial images, clients that leave while they wait, in a step and in
a stream, bad requests, slow readers, and those who look at models, health and metrics. Every picture is compared, bit by
bit, with the one made alone; every bad request has its status and the one form of errors. Before and after the load, a
client that leaves must free its place within a step, and after it nothing may wait or be drawn.

Memory is that of the process, every few seconds. Its growth is that of the median of the last window over the median of
the first one after --settle: windows of a fifth of what is left of the time, at most five minutes. The bar is 2 %.

Prints a paragraph; ends with 1 where anything above did not hold.
"""

import argparse
import asyncio
import base64
import collections
import hashlib
import io
import itertools
import json
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from http_load import BROKEN, EDITS, GENERATIONS, Connection, Lost
from http_load import allow_files, digests, median, metrics, multipart, percentile, prompt, request
from load_server import RUNNING, WAITING, Broken, add_serving, leave, start, until

GROWTH = 0.02
# Longer than any answer takes under this load; whoever waits so long has been forgotten.
PATIENCE = 180.0
JSON = "application/json"


@dataclass(frozen=True)
class Ask:
    """A request whose pictures are known."""

    name: str
    path: str
    body: bytes
    content_type: str = JSON

    @classmethod
    def generation(cls, name, **fields):
        return cls(name, GENERATIONS, json.dumps(fields).encode())

    @classmethod
    def edit(cls, name, files, **fields):
        content_type, body = multipart(fields, files)
        return cls(name, EDITS, body, content_type)


def generations():
    small = {"prompt": prompt(0), "size": "64x64", "num_inference_steps": 4, "seed": 1}
    variants = {
        "64x64": {},
        "three": {"n": 3, "seed": 7},
        "ten, one step": {"n": 10, "num_inference_steps": 1},
        "wide": {"size": "128x64", "prompt": prompt(9)},
        "tall": {"size": "64x192", "prompt": prompt(17), "num_inference_steps": 3},
        "128x128": {"size": "128x128", "n": 2, "prompt": prompt(26)},
        "256x256": {"size": "256x256", "num_inference_steps": 2, "prompt": prompt(35)},
        "long prompt": {"prompt": ", ".join(prompt(i) for i in range(200)), "num_inference_steps": 2},
        "jpeg": {"output_format": "jpeg", "output_compression": 80},
        "webp": {"output_format": "webp", "seed": 3},
        "negative": {"negative_prompt": prompt(4), "true_cfg_scale": 2.0},
        "nulls": {"n": None, "quality": "high", "user": "somebody", "style": None, "seed": 2**63 - 1},
    }
    return [Ask.generation(name, **(small | fields)) for name, fields in variants.items()]


def streams():
    common = {"prompt": prompt(3), "size": "64x64", "num_inference_steps": 6, "stream": True}
    small = [Ask.generation(f"{n} partial", **common, partial_images=n, seed=n) for n in range(4)]
    # More than the buffers between a server and a slow client hold.
    return small, Ask.generation("large partial", **(common | {"size": "256x256", "seed": 8}), partial_images=3)


def edits(picture, mask):
    fields = {"prompt": prompt(11), "size": "64x64", "num_inference_steps": "4", "seed": "5"}
    image = ("image", "a.png", "image/png", picture)
    many = [("image[]", f"{i}.png", "image/png", picture) for i in range(2)]
    return [
        Ask.edit("edit", [image], **fields),
        Ask.edit("edit of two", [image], **fields, n="2"),
        Ask.edit("edit with image[]", many[:1], **fields),
        Ask.edit("edit with a mask", [image, ("mask", "m.png", "image/png", mask)], **fields),
    ]


def png(colour, mode="RGB", size=(64, 64)):
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format="PNG")
    return file.getvalue()


def bad_requests(picture):
    """Each with the statuses that it may have."""

    def generation(raw=None, **fields):
        fields = {"prompt": prompt(0), "size": "64x64", "num_inference_steps": 1} | fields
        return "POST", GENERATIONS, json.dumps(fields).encode() if raw is None else raw, JSON

    def edit(*files, **fields):
        content_type, body = multipart({"prompt": prompt(0), "size": "64x64"} | fields, list(files))
        return "POST", EDITS, body, content_type

    wrong_values = [
        {"size": "1024x"}, {"size": "-16x16"}, {"size": "99999999999x1"}, {"size": "65x64"}, {"n": 0}, {"n": -1}, {"n": 11},
        {"n": 1.5}, {"n": "2"}, {"num_inference_steps": 0}, {"num_inference_steps": 10**9}, {"seed": -1}, {"seed": 2**64},
        {"guidance_scale": -1}, {"prompt": ""}, {"prompt": "x" * 32_001}, {"background": "transparent"}, {"stream": "yes"},
        {"partial_images": 4}, {"response_format": "file"}, {"output_format": "gif"}, {"output_compression": 101},
    ]  # fmt: skip
    image = ("image", "a.png", "image/png", picture)
    broken = ("image", "a.png", "image/png", picture[: len(picture) // 2])
    return [
        *((generation(**fields), {400}) for fields in wrong_values),
        (generation(b'{"prompt": "a"'), {400}),
        (generation(b'{"prompt": "\xff"}'), {400}),
        (generation(b'{"prompt": "a", "guidance_scale": NaN}'), {400}),
        (generation(b'{"prompt": "a", "guidance_scale": 1e309}'), {400}),
        (generation(b'{"prompt": "\\ud800"}'), {400}),
        (generation(b"[" * 5000), {400}),
        (generation(model="no-such-model"), {400, 404}),
        (generation(prompt="x" * (1 << 20)), {400, 413}),
        (("POST", GENERATIONS, b"{}", "text/plain"), {415}),
        (("POST", EDITS, b"{}", "multipart/form-data"), {400}),
        (edit(), {400}),
        (edit(broken), {400}),
        (edit(*[image] * 17), {400}),
        (edit(image, ("mask", "m.png", "image/png", png((0, 0, 0, 0), "RGBA", (32, 32)))), {400}),
        (("GET", GENERATIONS, b"", JSON), {405}),
        (("GET", "/v1/nothing", b"", JSON), {404}),
        (("GET", "/v1/models/no-such-model", b"", JSON), {404}),
        (("GET", "/v1/images/00000000/content", b"", JSON), {404}),
    ]


# ---------------------------------------------------------------- what happens


class Soak:
    def __init__(self, address, seed):
        self.address, self.random, self.seconds = address, random.Random(seed), 0.0
        self.counts, self.problems = collections.Counter(), collections.Counter()
        self.alone, self.normal, self.samples = {}, [], []
        self.started = None

    def now(self):
        return time.perf_counter() - self.started

    def problem(self, text):
        self.problems[text] += 1

    def count(self, what, outcome):
        self.counts[f"{what}: {outcome}"] += 1

    async def post(self, ask):
        return await request(self.address, "POST", ask.path, ask.body, ask.content_type, timeout=PATIENCE)

    async def draw_alone(self, asks):
        """What a request's pictures are; a stream's are those of the same request without one."""
        for ask in asks:
            answer = await self.post(plain(ask))
            if answer.status != 200:
                raise Broken(f"{ask.name}: {answer.status} {answer.body[:300].decode(errors='replace')}")
            self.alone[ask] = digests(answer.json())

    async def forever(self, what, act):
        while self.now() < self.seconds:
            try:
                await act()
            except Lost as lost:
                self.count(what, "lost")
                self.problem(f"{what}: lost: {lost}")
            except BROKEN as error:
                self.count(what, "broken")
                self.problem(f"{what}: {type(error).__name__}: {error}")

    def check(self, what, ask, found):
        right = found == self.alone[ask]
        self.count(what, "right" if right else "wrong")
        if not right:
            self.problem(f"{what}: {ask.name}: not the picture made alone")

    async def refused(self, what, answer):
        """Whether it is to come again."""
        self.count(what, answer.status)
        if answer.status == 429:
            await asyncio.sleep(min(float(answer.headers.get("retry-after", "nan")), 5.0))
        elif answer.status != 200:
            self.problem(f"{what}: {answer.status} {answer.body[:200].decode(errors='replace')}")
        return answer.status != 200

    # ------------------------------------------------------------ the kinds of clients

    async def picture(self, asks, what="pictures"):
        ask = self.random.choice(asks)
        answer = await self.post(ask)
        if not await self.refused(what, answer):
            self.check(what, ask, digests(answer.json()))

    async def burst(self, asks):
        """More at once than may wait."""
        await asyncio.sleep(self.random.uniform(20, 60))
        await asyncio.gather(*(self.picture(asks[:1], "bursts") for _ in range(100)))

    async def normal_picture(self, ask):
        """The one whose latency is watched; a short pause, so that it meets the load in every state."""
        answer = await self.post(ask)
        if not await self.refused("normal", answer):
            self.normal.append((self.now(), answer.seconds))
            self.check("normal", ask, digests(answer.json()))
        await asyncio.sleep(self.random.uniform(0, 1))

    async def address_of(self, ask):
        """A picture by its address is the same one."""
        fields = json.loads(ask.body) | {"response_format": "url"}
        answer = await self.post(Ask.generation(ask.name, **fields))
        if await self.refused("addresses", answer):
            return
        found = []
        for picture in answer.json()["data"]:
            path = re.sub(r"^https?://[^/]+", "", picture["url"])
            content = await request(self.address, "GET", path)
            found.append(hashlib.sha256(base64.b64encode(content.body)).hexdigest())
        self.check("addresses", ask, found)

    async def stream(self, ask, what="streams", receive_buffer=None):
        connection = await Connection.open(self.address, receive_buffer)
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.send("POST", ask.path, ask.body)
                status = await connection.head()
                if status == 200:
                    await self.read_stream(connection, ask, what)
                else:
                    self.count(what, status)
                    if status != 429:
                        self.problem(f"{what}: {status}")
                    await asyncio.sleep(1)
        except TimeoutError as error:
            raise Lost(f"no end of a stream in {PATIENCE:g} s") from error
        finally:
            connection.leave()

    async def read_stream(self, connection, ask, what):
        kinds, last = collections.Counter(), None
        async for event in connection.events():
            kinds[event.get("type", "error")] += 1
            last = event
        wanted = json.loads(ask.body)["partial_images"]
        if last is None or "b64_json" not in last or kinds.get("error"):
            self.count(what, "failed")
            return self.problem(f"{what}: {ask.name}: {json.dumps(last)[:200]}")
        if kinds["image_generation.partial_image"] > wanted:
            self.problem(f"{what}: {ask.name}: {kinds['image_generation.partial_image']} partial images")
        self.check(what, ask, digests({"data": [last]}))

    async def slow_reader(self, ask):
        """Reads an answer of a megabyte a few bytes at a time."""
        connection = await Connection.open(self.address, receive_buffer=2048)
        try:
            await connection.send("POST", ask.path, ask.body)
            status = await connection.head()
            pieces = []
            async for piece in connection.pieces():
                pieces.append(piece)
                await asyncio.sleep(0.02)
            if status == 200:
                self.check("slow readers", ask, digests(json.loads(b"".join(pieces))))
            self.count("slow readers", status)
        finally:
            connection.leave()

    async def leaver(self):
        """Asks for much, and is gone."""
        fields = {"prompt": prompt(5), "size": self.random.choice(["64x64", "256x256"]), "num_inference_steps": 50}
        if self.random.random() < 0.5:
            fields |= {"stream": True, "partial_images": 3}
        connection = await Connection.open(self.address)
        try:
            await connection.send("POST", GENERATIONS, json.dumps(fields).encode())
            try:
                async with asyncio.timeout(self.random.choice([0.0, 0.05, 0.5, 3.0])):
                    await connection.head()
                    async for _ in connection.events():
                        break
            except TimeoutError:
                pass
        finally:
            connection.leave()
        self.count("leavers", "left")
        await asyncio.sleep(self.random.uniform(0, 2))

    async def bad(self, cases):
        (method, path, body, content_type), statuses = next(cases)
        answer = await request(self.address, method, path, body, content_type, timeout=PATIENCE)
        self.count("bad requests", answer.status)
        told = f"{method} {path} {content_type} {body[:60]!r}"
        if answer.status == 429:
            return
        if answer.status not in statuses:
            self.problem(f"bad requests: {answer.status}, not {statuses}: {told}")
        elif set(answer.json()["error"]) != {"message", "type", "param", "code"} or "x-request-id" not in answer.headers:
            self.problem(f"bad requests: not the form of errors: {told}")
        await asyncio.sleep(0.1)

    async def look(self):
        for path in ("/v1/models", "/health", "/ready", "/metrics"):
            answer = await request(self.address, "GET", path, timeout=PATIENCE)
            self.count(path, answer.status)
            if answer.status != 200:
                self.problem(f"{path}: {answer.status}")
        await asyncio.sleep(1)

    async def sample(self, server, every):
        while self.now() < self.seconds:
            numbers = await metrics(self.address)
            resident, anonymous = server.memory()
            sample = {"at_s": round(self.now(), 1), "bytes": resident, "anonymous_bytes": anonymous}
            self.samples.append(sample | {"waiting": numbers[WAITING], "running": numbers[RUNNING]})
            await asyncio.sleep(every)

    # ------------------------------------------------------------ all of it

    async def run(self, server, args):
        asks, (streamed, large_stream) = generations(), streams()
        picture, mask = png((200, 30, 30)), png((0, 0, 0, 0), "RGBA")
        edited, wrong = edits(picture, mask), itertools.cycle(bad_requests(picture))
        await self.draw_alone([*asks, *streamed, large_stream, *edited])
        large = next(ask for ask in asks if ask.name == "256x256")
        self.started, self.seconds = time.perf_counter(), args.seconds
        clients = [
            *[("pictures", lambda: self.picture(asks))] * 4,
            ("edits", lambda: self.picture(edited, "edits")),
            ("bursts", lambda: self.burst(asks)),
            ("normal", lambda: self.normal_picture(asks[0])),
            ("addresses", lambda: self.address_of(self.random.choice(asks[:4]))),
            *[("streams", lambda: self.stream(self.random.choice(streamed)))] * 2,
            ("slow streams", lambda: self.stream(large_stream, "slow streams", receive_buffer=2048)),
            ("slow readers", lambda: self.slow_reader(large)),
            *[("leavers", self.leaver)] * 3,
            ("bad requests", lambda: self.bad(wrong)),
            ("looks", self.look),
        ]
        watch = self.forever("samples", lambda: self.sample(server, args.every))
        await asyncio.gather(watch, *(self.forever(what, act) for what, act in clients))
        self.seconds = self.now()
        # Nobody is there any more.
        await until(self.address, WAITING, 0, limit=10)
        await until(self.address, RUNNING, 0, limit=10)
        await self.draw_again([*asks, *edited])

    async def draw_again(self, asks):
        for ask in asks:
            self.check("after the load", ask, digests((await self.post(ask)).json()))


def plain(ask):
    if ask.content_type != JSON:
        return ask
    fields = json.loads(ask.body)
    return Ask.generation(ask.name, **{key: fields[key] for key in fields if key not in ("stream", "partial_images")})


# ---------------------------------------------------------------- what came out


def growth(samples, seconds, settle):
    """Of the memory, from the first window after `settle` to the last."""
    settle = min(settle, seconds / 3)
    window = min(300.0, (seconds - settle) / 5)
    first = [s for s in samples if settle <= s["at_s"] < settle + window]
    last = [s for s in samples if s["at_s"] >= seconds - window]
    if not first or not last:
        return None
    found = {"settle_s": settle, "window_s": window, "peak_bytes": max(s["bytes"] for s in samples)}
    for key, of in (("", "bytes"), ("anonymous_", "anonymous_bytes")):
        a, b = (median([s[of] for s in part]) for part in (first, last))
        found |= {f"{key}first_bytes": a, f"{key}last_bytes": b, f"{key}growth": b / a - 1}
    return found


def latency(normal):
    """Of the normal requests, as a whole and in the first and the last third."""
    third = len(normal) // 3
    parts = {"all": normal, "first_third": normal[:third], "last_third": normal[-third:] if third else []}
    seconds = {name: [took for _, took in part] for name, part in parts.items()}
    return {name: {f"p{p}_s": percentile(part, p) for p in (50, 99)} for name, part in seconds.items()}


def paragraph(result):
    memory, slow = result["memory"], result["latency"]["all"]
    grown = "not known" if memory is None else (
        f"{100 * memory['growth']:+.2f} % (from {memory['first_bytes'] / 1e6:.1f} to {memory['last_bytes'] / 1e6:.1f} MB,"
        f" windows of {memory['window_s']:.0f} s after {memory['settle_s']:.0f} s; peak {memory['peak_bytes'] / 1e6:.1f} MB), and what is not of a file by {100 * memory['anonymous_growth']:+.2f} %"
    )  # fmt: skip
    totals = collections.Counter()
    for what, count in result["counts"].items():
        totals[what.rsplit(": ", 1)[1]] += count
    normal = "no normal request was answered" if slow["p50_s"] is None else (
        f"normal requests: p50 {1000 * slow['p50_s']:.0f} ms, p99 {1000 * slow['p99_s']:.0f} ms"
    )  # fmt: skip
    freed = max(max(seconds) for when in ("leave_before", "leave_after") for key, seconds in result[when].items() if key != "step_s")
    said = ", ".join(f"{count} {what}" for what, count in sorted(totals.items()))
    return (
        f"{'Passed' if result['passed'] else 'FAILED'}: {result['seconds']:.0f} s of mixed load. Memory grew by {grown}."
        f" Outcomes: {said}. A client that left freed its place within {1000 * freed:.0f} ms at the most (a step takes"
        f" {1000 * result['leave_after']['step_s']:.0f} ms); {normal}; the server ended with {result['exit']}."
        + "".join(f"\nproblem ({count} times): {text}" for text, count in result["problems"].items())
    )


async def soak(server, args):
    run = Soak(server.address, args.seed)
    before = await leave(server.address, args)
    await run.run(server, args)
    after = await leave(server.address, args)
    return {
        "seconds": run.seconds,
        "seed": args.seed,
        "memory": growth(run.samples, args.seconds, args.settle),
        "counts": dict(sorted(run.counts.items())),
        "problems": dict(run.problems.most_common(50)),
        "latency": latency(run.normal),
        "leave_before": before,
        "leave_after": after,
        "jobs": {key: value for key, value in (await metrics(server.address)).items() if key.startswith("tch_flux_jobs")},
        "samples": run.samples,
    }


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--settle", type=float, default=300.0, help="seconds before memory must be steady; at most a third of all")
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one look at the memory to the next")
    parser.add_argument("--rounds", type=int, default=3, help="clients that leave in each way, before and after")
    parser.add_argument("--seed", type=int, default=0, help="of what the clients choose")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what came out")
    add_serving(parser)
    return parser.parse_args()


def main():
    args = arguments()
    allow_files(1000)
    try:
        with start(args) as server:
            result = asyncio.run(soak(server, args))
            result["exit"] = server.stop()
    except (Broken, Lost) as broken:
        print(f"FAILED: {broken}", file=sys.stderr)
        return 1
    steady = result["memory"] is not None and result["memory"]["growth"] < GROWTH
    result["passed"] = steady and not result["problems"] and result["exit"] == 0
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(paragraph(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
