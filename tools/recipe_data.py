#!/usr/bin/env python3
"""Real text in five languages and code, for tools/recipe: tools/recipe_data.py OUT [--tokens-per-language N]

Fetches Debian's manuals with apt-get download and unpacks them with dpkg-deb; takes code out of this Python's own library.
Writes JSONL into OUT:

  text-train.jsonl          {"text"}: continued pretraining, languages mixed
  text-eval-LANG.jsonl      {"text"}: held-out pages, for perplexity by language (en, fr, de, it, es, code)
  router-LANG.txt           training pages of each language, for routers to begin with
  sft-train.jsonl, sft-eval.jsonl    {"messages"}: what a command does, asked and answered in its language
  dpo-train.jsonl, dpo-eval.jsonl    {"prompt", "chosen", "rejected"}: the right answer against another command's
  questions.txt             a held-out question of each language

A page is held out, in all languages, by the hash of its name, so nothing of what is asked at the end was seen before.
"""
import argparse, glob, gzip, hashlib, json, os, random, re, subprocess, sys, sysconfig

ENGLISH = ["coreutils", "util-linux", "findutils", "grep", "sed", "tar", "procps", "manpages"]
PACKAGES = {"en": ENGLISH, "fr": ["manpages-fr"], "de": ["manpages-de"], "it": ["manpages-it"], "es": ["manpages-es"]}
ROUTER_CHARACTERS = 60_000
QUESTIONS = {
    "en": "What does the command {} do?", "fr": "Que fait la commande {} ?", "de": "Was macht der Befehl {}?",
    "it": "Che cosa fa il comando {}?", "es": "¿Qué hace la orden {}?",
}
ANSWERS = {
    "en": "{}: {}.", "fr": "{} : {}.", "de": "{}: {}.", "it": "{}: {}.", "es": "{}: {}.",
}
ESCAPES = {"\\-": "-", "\\&": "", "\\(aq": "'", "\\(dq": '"', "\\(bu": "*", "\\(em": "-", "\\(en": "-", "\\e": "\\",
           "\\(ga": "`", "\\(ha": "^", "\\(ti": "~", "\\(co": "(c)", "\\(rs": "\\", "\\~": " ", "\\ ": " ", "\\|": "",
           "\\^": "", "\\%": "", "\\:": "", "\\/": "", "\\,": "", "\\0": " ", "\\(Fo": "«", "\\(Fc": "»", "\\(lq": '"',
           "\\(rq": '"', "\\(oq": "'", "\\(cq": "'"}


def unpack(folder, packages):
    """The files of Debian packages below a folder of their own, fetched once."""
    done = os.path.join(folder, "complete")
    if not os.path.exists(done):
        os.makedirs(folder, exist_ok=True)
        fetch = subprocess.run(["apt-get", "download", "-q", *packages], cwd=folder, capture_output=True, text=True)
        if fetch.returncode:
            sys.exit(f"recipe_data: apt-get download {' '.join(packages)} failed: {fetch.stderr.strip().splitlines()[-1:]}; "
                     "the recipe needs Debian (or Ubuntu), and `apt-get update` to have run")
        for package in glob.glob(os.path.join(folder, "*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            os.remove(package)
        open(done, "w").close()


def plain(roff):
    """A manual page as text: macros become line breaks or nothing, escapes the characters they stand for."""
    lines = []
    for line in roff.splitlines():
        if line.startswith((".\\\"", "'\\\"", ".TH", ".Dd", ".ds", ".de", ".if", ".ie", ".el", ".nr", "..", ".so")):
            continue
        if line.startswith((".SH", ".Sh")):
            lines += ["", line[3:].strip().strip('"'), ""]
        elif line.startswith((".SS", ".Ss")):
            lines += ["", line[3:].strip().strip('"')]
        elif line.startswith((".PP", ".P", ".LP", ".TP", ".IP", ".HP", ".sp", ".Pp", ".It", ".TQ")):
            lines.append("")
            rest = re.sub(r'^\.\w+\s*', "", line)
            if line.startswith(".IP") and rest:
                lines.append(rest.split('"')[1] if rest.startswith('"') else rest.split()[0])
        elif line.startswith((".", "'")):
            words = re.sub(r"^[.']\s*\w+\s*", "", line)
            joined = line[1:3] in ("BR", "IR", "RB", "RI", "BI", "IB")
            parts = [a or b for a, b in re.findall(r'"((?:[^"]|"")*)"|(\S+)', words)]
            if parts and line[1:3].strip().isalpha() and line[1] in "BIRS":
                lines.append(("" if joined else " ").join(parts))
        else:
            lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d+|\\m\[\w*\]", "", text)
    text = re.sub(r"\\\[u([0-9A-Fa-f]{4,5})\]", lambda m: chr(int(m[1], 16)), text)
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    text = re.sub(r"\\\*?(\[[^\]]*\]|\(..)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def pages(folder, language):
    """(name, text) of each manual page."""
    inner = "" if language == "en" else language + "/"
    for path in sorted(glob.glob(f"{folder}/usr/share/man/{inner}man[1-8]/*")):
        if os.path.islink(path):
            continue
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", errors="ignore") as file:
            text = plain(file.read())
        if len(text) > 400:
            yield os.path.basename(path).removesuffix(".gz"), text


def code():
    """(name, text) of files of Python's library."""
    for path in sorted(glob.glob(os.path.join(sysconfig.get_paths()["stdlib"], "*.py"))):
        with open(path, encoding="utf-8", errors="ignore") as file:
            text = file.read()
        if len(text) > 400:
            yield os.path.basename(path), text


def is_held_out(name):
    return hashlib.sha256(name.encode()).digest()[0] % 8 == 0


def description(text):
    """Name and one line of the first section: `ls - list directory contents`."""
    for line in text.split("\n\n")[1:3]:
        match = re.fullmatch(r"([\w.+-]+)\s+-+\s+(.{10,160}?)\.?", " ".join(line.split()))
        if match:
            return match[1], match[2]
    return None


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


def questions(described, held_out, rng):
    """Conversations and preference pairs about described commands."""
    chats, pairs = [], []
    for language, commands in described.items():
        names = [name for name in sorted(commands) if is_held_out(commands[name][1]) == held_out]
        for name in names:
            ask = QUESTIONS[language].format(name)
            answer = ANSWERS[language].format(name, commands[name][0])
            other = rng.choice([n for n in names if commands[n][0] != commands[name][0]])
            wrong = ANSWERS[language].format(name, commands[other][0])
            chats.append({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]})
            pairs.append({"prompt": ask, "chosen": answer, "rejected": wrong})
    rng.shuffle(chats), rng.shuffle(pairs)
    return chats, pairs


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--characters", type=int, default=1_200_000, help="training text of each language at most")
    p.add_argument("--eval-characters", type=int, default=40_000, help="held-out text of each language at most")
    p.add_argument("--questions", type=int, default=2000, help="conversations and pairs for training at most")
    p.add_argument("--eval-questions", type=int, default=120, help="held-out conversations and pairs at most")
    p.add_argument("--page-characters", type=int, default=6000, help="of a page at most, so that there are many pages")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    rng, described, train = random.Random(1), {}, []
    sources = {}
    for language, packages in PACKAGES.items():
        folder = os.path.join(a.out, "debian", language)
        unpack(folder, packages)
        sources[language] = list(pages(folder, language))
        found = {d[0]: (d[1], name) for name, text in sources[language] if (d := description(text))}
        described[language] = found
    sources["code"] = list(code())
    for language, texts in sources.items():
        rng.shuffle(texts)
        for held_out, limit in ((False, a.characters), (True, a.eval_characters)):
            taken, size = [], 0
            # Of the little that is held out there should be many pages rather than long ones.
            longest = limit // 8 if held_out else a.page_characters
            for name, text in texts:
                if is_held_out(name) == held_out and size < limit:
                    taken.append({"text": text[: min(longest, limit - size)]})
                    size += len(taken[-1]["text"])
            if held_out:
                write(os.path.join(a.out, f"text-eval-{language}.jsonl"), taken)
            else:
                train += taken
                with open(os.path.join(a.out, f"router-{language}.txt"), "w", encoding="utf-8") as file:
                    file.write("\n".join(row["text"] for row in taken)[:ROUTER_CHARACTERS])
    rng.shuffle(train)
    write(os.path.join(a.out, "text-train.jsonl"), train)
    for held_out, name, limit in ((False, "train", a.questions), (True, "eval", a.eval_questions)):
        chats, pairs = questions(described, held_out, rng)
        write(os.path.join(a.out, f"sft-{name}.jsonl"), chats[:limit])
        write(os.path.join(a.out, f"dpo-{name}.jsonl"), pairs[:limit])
    asked = [chat["messages"][0]["content"] for chat in chats[:limit]]
    with open(os.path.join(a.out, "questions.txt"), "w", encoding="utf-8") as file:
        for question in QUESTIONS.values():
            first = question.split("{}")[0]
            file.writelines(ask + "\n" for ask in [ask for ask in asked if ask.startswith(first)][:1])


main()
