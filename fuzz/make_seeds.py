#!/usr/bin/env python3
"""Writes a few small valid files into fuzz/corpus/TARGET, for the fuzzer to start from.

  python3 fuzz/make_seeds.py

Needs nothing but Python and the repository's tests/fixtures.
"""
import io
import json
import pathlib
import shutil
import struct
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures"
DIM, HEADS, HIDDEN, VOCAB, EXPERTS = 4, 2, 4, 3, 2


def put(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def tensors():
    """Name in GGUF and shape, outermost dimension first, of a Mixtral of one layer."""
    yield "token_embd.weight", (VOCAB, DIM)
    yield "blk.0.attn_norm.weight", (DIM,)
    for part in ("q", "k", "v", "output"):
        yield f"blk.0.attn_{part}.weight", (DIM, DIM)
    yield "blk.0.ffn_norm.weight", (DIM,)
    yield "blk.0.ffn_gate_inp.weight", (EXPERTS, DIM)
    for part in ("gate", "up", "down"):
        yield f"blk.0.ffn_{part}_exps.weight", (EXPERTS, HIDDEN, DIM)
    yield "output_norm.weight", (DIM,)
    yield "output.weight", (VOCAB, DIM)


def size(shape):
    n = 4
    for d in shape:
        n *= d
    return n


def gguf(version):
    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    def u32(key, value):
        return text(key) + struct.pack("<II", 4, value)

    def f32(key, value):
        return text(key) + struct.pack("<If", 6, value)

    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama"),
            u32("llama.embedding_length", DIM), u32("llama.block_count", 1), u32("llama.feed_forward_length", HIDDEN),
            u32("llama.attention.head_count", HEADS), u32("llama.attention.head_count_kv", HEADS),
            u32("llama.expert_count", EXPERTS), u32("llama.expert_used_count", 1), u32("llama.context_length", 8),
            f32("llama.attention.layer_norm_rms_epsilon", 1e-5), f32("llama.rope.freq_base", 1e6),
            text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, VOCAB) + b"".join(map(text, "abc")),
            text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, VOCAB, 0, -1, -2)]
    head = b"GGUF" + struct.pack("<IQQ", version, len(list(tensors())), len(keys)) + b"".join(keys)
    data = b""
    for name, shape in tensors():
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape))
        head += struct.pack("<IQ", 0, len(data))
        data += bytes(-(-size(shape) // 32) * 32)
    return head + bytes(-len(head) % 32) + data


def safetensors():
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def pickled():
    """A state dictionary of two tensors, in the instructions that torch.save writes."""
    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def tensor(key, rows, cols):
        return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nBFloat16Storage\n" + text(key)
                + text("cpu") + bytes([75, rows * cols]) + b"tQK\x00" + bytes([75, rows, 75, cols]) + b"\x86"
                + bytes([75, cols, 75, 1]) + b"\x86\x89ccollections\nOrderedDict\n)RtR")

    return b"\x80\x02}q\x00(" + text("a") + tensor("0", 2, 3) + text("b") + tensor("1", 3, 1) + b"u."


def torch_file():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", pickled())
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", bytes(12))
        archive.writestr("a/data/1", bytes(6))
        archive.writestr("a/version", "3\n")
    return out.getvalue()


def vocabulary():
    """Piece and kind (SentencePiece's numbers) of a small vocabulary with byte fallback."""
    yield from (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<tool>", 4))
    yield from ((f"<0x{byte:02X}>", 6) for byte in range(256))
    yield from ((piece, 1) for piece in ("▁", "a", "b", "▁a", "ab", "▁ab", "▁▁"))


def tokenizer_model():
    def field(number, value):
        return bytes([number << 3 | 2, len(value)]) + value

    pieces = [field(1, p.encode()) + b"\x15" + struct.pack("<f", -i) + bytes([0x18, kind]) for i, (p, kind) in enumerate(vocabulary())]
    trainer, normalizer = bytes([0x18, 2]), field(1, b"identity") + bytes([0x18, 1, 0x20, 0])
    return b"".join(field(1, piece) for piece in pieces) + field(2, trainer) + field(3, normalizer)


def tokenizer_json():
    pieces = list(vocabulary())
    model = dict(type="BPE", unk_token="<unk>", byte_fallback=True, vocab={p: i for i, (p, _) in enumerate(pieces)},
                 merges=["▁ a", "a b", "▁a b", "▁ ab", "▁ ▁"])
    added = [dict(id=i, content=p, special=kind != 4) for i, (p, kind) in enumerate(pieces) if kind in (2, 3, 4)]
    metaspace = dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=False)
    return json.dumps(dict(added_tokens=added, pre_tokenizer=metaspace, model=model), ensure_ascii=False).encode()


def byte_level_json():
    alphabet = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 324))]
    model = dict(type="BPE", vocab={c: i for i, c in enumerate(alphabet + ["Ġa", "ab"])}, merges=[["Ġ", "a"], ["a", "b"]])
    return json.dumps(dict(pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False), model=model)).encode()


if __name__ == "__main__":
    put("gguf", "v2", gguf(2))
    put("gguf", "v3", gguf(3))
    put("safetensors", "mixtral", safetensors())
    put("torch", "archive", torch_file())
    put("torch", "pickle", pickled())
    for config in [*FIXTURES.glob("*/config.json"), *FIXTURES.glob("*/mistral-raw/*/params.json")]:
        put("params", "-".join(config.relative_to(FIXTURES).parts), config.read_bytes())
    put("tokenizer_model", "small", tokenizer_model())
    put("tokenizer_json", "sentencepiece", tokenizer_json())
    put("tokenizer_json", "byte-level", byte_level_json())
    for text in ("Hello", " a  ab▁", "<s>[INST]</s>", "é😀\n"):
        put("encode", str(len(text)), text.encode())
