import unittest

import httpx2
import openai
from servers import CIRCLE, KEY, KEYED_URL, Case, client, counted


class Errors(Case):
    """Every error is of the package's kind for it, and none of these is tried again."""

    def setUp(self):
        client, self.sent = counted(max_retries=2)
        self.client = self.enterContext(client)

    def refused(self, kind, status, call, **detail):
        self.sent.clear()
        with self.assertRaises(openai.APIStatusError) as caught:
            call()
        self.assert_error(caught.exception, kind, status, **detail)
        self.assertEqual(len(self.sent), 1, "tried once")
        return caught.exception

    def generate(self, **options):
        return lambda: self.client.images.generate(**{"prompt": CIRCLE, **options})

    def test_bad_values(self):
        wrong = {
            "prompt": ["", "x" * 32_001, "a\0b"],
            "n": [0, -1, 11, 1.5, "2"],
            "size": ["1024x", "-16x16", "99999999999x1", "65x64", "48x64", "64x4096", "64", "large", ""],
            "response_format": ["png"],
            "output_format": ["gif"],
            "output_compression": [-1, 101],
            "background": ["transparent"],
        }
        for param, values in wrong.items():
            for value in values:
                with self.subTest(param=param, value=str(value)[:40]):
                    self.refused(openai.BadRequestError, 400, self.generate(**{param: value}), param=param)

    def test_bad_values_of_our_own(self):
        wrong = {
            "seed": [-1, 2**64, 1.5, "7"],
            "num_inference_steps": [0, 10**9, 2.5],
            "guidance_scale": [-1, 30.5, "strong"],
            "true_cfg_scale": [-1, 31],
            "negative_prompt": [5],
        }
        for param, values in wrong.items():
            for value in values:
                with self.subTest(param=param, value=value):
                    call = self.generate(extra_body={param: value})
                    self.refused(openai.BadRequestError, 400, call, param=param)

    def test_a_misspelt_field_is_told(self):
        call = self.generate(extra_body={"num_inference_step": 4})
        error = self.refused(openai.BadRequestError, 400, call, param="num_inference_step")
        self.assertIn("num_inference_steps", error.message)

    def test_no_prompt(self):
        def call():
            self.client.post("/images/generations", body={"n": 1}, cast_to=object)

        self.refused(openai.BadRequestError, 400, call, param="prompt")

    def test_unknown_models(self):
        call = self.generate(model="sd-1.5")
        self.refused(openai.NotFoundError, 404, call, param="model", code="model_not_found")
        self.refused(openai.NotFoundError, 404, lambda: self.client.models.retrieve("sd-1.5"))

    def test_unknown_addresses_and_methods(self):
        self.refused(openai.NotFoundError, 404, lambda: self.client.get("/nothing", cast_to=object))
        self.refused(openai.NotFoundError, 404, lambda: self.client.images.create_variation(image=b"x"))
        self.refused(openai.NotFoundError, 404, lambda: self.client.get("/images/0/content", cast_to=object))
        call = lambda: self.client.get("/images/generations", cast_to=object)  # noqa: E731
        error = self.refused(openai.APIStatusError, 405, call)
        self.assertEqual(error.response.headers["allow"], "POST")

    def test_too_large_a_body(self):
        self.refused(openai.APIStatusError, 413, self.generate(prompt="x" * 2_000_000))

    def test_another_content_type(self):
        call = self.generate(extra_headers={"content-type": "text/plain"})
        self.refused(openai.APIStatusError, 415, call)

    def test_a_name_that_is_not_the_servers(self):
        call = self.generate(extra_headers={"host": "evil.example"})
        self.refused(openai.PermissionDeniedError, 403, call)


class Keys(Case):
    def test_the_right_key(self):
        with client(KEYED_URL, api_key=KEY) as keyed:
            self.assertEqual(len(keyed.images.generate(prompt=CIRCLE).data), 1)
            self.assertEqual(len(keyed.models.list().data), 1)

    def test_wrong_keys(self):
        for key in ("another", KEY + "x", KEY[:-1], KEY.upper()):
            keyed, sent = counted(KEYED_URL, api_key=key, max_retries=2)
            with keyed:
                for call in (lambda: keyed.images.generate(prompt=CIRCLE), keyed.models.list):
                    sent.clear()
                    with self.assertRaises(openai.AuthenticationError) as caught:
                        call()
                    self.assert_error(caught.exception, openai.AuthenticationError, 401)
                    self.assertEqual(caught.exception.response.headers["www-authenticate"], "Bearer")
                    self.assertNotIn(key, caught.exception.message)
                    self.assertEqual(len(sent), 1)

    def test_pictures_at_an_address_are_as_open_as_the_address_is_secret(self):
        with client(KEYED_URL, api_key=KEY) as keyed:
            [datum] = keyed.images.generate(prompt=CIRCLE, response_format="url").data
        authorized = {"authorization": f"Bearer {KEY}"}
        self.assertEqual(httpx2.get(datum.url, headers=authorized).status_code, 200)


if __name__ == "__main__":
    unittest.main()
