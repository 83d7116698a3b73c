import time
import unittest
import urllib.request

from servers import CIRCLE, SQUARE, URL, Case, decode, picture, seeded


class Generate(Case):
    def test_a_picture_of_the_models_own_size(self):
        before = int(time.time())
        answer = self.client.images.generate(prompt=CIRCLE)
        self.assertLessEqual(before, answer.created)
        self.assertLessEqual(answer.created, time.time())
        self.assertEqual(answer.background, "opaque")
        self.assertEqual(answer.output_format, "png")
        self.assertEqual(answer.size, "64x64")
        self.assertEqual(answer.quality, "high")
        [datum] = answer.data
        self.assertIsNone(datum.url)
        image = picture(decode(datum))
        self.assertEqual((image.format, image.size, image.mode), ("PNG", (64, 64), "RGB"))
        red, green, blue = image.getpixel((32, 32))
        self.assertGreater(red, green + blue)

    def test_usage_counts_what_was_read_and_drawn(self):
        usage = self.client.images.generate(prompt=CIRCLE, n=2, size="128x64").usage
        self.assertEqual(usage.output_tokens, 2 * (128 // 16) * (64 // 16))
        self.assertGreater(usage.input_tokens_details.text_tokens, 3)
        self.assertEqual(usage.input_tokens_details.image_tokens, 0)
        self.assertEqual(usage.input_tokens, usage.input_tokens_details.text_tokens)
        self.assertEqual(usage.total_tokens, usage.input_tokens + usage.output_tokens)

    def test_sizes(self):
        for size in ("64x64", "128x64", "80x144"):
            answer = self.client.images.generate(prompt=CIRCLE, size=size)
            width, height = map(int, size.split("x"))
            self.assertEqual(picture(decode(answer.data[0])).size, (width, height))
            self.assertEqual(answer.size, size)
        self.assertEqual(self.client.images.generate(prompt=CIRCLE, size="auto").size, "64x64")

    def test_several_pictures_count_on_from_the_seed(self):
        answer = self.client.images.generate(prompt=CIRCLE, n=3, **seeded(40))
        self.assertEqual([datum.seed for datum in answer.data], [40, 41, 42])
        for datum in answer.data:
            alone = self.client.images.generate(prompt=CIRCLE, **seeded(datum.seed))
            self.assertEqual(picture(decode(alone.data[0])).tobytes(), picture(decode(datum)).tobytes())

    def test_ten_pictures(self):
        answer = self.client.images.generate(prompt=CIRCLE, n=10)
        self.assertEqual(len({decode(datum) for datum in answer.data}), 10)

    def test_the_same_seed_gives_the_same_bytes(self):
        first, second, other = (
            decode(self.client.images.generate(prompt=CIRCLE, **seeded(seed)).data[0]) for seed in (7, 7, 8)
        )
        self.assertEqual(first, second)
        self.assertNotEqual(first, other)

    def test_without_a_seed_there_is_one_that_draws_it_again(self):
        [datum] = self.client.images.generate(prompt=CIRCLE).data
        [other] = self.client.images.generate(prompt=CIRCLE).data
        self.assertNotEqual(datum.seed, other.seed)
        [again] = self.client.images.generate(prompt=CIRCLE, **seeded(datum.seed)).data
        self.assertEqual(decode(again), decode(datum))

    def test_the_largest_seed_comes_back_whole(self):
        largest = 2**64 - 1
        [datum] = self.client.images.generate(prompt=CIRCLE, **seeded(largest)).data
        self.assertEqual(datum.seed, largest)

    def test_our_own_fields_count(self):
        def draw(**extra):
            return decode(self.client.images.generate(prompt=CIRCLE, **seeded(3, **extra)).data[0])

        plain = draw()
        self.assertNotEqual(draw(num_inference_steps=1), plain)
        self.assertNotEqual(draw(negative_prompt="a circle", true_cfg_scale=4.0), plain)
        self.assertEqual(draw(negative_prompt=None, num_inference_steps=None, guidance_scale=None), plain)

    def test_formats(self):
        sizes = {}
        for output_format, compression in (("png", None), ("jpeg", 95), ("jpeg", 10), ("webp", 95), ("webp", 10)):
            options = {"output_compression": compression} if compression else {}
            answer = self.client.images.generate(
                prompt=CIRCLE, size="256x256", output_format=output_format, **options, **seeded(1)
            )
            self.assertEqual(answer.output_format, output_format)
            content = decode(answer.data[0])
            image = picture(content)
            self.assertEqual((image.format, image.size), (output_format.upper(), (256, 256)))
            sizes[output_format, compression] = len(content)
        self.assertLess(sizes["jpeg", 10], sizes["jpeg", 95])
        self.assertLess(sizes["webp", 10], sizes["webp", 95])

    def test_an_address_in_place_of_the_picture(self):
        kinds = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
        for output_format, kind in kinds.items():
            options = {"prompt": CIRCLE, "n": 2, "output_format": output_format, **seeded(5)}
            answer = self.client.images.generate(response_format="url", **options)
            direct = self.client.images.generate(**options)
            for datum, other in zip(answer.data, direct.data, strict=True):
                self.assertIsNone(datum.b64_json)
                self.assertTrue(datum.url.startswith(f"{URL}/v1/images/"))
                with urllib.request.urlopen(datum.url) as content:
                    self.assertEqual(content.headers["content-type"], kind)
                    self.assertEqual(content.read(), decode(other))

    def test_what_other_servers_know_is_accepted(self):
        answer = self.client.images.generate(
            prompt=CIRCLE,
            model="dall-e-3",
            quality="hd",
            background="auto",
            moderation="low",
            style="vivid",
            user="somebody",
            extra_body={"safety_identifier": "somebody"},
        )
        self.assertEqual(len(answer.data), 1)

    def test_the_png_tells_how_it_was_drawn(self):
        [datum] = self.client.images.generate(prompt=SQUARE, **seeded(9, num_inference_steps=2)).data
        texts = picture(decode(datum)).text
        self.assertIn("Steps: 2", texts["parameters"])
        self.assertIn("Seed: 9", texts["parameters"])
        self.assertIn("tch-flux", texts)

    def test_the_prompt_may_be_long_and_in_any_script(self):
        for prompt in ("a " * 16_000, "赤い円 на синем фоне 🔴", 'quotes " and \\ and \n lines'):
            self.assertEqual(len(self.client.images.generate(prompt=prompt).data), 1)

    def test_raw_answers_have_a_request_id(self):
        raw = self.client.images.with_raw_response.generate(prompt=CIRCLE)
        self.assertEqual(raw.headers["content-type"], "application/json")
        self.assertTrue(raw.request_id)
        self.assertEqual(raw.retries_taken, 0)
        answer = raw.parse()
        self.assertEqual(answer._request_id, raw.request_id)
        other = self.client.images.generate(prompt=CIRCLE)
        self.assertNotEqual(other._request_id, raw.request_id)


class Models(Case):
    def test_list_and_retrieve(self):
        [model] = self.client.models.list().data
        self.assertEqual(model.object, "model")
        self.assertIsInstance(model.created, int)
        self.assertTrue(model.owned_by)
        self.assertEqual(self.client.models.retrieve(model.id), model)
        self.assertEqual([each.id for each in self.client.models.list()], [model.id], "as pages, too")
        answer = self.client.images.generate(prompt=CIRCLE, model=model.id)
        self.assertEqual(len(answer.data), 1)


if __name__ == "__main__":
    unittest.main()
