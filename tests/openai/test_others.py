"""Other clients: curl, and Open WebUI as its backend/open_webui/routers/images.py speaks."""

import base64
import http.client
import json
import subprocess
import tempfile
import unittest
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from servers import CIRCLE, KEY, KEYED_URL, URL, Case, decode, picture


class Curl(Case):
    def curl(self, *arguments, ok=True):
        command = ["curl", "--silent", "--show-error", "--max-time", "60", *(["--fail"] if ok else []), *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def test_a_picture(self):
        body = json.dumps({"prompt": CIRCLE, "size": "64x64", "seed": 4})
        answer = json.loads(
            self.curl(f"{URL}/v1/images/generations", "-H", "Content-Type: application/json", "-d", body)
        )
        image = picture(base64.b64decode(answer["data"][0]["b64_json"]))
        self.assertEqual(image.size, (64, 64))
        self.assertEqual(answer["data"][0]["seed"], 4)

    def test_a_stream(self):
        body = json.dumps({"prompt": CIRCLE, "stream": True, "partial_images": 1})
        text = self.curl(
            "-N", f"{URL}/v1/images/generations", "-H", "Content-Type: application/json", "-d", body
        ).decode()
        events = [line for line in text.splitlines() if line.startswith("event: ")]
        self.assertEqual(events, ["event: image_generation.partial_image", "event: image_generation.completed"])
        for line in text.splitlines():
            self.assertRegex(line, r"^(:|event: |data: \{.*\}$|$)")

    def test_an_edit_from_files(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "circle.png")
            file.write_bytes(decode(self.client.images.generate(prompt=CIRCLE).data[0]))
            for name in ("image", "image[]"):
                answer = json.loads(
                    self.curl(f"{URL}/v1/images/edits", "-F", f"{name}=@{file}", "-F", f"prompt={CIRCLE}", "-F", "n=2")
                )
                self.assertEqual(len(answer["data"]), 2)

    def test_a_large_body_is_asked_for_before_it_is_sent(self):
        body = json.dumps({"prompt": "x" * 30_000})
        status = self.curl(
            "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect: 100-continue", "-H", "Content-Type: application/json",
            "-d", body, f"{URL}/v1/images/generations",
        )  # fmt: skip
        self.assertEqual(status, b"200")

    def test_an_error(self):
        text = self.curl(
            "-i", f"{URL}/v1/images/generations", "-H", "Content-Type: application/json", "-d", "{", ok=False
        ).decode()
        head, body = text.split("\r\n\r\n", 1)
        self.assertRegex(head, r"^HTTP/1.1 400 ")
        self.assertRegex(head.lower(), r"\r\nx-request-id: ")
        self.assertRegex(head.lower(), r"\r\nx-should-retry: false")
        self.assertEqual(set(json.loads(body)["error"]), {"message", "type", "param", "code"})


class OpenWebUi(Case):
    """What its HTTP client, aiohttp, writes onto the wire."""

    def send(self, path, body, headers, chunked=False):
        connection = http.client.HTTPConnection(urlsplit(KEYED_URL).netloc, timeout=60)
        usual = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, br", "User-Agent": "Python/3.11 aiohttp/3.13"}
        connection.request("POST", path, body, {**usual, **headers}, encode_chunked=chunked)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.assertEqual(answer.status, 200, content)
        return json.loads(content)

    def generate(self, path="/v1/images/generations", **data):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return self.send(path, json.dumps(data), headers)

    def test_a_picture_as_it_asks_for_it_out_of_the_box(self):
        answer = self.generate(model="dall-e-2", prompt=CIRCLE, n=1, size="512x512", response_format="b64_json")
        self.assertEqual(picture(base64.b64decode(answer["data"][0]["b64_json"])).size, (512, 512))

    def test_without_a_size_or_a_response_format(self):
        answer = self.generate(model="gpt-image-1", prompt=CIRCLE, n=1)
        self.assertIn("b64_json", answer["data"][0])

    def test_with_an_api_version_and_parameters_of_the_administrators(self):
        answer = self.generate(
            "/v1/images/generations?api-version=2024-02-01",
            model="dall-e-3", prompt=CIRCLE, n=2, size="auto", quality="hd", style="vivid", num_inference_steps=2, seed=3,
        )  # fmt: skip
        self.assertEqual([datum["seed"] for datum in answer["data"]], [3, 4])

    def test_the_address_is_fetched_with_the_key_and_is_an_image(self):
        answer = self.generate(model="dall-e-2", prompt=CIRCLE, n=1, size="64x64", response_format="url")
        url = urlsplit(answer["data"][0]["url"])
        connection = http.client.HTTPConnection(url.netloc, timeout=60)
        connection.request("GET", url.path, headers={"Authorization": f"Bearer {KEY}"})
        content = connection.getresponse()
        self.assertEqual(content.getheader("content-type").split("/")[0], "image")
        self.assertEqual(picture(content.read()).size, (64, 64))
        connection.close()

    def form(self, fields, images, name):
        """As aiohttp's FormData writes it."""
        boundary = uuid.uuid4().hex
        parts = [
            f'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode()
            for key, value in fields.items()
        ]
        parts += [
            f'Content-Type: image/png\r\nContent-Disposition: form-data; name="{name}"; filename="{uuid.uuid4()}.png"'
            "\r\n\r\n".encode() + image
            for image in images
        ]
        body = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
        return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}

    def edit(self, name, chunked=False, **fields):
        image = decode(self.client.images.generate(prompt=CIRCLE).data[0])
        body, headers = self.form({"prompt": CIRCLE, **fields}, [image], name)
        headers["Authorization"] = f"Bearer {KEY}"
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = iter([body[at : at + 1000] for at in range(0, len(body), 1000)])
        answer = self.send("/v1/images/edits", body, headers, chunked)
        return picture(base64.b64decode(answer["data"][0]["b64_json"]))

    def test_an_edit_as_it_asks_for_it_out_of_the_box(self):
        self.assertEqual(self.edit("image", model="", response_format="b64_json").size, (64, 64))

    def test_an_edit_with_a_list_of_pictures(self):
        fields = {"model": "gpt-image-1", "n": "1", "size": "128x64", "background": "auto"}
        self.assertEqual(self.edit("image[]", **fields).size, (128, 64))

    def test_a_form_whose_length_is_not_told(self):
        self.assertEqual(self.edit("image", chunked=True, model="gpt-image-1").size, (64, 64))


if __name__ == "__main__":
    unittest.main()
