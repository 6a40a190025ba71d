#!/usr/bin/env python3
"""Scores a small local task with lm-evaluation-harness through `octet serve`, and directly: the numbers have to be the same.

  tools/check_lm_eval.py MODEL [--octet PATH]

lm-eval's `local-completions` sends token ids to /v1/completions and reads the probabilities of the prompt. The direct
evaluation puts the same ids through `octet logits`, which knows no server, no engine and no cache of prefixes. Accuracy
must be equal, and each log-likelihood to 1e-4 (sums of some tokens' f32, rounded differently). Needs `pip install
'lm_eval[api]' transformers safetensors`; no network afterwards.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bench"))
import servers  # noqa: E402

TASK = """task: octet_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
FACTS = [
    ("The capital of France is", "Paris", "Berlin", "Madrid"), ("The capital of Italy is", "Rome", "Vienna", "Oslo"),
    ("The opposite of hot is", "cold", "warm", "red"), ("Two plus two equals", "four", "five", "seven"),
    ("The sun rises in the", "east", "west", "north"), ("Water freezes to", "ice", "steam", "sand"),
    ("A baby cat is called a", "kitten", "puppy", "calf"), ("The color of grass is", "green", "blue", "purple"),
    ("Romeo and Juliet was written by", "William Shakespeare", "Charles Dickens", "Mark Twain"),
    ("Fish live in", "water", "trees", "clouds"), ("A week has seven", "days", "months", "years"),
    ("The largest planet of the solar system is", "Jupiter", "Mars", "Venus"), ("Bees make", "honey", "milk", "bread"),
    ("The Earth goes around the", "sun", "moon", "stars"), ("The first month of the year is", "January", "June", "October"),
    ("Snow is", "white", "black", "green"), ("We hear with our", "ears", "eyes", "feet"),
    ("The chemical symbol of gold is", "Au", "Ag", "Fe"), ("A triangle has three", "sides", "wheels", "legs"),
    ("The language of Brazil is", "Portuguese", "Spanish", "French"), ("The heart pumps", "blood", "air", "bone"),
    ("An adult male chicken is called a", "rooster", "duck", "goose"), ("The Great Wall is in", "China", "Brazil", "Kenya"),
    ("The Mona Lisa was painted by Leonardo da", "Vinci", "Caprio", "Gama"),
]


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def harness(octet, model, hf, scratch):
    """What lm-eval says: its accuracy, and its (context, continuation, log-likelihood) of every choice."""
    data = os.path.join(scratch, "facts.jsonl")
    with open(data, "w") as f:
        for i, (question, *choices) in enumerate(FACTS):
            turned = choices[i % 3:] + choices[:i % 3]
            f.write(json.dumps({"question": question, "choices": turned, "answer": turned.index(choices[0])}) + "\n")
    with open(os.path.join(scratch, "octet_facts.yaml"), "w") as f:
        f.write(TASK.format(data=data))
    server = servers.Octet(octet, model)
    try:
        arguments = f"model=model,base_url={server.url}/v1/completions,tokenized_requests=True,tokenizer={hf},num_concurrent=4,max_retries=1"
        run(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "octet_facts", "--include_path", scratch,
            "--model_args", arguments, "--log_samples", "--output_path", os.path.join(scratch, "out"), env=os.environ | {"HF_HUB_OFFLINE": "1"})
    finally:
        server.stop()
    (results,) = glob.glob(os.path.join(scratch, "out", "**", "results_*.json"), recursive=True)
    with open(results) as f:
        accuracy = json.load(f)["results"]["octet_facts"]["acc,none"]
    (samples,) = glob.glob(os.path.join(scratch, "out", "**", "samples_octet_facts_*.jsonl"), recursive=True)
    with open(samples) as f:
        rows = sorted(map(json.loads, f), key=lambda row: row["doc_id"])

    def pairs(row):
        given = row["arguments"].values() if isinstance(row["arguments"], dict) else row["arguments"]
        given = [tuple(one.values()) if isinstance(one, dict) else tuple(one) for one in given]
        return [(*one[:2], float(said[0][0])) for one, said in zip(given, row["resps"])]
    return accuracy, [pairs(row) for row in rows], [row["target"] for row in rows]


def direct(octet, model, tokenizer, questions, scratch):
    """The log-likelihood of every choice, from logits of the whole texts."""
    cut = [[(tokenizer.encode(a, add_special_tokens=False), tokenizer.encode(a + b, add_special_tokens=False)) for a, b, _ in row] for row in questions]
    flat = [pair for row in cut for pair in row]
    ids = np.zeros((len(flat), max(len(whole) for _, whole in flat)), np.int64)
    for i, (_, whole) in enumerate(flat):
        ids[i, :len(whole)] = whole
    save_file({"input_ids": ids}, os.path.join(scratch, "in.safetensors"))
    run(octet, "logits", model, "--kv", "f16", "--input", os.path.join(scratch, "in.safetensors"), "--output", os.path.join(scratch, "out.safetensors"))
    logits = load_file(os.path.join(scratch, "out.safetensors"))["logits"].astype(np.float64)
    logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(-1, keepdims=True)
    score = lambda i, begun, whole: sum(logits[i, at - 1, whole[at]] for at in range(len(begun), len(whole)))
    scores = iter([score(i, begun, whole) for i, (begun, whole) in enumerate(flat)])
    return [[next(scores) for _ in row] for row in cut]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--octet", default="target/release/octet")
    a = a.parse_args()
    from transformers import AutoTokenizer
    with tempfile.TemporaryDirectory() as scratch:
        hf = os.path.join(scratch, "hf")
        run(a.octet, "convert", a.model, hf, "--to", "hf")
        accuracy, questions, targets = harness(a.octet, a.model, hf, scratch)
        ours = direct(a.octet, a.model, AutoTokenizer.from_pretrained(hf), questions, scratch)
    difference = max(abs(mine - one[2]) for row, mines in zip(questions, ours) for one, mine in zip(row, mines))
    right = sum(int(np.argmax(mines)) == int(target) for mines, target in zip(ours, targets)) / len(targets)
    print(f"{len(targets)} questions: accuracy {accuracy:.4f} by lm-eval, {right:.4f} directly; log-likelihoods differ by {difference:.1e} at most")
    return 0 if abs(accuracy - right) < 1e-9 and difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
