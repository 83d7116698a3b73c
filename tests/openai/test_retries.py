import subprocess
import threading
import time
import unittest

import openai
from servers import BINARY, CIRCLE, LONG, MODEL, NARROW_URL, TIMEOUT, Case, client, counted


class Full:
    """One job is drawn and one waits, which is all that there is room for."""

    def __enter__(self):
        # The second has a place once the first is drawn, and waits no longer.
        self.clients = [client(NARROW_URL, max_retries=5) for _ in range(2)]
        self.streams = [self.begin(client) for client in self.clients]
        return self

    @staticmethod
    def begin(client):
        return client.images.generate(prompt=CIRCLE, stream=True, partial_images=3, **LONG)

    def __exit__(self, *_):
        for stream, client in zip(self.streams, self.clients, strict=True):
            stream.close()
            client.close()


class Retries(Case):
    def test_a_full_queue_is_a_rate_limit_with_a_time_to_wait(self):
        with Full(), client(NARROW_URL) as narrow, self.assertRaises(openai.RateLimitError) as caught:
            narrow.images.generate(prompt=CIRCLE)
        self.assert_error(caught.exception, openai.RateLimitError, 429, code="queue_full")
        headers = caught.exception.response.headers
        self.assertGreaterEqual(int(headers["retry-after"]), 1)
        self.assertNotEqual(headers.get("x-should-retry"), "false")

    def test_the_package_waits_as_long_as_it_is_told_and_gets_its_picture(self):
        narrow, sent = counted(NARROW_URL, max_retries=5)
        with Full() as full, narrow:
            times = []
            narrow._client.event_hooks = {
                "request": [lambda request: times.append(time.monotonic())],
                "response": [lambda response: sent.append(response.headers.get("retry-after"))],
            }
            threading.Timer(0.5, full.__exit__).start()
            raw = narrow.images.with_raw_response.generate(prompt=CIRCLE)
        self.assertGreaterEqual(raw.retries_taken, 1)
        self.assertEqual(len(raw.parse().data), 1)
        told = float(next(value for value in sent if isinstance(value, str)))
        self.assertGreaterEqual(times[1] - times[0], told)

    def test_what_takes_too_long_is_not_tried_again(self):
        narrow, sent = counted(NARROW_URL, max_retries=2)
        with narrow, self.assertRaises(openai.InternalServerError) as caught:
            narrow.images.generate(prompt=CIRCLE, **LONG)
        self.assert_error(caught.exception, openai.InternalServerError, 504, code="timeout")
        self.assertEqual(caught.exception.response.headers["x-should-retry"], "false")
        self.assertEqual(len(sent), 1)

    def test_a_client_that_gives_up_frees_its_place(self):
        before = time.monotonic()
        with client(NARROW_URL, timeout=0.5) as narrow, self.assertRaises(openai.APITimeoutError):
            narrow.images.generate(prompt=CIRCLE, **LONG)
        with client(NARROW_URL, max_retries=2) as narrow:
            self.assertEqual(len(narrow.images.generate(prompt=CIRCLE).data), 1)
        self.assertLess(time.monotonic() - before, TIMEOUT, "the other one was not drawn on")

    def test_who_comes_while_the_model_loads_is_served(self):
        with subprocess.Popen(
            [BINARY, "serve", "--port", "0", "--model", MODEL], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                url = server.stdout.readline().removeprefix("listening on ").strip()
                fresh, sent = counted(url, max_retries=10)
                with fresh:
                    self.assertEqual(len(fresh.images.generate(prompt=CIRCLE).data), 1)
            finally:
                server.terminate()
        self.assertEqual(server.returncode, 0)

    def test_nobody_there(self):
        gone, sent = counted("http://127.0.0.1:9", max_retries=1)
        with gone, self.assertRaises(openai.APIConnectionError):
            gone.images.generate(prompt=CIRCLE)
        self.assertEqual(len(sent), 2)


if __name__ == "__main__":
    unittest.main()
