import time
import unittest

import openai
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
)
from servers import CIRCLE, LONG, NARROW_URL, TIMEOUT, Case, client, decode, picture, seeded


class Stream(Case):
    def test_partial_pictures_then_the_picture(self):
        options = {"prompt": CIRCLE, "size": "128x128", **seeded(11, num_inference_steps=8)}
        with self.client.images.generate(stream=True, partial_images=2, **options) as stream:
            events = list(stream)
        *partial, completed = events
        self.assertEqual([event.partial_image_index for event in partial], [0, 1])
        for event in partial:
            self.assertIsInstance(event, ImageGenPartialImageEvent)
            self.assertEqual(event.type, "image_generation.partial_image")
        self.assertIsInstance(completed, ImageGenCompletedEvent)
        self.assertEqual(completed.type, "image_generation.completed")
        self.assertEqual(completed.usage.output_tokens, 64)
        for event in events:
            self.assertEqual((event.size, event.background, event.output_format), ("128x128", "opaque", "png"))
            self.assertEqual(event.quality, "high")
            self.assertGreater(event.created_at, 1_700_000_000)
            self.assertEqual(picture(decode(event)).format, "PNG")
        whole = self.client.images.generate(**options)
        self.assertEqual(decode(completed), decode(whole.data[0]), "a preview changes nothing")

    def test_how_many_partial_pictures(self):
        for partial_images in (None, 0, 1, 3):
            options = {} if partial_images is None else {"partial_images": partial_images}
            stream = self.client.images.generate(prompt=CIRCLE, stream=True, **options)
            types = [event.type.removeprefix("image_generation.") for event in stream]
            self.assertEqual(types, ["partial_image"] * (partial_images or 0) + ["completed"])

    def test_every_picture_is_completed(self):
        stream = self.client.images.generate(prompt=CIRCLE, n=3, stream=True, **seeded(40))
        events = list(stream)
        self.assertEqual([event.type for event in events], ["image_generation.completed"] * 3)
        self.assertEqual([event.seed for event in events], [40, 41, 42])
        whole = self.client.images.generate(prompt=CIRCLE, n=3, **seeded(40))
        self.assertEqual([decode(event) for event in events], [decode(datum) for datum in whole.data])

    def test_other_formats(self):
        for output_format in ("jpeg", "webp"):
            stream = self.client.images.generate(
                prompt=CIRCLE, stream=True, partial_images=1, output_format=output_format
            )
            for event in stream:
                self.assertEqual(event.output_format, output_format)
                self.assertEqual(picture(decode(event)).format, output_format.upper())

    def test_of_an_edit(self):
        [start] = self.client.images.generate(prompt=CIRCLE).data
        stream = self.client.images.edit(
            image=("circle.png", decode(start)), prompt=CIRCLE, stream=True, partial_images=1
        )
        partial, completed = stream
        self.assertIsInstance(partial, ImageEditPartialImageEvent)
        self.assertEqual(partial.type, "image_edit.partial_image")
        self.assertIsInstance(completed, ImageEditCompletedEvent)
        self.assertEqual(completed.type, "image_edit.completed")

    def test_what_is_wrong_with_the_request_is_no_stream(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.images.generate(prompt=CIRCLE, stream=True, partial_images=4)
        self.assert_error(caught.exception, openai.BadRequestError, 400, param="partial_images")

    def test_a_failure_within_the_stream(self):
        with client(NARROW_URL) as narrow:
            with self.assertRaises(openai.APIError) as caught:
                list(narrow.images.generate(prompt=CIRCLE, stream=True, **LONG))
        self.assertEqual((caught.exception.code, caught.exception.type), ("timeout", "server_error"))
        self.assertRegex(caught.exception.message, f"{TIMEOUT} seconds")

    def test_who_leaves_makes_room(self):
        with client(NARROW_URL, max_retries=5) as narrow:
            for _ in range(4):
                stream = narrow.images.generate(prompt=CIRCLE, stream=True, partial_images=3, **LONG)
                time.sleep(0.2)
                stream.close()
            answer = narrow.images.generate(prompt=CIRCLE)
        self.assertEqual(len(answer.data), 1)


if __name__ == "__main__":
    unittest.main()
