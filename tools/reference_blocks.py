#!/usr/bin/env python3
"""Blocks of every GGUF quantized type and the floats that they stand for, by the reference decoder in the `gguf` package.

  reference_blocks.py OUT.safetensors [--seed N]

For each type: TYPE.blocks, uint8 [rows, bytes per row]; TYPE.values, float32 [rows, 1024]. Half of the rows are random
bytes with sane scales, half (where the package can quantize to the type) come from gaussian weights, which then also
stand as TYPE.source [rows/2, 1024] so that a quantizer's error can be compared: TYPE.source_error is the reference's
root mean square error on them.
"""
import argparse

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from safetensors.numpy import save_file

TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
         "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S"]
# where the float16 scales stand in a block of each type
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0]}
WIDTH, ROWS = 1024, 8


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=20231211)
    a = a.parse_args()
    rng, out = np.random.default_rng(a.seed), {}
    for name in TYPES:
        t = T[name]
        per_block, size = GGML_QUANT_SIZES[t]
        n = WIDTH // per_block
        blocks = rng.integers(0, 256, (ROWS, n, size), np.uint8)
        if name in ("F16", "BF16"):
            w = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
            raw = w.astype(np.float16).view(np.uint8) if name == "F16" else (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            rows = raw.reshape(ROWS, -1)
        else:
            for at in SCALES[name]:
                d = (rng.standard_normal((ROWS, n)) * 0.01).astype(np.float16)
                blocks[:, :, at:at + 2] = d.view(np.uint8).reshape(ROWS, n, 2)
            rows = blocks.reshape(ROWS, -1)
            source = (rng.standard_normal((ROWS, WIDTH)) * 0.02).astype(np.float32)
            try:
                q = gguf.quants.quantize(source, t).reshape(ROWS, -1)
            except NotImplementedError:
                q = None
            if q is not None:
                rows = np.concatenate([rows, q.view(np.uint8)])
                back = gguf.quants.dequantize(q, t).reshape(ROWS, WIDTH)
                out[name + ".source"] = source
                out[name + ".source_error"] = np.sqrt(np.mean((back - source) ** 2, keepdims=True)).astype(np.float32).reshape(1)
        values = gguf.quants.dequantize(rows, t).reshape(len(rows), WIDTH).astype(np.float32)
        out[name + ".blocks"], out[name + ".values"] = np.ascontiguousarray(rows), values
        print(name, rows.shape, "finite", bool(np.isfinite(values).all()), "std", float(values.std()))
    save_file(out, a.out)


if __name__ == "__main__":
    main()
