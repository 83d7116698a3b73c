"""The servers that tests/clients.rs starts, and what the tests share."""

import base64
import io
import os
import unittest

import openai
from PIL import Image

URL = os.environ["TCH_FLUX_URL"]
# Wants KEY.
KEYED_URL = os.environ["TCH_FLUX_KEYED_URL"]
KEY = os.environ["TCH_FLUX_KEY"]
# One job may wait, and none may take longer than TIMEOUT seconds.
NARROW_URL = os.environ["TCH_FLUX_NARROW_URL"]
TIMEOUT = 10
BINARY = os.environ["TCH_FLUX_BINARY"]
MODEL = os.environ["TCH_FLUX_MODEL"]

CIRCLE = "a red circle on a blue background"
SQUARE = "a green square on a white background"
# What the small model cannot finish within TIMEOUT.
LONG = {"size": "768x768", "n": 10, "extra_body": {"num_inference_steps": 100}}


def client(url=URL, **options):
    """The package as its users have it, but for the address and the key."""
    options = {"api_key": "unused", "max_retries": 0, **options}
    return openai.OpenAI(base_url=f"{url}/v1", **options)


def counted(url=URL, **options):
    """A client, and the list of the requests that it has sent."""
    sent = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    return client(url, http_client=http, **options), sent


def seeded(seed, **extra):
    return {"extra_body": {"seed": seed, **extra}}


def decode(datum):
    return base64.b64decode(datum.b64_json, validate=True)


def picture(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mean_difference(a, b, box):
    """Of two pictures of one size, within a box."""
    a, b = (image.convert("RGB").crop(box).tobytes() for image in (a, b))
    return sum(abs(x - y) for x, y in zip(a, b)) / len(a)


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.client = self.enterContext(client())

    def assert_error(self, error, kind, status, **detail):
        """An error of the package's kind, of the one form."""
        self.assertIsInstance(error, kind)
        self.assertEqual(error.status_code, status)
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        self.assertTrue(error.body["message"])
        self.assertTrue(error.type)
        self.assertTrue(error.request_id)
        for name, value in detail.items():
            self.assertEqual(getattr(error, name), value, error)
