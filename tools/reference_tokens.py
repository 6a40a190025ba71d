#!/usr/bin/env python3
"""What the reference tokenizers say: sentencepiece on Mistral's own models, mistral-common on whole conversations.

  reference_tokens.py OUT.json [--extra FILE]   (FILE: more strings, a JSON list)

{"sentencepiece": {MODEL: [{"text", "ids", "pieces", "decoded"}]},
 "instruct": {VERSION: [{"messages", "tools", "ids", "text"}]}}   text is mistral-common's own debug rendering
MODEL is the file's name inside the mistral-common package, mistral_common/data/. tokenizer.model.v1 is the one of
Mixtral 8x7B (base and Instruct), v3 the one of Mixtral 8x22B Instruct. ids carry no BOS unless the text asks for one.
"""
import argparse
import json
import os
import random

import mistral_common
import sentencepiece
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

DATA = os.path.join(os.path.dirname(mistral_common.__file__), "data")
MODELS = ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]

SENTENCES = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n\n", "\t", " \t\n ", "Hello", " Hello", "Hello, world!", "hello world", "HELLO WORLD",
    "The quick brown fox jumps over the lazy dog.", "Mixtral 8x7B uses 2 of its 8 experts for each token.",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë.", "Ça va ? Très bien, merci — et vous…",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "Straßenbahnhaltestellenüberdachung",
    "Quel vituperabile xenofobo zelante assaggia il whisky ed esclama: alleluja!", "Perché non può? È già così.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío.", "¿Qué tal? ¡Muy bien! Año nuevo, niño.",
    "def f(x):\n    return x ** 2\n\nfor i in range(10):\n\tprint(f(i))\n", "fn main() {\n    println!(\"{}\", 1_000_000u64);\n}\n",
    "#include <stdio.h>\nint main(void) { return 0; }", "SELECT * FROM t WHERE a <> 'b' AND c IS NOT NULL;",
    "<html>\n  <body class=\"x\">&nbsp;</body>\n</html>", "{\"a\": [1, 2.5, -3e10, null, true]}",
    "\\frac{a}{b} = \\sum_{i=0}^{n} x_i^2", "1234567890", "3.14159265358979", "0x1F600", "100,000,000.00", "٠١٢٣٤٥٦٧٨٩",
    "日本語のテキスト", "中文字符测试", "한국어 문장입니다", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "😀", "👨‍👩‍👧‍👦", "🏳️‍🌈🇫🇷🇩🇪", "a😀b", "e\u0301", "é", "ﬁ ligature", "\u00a0nbsp\u00a0", "\u2028line\u2029para", "\ufeffbom", "\u200bzero\u200dwidth",
    "\x00", "a\x00b", "\x01\x02\x1f\x7f", "▁", "▁▁", "a▁b", "<s>", "</s>", "<unk>", "<0x0A>", "[INST] hi [/INST]", "<|im_start|>user",
    "a" * 200, " " * 100, "\n" * 50, "ab" * 300, "word " * 120, "https://example.org/a/b?c=d&e=f#g", "user@example.org", "C:\\Users\\name\\file.txt",
    "'single' \"double\" `back` «guillemets» „deutsch“", "...!!!???", "-- — – − ‐", "x²+y³=z⁴", "½ ⅓ ¼", "℃ ℉ Å", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠜎𠜱𠝹", "\U0010ffff",
]


def random_strings(rng, n=200):
    pools = ["abcdefghijklmnopqrstuvwxyz", "ABC xyz  ", "éèêëàâäôöùûüçñßœæ ", "0123456789.,-+ ", " \t\n\r", "日本中文한국 ", "😀🎉👍 ", "(){}[]<>;:=+-*/&|!?#@$%^~`'\"\\ ",
             "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(200)), "".join(chr(c) for c in range(1, 128))]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 60))) for _ in range(n)]


def conversations(version):
    u, a, s = (lambda t: UserMessage(content=t)), (lambda t: AssistantMessage(content=t)), (lambda t: SystemMessage(content=t))
    yield [u("Hello")], None
    yield [u("  leading and trailing  ")], None
    yield [u("Quelle est la capitale de la France ?")], None
    yield [u("a"), a("b"), u("c")], None
    yield [u("Hi"), a("Hello! How can I help?"), u("Write code:\n```rust\nfn main() {}\n```"), a("Sure.\n\nHere it is."), u("danke 😀")], None
    yield [s("You are a helpful assistant."), u("Hello")], None
    yield [s("Always assist with care, respect, and truth."), u("Hi"), a("Hey"), u("Bye")], None
    yield [u("\n\n"), a("x"), u("\t")], None
    yield [u("[INST] nested [/INST]")], None
    yield [u("</s> not the end")], None
    yield [u("日本語で答えて"), a("はい。"), u("ありがとう")], None
    yield [u("x" * 500)], None
    if version != "v1":
        tool = Tool(function=Function(name="get_weather", description="The weather in a city.", parameters={
            "type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["city"]}))
        yield [u("What is the weather in Paris?")], [tool]
        call = ToolCall(id="VvvODy9mT", function=FunctionCall(name="get_weather", arguments='{"city": "Paris"}'))
        yield [u("Weather in Paris?"), AssistantMessage(tool_calls=[call]), ToolMessage(name="get_weather", content="22", tool_call_id="VvvODy9mT")], [tool]
        yield [u("Weather in Paris?"), AssistantMessage(tool_calls=[call]), ToolMessage(name="get_weather", content='{"t": 22}', tool_call_id="VvvODy9mT"),
               a("It is 22 degrees."), u("And in Rome?")], [tool]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--extra")
    p.add_argument("--seed", type=int, default=20231211)
    p = p.parse_args()
    strings = SENTENCES + random_strings(random.Random(p.seed))
    if p.extra:
        strings += json.load(open(p.extra))
    out = {"sentencepiece": {}, "instruct": {}}
    for m in MODELS:
        sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(DATA, m))
        rows = []
        for t in strings:
            ids = sp.encode(t)
            rows.append(dict(text=t, ids=ids, pieces=[sp.id_to_piece(i) for i in ids], decoded=sp.decode(ids)))
        out["sentencepiece"][m] = rows
    for version, tokenizer in (("v1", MistralTokenizer.v1()), ("v3", MistralTokenizer.v3())):
        rows = []
        for messages, tools in conversations(version):
            enc = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages, tools=tools))
            rows.append(dict(messages=[m.model_dump(exclude_none=True) for m in messages], tools=tools and [t.model_dump() for t in tools],
                             ids=enc.tokens, text=enc.text))
        out["instruct"][version] = rows
    json.dump(out, open(p.out, "w"), ensure_ascii=True)
    print({k: {n: len(r) for n, r in v.items()} for k, v in out.items()})


if __name__ == "__main__":
    main()
