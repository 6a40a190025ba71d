#!/usr/bin/env python3
"""Random strings, thick with special tokens and pieces of them, as Hugging Face's tokenizers cut them.

  hugging_face_cases.py FOLDER [--n N] [--seed N]

For each `tokenizer.*.json` and `metaspace.*.json` in FOLDER, and for byte-level ones that it trains on the spot (the cuts
of GPT-2, Llama 3 and SmolLM), it writes `hugging-face.json`: a list of {"tokenizer", "cases": [[text, ids], ...]}. Ids are
those of `encode(text, add_special_tokens=False)`, which takes special tokens in the text as such. Needs the package
tokenizers.
"""
import argparse
import glob
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "llama3": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["the", "Hello", "world", "naïve", "Größe", "東京", "日本語", "Привет", "مرحبا", "🙂", "👩‍👩‍👧", "e\u0301", "don't", "I'LL", "12345", "3.14", "x1y2", "▁", "▁▁a", "Ġ", "_", "\\n", "{}", "```rs", "//", "\u200b", "\x00", "\x7f", "\ufeff", "ﬁ", "İ", "s", "re", "ve"]
SPACES = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", ""]


def texts(rng, specials, n):
    """Half words, half what could be taken for a special token or split at one."""
    partial = [token[:k] for token in specials for k in range(1, len(token))] + [token[k:] for token in specials for k in range(1, len(token))]
    for _ in range(n):
        parts = []
        for _ in range(rng.randrange(0, 12)):
            kind = rng.random()
            parts.append(rng.choice(WORDS) if kind < 0.35 else rng.choice(SPACES) if kind < 0.65 else rng.choice(specials) if kind < 0.87 else rng.choice(partial) if kind < 0.95 else chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0x3000), rng.randrange(0x1F300, 0x1FAFF)])))
        yield "".join(parts)


def trained(name, folder):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    tokenizer.pre_tokenizer = CUTS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    here = os.path.dirname(os.path.abspath(__file__))
    files = [os.path.join(here, "..", file) for file in ("README.md", "ARCHITECTURE.md", "docs/text.md", "docs/checkpoints.md")]
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False, special_tokens=CHATML, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train(files, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHATML])
    path = os.path.join(folder, f"byte-level.{name}.json")
    tokenizer.save(path)
    return path


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder")
    a.add_argument("--n", type=int, default=1500)
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    paths = sorted(glob.glob(os.path.join(a.folder, "tokenizer.*.json")) + glob.glob(os.path.join(a.folder, "metaspace.*.json")))
    paths += [trained(name, a.folder) for name in sorted(CUTS)]
    written = []
    for path in paths:
        tokenizer = Tokenizer.from_file(path)
        specials = sorted(t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special)
        rng = random.Random(f"{a.seed} {os.path.basename(path)}")
        cases = [[text, tokenizer.encode(text, add_special_tokens=False).ids] for text in texts(rng, specials[:40], a.n)]
        written.append({"tokenizer": os.path.basename(path), "cases": cases})
    out = os.path.join(a.folder, "hugging-face.json")
    with open(out + ".part", "w", encoding="utf-8") as file:
        json.dump(written, file, ensure_ascii=False)
    os.replace(out + ".part", out)


if __name__ == "__main__":
    main()
