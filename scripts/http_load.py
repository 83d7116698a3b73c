"""What the load scripts share: a small HTTP/1.1 client on asyncio, and the processes that it talks to.

The client is written by hand because the scripts do what a good client never does: send a head byte by byte, read an
answer a few bytes at a time, leave in the middle of either. It must also cost next to nothing, since it shares the
machine with the server that it measures.
"""

import asyncio
import hashlib
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
SHAPES = ["circle", "square", "triangle", "ring"]


class Lost(Exception):
    """A request that has no answer."""


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes
    seconds: float

    def json(self):
        return json.loads(self.body)


@dataclass
class Address:
    host: str
    port: int

    @classmethod
    def of(cls, url):
        host, port = re.fullmatch(r"(?:http://)?([^/:]+):(\d+)/?", url).groups()
        return cls(host, int(port))


# ---------------------------------------------------------------- the client


class Connection:
    """One connection, kept alive: a request, then its answer, then the next."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.headers = reader, writer, {}

    @classmethod
    async def open(cls, address, receive_buffer=None):
        # A place in the server's backlog may take a while where hundreds come at once.
        async with asyncio.timeout(30):
            if receive_buffer is None:
                return cls(*await asyncio.open_connection(address.host, address.port))
            # Has to be set before the connection is made: the window is agreed upon then.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
            return cls(*await asyncio.open_connection(sock=sock, limit=receive_buffer))

    async def send(self, method, path, body=b"", content_type="application/json", headers=()):
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
        if body or method == "POST":
            lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def head(self):
        line = await self.reader.readline()
        if not line:
            raise Lost("the connection was closed before an answer")
        status = int(line.split()[1])
        self.headers = {}
        while (line := (await self.reader.readline()).strip()):
            name, value = line.decode("latin-1").split(":", 1)
            self.headers[name.lower()] = value.strip()
        return status

    async def pieces(self):
        """The body of an answer whose head was read, as it comes."""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int((await self.reader.readline()).split(b";")[0] or b"x", 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readline()
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left:
                piece = await self.reader.read(min(left, 1 << 16))
                if not piece:
                    raise Lost(f"the answer broke off {left} bytes before its end")
                left -= len(piece)
                yield piece
        else:
            while piece := await self.reader.read(1 << 16):
                yield piece

    async def request(self, method, path, body=b"", content_type="application/json", headers=()):
        started = time.perf_counter()
        try:
            await self.send(method, path, body, content_type, headers)
        except ConnectionError:
            # A body that is too large is answered before it was sent to its end.
            pass
        status = await self.head()
        body = b"".join([piece async for piece in self.pieces()])
        return Answer(status, self.headers, body, time.perf_counter() - started)

    async def events(self):
        """The objects of an event stream, without the comments that keep it alive."""
        text = b""
        async for piece in self.pieces():
            text += piece.replace(b"\r\n", b"\n")
            while b"\n\n" in text:
                event, text = text.split(b"\n\n", 1)
                data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
                if data and data != b"[DONE]":
                    yield json.loads(data)

    @property
    def reusable(self):
        return self.headers.get("connection", "").lower() != "close" and not self.writer.is_closing()

    def leave(self):
        """Is gone at once, whatever is under way."""
        self.writer.transport.abort()


BROKEN = (OSError, asyncio.IncompleteReadError, ValueError, IndexError)


async def request(address, method, path, body=b"", content_type="application/json", headers=(), timeout=120.0):
    """One request over a connection of its own."""
    connection = None
    try:
        async with asyncio.timeout(timeout):
            connection = await Connection.open(address)
            return await connection.request(method, path, body, content_type, headers)
    except TimeoutError as error:
        raise Lost(f"no answer in {timeout:g} s") from error
    except BROKEN as error:
        raise Lost(f"{type(error).__name__}: {error}") from error
    finally:
        if connection:
            connection.leave()


def multipart(fields, files):
    """A form: texts by name, and (name, file name, type, bytes) of each file. Its content type and its bytes."""
    boundary = "load-" + hashlib.sha256(repr((fields, [file[:2] for file in files])).encode()).hexdigest()[:24]
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items()]
    for name, file, kind, data in files:
        head = f'Content-Disposition: form-data; name="{name}"; filename="{file}"\r\nContent-Type: {kind}\r\n\r\n'
        parts.append(head.encode() + data)
    body = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    return f"multipart/form-data; boundary={boundary}", body + b"--%s--\r\n" % boundary.encode()


def prompt(i):
    """Of a few hundred prompts one."""
    colour, shape, ground = COLOURS[i % 8], SHAPES[i // 8 % 4], COLOURS[(i // 32 + i + 1) % 8]
    return f"a {colour} {shape} on a {ground} background"


def digests(answer):
    """What tells the pictures of an answer from others: of their base64."""
    return [hashlib.sha256(picture["b64_json"].encode()).hexdigest() for picture in answer["data"]]


# ---------------------------------------------------------------- the processes


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def release_binary():
    """The binary of this tree, built if it is not."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release/tch-flux"


def allow_files(count):
    """Each connection is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            sys.exit(f"this process may open {hard} files, and {count} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Server:
    """A process that serves on the loopback."""

    def __init__(self, command, port, log=None):
        self.address = Address("127.0.0.1", port)
        self.log = open(log, "w") if log else subprocess.DEVNULL
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        self.ready_s = self.wait("/ready", started)

    def wait(self, path, started, limit=120.0):
        while time.perf_counter() - started < limit:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args[0]} ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.address.port}{path}", timeout=5):
                    return time.perf_counter() - started
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self.process.args[0]} is not ready after {limit:g} s")

    def memory(self):
        """Resident bytes: all, and those that are not of a file."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return [int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1]) * 1024 for name in ("VmRSS", "RssAnon")]

    def cpu_seconds(self):
        """Of all threads, since it was started."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """Asks it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def serving(*args, **kwargs):
    server = Server(*args, **kwargs)
    try:
        yield server
    finally:
        server.stop()


async def metrics(address):
    """The numbers of /metrics by name and labels, as they are written."""
    text = (await request(address, "GET", "/metrics")).body.decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


# ---------------------------------------------------------------- numbers


def percentile(values, share):
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)] if ordered else None


def median(values):
    return statistics.median(values) if values else None
