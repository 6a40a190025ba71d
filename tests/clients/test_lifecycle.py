"""What a server does when it is killed, told to stop, or given other keys: a server of its own for each test."""
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

OCTET, MODEL = os.environ["OCTET_BINARY"], os.environ["OCTET_MODEL"]
PROMPT = "The sun was low and the old man sat by the door. " * 12


class Server:
    """One that is gone after its test, however that ends."""

    def __init__(self, test, *options, model=MODEL, **environment):
        self.log = tempfile.NamedTemporaryFile("a")
        test.addCleanup(self.log.close)
        command = [OCTET, "serve", f"small={model}", "--port", "0", "--context", "2048", *options]
        self.process = subprocess.Popen(command, stderr=self.log, env={**os.environ, **environment})
        test.addCleanup(self.end, signal.SIGKILL)
        self.url = None
        while self.url is None:
            time.sleep(0.05)
            with open(self.log.name) as log:
                text = log.read()
            self.url = next((line.split()[-1] for line in text.splitlines() if line.startswith("octet serves at")), None)
            if self.process.poll() is not None:
                raise AssertionError(text)

    def send(self, path, body=None, key=""):
        """Status and body."""
        headers = {"Content-Type": "application/json", "x-api-key": key}
        request = urllib.request.Request(self.url + path, body and json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def complete(self, prompt, **more):
        status, body = self.send("/v1/completions", {"model": "small", "prompt": prompt, "temperature": 0, "max_tokens": 8, **more})
        assert status == 200, body
        return json.loads(body)

    def running(self):
        """Names of the models in memory."""
        return [model["name"] for model in json.loads(self.send("/api/ps")[1])["models"]]

    def wait_for_unloading(self):
        while self.running():
            time.sleep(0.01)

    def end(self, sign):
        self.process.send_signal(sign)
        return self.process.wait(60)


class Reader(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, server, key="", **more):
        super().__init__()
        self.text, self.has_begun, self.is_left = "", threading.Event(), False
        body = {"model": "small", "prompt": PROMPT, "temperature": 0, "stream": True, "ignore_eos": True, **more}
        self.request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json", "x-api-key": key})
        self.start()
        self.has_begun.wait(120)

    def hang_up(self):
        self.is_left = True
        self.join()

    def run(self):
        try:
            with urllib.request.urlopen(self.request, timeout=300) as answer:
                for line in answer:
                    self.text += line.decode()
                    self.has_begun.set()
                    if self.is_left:
                        return
        except (OSError, ValueError):
            pass
        self.has_begun.set()


class Lifecycle(unittest.TestCase):
    def test_killed_in_the_midst_it_serves_again_without_repair(self):
        with tempfile.TemporaryDirectory() as folder:
            # So little memory that pages go to disk all the time.
            options = ["--data", f"{folder}/data", "--cache", f"{folder}/cache", "--kv-memory", "48"]
            server = Server(self, *options)
            alone = server.complete(PROMPT)
            status, body = server.send("/octet/answers", {"model": "small", "messages": [{"role": "user", "content": "Tell."}], "max_tokens": 1500, "ignore_eos": True})
            self.assertEqual(status, 202)
            answer = json.loads(body)["id"]
            kept = f"{folder}/data/answers/local/{answer}.json"
            while not (os.path.exists(kept) and os.path.getsize(kept) > 2000):
                server.complete(PROMPT[::-1], max_tokens=1)
            readers = [Reader(server, prompt=f"{i} " + PROMPT * 3, max_tokens=1500) for i in range(3)]
            server.end(signal.SIGKILL)
            for reader in readers:
                reader.join()
            self.assertEqual(["[DONE]" in reader.text for reader in readers], [False] * 3)
            server = Server(self, *options)
            again = server.complete(PROMPT)
            self.assertEqual(again["choices"], alone["choices"])
            log = server.send(f"/octet/answers/{answer}")[1]
            self.assertGreater(log.count("delta"), 5)
            self.assertIn("the server was stopped while it wrote this answer", log)
            self.assertTrue(log.endswith("data: [DONE]\n\n"), log[-200:])
            self.assertEqual(server.end(signal.SIGTERM), 0)

    def test_a_cache_on_disk_is_found_again(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(self, "--cache", folder)
            first = server.complete(PROMPT)
            self.assertEqual(server.end(signal.SIGTERM), 0)
            server = Server(self, "--cache", folder)
            again = server.complete(PROMPT)
            self.assertEqual(again["choices"], first["choices"])
            self.assertGreaterEqual(again["usage"]["prompt_tokens_details"]["cached_tokens"], 64)
            server.end(signal.SIGTERM)

    def test_pieces_of_a_prompt_and_company_change_no_answer(self):
        prompts = [f"{i} " + PROMPT[: 40 * i * i + 5] for i in range(6)]
        server = Server(self)
        alone = [server.complete(prompt, max_tokens=16)["choices"] for prompt in prompts]
        server.end(signal.SIGTERM)
        server = Server(self, "--chunk", "48", "--kv", "f16", "--max-running", "4")
        for _ in range(2):  # the second time out of the cache
            threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, server.complete(prompts[i], max_tokens=16)["choices"])) for i in range(6)]
            together = {}
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual([together[i] for i in range(6)], alone)
        server.end(signal.SIGTERM)

    def test_a_model_that_ollama_let_go_of_is_listed_and_found_again(self):
        server = Server(self)
        options = {"options": {"temperature": 0, "num_predict": 4}}
        hello = {"messages": [{"role": "user", "content": "Say hello."}], **options}
        requests = [("/api/chat", {**hello, "stream": False}), ("/api/chat", hello), ("/api/generate", {"prompt": "One two", **options}), ("/api/embed", {"input": "one"})]

        def ask(path, body):
            status, text = server.send(path, {"model": "small", **body})
            self.assertEqual(status, 200, text)
            return json.loads(text.splitlines()[-1])
        for path, body in requests:
            self.assertEqual(ask(path, {**body, "keep_alive": "5m"})["load_duration"], 0)
            self.assertTrue(server.running())
            shown = [ask("/api/show", {}), json.loads(server.send("/api/tags")[1])]
            self.assertGreater(shown[1]["models"][0]["size"], 1 << 20)
            ask(path, {**body, "keep_alive": 0})
            server.wait_for_unloading()
            self.assertEqual([ask("/api/show", {}), json.loads(server.send("/api/tags")[1])], shown)
            self.assertEqual(server.send("/v1/completions", {"prompt": "One"})[0], 503)
            self.assertGreater(ask(path, body)["load_duration"], 0)
        # Together, while it is not there: one loads it, the others wait.
        ask("/api/generate", {"keep_alive": 0})
        server.wait_for_unloading()
        threads = [threading.Thread(target=lambda: answers.append(ask("/api/chat", {**hello, "keep_alive": 0}))) for _ in range(6)]
        answers = []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len({answer["eval_count"] for answer in answers}), 1)
        self.assertEqual(len(answers), 6)
        self.assertEqual(server.end(signal.SIGTERM), 0)

    def test_a_model_stays_while_others_use_it(self):
        server = Server(self)
        reader = Reader(server, max_tokens=200)
        body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 1}, "keep_alive": 0}
        self.assertEqual(server.send("/api/chat", body)[0], 200)
        self.assertTrue(reader.is_alive() and server.running())
        reader.join()
        self.assertIn("[DONE]", reader.text)
        self.assertTrue(server.running())
        server.end(signal.SIGTERM)

    def test_a_model_that_cannot_be_opened_any_more_is_refused_until_it_is_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            path, broken = f"{folder}/model.gguf", f"{folder}/broken"
            os.symlink(MODEL, path)
            server = Server(self, model=path)
            body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 1}, "stream": False}
            self.assertEqual(server.send("/api/chat", {**body, "keep_alive": 0})[0], 200)
            server.wait_for_unloading()
            with open(broken, "w") as file:
                file.write("nothing")
            os.replace(path, path + ".good")
            os.rename(broken, path)
            self.assertEqual([server.send("/api/chat", body)[0] for _ in range(2)], [503, 503])
            os.replace(path + ".good", path)
            status, text = server.send("/api/chat", body)
            self.assertEqual(status, 503)
            self.assertIn("could not be loaded", text)
            self.assertEqual(len(json.loads(server.send("/api/tags")[1])["models"]), 1)
            self.assertEqual(server.send("/octet/models/small/load", {"load_anyway": False})[0], 200)
            self.assertEqual(server.send("/api/chat", body)[0], 200)
            server.end(signal.SIGTERM)

    def test_told_to_stop_it_lets_answers_end(self):
        server = Server(self)
        reader = Reader(server, max_tokens=40)
        self.assertEqual(server.end(signal.SIGTERM), 0)
        reader.join()
        self.assertEqual(reader.text.count('"text":'), 41)
        self.assertIn("[DONE]", reader.text)

    def test_told_to_stop_it_lets_answers_end_that_nobody_follows(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(self, "--data", folder)
            status, body = server.send("/octet/answers", {"messages": [{"role": "user", "content": "Tell."}], "max_tokens": 60, "ignore_eos": True})
            self.assertEqual(status, 202)
            self.assertEqual(server.end(signal.SIGTERM), 0)
            server = Server(self, "--data", folder)
            log = server.send("/octet/answers/" + json.loads(body)["id"])[1]
            self.assertNotIn("error", log)
            self.assertIn('"completion_tokens":60', log)
            self.assertTrue(log.endswith("data: [DONE]\n\n"), log[-200:])
            server.end(signal.SIGTERM)

    def test_no_request_gets_more_than_the_server_gives(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write("one sk-1 concurrent=1\nfew sk-2 tokens-per-minute=90\n")
            keys.flush()
            server = Server(self, "--api-keys", keys.name, "--max-running", "2", "--max-prompt", "400")
            complete = lambda key, **more: server.send("/v1/completions", {"prompt": "One two", "max_tokens": 2, **more}, key)
            status, body = complete("sk-1", n=3)
            self.assertEqual(status, 400)
            self.assertIn("n is 3; it has to be from 1 to 2", body)
            self.assertEqual(len(json.loads(complete("sk-1", n=2)[1])["choices"]), 2)
            status, body = complete("sk-1", prompt=["word " * 390] * 250, n=2, echo=True, logprobs=20, max_tokens=0)
            self.assertEqual(status, 400)
            self.assertIn("echo and logprobs would report", body)
            embed = lambda key, text: server.send("/v1/embeddings", {"input": text}, key)
            status, body = embed("sk-1", "word " * 500)
            self.assertEqual(status, 400)
            self.assertIn("this server takes 400", body)
            statuses = []
            ask = lambda: statuses.append(embed("sk-1", ["word " * 390] * 4)[0])
            threads = [threading.Thread(target=ask) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(set(statuses), {200, 429})
            # Whoever hangs up pays for what was read.
            reader = Reader(server, prompt="word " * 100, max_tokens=400, key="sk-2")
            reader.hang_up()
            until = time.monotonic() + 60
            while (status := complete("sk-2")[0]) == 200 and time.monotonic() < until:
                time.sleep(0.1)
            self.assertEqual(status, 429)
            server.end(signal.SIGTERM)

    def test_an_answer_that_takes_too_long_to_end_says_that_it_was_broken_off(self):
        server = Server(self, "--drain", "0")
        reader = Reader(server, max_tokens=1500)
        self.assertEqual(server.end(signal.SIGTERM), 0)
        reader.join()
        self.assertFalse('"finish_reason":"' in reader.text)

    def test_keys_are_read_anew(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            def write(line):
                keys.seek(0)
                keys.truncate()
                keys.write(line + "\n")
                keys.flush()
            write("alice sk-1")
            server = Server(self, "--api-keys", keys.name)
            status = lambda key: server.send("/v1/models", key=key)[0]
            self.assertEqual([status("sk-1"), status("sk-2")], [200, 401])
            write("bob sk-2 requests-per-minute=1")
            server.process.send_signal(signal.SIGHUP)
            while status("sk-2") == 401:
                time.sleep(0.01)
            self.assertEqual(status("sk-1"), 401)
            write("nonsense")
            server.process.send_signal(signal.SIGHUP)
            ask = lambda: server.send("/v1/completions", {"prompt": "a", "max_tokens": 1}, "sk-2")[0]
            self.assertEqual([ask(), ask()], [200, 429])
            server.end(signal.SIGTERM)

    def check_clients_of_tls(self, server, chain):
        """Ours as a client: the terminal, and a server that asks a peer. Both trust this certificate only where they are told to."""
        model = f"{server.url}/v1#small"
        command = [OCTET, "compare", model, model, "Hello", "--max-tokens", "4", "--json"]
        done = subprocess.run(command, env={**os.environ, "SSL_CERT_FILE": chain}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = json.loads(done.stdout)["answers"]
        self.assertEqual([answer["completion_tokens"] for answer in answers], [4, 4])
        refused = subprocess.run(command, capture_output=True, text=True)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("certificate", refused.stderr)
        body = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0, "stream": True}
        peer = ("--peer", f"other={server.url}")
        trusting = Server(self, *peer, SSL_CERT_FILE=chain)
        self.assertEqual(json.loads(trusting.send("/octet/peers")[1]), {"peers": [{"name": "other", "models": ["small"]}]})
        status, text = trusting.send("/octet/peers/other/chat/completions", body)
        self.assertEqual((status, text.strip().endswith("[DONE]")), (200, True), text)
        self.assertEqual(trusting.send("/octet/peers/https%3A/chat/completions", body)[0], 404)
        trusting.end(signal.SIGTERM)
        wary = Server(self, *peer)
        status, text = wary.send("/octet/peers/other/chat/completions", body)
        self.assertEqual(status, 502)
        self.assertIn("other cannot be asked: no TLS", text)
        wary.end(signal.SIGTERM)

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            chain, key = f"{folder}/chain.pem", f"{folder}/key.pem"
            made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", chain, "-days", "2",
                                   "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
                                   "-addext", "basicConstraints=critical,CA:FALSE"], capture_output=True)
            if made.returncode != 0:
                self.skipTest("no openssl to make a certificate")
            server = Server(self, "--tls-cert", chain, "--tls-key", key)
            self.assertTrue(server.url.startswith("https://"))
            import ssl
            context = ssl.create_default_context(cafile=chain)
            with urllib.request.urlopen(server.url + "/health", context=context) as answer:
                self.assertEqual(answer.status, 200)
            host, port = server.url.removeprefix("https://").split(":")
            with socket.create_connection((host, int(port))) as plain:
                plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertNotIn(b"200 OK", plain.recv(200))
            self.check_clients_of_tls(server, chain)
            server.end(signal.SIGTERM)
