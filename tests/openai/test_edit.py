import io
import tempfile
import unittest
from pathlib import Path

import openai
from PIL import Image
from servers import CIRCLE, SQUARE, Case, decode, mean_difference, picture, png, seeded


class Edit(Case):
    def setUp(self):
        super().setUp()
        self.circle = decode(self.client.images.generate(prompt=CIRCLE, **seeded(1)).data[0])

    def edit(self, image, prompt=SQUARE, **options):
        return self.client.images.edit(image=image, prompt=prompt, **{**seeded(2), **options})

    def test_files_of_every_kind(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "circle.png")
            path.write_bytes(self.circle)
            with path.open("rb") as file:
                answers = [self.edit(file)]
            answers += map(self.edit, (path, self.circle, ("c.png", self.circle), ("c.png", self.circle, "image/png")))
        self.assertEqual(len({decode(answer.data[0]) for answer in answers}), 1)
        self.assertEqual(answers[0].size, "64x64")
        self.assertEqual(answers[0].usage.input_tokens_details.image_tokens, 16)

    def test_a_list_of_one(self):
        alone, listed = self.edit(self.circle), self.edit([self.circle])
        self.assertEqual(decode(alone.data[0]), decode(listed.data[0]))

    def test_more_than_the_model_takes(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.edit([self.circle, self.circle])
        self.assert_error(caught.exception, openai.BadRequestError, 400, param="image")

    def test_other_formats_are_read(self):
        sent = picture(self.circle)
        for kind in ("JPEG", "WEBP"):
            file = io.BytesIO()
            sent.save(file, kind, quality=95)
            self.assertEqual(len(self.edit((f"c.{kind.lower()}", file.getvalue())).data), 1)

    def test_strength_is_how_much_is_drawn_anew(self):
        start, box = picture(self.circle), (0, 0, 64, 64)
        far = [
            mean_difference(start, picture(decode(self.edit(self.circle, CIRCLE, **seeded(2, strength=s)).data[0])), box)
            for s in (0.25, 1.0)
        ]
        self.assertLess(2 * far[0], far[1])

    def test_only_what_is_transparent_in_the_mask_is_drawn_anew(self):
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
        start, left, right = picture(self.circle), (0, 0, 20, 64), (44, 0, 64, 64)
        whole, half = (
            picture(decode(self.edit(self.circle, **seeded(2, strength=1.0), **options).data[0]))
            for options in ({}, {"mask": ("mask.png", png(mask), "image/png")})
        )
        self.assertGreater(mean_difference(start, half, left), 20)
        # The autoencoder's norms are over the whole picture, so that what is kept changes a little, too.
        self.assertGreater(mean_difference(start, whole, right), 3 * mean_difference(start, half, right))

    def test_all_fields_of_generations(self):
        answer = self.client.images.edit(
            image=self.circle,
            prompt=SQUARE,
            model=self.client.models.list().data[0].id,
            n=2,
            size="128x64",
            output_format="jpeg",
            output_compression=80,
            response_format="b64_json",
            quality="high",
            background="opaque",
            user="somebody",
            input_fidelity="high",
            extra_body={
                "seed": 5,
                "num_inference_steps": 3,
                "guidance_scale": 2.5,
                "negative_prompt": "circle",
                "true_cfg_scale": 3.0,
                "strength": 0.9,
            },
        )
        self.assertEqual([datum.seed for datum in answer.data], [5, 6])
        self.assertEqual(answer.output_format, "jpeg")
        for datum in answer.data:
            image = picture(decode(datum))
            self.assertEqual((image.format, image.size), ("JPEG", (128, 64)))

    def test_an_address_in_place_of_the_picture(self):
        answer = self.edit(self.circle, response_format="url")
        self.assertRegex(answer.data[0].url, r"^http://.*/v1/images/.+/content$")

    def test_errors_name_what_they_are_about(self):
        small = png(Image.new("RGBA", (32, 32)))
        wrong = {
            "image": [{"image": b"no picture"}, {"image": self.circle[:200]}, {"image": b""}],
            "mask": [{"mask": small}, {"mask": b"no picture"}],
            "strength": [seeded(1, strength=0), seeded(1, strength=1.5), seeded(1, strength="much")],
            "n": [{"n": 11}],
            "size": [{"size": "1024x"}],
        }
        for param, cases in wrong.items():
            for options in cases:
                with self.subTest(param=param, **{name: str(value)[:20] for name, value in options.items()}):
                    with self.assertRaises(openai.BadRequestError) as caught:
                        self.edit(**{"image": self.circle, **options})
                    self.assert_error(caught.exception, openai.BadRequestError, 400, param=param)

    def test_seventeen_pictures_are_too_many(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.edit([self.circle] * 17)
        self.assert_error(caught.exception, openai.BadRequestError, 400, param="image")

    def test_pictures_of_any_size_become_one_that_the_model_draws(self):
        sent = picture(self.circle).resize((150, 90))
        width, height = map(int, self.edit(png(sent)).size.split("x"))
        self.assertEqual((width % 16, height % 16), (0, 0))
        self.assertGreater(width, height)


if __name__ == "__main__":
    unittest.main()
