"""Octet and its peers as things that can be measured: one test, in a process of its own, a call.

A peer is named by the path of its llama-bench; llama-batched-bench and llama-completion (or llama-cli) are looked for beside
it. What a program cannot do is None, never a guess.
"""
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OCTET = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target"), "release", "octet")
TIMEOUT_S = 7200
# What llama-bench calls otherwise than its siblings: option and value to words.
SIBLING_OPTIONS = {
    ("-rtr", "1"): ["-rtr"],
    ("-rtr", "0"): [],
    ("--repack", "0"): ["--no-repack"],
    ("--repack", "1"): [],
    ("-mmp", "0"): ["--no-mmap"],
    ("-mmp", "1"): [],
}


class Refused(Exception):
    """A program failed; the message names it, its command and its last words."""


def run(command, prefix=(), timed=False, errors_too=False):
    """Standard output of a command, with `errors_too` followed by its standard error; with `timed` what bench/timed measured of it."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        inner = [os.path.join(ROOT, "bench", "timed"), report.name, *command] if timed else list(command)
        whole = [*prefix, *map(str, inner)]
        try:
            done = subprocess.run(whole, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Refused(f"longer than {TIMEOUT_S} s: {shlex.join(whole)}") from None
        if done.returncode != 0:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise Refused(f"failed with {done.returncode}: {last}\n  {shlex.join(whole)}")
        printed = done.stdout + done.stderr if errors_too else done.stdout
        return json.load(report) if timed else printed.decode(errors="replace")


class Octet:
    """Our own program. Besides speeds, `last` keeps the whole JSON row of the last test: it has the machine's limits."""

    def __init__(self, path, prefix=()):
        self.name, self.path, self.prefix, self.last = "octet", path, prefix, None

    def _bench(self, model, *options):
        text = run([self.path, "bench", model, *map(str, options), "-r", "1", "--json"], self.prefix)
        rows = json.loads(text)
        if len(rows) != 1:
            raise Refused(f"octet printed {len(rows)} rows for one test")
        self.last = rows[0]
        return rows[0]

    def single(self, model, n_prompt=0, n_gen=0, depth=0, threads=1, kv="f16", warmup=True):
        """Tokens per second."""
        options = ["-p", n_prompt, "-n", n_gen, "-d", depth, "-t", threads, "-ctk", kv]
        return self._bench(model, *options, *([] if warmup else ["--no-warmup"]))["avg_ts"]

    def batched(self, model, pp, tg, pl, threads):
        """Tokens per second that all sequences generate together."""
        return self._bench(model, "-npp", pp, "-ntg", tg, "-npl", pl, "-t", threads)["speed_tg"]

    def _one_answer(self, model, n_tokens, threads):
        command = [self.path, "generate", model, "a", "--max-tokens", n_tokens, "--temperature", "0", "-t", threads]
        return run([*command, "--logit-bias", "2=-inf"], self.prefix, timed=True)

    def opening(self, model, threads):
        """Seconds from the start of the process to the end after one token."""
        return self._one_answer(model, 1, threads)["seconds"]

    def memory(self, model, n_tokens, threads):
        """Peak of resident bytes."""
        return self._one_answer(model, n_tokens, threads)["peak_bytes"]


class Peer:
    """A program of the llama.cpp family, with options of its own."""

    def __init__(self, name, path, options=(), prefix=()):
        self.name, self.path, self.options, self.prefix = name, path, list(options), prefix
        self.help = self._help_of(path)

    @staticmethod
    def _help_of(path):
        done = subprocess.run([path, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stdout + done.stderr

    def _sibling(self, *names):
        """Path and options of the first program of these names that is there."""
        for name in names:
            path = os.path.join(os.path.dirname(os.path.abspath(self.path)), name)
            if os.access(path, os.X_OK):
                pairs = list(zip(self.options[::2], self.options[1::2]))
                return path, [word for pair in pairs for word in SIBLING_OPTIONS.get(pair, pair)]
        return None, []

    def single(self, model, n_prompt=0, n_gen=0, depth=0, threads=1, kv="f16", warmup=True):
        """Tokens per second; None where this llama-bench has no such test."""
        options = ["-m", model, "-t", threads, "-r", 1, "-o", "json", "-ctk", kv, "-ctv", kv]
        if depth and "--n-depth" not in self.help:
            if n_prompt or "-gp" not in self.help:
                return None
            options += ["-p", 0, "-n", 0, "-gp", f"{depth},{n_gen}"]
            # ik_llama.cpp's first tokens behind the prompt are three times as slow without.
            warmup = True
        else:
            options += ["-p", n_prompt, "-n", n_gen, *(["-d", depth] if depth else [])]
        if not warmup:
            options += ["--no-warmup"] if "--no-warmup" in self.help else ["-w", 0]
        if kv != "f16" and "-fa" not in self.options:
            options += ["-fa", 1]
        rows = json.loads(run([self.path, *map(str, options), *self.options], self.prefix))
        if len(rows) != 1:
            raise Refused(f"{self.name} printed {len(rows)} rows for one test")
        return rows[0]["avg_ts"]

    def batched(self, model, pp, tg, pl, threads):
        """Tokens per second that all sequences generate together; None without llama-batched-bench.

        ik_llama.cpp's prints to standard error, and gives all sequences the same token, so that all choose the same experts and
        few weights are read: beside ours and llama.cpp's, which draw tokens, its rows of a mixture count only if it does so too.
        """
        path, options = self._sibling("llama-batched-bench")
        if path is None:
            return None
        context = max(512, pl * (pp + tg))
        command = [path, "-m", model, "-t", threads, "-c", context, "-npp", pp, "-ntg", tg, "-npl", pl, "-b", 2048, "-ub", 512]
        for line in reversed(run([*map(str, command), *options], self.prefix, errors_too=True).splitlines()):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) == 10 and cells[:3] == [str(pp), str(tg), str(pl)]:
                return float(cells[7])
        raise Refused(f"{self.name} printed no row for {pl} sequences: {shlex.join(map(str, command))}")

    def _one_answer(self, model, n_tokens, threads):
        path, options = self._sibling("llama-completion", "llama-cli")
        if path is None:
            return None
        command = [path, "-m", model, "-t", threads, "-p", "a", "-n", n_tokens, "-c", 512, "--temp", 0, "--ignore-eos", "--no-warmup"]
        command += ["-no-cnv"] if "-no-cnv" in self._help_of(path) else []
        return run([*map(str, command), *options], self.prefix, timed=True)

    def opening(self, model, threads):
        """Seconds from the start of the process to its end after one token; None without llama-completion."""
        answer = self._one_answer(model, 1, threads)
        return answer and answer["seconds"]

    def memory(self, model, n_tokens, threads):
        """Peak of resident bytes, mapped pages included; None without llama-completion."""
        answer = self._one_answer(model, n_tokens, threads)
        return answer and answer["peak_bytes"]


def peer(text, prefix=()):
    """The peer of NAME=PATH [OPTION VALUE]...; ValueError with a message if there is none."""
    name, equals, command = text.partition("=")
    words = shlex.split(command)
    if not equals or not words:
        raise ValueError(f"--peer {text}: write NAME=PATH, as in llama.cpp=build/bin/llama-bench")
    if not os.access(words[0], os.X_OK):
        raise ValueError(f"--peer {text}: {words[0]} is no program; name the llama-bench that you built")
    return Peer(name, words[0], words[1:], prefix)


def octet(path, prefix=()):
    """Our program; ValueError with a message if it is not built."""
    if not os.access(path, os.X_OK):
        raise ValueError(f"{path} is no program: run `cargo build --release` first, or name one with --octet")
    return Octet(path, prefix)


def build_llama_cpp(folder, cmake_options=()):
    """llama-bench and its siblings out of the source package that pip would build, with the same CMake.

    `cmake_options` as -DGGML_AVX512=OFF come last, for machines whose compiler or instructions need them.
    """
    folder = os.path.abspath(folder)
    binary = os.path.join(folder, "build", "bin", "llama-bench")
    if os.path.exists(binary):
        return binary
    os.makedirs(folder, exist_ok=True)
    tools = os.path.join(folder, "venv")
    venv.create(tools, with_pip=True)
    python = os.path.join(tools, "bin", "python")

    def step(*command):
        print("  " + shlex.join(command), file=sys.stderr)
        if subprocess.run(command, cwd=folder, stdout=sys.stderr).returncode != 0:
            raise ValueError(f"could not build llama.cpp: {shlex.join(command)}")

    # The package's build backend is installed beforehand: in pip's isolation even to look at the package would build one.
    step(python, "-m", "pip", "install", "--quiet", "scikit-build-core", "cmake", "ninja")
    step(python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "llama-cpp-python")
    archive = next(f for f in sorted(os.listdir(folder)) if f.startswith("llama_cpp_python") and f.endswith(".tar.gz"))
    with tarfile.open(os.path.join(folder, archive)) as tar:
        tar.extractall(folder, filter="data")
    source = os.path.join(folder, archive.removesuffix(".tar.gz"), "vendor", "llama.cpp")
    cmake = os.path.join(tools, "bin", "cmake")
    step(cmake, "-S", source, "-B", "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={os.path.join(tools, 'bin', 'ninja')}",
         "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF",
         "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_UI=OFF", *cmake_options)
    step(cmake, "--build", "build", "--target", "llama-bench", "llama-batched-bench", "llama-completion")
    return binary
