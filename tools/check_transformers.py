#!/usr/bin/env python3
"""Opens what `octet convert` writes with transformers, and holds logits, greedy text and ids against Octet's own.

  tools/check_transformers.py MODEL... [--octet PATH]

Each MODEL, of any layout, is written as a Hugging Face folder in F32, loaded by transformers in float32, and both run the
same ids. The criterion is that of our tests: logits within 1e-4 of the largest. Models with a tokenizer are also asked to
cut some texts, and must give transformers' ids. Then the folder is written as Mistral's release and as GGUF and comes back
as the same tensors, bit for bit. Needs torch, transformers, safetensors and numpy; as much memory as the model in F32.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["The capital of France is Paris.", "Ça va ? 東京 🙂", "  two  spaces\n\ttab\n\n", "def f(x):\n    return x[0]  # 12345", ""]


def run(*command, text=None):
    done = subprocess.run(command, capture_output=True, text=True, input=text)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
    return done.stdout


def tensors(folder):
    """Every tensor of a Hugging Face folder, sharded or not."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            found.update(load_file(os.path.join(folder, name)))
    return found


def check(octet, path, scratch):
    hf = os.path.join(scratch, "hf")
    run(octet, "convert", path, hf, "--to", "hf", "--type", "f32", "--force")
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    ids = np.random.default_rng(7).integers(3, model.config.vocab_size, size=(2, 48))
    save_file({"input_ids": ids}, os.path.join(scratch, "in.safetensors"))
    out = os.path.join(scratch, "out.safetensors")
    run(octet, "logits", hf, "--input", os.path.join(scratch, "in.safetensors"), "--output", out)
    ours = load_file(out)["logits"]
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    flips = int((ours.argmax(-1) != theirs.argmax(-1)).sum())
    words = "no tokenizer"
    if any(os.path.exists(os.path.join(hf, name)) for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = AutoTokenizer.from_pretrained(hf)
        ours = [row["ids"] for row in json.loads(run(octet, "tokenize", path, "--json", text=json.dumps(TEXTS)))]
        wrong = sum(tokenizer.encode(text) != mine for text, mine in zip(TEXTS, ours))
        words = f"{wrong} of {len(TEXTS)} texts cut otherwise"
        flips += wrong
    del model, theirs
    back = os.path.join(scratch, "back")
    for other, kind in (("release", "mistral"), ("model.gguf", "gguf")):
        there = os.path.join(scratch, other)
        run(octet, "convert", hf, there, "--to", kind, "--type", "f32", "--force")
        run(octet, "convert", there, back, "--to", "hf", "--type", "f32", "--force")
        before, after = tensors(hf), tensors(back)
        if before.keys() - after.keys() or any(not np.array_equal(before[name], after[name]) for name in before):
            raise SystemExit(f"{path}: tensors do not come back through {kind}")
    print(f"{path}: logits differ by {difference:.1e} of the largest, {flips} predictions differ; {words}", flush=True)
    return difference <= 1e-4 and flips == 0


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("models", nargs="+")
    a.add_argument("--octet", default="target/release/octet")
    a = a.parse_args()
    good = True
    for path in a.models:
        with tempfile.TemporaryDirectory() as scratch:
            good &= check(a.octet, path, scratch)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
