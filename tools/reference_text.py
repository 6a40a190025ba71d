#!/usr/bin/env python3
"""More of what the reference programs say about text: what tests/fixtures does not hold, for crates/tokenizer/tests/data.

  reference_text.py OUT_FOLDER      needs (pip): mistral-common 1.13, tokenizers 0.23, transformers 5.23, jinja2

instruct.json    {VERSION: [{"messages", "tools", "ids", "text"}]}: mistral-common on conversations with repeated roles,
                 odd places for system messages, prefixes and awkward JSON; all of v2
byte-level.json  {"tokenizer": a tokenizer.json with a small trained vocabulary, "pre_tokenizers": {NAME: its field},
                 "ignore_merges": [NAME], "texts", "ids": {NAME: [ids of each text]}, "decoded": {NAME: ...},
                 "garbled": [[ids, decoded]]}: Hugging Face's tokenizers; control tokens in texts are text
control.json     {"texts", "ids": {NAME: ...}} for the files that tests/fetch_tokenizers writes: tokenizers again, but
                 control tokens in texts are control tokens
templates.json   [{"name", "template", "cases": [{"messages", "tools", "text"}]}]: transformers'
                 renderer; a text of null means that the template refused
"""
import argparse
import json
import os
import random
import unicodedata
import warnings

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Tool
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
CLASSES = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage, "tool": ToolMessage}
WORDS = ["Hello", " hi", "  two ", "", "\n", "</s>", "[INST]", "[/INST] x", "a", "日本", "😀 ok", '{"a": 1}', "22", "1e5", "null", "[1,2.50,1e20]", '"q"',
         "[TOOL_CALLS]", " tail ", "<s>x", "1.0", "-0", "12345678901234567890123", "0.1e-7", '{"b":1,"a":{"c":[]}}', '{"a":1,"a":2}', "\t", '"\\u00e9\\n"',
         '{"x": "</s>"}', "true"]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def messages(rng, version):
    """Some messages in any order; mistral-common refuses some of them, and the caller drops those."""
    text = lambda: "".join(rng.choice(WORDS) for _ in range(rng.randrange(0, 4)))
    out = []
    for _ in range(rng.randrange(1, 7)):
        role = rng.choice(["user", "user", "assistant", "system"] + ["assistant", "tool"] * (version != "v1"))
        if role == "tool":
            out.append(dict(role=role, content=text(), tool_call_id=rng.choice(["VvvODy9mT", "abcdefghi"]), name=rng.choice(["f", "get_x"])))
        elif role == "assistant" and version != "v1" and rng.random() < 0.5:
            call = lambda: dict(id=rng.choice(["VvvODy9mT", "null", "abcdefghi"]), type="function", function=dict(
                name=rng.choice(["f", "g_1"]), arguments=rng.choice(['{"a": 1}', "{}", "", '{"x":"é \\" </s>","y":[1.0,2e30]}', text()])))
            out.append(dict(role=role, tool_calls=[call() for _ in range(rng.randrange(1, 3))]))
        elif rng.random() < 0.1:
            out.append(dict(role=role, content=[dict(type="text", text=text() or "x") for _ in range(rng.randrange(1, 4))]))
        else:
            out.append(dict(role=role, content=text()))
    if out[-1]["role"] == "assistant":
        out[-1]["prefix"] = True
    tools = None
    if version != "v1" and rng.random() < 0.4:
        tools = [dict(type="function", function=dict(name=rng.choice(["f", "get_x"]), description=text(), parameters=rng.choice([
            {}, dict(type="object", properties={"é": dict(type="string", description=text())}, required=["é"]),
            dict(type="object", properties=dict(n=dict(type="number", minimum=0.5, maximum=1e20)))])))]
    return out, tools


def instruct(rng):
    out = {}
    for version, wanted in (("v1", 40), ("v2", 60), ("v3", 60)):
        tokenizer = getattr(MistralTokenizer, version)()
        out[version] = []
        while len(out[version]) < wanted:
            turns, tools = messages(rng, version)
            try:
                typed = [CLASSES[turn["role"]](**{k: v for k, v in turn.items() if k != "role"}) for turn in turns]
                encoded = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=typed, tools=tools and [Tool(**t) for t in tools]))
            except Exception:
                continue
            out[version].append(dict(messages=turns, tools=tools, ids=encoded.tokens, text=encoded.text))
    return out


def strings(rng, n):
    categories = {}
    for code in range(0x110000):
        # What was assigned lately is in one Unicode table and not in the other.
        if unicodedata.category(chr(code)) not in ("Cs", "Cn"):
            categories.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    marks = ["'s", "'LL", "'Re", "'ſ", "\r\n", "\n\n", " \n", "  ", "   ", "\t", "\x85", "\xa0", "123", "4567", "McD", "ÉÀé", "ǅx", "ʰA", "Ⅷ", "²³", "a\u0301",
             "\u0301b", "्", "//", "!?\n", "/\n", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<0x0A>", "▁", " I'm", "don't", " 2024"]
    anything = lambda: rng.choice(categories[rng.choice(sorted(categories))])
    kinds = [lambda: anything(), lambda: rng.choice(marks), lambda: rng.choice(["the", " quick", " naïve", "日本", "code();", "ABC"]), lambda: chr(rng.randrange(1, 127))]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 25))) for _ in range(n)]


def byte_level(rng):
    corpus = [open(os.path.join(HERE, "..", name), encoding="utf-8").read() for name in ("LICENSE", "tools/reference_tokens.py")]
    p = pre_tokenizers
    split = lambda pattern: p.Sequence([p.Split(Regex(pattern), "isolated"), p.ByteLevel(add_prefix_space=False, use_regex=False)])
    pres = {
        "gpt-2": p.ByteLevel(add_prefix_space=False),
        "gpt-2-space": p.ByteLevel(add_prefix_space=True),
        "smollm": p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]),
        "llama-bpe": split(LLAMA3),
        "qwen2": split(QWEN2),
        "tekken": split(TEKKEN),
        "default": p.Sequence([p.Split(Regex(r), "isolated") for r in (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")] + [p.ByteLevel(add_prefix_space=False, use_regex=False)]),
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pres["gpt-2"], decoders.ByteLevel()
    specials = [AddedToken(t, normalized=False, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=p.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    texts = strings(rng, 150) + ["a<tool_call>b", " <tool_call>  x"]
    file = json.loads(tokenizer.to_str())
    out = dict(tokenizer=file, pre_tokenizers={}, ignore_merges=["llama-bpe", "tekken"], texts=texts, ids={}, decoded={})
    for name, pre in pres.items():
        tokenizer.pre_tokenizer = pre
        tokenizer.model.ignore_merges = name in out["ignore_merges"]
        reread = Tokenizer.from_str(tokenizer.to_str())
        reread.encode_special_tokens = True
        out["pre_tokenizers"][name] = json.loads(tokenizer.to_str())["pre_tokenizer"]
        out["ids"][name] = [reread.encode(text, add_special_tokens=False).ids for text in texts]
        out["decoded"][name] = [reread.decode(ids) for ids in out["ids"][name]]
    garbled = [[rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 12))] for _ in range(200)]
    out["garbled"] = [[ids, tokenizer.decode(ids)] for ids in garbled]
    return out


def control(rng):
    cache = os.path.join(HERE, "..", "tests", "cache", "mistral-common")
    out = dict(texts=strings(rng, 150), ids={})
    for name in ("tokenizer.v1.json", "metaspace.v1.json", "tokenizer.v3.json", "metaspace.v3.json"):
        tokenizer = Tokenizer.from_file(os.path.join(cache, name))
        out["ids"][name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in out["texts"]]
    return out


TEMPLATES = {
    # The shape in which Mixtral 8x7B Instruct and its kin publish theirs.
    "mistral-v1": """{{ bos_token }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if message.role == 'user' %}{{ ' [INST] ' + message.content + ' [/INST]' }}{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}""",
    "chatml": """{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}{% for message in messages %}
{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] | trim ~ '<|im_end|>' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama2": """{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{%- for message in rest %}{% if (message.role == 'user') != (loop.index0 is even) %}{{ raise_exception('roles!') }}{% endif %}
{%- if loop.first and system is not false %}{% set content = '<<SYS>>\\n' + system.strip() + '\\n<</SYS>>\\n\\n' + message.content %}{% else %}{% set content = message.content %}{% endif %}
{%- if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "tools": """{%- macro describe(tool, depth=1) -%}
    {{ tool.function.name | upper }}({% for name, schema in tool.function.parameters.get('properties', {}).items() %}{{ name }}: {{ schema['type'] | default('any') }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro -%}
{%- set ns = namespace(system='', calls=0, last_user=-1) -%}
{%- for message in messages if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endfor -%}
{%- if tools is not none and tools | length > 0 %}
    {{- '[AVAILABLE]' }}
    {%- for tool in tools %}
        {{- '\\n' + describe(tool) }}
        {{- '\\n' + (tool | tojson) + '\\n' + (tool.function | tojson(indent=4)) }}
    {%- endfor %}
    {{- '\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.system = ns.system ~ message.content %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' and message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
            {{- '<call ' ~ ns.calls ~ '>' ~ {"name": call.function.name, "arguments": call.function.arguments} | tojson ~ '</call>' }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '<result>' + message.content + '</result>' }}
    {%- else %}
        {%- set text = message.content.split('</think>')[-1].lstrip('\\n') if '</think>' in message.content else message.content %}
        {{- '<' + message.role + '>' }}{% generation %}{{ text }}{% endgeneration %}{{ '</' + message.role[:4] + '>' }}
    {%- endif %}
{%- endfor %}
{{- ns.system | replace('a', 'A') }}
{%- if add_generation_prompt -%} <assistant> {%- endif -%}""",
    "python-methods": """{% for message in messages %}{% set words = message.content.split(' ') %}{{ loop.index }}/{{ loop.length }} {{ words | length }} {{ words | join('_') }} {{ message.content.startswith('H') }}
{{ message.content.endswith('?') }} {{ message.content.upper().lower() }} {{ message.content.replace('l', 'L', 1) }} {{ message.get('name', 'nobody') }} {{ message.content | length > 3 and message.content[0] in 'HW' }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }} {{ message.content.find('o') }} {{ message.content | first if message.content else '-' }} {{ [1, 2.5, none, true, 'x'] | tojson }} {{ 7 // 2 }} {{ 7 % 3 }}
{% endfor %}""",
}
CONVERSATIONS = [
    ([dict(role="user", content="Hello")], None),
    ([dict(role="user", content="  Hello \n"), dict(role="assistant", content="Hi!\n<think>hm</think>\n\nWhat?"), dict(role="user", content="What is l?")], None),
    ([dict(role="system", content=" a banana "), dict(role="user", content="World, hello?")], None),
    ([dict(role="system", content="s"), dict(role="user", content="u"), dict(role="assistant", content="x</think>\ny"), dict(role="user", content="é😀 \"q\"")], None),
    ([dict(role="user", content="Weather?"),
      dict(role="assistant", content="", tool_calls=[dict(type="function", function=dict(name="get_weather", arguments={"city": "Paris <é> & 'x'", "days": [1, 2.5, 1e20]}), id="abcdefghi")]),
      dict(role="tool", content="{\"t\": 22}", tool_call_id="abcdefghi", name="get_weather"), dict(role="assistant", content="22"), dict(role="user", content="Thanks")],
     [dict(type="function", function=dict(name="get_weather", description="The \"weather\" <now>", parameters=dict(type="object", properties=dict(city=dict(type="string"), days=dict()), required=["city"])))]),
]


def templates():
    out = []
    for name, template in TEMPLATES.items():
        cases = []
        for turns, tools in CONVERSATIONS:
            try:
                text = render_jinja_template([turns], tools=tools, chat_template=template, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
                text = text[0][0] if isinstance(text, tuple) else text[0]
            except Exception as error:
                if "must alternate" not in str(error) and "roles!" not in str(error):
                    raise
                text = None
            cases.append(dict(messages=turns, tools=tools, text=text))
        out.append(dict(name=name, template=template, cases=cases))
    return out


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=20231211)
    a = a.parse_args()
    warnings.simplefilter("ignore")
    rng = random.Random(a.seed)
    os.makedirs(a.out, exist_ok=True)
    for name, data in (("instruct", instruct(rng)), ("byte-level", byte_level(rng)), ("control", control(rng)), ("templates", templates())):
        with open(os.path.join(a.out, name + ".json"), "w") as file:
            json.dump(data, file, ensure_ascii=True, separators=(",", ":"))
        print(name, os.path.getsize(file.name))


if __name__ == "__main__":
    main()
