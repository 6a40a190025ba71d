#!/usr/bin/env python3
"""Puts what tools/recipe measured into tables: tools/recipe_report.py OUT"""
import glob, json, math, os, sys

LANGUAGES = ["en", "fr", "de", "it", "es", "code"]
out = sys.argv[1]


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def mean(numbers):
    return sum(numbers) / len(numbers)


def divergence(of, from_):
    """Kullback-Leibler divergence in bits."""
    return sum(p * math.log2(p / q) for p, q in zip(of, from_) if p)


stages = {}
for folder in sorted(glob.glob(os.path.join(out, "eval-*"))):
    parts = {"text-eval-" + language: language for language in LANGUAGES} | {"sft-eval": "sft", "dpo-eval": "dpo"}
    stages[os.path.basename(folder)[5:]] = {name: read(os.path.join(folder, f"{part}.json")) for part, name in parts.items()}

first = next(iter(stages.values()))
tokens = ", ".join(f"{name} {rows['tokens']}" for name, rows in first.items())
print(f"Perplexity on held-out text (answers: of held-out answers alone), and how often the right of two answers to a held-out "
      f"question is the likelier one. Tokens read: {tokens}.\n")
print("| after | " + " | ".join(LANGUAGES) + " | answers | right answer likelier |")
print("| --- |" + " --- |" * (len(LANGUAGES) + 2))
for name, rows in stages.items():
    numbers = " | ".join(f"{rows[t]['perplexity']:.2f}" for t in [*LANGUAGES, "sft"])
    print(f"| {name} | {numbers} | {100 * rows['dpo']['accuracy']:.0f}% |")

print("\nExperts. Entropy: of the router's probabilities, in nats (ln 8 = 2.08 is no preference). Load: what the least and the "
      "most used of a layer's eight experts get of its choices, mean over layers (12.5% is even). Specialisation: how far the "
      "shares of a layer's experts in one language are from those in all six together (Kullback-Leibler divergence in bits, "
      "mean over layers).\n")
print("| after | entropy | load | " + " | ".join(f"{t}" for t in LANGUAGES) + " | mean |")
print("| --- |" + " --- |" * (len(LANGUAGES) + 3))
for name, rows in stages.items():
    differ, least, most = [], [], []
    for layer in zip(*(rows[t]["expert_load_of_layers"] for t in LANGUAGES)):
        whole = [mean(column) for column in zip(*layer)]
        differ.append([divergence(load, whole) for load in layer])
        least.append(min(whole)), most.append(max(whole))
    of_language = " | ".join(f"{mean(column):.4f}" for column in zip(*differ))
    print(f"| {name} | {mean([rows[t]['router_entropy'] for t in LANGUAGES]):.3f} | {100 * mean(least):.1f}%, "
          f"{100 * mean(most):.1f}% | {of_language} | {mean([mean(layer) for layer in differ]):.4f} |")

for name in ("text", "sft", "dpo"):
    with open(os.path.join(out, name, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [line for line in map(json.loads, file) if "loss" in line]
    read_before = [0] + [step["tokens"] for step in steps[:-1]]
    seconds = sum((step["tokens"] - before) / step["tokens_per_second"] for step, before in zip(steps, read_before))
    tail = steps[-max(1, len(steps) // 5):]
    print(f"{chr(10) if name == 'text' else ''}- {name}: {len(steps)} steps, {steps[-1]['tokens']} tokens, {seconds / 60:.0f} minutes; "
          f"loss {steps[0]['loss']:.3f} in the first step, {mean([step['loss'] for step in tail]):.3f} in the last fifth")
