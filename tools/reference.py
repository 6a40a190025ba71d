#!/usr/bin/env python3
"""The recipe of every golden: makes again all that stands in tests/fixtures, with programs that are not ours.

  tools/reference.py OUT                 a whole set, some 42 MB
  OCTET_FIXTURES=OUT make unit           test against it

  --seed N     another random set; the committed one has seed 20231211
  --python P   an interpreter that has the packages; without it they are installed into OUT.venv (several GB, for PyTorch)

The committed copy leaves out what its README names, to stay small.
"""
import argparse
import os
import subprocess
import sys
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ["torch==2.15.*", "transformers==5.23.*", "peft==0.21.*", "trl==1.16.*", "datasets", "safetensors", "numpy", "gguf==0.19.*", "sentencepiece==0.2.*", "mistral-common==1.13.*"]
# program -> what it writes inside OUT
RECIPES = {"reference_models.py": ".", "reference_training.py": ".", "reference_blocks.py": "quantized-blocks.safetensors", "reference_tokens.py": "tokenizer-goldens.json"}


def interpreter(folder):
    """A Python that has PACKAGES, made once."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=20231211)
    a.add_argument("--python")
    a = a.parse_args()
    os.makedirs(a.out, exist_ok=True)
    python = a.python or interpreter(a.out.rstrip("/") + ".venv")
    for program, target in RECIPES.items():
        print(f"{program}:", flush=True)
        subprocess.run([python, os.path.join(HERE, program), os.path.join(a.out, target), "--seed", str(a.seed)], check=True)


if __name__ == "__main__":
    sys.exit(main())
