#!/usr/bin/env python3
"""Puts what tools/recipe measured into tables: tools/recipe_report.py OUT"""
import glob, json, math, os, sys

out = sys.argv[1]
stages = {}
for path in sorted(glob.glob(os.path.join(out, "eval-*.json"))):
    name = os.path.basename(path)[5:-5]
    with open(path, encoding="utf-8") as file:
        stages[name] = {row["what"]: row for row in map(json.loads, file)}
texts = ["en", "fr", "de", "it", "es", "code", "sft"]
print("Perplexity on held-out text (sft: of answers), and how often the right answer is the likelier one\n")
print("| stage | " + " | ".join(texts) + " | right answer likelier |")
print("| --- |" + " --- |" * (len(texts) + 1))
for name, rows in stages.items():
    numbers = " | ".join(f"{rows[t]['perplexity']:.2f}" for t in texts)
    print(f"| {name} | {numbers} | {100 * rows['dpo']['accuracy']:.0f}% |")
print("\nShare of choices that each expert gets, in percent, by language; and how far the languages differ: the mean "
      "Kullback-Leibler divergence of a language's shares from the mean of all, in bits\n")
for name, rows in stages.items():
    loads = {t: rows[t]["expert_load"] for t in texts[:6] if "expert_load" in rows[t]}
    if not loads:
        continue
    mean = [sum(column) / len(loads) for column in zip(*loads.values())]
    divergence = sum(sum(p * math.log2(p / q) for p, q in zip(load, mean) if p) for load in loads.values()) / len(loads)
    entropy = sum(rows[t]["router_entropy"] for t in loads) / len(loads)
    print(f"{name}: divergence {divergence:.4f} bits, router entropy {entropy:.2f} nats")
    for language, load in loads.items():
        print(f"  {language:<5}" + " ".join(f"{100 * p:5.1f}" for p in load))
