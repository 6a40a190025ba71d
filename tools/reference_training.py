#!/usr/bin/env python3
"""Loss curves of trl's trainers, to be repeated step by step: reference_training.py FIXTURES [--only NAME ...]

Trains the adapter in lora/ of each MODELS folder of FIXTURES (which reference_models.py wrote) with trl's DPOTrainer and
SFTTrainer, over random words of which each is a token, and writes training.safetensors beside it:

  METHOD.input_ids [S,N,T]  the sequences of each step, S steps, -1 after their ends; for dpo chosen, rejected, chosen, ...
  METHOD.learned   [S,N,T]  1 where the token is part of an answer
  METHOD.losses, METHOD.rates, METHOD.norms [S]  as trl has them: the loss of the step before its update, the learning rate,
                            the gradient's norm before clipping

METHOD is dpo (sigmoid, beta 0.1, four pairs a step, plus 0.02 times the load-balancing loss) or sft (answers only, two
accumulated passes of three samples a step, no load balancing). All else is trl's default: AdamW, a rate that falls in a line,
no warm-up, clipping at 1, no weight decay; dropout is 0. The reference of dpo is the adapter as it was.

Needs trl, peft, datasets, transformers>=5, torch, safetensors.
"""
import argparse
import os
import random
import tempfile

import datasets
import peft
import tokenizers
import torch
import transformers
import trl
from safetensors.torch import save_file

MODELS = ["mixtral-8x2"]
STEPS = 12

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


def tokenizer(vocab_size):
    """Word number n is token n."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2", bos_token="w1")


def rows(method, n, vocab_size, seed):
    rng = random.Random(seed)
    words = lambda least, most: " ".join(f"w{rng.randrange(3, vocab_size)}" for _ in range(rng.randint(least, most)))
    # A space at the end of the prompt keeps words apart where trl puts the two together.
    if method == "dpo":
        return [{"prompt": words(3, 9) + " ", "chosen": words(4, 14), "rejected": words(4, 14)} for _ in range(n)]
    return [{"prompt": words(3, 9) + " ", "completion": words(4, 20)} for _ in range(n)]


def curve(method, folder, seed):
    """What trl does, step by step."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, os.path.join(folder, "lora"), is_trainable=True)
    kind, config = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "sft": (trl.SFTTrainer, trl.SFTConfig)}[method]
    batch, n_passes, balance = {"dpo": (4, 1, 0.02), "sft": (3, 2, 0.0)}[method]
    passes, losses, reports = [], [], []

    class Watched(kind):
        def training_step(self, model, inputs, *rest, **named):
            ids, seen, answer = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask" if method == "dpo" else "labels"))
            answer = answer if method == "dpo" else answer != -100
            passes.append([(i[s.bool()].tolist(), a[s.bool()].tolist()) for i, s, a in zip(ids, seen, answer)])
            losses.append(super().training_step(model, inputs, *rest, **named).item())
            return torch.tensor(losses[-1])

        def log(self, logs, *rest, **named):
            reports.append(logs)
            return super().log(logs, *rest, **named)

    with tempfile.TemporaryDirectory() as scratch:
        args = config(output_dir=scratch, use_cpu=True, bf16=False, max_steps=STEPS, learning_rate=3e-3, per_device_train_batch_size=batch,
                      gradient_accumulation_steps=n_passes, router_aux_loss_coef=balance, gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True,
                      logging_steps=1, seed=seed, dataloader_pin_memory=False)
        data = datasets.Dataset.from_list(rows(method, STEPS * batch * n_passes, model.config.vocab_size, seed))
        trainer = Watched(model=model, args=args, train_dataset=data, processing_class=tokenizer(model.config.vocab_size))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    of_step = lambda of_passes, i: of_passes[i * n_passes:(i + 1) * n_passes]
    steps = [sum((in_turn(one) if method == "dpo" else one for one in of_step(passes, i)), []) for i in range(STEPS)]
    return steps, [sum(of_step(losses, i)) for i in range(STEPS)], [report for report in reports if "loss" in report]


def in_turn(answers):
    """chosen, rejected, chosen, ...: trl stacks all chosen answers before all rejected ones."""
    half = len(answers) // 2
    return [answers[i // 2 + half * (i % 2)] for i in range(len(answers))]


def tensors(method, steps, losses, reports):
    longest = max(len(ids) for step in steps for ids, _ in step)
    padded = lambda which, pad: torch.tensor([[s[which] + [pad] * (longest - len(s[0])) for s in step] for step in steps])
    column = lambda name: torch.tensor([report[name] for report in reports], dtype=torch.float32)
    out = {"input_ids": padded(0, -1).long(), "learned": padded(1, 0).long(), "losses": torch.tensor(losses, dtype=torch.float32),
           "rates": column("learning_rate"), "norms": column("grad_norm")}
    return {f"{method}.{name}": tensor for name, tensor in out.items()}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("fixtures")
    a.add_argument("--seed", type=int, default=20231211)
    a.add_argument("--only", nargs="*", default=MODELS)
    a = a.parse_args()
    for name in a.only:
        folder, out = os.path.join(a.fixtures, name), {}
        for method in ("dpo", "sft"):
            steps, losses, reports = curve(method, folder, a.seed % 2**32)
            out |= tensors(method, steps, losses, reports)
            print(f"{name}: {method} " + " ".join(f"{loss:.4f}" for loss in losses))
        save_file(out, os.path.join(folder, "training.safetensors"))


if __name__ == "__main__":
    main()
