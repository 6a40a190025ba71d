"""What a server meets: thousands of short requests, clients that go away, bodies that are no requests, too much at once.

Every request is answered or refused in its API's own words; nothing leaks; afterwards the same question has the same answer.
"""
import asyncio
import json
import os
import random
import signal
import socket
import tempfile
import unittest
import urllib.request
from urllib.parse import urlsplit

from test_lifecycle import Server

URL, KEY, PID = os.environ["OCTET_URL"], os.environ["OCTET_KEY"], os.environ["OCTET_SERVER_PID"]
REQUESTS = int(os.environ.get("OCTET_REQUESTS", "1000"))
PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/fim/completions", "/v1/messages",
    "/v1/messages/count_tokens", "/api/chat", "/api/generate", "/api/embed", "/api/show", "/tokenize", "/detokenize",
    "/octet/answers", "/octet/plan",
]


async def send(method, path, body, hang_up_after=None, headers=()):
    """Status and body; None if we hung up."""
    url = urlsplit(URL)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1 << 24)
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {url.netloc}", f"Authorization: Bearer {KEY}", "Connection: close",
                 f"Content-Length: {len(body)}", *headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        if hang_up_after is not None:
            await asyncio.sleep(hang_up_after)
            return None
        whole = await asyncio.wait_for(reader.read(), 120)
        head, _, rest = whole.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # it was reset before


def chat(text, **more):
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0, **more}
    return json.dumps(body).encode()


def metric(name):
    request = urllib.request.Request(URL + "/metrics", headers={"Authorization": "Bearer " + KEY})
    with urllib.request.urlopen(request) as answer:
        text = answer.read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name) and line[len(name)] in " {")


def resident_mib():
    with open(f"/proc/{PID}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def noise(rng, depth=0):
    """Any JSON."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 7:
        return [noise(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {noise_key(rng): noise(rng, depth + 1) for _ in range(rng.randrange(5))}
    return [None, True, -1, 1e308, "x" * rng.randrange(9), 2**63, 0.5][kind % 7]


KEYS = ("model messages prompt input role content tools tool_choice max_tokens n stream stop temperature logprobs echo type text "
        "system options format function name parameters response_format json_schema schema tokens logit_bias seed suffix").split()


def noise_key(rng):
    return rng.choice(KEYS)


def mutated(rng):
    """A good request with something wrong in it."""
    body = json.loads(chat("hi", model="small"))
    for _ in range(rng.randrange(1, 4)):
        body[noise_key(rng)] = noise(rng)
    body.setdefault("max_tokens", 1)
    body["max_tokens"] = 2 if not isinstance(body["max_tokens"], int) or body["max_tokens"] > 4 else body["max_tokens"]
    body["n"] = 2 if isinstance(body.get("n"), int) and body["n"] > 2 else body.get("n")
    return body


class Replies(unittest.IsolatedAsyncioTestCase):
    async def test_what_has_no_effect_is_named(self):
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "stream": False, "options": {"num_ctx": 99, "num_predict": 2}}
        status, answer = await send("POST", "/api/chat", json.dumps(body).encode())
        self.assertEqual((status, json.loads(answer)["octet"]), (200, {"warnings": ["without effect here: num_ctx"]}))
        for path, prompt in [("/api/chat", {"messages": body["messages"]}), ("/api/chat", {}), ("/api/generate", {"prompt": "hi"})]:
            asked = {"model": "small", "stream": False, "keep_alive": "5m", "options": {"num_predict": 1}, **prompt}
            status, answer = await send("POST", path, json.dumps(asked).encode())
            self.assertEqual((status, json.loads(answer)["octet"]), (200, {"warnings": ["without effect here: keep_alive"]}))

    async def test_noise_in_a_system_text_does_not_void_the_cache(self):
        async def ask(n):
            system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={n:05x};"}, {"type": "text", "text": "Answer with care. " * 40}]
            body = {"model": "small", "max_tokens": 2, "temperature": 0, "system": system, "messages": [{"role": "user", "content": "Hello"}]}
            return json.loads((await send("POST", "/v1/messages", json.dumps(body).encode()))[1])
        first, second = await ask(1), await ask(2)
        self.assertEqual(first["content"], second["content"])
        self.assertGreater(second["usage"]["cache_read_input_tokens"], 150)


    async def test_each_answer_has_its_own_gaps(self):
        counts = lambda: [metric(f"octet_{name}_token_seconds_count") for name in ("first", "inter")]
        before = counts()
        body = {"model": "small", "prompt": "One two", "n": 3, "max_tokens": 5, "ignore_eos": True, "temperature": 1}
        self.assertEqual((await send("POST", "/v1/completions", json.dumps(body).encode()))[0], 200)
        self.assertEqual([now - then for now, then in zip(counts(), before)], [1, 3 * 4])


class Robustness(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.before = await send("POST", "/v1/completions", json.dumps({"model": "small", "prompt": "One two three", "temperature": 0}).encode())

    async def asyncTearDown(self):
        for _ in range(100):
            if metric("octet_requests_running") == 0 and metric("octet_running_sequences") == 0:
                break
            await asyncio.sleep(0.1)
        self.assertEqual(metric("octet_requests_running"), 0)
        self.assertEqual(metric("octet_running_sequences"), 0)
        self.assertEqual(metric("octet_kv_pages_used"), 0)
        after = await send("POST", "/v1/completions", json.dumps({"model": "small", "prompt": "One two three", "temperature": 0}).encode())
        self.assertEqual(json.loads(after[1])["choices"], json.loads(self.before[1])["choices"])

    async def test_many_requests_of_which_some_are_abandoned(self):
        rng, words, answers, resident = random.Random(1), "red sun sky tea win map".split(), {}, None

        async def worker():
            nonlocal resident
            while self.left:
                self.left -= 1
                if self.left == REQUESTS // 2:
                    resident = resident_mib()
                text = " ".join(rng.choices(words, k=2))
                hang_up = rng.choice([None, None, None, 0, 0.01, 0.05])
                got = await send("POST", "/v1/chat/completions", chat(text, stream=rng.random() < 0.3), hang_up)
                if got is None:
                    continue
                status, body = got
                self.assertIn(status, (200, 429), body)
                if status == 200 and body.startswith(b"{"):
                    # The same question has the same answer, whatever else runs.
                    content = json.loads(body)["choices"][0]["message"]["content"]
                    self.assertEqual(answers.setdefault(text, content), content)

        self.left = REQUESTS
        await asyncio.gather(*(worker() for _ in range(24)))
        self.assertLess(resident_mib(), resident + 40)

    async def test_twenty_answers_do_not_change_among_others(self):
        async def ask(i):
            body = {"model": "small", "prompt": f"Story {i}: " + "the red sun and the old sea " * i, "max_tokens": 12, "temperature": 0}
            return json.loads((await send("POST", "/v1/completions", json.dumps(body).encode()))[1])["choices"]
        alone = [await ask(i) for i in range(20)]
        noise = [send("POST", "/v1/chat/completions", chat(f"noise {i}", max_tokens=30, temperature=1)) for i in range(10)]
        together = await asyncio.gather(*(ask(i) for i in range(20)), *noise)
        self.assertEqual(list(together[:20]), alone)

    async def test_malformed_bodies_are_refused_in_words(self):
        rng = random.Random(2)
        for i in range(REQUESTS // 2):
            path = rng.choice(PATHS)
            body = json.dumps(mutated(rng) if i % 2 else noise(rng)).encode()
            if rng.random() < 0.2:
                body = body[: rng.randrange(len(body) + 1)] + bytes(rng.randrange(256) for _ in range(3))
            status, answer = await send("POST", path, body)
            self.assertNotEqual(status, 500, (path, body, answer))
            if status >= 400:
                self.assertTrue(json.loads(answer), (path, body))

    async def test_oversize_is_refused(self):
        status, body = await send("POST", "/v1/chat/completions", b" " * (17 << 20), headers=())
        self.assertEqual(status, 413)
        deep = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        self.assertEqual((await send("POST", "/v1/chat/completions", deep))[0], 400)
        self.assertEqual((await send("POST", "/v1/chat/completions", chat("word " * 100_000)))[0], 400)
        self.assertEqual((await send("GET", "/v1/chat/completions", b""))[0], 405)
        self.assertEqual((await send("GET", "/nothing", b""))[0], 404)

    async def test_a_background_answer_can_be_left_and_found_again(self):
        status, body = await send("POST", "/octet/answers", chat("Tell a story.", max_tokens=24))
        self.assertEqual(status, 202)
        path = "/octet/answers/" + json.loads(body)["id"]
        await send("GET", path, b"", hang_up_after=0.05)
        whole = (await send("GET", path, b""))[1]
        later = (await send("GET", path + "?from=3", b""))[1]
        self.assertIn(b"[DONE]", whole)
        self.assertIn(b"id: 3\n", later)
        self.assertNotIn(b"id: 2\n", later)

    async def test_conversations_are_kept(self):
        path = "/octet/conversations/c-1"
        self.assertEqual((await send("PUT", path, b'{"title": "T"}'))[0], 204)
        self.assertIn(b'"title": "T"', (await send("GET", path, b""))[1])
        self.assertIn(b'"c-1"', (await send("GET", "/octet/conversations", b""))[1])
        self.assertEqual((await send("DELETE", path, b""))[0], 204)
        self.assertEqual((await send("GET", path, b""))[0], 404)


class Doors(unittest.TestCase):
    """Servers of their own, since their options are unlike those of the one for all tests."""

    def raw(self, server, head, room=None):
        """A connection that has sent this head; with `room`, it takes few bytes at a time."""
        url = urlsplit(server.url)
        connection = socket.socket()
        self.addCleanup(connection.close)
        connection.settimeout(120)
        if room:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.connect((url.hostname, url.port))
        connection.sendall("\r\n".join([head, f"Host: {url.netloc}", "", ""]).encode())
        return connection

    def test_pages_of_a_named_origin_are_told_that_they_may_call(self):
        server = Server(self, "--api-key", "secret", "--origin", "https://chat.example")

        def ask(method, *headers):
            """Status, and headers in small letters."""
            connection = self.raw(server, "\r\n".join([f"{method} /v1/models HTTP/1.1", "Connection: close", *headers]))
            lines = connection.makefile().read().split("\n\n")[0].lower().splitlines()
            return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:])

        page, key, question = "Origin: https://chat.example", "x-api-key: secret", "Access-Control-Request-Method: GET"
        status, headers = ask("OPTIONS", page, question, "Access-Control-Request-Headers: x-api-key,x-stainless-os")
        self.assertEqual((status, headers["access-control-allow-origin"]), (204, "https://chat.example"))
        self.assertEqual(headers["access-control-allow-headers"], "x-api-key,x-stainless-os")
        for given, expected in [([page, key], 200), ([page], 401)]:
            status, headers = ask("GET", *given)
            self.assertEqual((status, headers["access-control-allow-origin"]), (expected, "https://chat.example"))
            self.assertIn("x-request-id", headers["access-control-expose-headers"])
        for given, expected in [([key], 200), ([key, "Origin: https://evil.example"], 403), ([question, "Origin: https://evil.example"], 403)]:
            status, headers = ask("OPTIONS" if question in given else "GET", *given)
            self.assertEqual((status, "access-control-allow-origin" in headers), (expected, False))
        self.assertEqual(server.end(signal.SIGTERM), 0)

    def test_the_only_place_is_given_up_by_a_reader_that_takes_nothing_and_at_the_end(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(self, "--data", folder, "--max-connections", "1", "--slow-reader", "1")
            os.makedirs(f"{folder}/conversations/local")
            with open(f"{folder}/conversations/local/long.json", "w") as file:
                json.dump({"title": "x" * (48 << 20)}, file)
            self.raw(server, "GET /octet/conversations/long HTTP/1.1", room=4096)
            # It comes in once the other has lost its place, and keeps it.
            last = self.raw(server, "GET /health HTTP/1.1")
            self.assertIn(b"200 OK", last.recv(200))
            self.assertEqual(server.end(signal.SIGTERM), 0)
            with open(server.log.name) as log:
                self.assertIn("a reader took nothing for 1 s; its connection ends", log.read())
