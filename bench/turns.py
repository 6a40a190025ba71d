"""Programs taking turns, and what their samples say: medians, spreads, ratios within a turn."""
import argparse
import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys

import programs

RESULTS = os.path.join(programs.ROOT, "bench", "RESULTS.md")


def fail(message):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {message}")


def parser(description):
    """The options that every comparison has."""
    a = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--octet", default=programs.OCTET, metavar="PATH", help="our program; default: the release build")
    a.add_argument("--peer", action="append", default=[], metavar="NAME=PATH [OPTION VALUE...]", help="a llama-bench")
    a.add_argument("--build-llama-cpp", metavar="DIR", help="build that peer in DIR from the llama-cpp-python source package")
    a.add_argument("--cmake", default="", metavar="OPTIONS", help="more options for its CMake, as -DGGML_NATIVE=OFF")
    a.add_argument("--under", default="", metavar="COMMAND", help="run every test under this command, as 'taskset -c 0,1'")
    a.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    a.add_argument("-r", "--rounds", type=int, default=3, help="turns of each program (default 3)")
    a.add_argument("--record", action="store_true", help="append the table to bench/RESULTS.md")
    a.add_argument("--note", default="", help="a sentence to record with it")
    return a


def contenders(options):
    """Octet first, then its peers."""
    under = shlex.split(options.under)
    try:
        found = [programs.octet(options.octet, under)]
        if options.build_llama_cpp:
            path = programs.build_llama_cpp(options.build_llama_cpp, shlex.split(options.cmake))
            found.append(programs.Peer("llama.cpp", path, (), under))
        return found + [programs.peer(text, under) for text in options.peer]
    except ValueError as error:
        fail(error)


def into_page_cache(path):
    """Reads a file once, so that nobody pays for the disk."""
    with open(path, "rb") as f:
        while f.read(1 << 24):
            pass


def turns(contenders, measure, rounds, told):
    """Samples of each program, one a round; None for one that has no such test.

    `measure(program)` gives a figure, or None. A program that fails is told of once and then has no sample either.
    """
    samples = {program.name: [] for program in contenders}
    for turn in range(rounds):
        for program in contenders:
            if samples[program.name] is None:
                continue
            try:
                figure = measure(program)
            except programs.Refused as error:
                if program is contenders[0]:
                    fail(f"{program.name}: {error}")
                print(f"  {told}: {program.name} {error}", file=sys.stderr, flush=True)
                figure = None
            if figure is None:
                samples[program.name] = None
                continue
            samples[program.name].append(figure)
            print(f"  round {turn + 1}/{rounds}  {told:32} {program.name:16} {three_digits(figure)}", file=sys.stderr, flush=True)
    return samples


def spread(samples):
    """Half the distance from lowest to highest, in percent of the median."""
    return 50 * (max(samples) - min(samples)) / statistics.median(samples)


def ratio(ours, theirs):
    """The median over the rounds of ours / theirs."""
    return statistics.median(o / t for o, t in zip(ours, theirs))


def cell(samples):
    return "–" if samples is None else f"{three_digits(statistics.median(samples))} ±{spread(samples):.0f}%"


def three_digits(value):
    """0.0123, 87.8, 340, 1235: three significant digits, never in exponents."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    digits = 2
    while abs(value) < 10 ** (2 - digits):
        digits += 1
    return f"{value:.{digits if abs(value) < 10 else 1}f}"


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=programs.ROOT)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def machine():
    try:
        with open("/proc/cpuinfo") as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.processor())
    except OSError:
        name = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {memory:.3g} GiB"


def record(title, command, contenders, note, text):
    """Appends a table to bench/RESULTS.md with all that is needed to repeat it."""
    commit = first_line("git", "describe", "--always", "--dirty")
    peers = [f"{p.name} `{' '.join([os.path.basename(p.path), *p.options])}`" for p in contenders[1:]]
    beside = f" Peers: {'; '.join(peers)}." if peers else ""
    head = f"## {datetime.date.today()}, {title}\n\nCommit {commit}. {machine()}. `{command}`.{beside}{' ' + note if note else ''}"
    with open(RESULTS, "a") as f:
        f.write(f"\n{head}\n\n{text}\n")
