import asyncio
import unittest

import openai
from servers import CIRCLE, LONG, URL, client, decode, seeded


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
        self.addAsyncCleanup(self.client.close)

    async def test_many_at_once_are_those_that_were_drawn_alone(self):
        answers = await asyncio.gather(
            *(self.client.images.generate(prompt=CIRCLE, **seeded(seed)) for seed in range(12))
        )
        with client() as alone:
            for seed, answer in enumerate(answers):
                expected = alone.images.generate(prompt=CIRCLE, **seeded(seed))
                self.assertEqual(decode(answer.data[0]), decode(expected.data[0]))

    async def test_streams(self):
        stream = await self.client.images.generate(prompt=CIRCLE, stream=True, partial_images=2)
        types = [event.type async for event in stream]
        self.assertEqual(types, ["image_generation.partial_image"] * 2 + ["image_generation.completed"])

    async def test_edits(self):
        answer = await self.client.images.generate(prompt=CIRCLE)
        edited = await self.client.images.edit(image=("c.png", decode(answer.data[0])), prompt=CIRCLE)
        self.assertEqual(len(edited.data), 1)

    async def test_models(self):
        self.assertEqual(len([model async for model in self.client.models.list()]), 1)

    async def test_errors(self):
        with self.assertRaises(openai.BadRequestError):
            await self.client.images.generate(prompt="")

    async def test_a_cancelled_task_leaves_the_server_well(self):
        task = asyncio.create_task(
            self.client.images.generate(prompt=CIRCLE, **LONG)
        )
        await asyncio.sleep(0.2)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(self.client.images.generate(prompt=CIRCLE), 10)


if __name__ == "__main__":
    unittest.main()
