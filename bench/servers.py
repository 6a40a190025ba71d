"""Octet's server and llama.cpp's as things that can be put under load: one process each, on a port of its own.

Both are asked by `octet bench --server`; what it cannot see (how soon a place is free, how much memory was taken, whether an
answer has changed) is asked here.
"""
import concurrent.futures
import json
import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import programs

READY_S = 600
# A server that is ready or has answered may still be busy, as with taking memory or waiting in a loop: until it rests so long,
# but no longer than that.
RESTS_S = 0.5
SETTLES_S = 60
# A long answer, of which nobody reads more than a few words.
LONG = 2000


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A program that serves one model."""

    def __init__(self, name, command, octet, prefix=()):
        self.name, self.path, self.options, self.octet = name, command[0], command[1:], octet
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log")
        whole = [*prefix, *map(str, command), "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self._wait(whole)

    def _wait(self, command):
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        with open(self.log.name, errors="replace") as f:
            last = (f.read().strip().splitlines() or ["no message"])[-1]
        self.stop()
        raise programs.Refused(f"does not serve: {last}\n  {shlex.join(command)}")

    def settle(self):
        """Waits until the server does nothing."""
        end, before = time.monotonic() + SETTLES_S, -1
        while time.monotonic() < end:
            with open(f"/proc/{self.process.pid}/stat") as f:
                # User and system time, in ticks of 10 ms.
                ticks = sum(map(int, f.read().rpartition(")")[2].split()[11:13]))
            if ticks - before <= 1 and before >= 0:
                return
            before = ticks
            time.sleep(RESTS_S)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def load(self, *options):
        """The figures of one run of the load generator."""
        command = [self.octet, "bench", "--server", self.url, "--json", *map(str, options)]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=programs.TIMEOUT_S)
        if done.returncode != 0:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise programs.Refused(f"failed under load: {last}\n  {shlex.join(command)}")
        return json.loads(done.stdout)

    def peak_bytes(self):
        """The most memory that the process has had, mapped pages included."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) * 1024

    def answer(self, prompt, tokens):
        """The text of a greedy answer."""
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=programs.TIMEOUT_S) as answer:
            return json.load(answer)["choices"][0]["text"]

    def answers(self, prompts, tokens, at_once=1):
        """The texts of greedy answers, so many at the same time."""
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda prompt: self.answer(prompt, tokens), prompts))

    def freed_after_s(self, prompt, tokens):
        """Seconds from a client's hanging up, after so many tokens or (0) in its prompt, until nothing works for it."""
        body = {"model": "model", "prompt": prompt, "max_tokens": LONG, "stream": True, "temperature": 0, "ignore_eos": True}
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(head.encode() + raw)
            seen = b""
            while seen.count(b"data:") < tokens:
                more = client.recv(4096)
                if not more:
                    raise programs.Refused(f"{self.name} does not stream: {seen[:300].decode(errors='replace')}")
                seen += more
            while not self.is_busy():
                time.sleep(0.005)
            if not tokens:
                time.sleep(0.3)
        start = time.monotonic()
        while self.is_busy():
            time.sleep(0.005)
        return time.monotonic() - start

    def _get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=programs.TIMEOUT_S) as answer:
            return answer.read().decode()


class Octet(Server):
    """Ours."""

    def __init__(self, path, model, options=(), prefix=()):
        super().__init__("octet", [path, "serve", f"model={model}", *options], path, prefix)

    def is_busy(self):
        return re.search(r"octet_running_sequences\{[^}]*\} [1-9]", self._get("/metrics")) is not None


class LlamaServer(Server):
    """llama.cpp's."""

    def __init__(self, path, model, octet, options=(), prefix=()):
        super().__init__("llama-server", [path, "-m", model, *options], octet, prefix)

    def is_busy(self):
        return any(slot["is_processing"] for slot in json.loads(self._get("/slots")))
