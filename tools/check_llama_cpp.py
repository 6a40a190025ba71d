#!/usr/bin/env python3
"""Holds our GGUF files against llama.cpp: it opens what we write, we open what it writes, and both say the same.

  tools/check_llama_cpp.py MODEL.gguf --llama-cpp FOLDER

MODEL is a GGUF of floats or of finely quantized weights, with a tokenizer; FOLDER holds llama.cpp's llama-server and
llama-quantize. For every mix that `octet quantize` writes, and for every type that llama-quantize writes, llama.cpp
continues some prompts greedily, and Octet is shown the same ids: where it would have gone on otherwise, that is a
departure. Ids of the prompts must be equal too.

Quantized products round activations to 8 bits, each program in its own blocks, so that both depart from what the same
weights give in floats wherever two tokens are nearly as likely. What they give in floats is known: the file's weights
written out as F32 (no rounding is left) and run by Octet, which equals llama.cpp's F32 to the last token. Hence the
criterion, by which a file fails

  where llama.cpp refuses it, or the ids of a prompt differ;
  if its weights are floats: where the two tokens of a departure lie more than 0.05 apart (logits, in floats);
  if they are quantized: if Octet departs from the floats more than twice as often as llama.cpp, and 5% of the tokens more.

The widest gap is that of the surest token, in floats, at which Octet and llama.cpp part.
Needs numpy and safetensors. The table goes to standard output; exit code 1 if a row fails.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
from safetensors.numpy import load_file, save_file

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
]
OURS = ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
THEIRS = ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
THEIRS_WITH_IMPORTANCE = ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
    return done.stdout


class Server:
    """llama-server with one model, while it lasts."""

    def __init__(self, a, model):
        a.port += 1  # the system keeps a closed port for a while
        self.url = f"http://127.0.0.1:{a.port}"
        command = [os.path.join(a.llama_cpp, "llama-server"), "-m", model, "--port", str(a.port), "-t", str(a.threads), "-c", "512"]
        self.process = subprocess.Popen([*command, "-np", "1", "--no-warmup", "-fa", "off", "--no-repack"], stdout=subprocess.DEVNULL, stderr=(log := tempfile.TemporaryFile("w+")))
        self.log = log

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                self.log.seek(0)
                raise RuntimeError(f"llama-server refuses the file: {self.log.read()[-300:]}")
            try:
                urllib.request.urlopen(self.url + "/health", timeout=2)
                return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("llama-server does not come up")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def ask(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def ids(self, text):
        return self.ask("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def greedy(self, ids, n):
        body = {"prompt": ids, "n_predict": n, "temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True}
        return self.ask("/completion", body)["tokens"]


def argmaxes(a, scratch, model, sequences):
    """Octet's logits after each prefix of each sequence, [T, vocab] each."""
    all_logits = []
    for ids in sequences:
        save_file({"input_ids": np.array([ids], dtype=np.int64)}, os.path.join(scratch, "in.safetensors"))
        out = os.path.join(scratch, "out.safetensors")
        run(a.octet, "logits", model, "--input", os.path.join(scratch, "in.safetensors"), "--output", out, "--threads", str(a.threads))
        all_logits.append(load_file(out)["logits"][0])
    return all_logits


def compare(a, scratch, model, floating):
    """One row: (tokens, departures of each pair, largest gap in floats at one of ours from llama.cpp, problem or None)."""
    exact = os.path.join(scratch, "exact.gguf")
    run(a.octet, "convert", model, exact, "--to", "gguf", "--type", "f32", "--force")
    with Server(a, model) as server:
        prompts = [server.ids(prompt) for prompt in PROMPTS]
        answers = [server.greedy(ids, a.tokens) for ids in prompts]
    ours = [row["ids"] for row in json.loads(subprocess.run([a.octet, "tokenize", model, "--json"], input=json.dumps(PROMPTS), capture_output=True, text=True, check=True).stdout)]
    bos = len(ours[0]) - len(prompts[0])
    if [ids[bos:] for ids in ours] != prompts:
        return (0, 0, 0, 0, 0.0, "ids of a prompt differ")
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers)]
    octet, floats = (argmaxes(a, scratch, file, sequences) for file in (model, exact))
    n = apart = theirs = own = 0
    widest = 0.0
    for prompt, sequence, got, true in zip(prompts, sequences, octet, floats):
        for at in range(len(prompt), len(sequence)):
            said, mine, best = sequence[at], int(got[at - 1].argmax()), int(true[at - 1].argmax())
            n, theirs, own = n + 1, theirs + (said != best), own + (mine != best)
            if said != mine:
                apart += 1
                widest = max(widest, abs(float(true[at - 1][said] - true[at - 1][mine])))
    problem = None
    if floating and widest > 0.05:
        problem = f"tokens {widest:.2f} apart were mistaken"
    elif own > 2 * theirs + 0.05 * n:
        problem = "departs from the floats much more often than llama.cpp"
    os.remove(exact)
    return (n, apart, theirs, own, widest, problem)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--llama-cpp", required=True)
    a.add_argument("--octet", default="target/release/octet")
    a.add_argument("--types", nargs="*", help="only these")
    a.add_argument("--tokens", type=int, default=48, help="tokens that each prompt is continued by")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--port", type=int, default=18471)
    a = a.parse_args()
    failed = 0
    print(f"{'file':<24} {'tokens':>6} {'octet≠llama.cpp':>16} {'llama.cpp≠floats':>17} {'octet≠floats':>13} {'widest gap':>11}")
    with tempfile.TemporaryDirectory() as scratch:
        quantize = os.path.join(a.llama_cpp, "llama-quantize")
        importance = os.path.join(scratch, "importance.gguf")
        cases = [("octet", kind) for kind in OURS] + [("llama-quantize", kind) for kind in THEIRS + THEIRS_WITH_IMPORTANCE]
        for writer, kind in cases:
            if a.types and kind not in a.types:
                continue
            file = os.path.join(scratch, "model.gguf")
            try:
                if writer == "octet":
                    run(a.octet, "quantize", a.model, file, "--to", kind, "--force")
                else:
                    more = []
                    if kind in THEIRS_WITH_IMPORTANCE:
                        if not os.path.exists(importance):
                            text = os.path.join(scratch, "text")
                            with open(text, "w", encoding="utf-8") as out:
                                out.write("\n".join(PROMPTS) * 40)
                            run(a.octet, "quantize", a.model, file, "--to", "Q8_0", "--force", "--calibrate", text, "--save-importance", importance)
                        more = ["--imatrix", importance]
                    run(quantize, "--allow-requantize", *more, a.model, file, kind, str(a.threads))
                n, apart, theirs, own, widest, problem = compare(a, scratch, file, kind in ("F32", "F16", "BF16"))
            except (RuntimeError, OSError) as error:
                n, apart, theirs, own, widest, problem = 0, 0, 0, 0, 0.0, str(error)
            failed += problem is not None
            print(f"{writer + ' ' + kind:<24} {n:>6} {apart:>16} {theirs:>17} {own:>13} {widest:>11.3f}  {problem or ''}".rstrip(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
