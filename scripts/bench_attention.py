"""Received attention of a corpus with transformers and with cluescope, by turns on the same machine.

    python scripts/bench_attention.py MODEL.gguf CORPUS.csv [--threads N] [--rounds N] [--long TOKENS] [--dtype TYPE…] [--cluescope PROGRAM]

The Python side works as the published script does: eager attention, `output_attentions=True`, one text at a time, f32, the reduction of
the maps included. The other side is `cluescope attend` without a cache. Both read the same token ids (those cluescope's tokeniser made) and
the same number of them; neither tokenising nor loading counts as work. A side's rounds are processes of their own; memory is
a process's largest resident set, once when the model is loaded (for cluescope: measuring a text of one word) and once at the end.
Rates are medians over the rounds. `--dtype f32 bf16x3` measures cluescope in both types, f32 when left out. `--long` adds one text of that many tokens, for cluescope alone. Needs transformers, torch and gguf.
"""

import argparse
import csv
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak(who):
    # KiB on Linux, bytes on macOS.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def texts(corpus):
    with open(corpus, newline="", encoding="utf-8") as file:
        return [re.sub(r"</?\w+>", "", row["text"]) for row in csv.DictReader(file)]


def python_side(options, folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        options.model.parent, gguf_file=options.model.name, attn_implementation="eager", dtype=torch.float32
    ).eval()
    load, load_peak = time.perf_counter() - start, peak(resource.RUSAGE_SELF)
    texts = json.loads((folder / "ids.json").read_text())
    start = time.perf_counter()
    for ids in texts:
        length = len(ids)
        maps = model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
        mean = torch.stack([a[0].mean(0) for a in maps]).mean(0)
        (mean.sum(0) / (length - torch.arange(length))).tolist()
    seconds = time.perf_counter() - start
    return dict(tokens=sum(map(len, texts)), seconds=seconds, load=load, load_peak=load_peak, peak=peak(resource.RUSAGE_SELF))


def cluescope_side(options, folder):
    out = folder / "attention.jsonl"
    command = [options.cluescope, "attend", "--model", options.model, "--corpus", options.corpus, "--out", out]
    start = time.perf_counter()
    run = subprocess.run(
        [*command, "--threads", str(options.threads), "--dtype", *options.dtype], capture_output=True, text=True, env=dict(os.environ, CLUESCOPE_CACHE="")
    )
    whole = time.perf_counter() - start
    if run.returncode:
        sys.exit(run.stderr)
    # The last line of progress: "…: 9000/9000 tokens (8.2 s, 1100.0/s)".
    seconds = float(re.findall(r" tokens \(([\d.]+) s", run.stderr)[-1])
    ids = [json.loads(line)["ids"] for line in out.read_text(encoding="utf-8").splitlines()]
    out.unlink()
    (folder / "ids.json").write_text(json.dumps(ids))
    return dict(tokens=sum(map(len, ids)), seconds=seconds, load=whole - seconds, peak=peak(resource.RUSAGE_CHILDREN))


def side(options, name, corpus, folder, dtype="f32"):
    """One measurement in a process of its own, so that neither's memory counts for the other."""
    command = [sys.executable, __file__, options.model, corpus, "--threads", str(options.threads)]
    command += ["--cluescope", options.cluescope, "--side", name, "--folder", folder, "--dtype", dtype]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int)
    parser.add_argument("--dtype", nargs="+", default=["f32"])
    parser.add_argument("--cluescope", default="target/release/cluescope")
    parser.add_argument("--side", choices=["python", "cluescope"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work = python_side if options.side == "python" else cluescope_side
        print(json.dumps(work(options, options.folder)))
        return
    # cluescope first: its ids are what the other reads.
    sides = [("cluescope", dtype, f"cluescope attend, {dtype}") for dtype in options.dtype]
    sides.append(("python", "f32", "transformers, eager"))
    print(f"{options.model.name}, {options.threads} threads\n")
    print("| round | what | tokens | load, s | work, s | tokens/s | peak loaded | peak |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        one_word = folder / "word.jsonl"
        one_word.write_text('{"text": "word"}\n')
        loaded = side(options, "cluescope", one_word, folder)["peak"]
        runs = {shown: [] for *_, shown in sides}
        for number in range(1, options.rounds + 1):
            for name, dtype, shown in sides:
                found = side(options, name, options.corpus, folder, dtype)
                found.setdefault("load_peak", loaded)
                found["rate"] = found["tokens"] / found["seconds"]
                runs[shown].append(found)
                print(
                    f"| {number} | {shown} | {found['tokens']} | {found['load']:.1f} | {found['seconds']:.1f} | {found['rate']:.0f} "
                    f"| {found['load_peak']:.2f} GB | {found['peak']:.2f} GB |",
                    flush=True,
                )
        assert len({found["tokens"] for found in sum(runs.values(), [])}) == 1
        median = lambda shown, key: statistics.median(found[key] for found in runs[shown])
        print()
        *own, (*_, python) = sides
        for *_, shown in own:
            ratio = {key: median(shown, key) / median(python, key) for key in ("rate", "peak")}
            print(
                f"{shown}, medians: {median(shown, 'rate'):.0f} against {median(python, 'rate'):.0f} tokens/s, {ratio['rate']:.2f} times; "
                f"peak {median(shown, 'peak'):.2f} against {median(python, 'peak'):.2f} GB, {ratio['peak']:.2f} of it."
            )
        if options.long:
            parts, tokens = [], 0
            for text, ids in zip(texts(options.corpus), json.loads((folder / "ids.json").read_text())):
                if tokens >= options.long:
                    break
                parts, tokens = [*parts, text], tokens + len(ids)
            corpus = folder / "long.jsonl"
            corpus.write_text(json.dumps(dict(text=" ".join(parts))) + "\n")
            found = side(options, "cluescope", corpus, folder)
            print(
                f"One text of {found['tokens']} tokens: {found['tokens'] / found['seconds']:.0f} tokens/s, "
                f"peak {found['peak']:.2f} GB, {1000 * (found['peak'] - loaded):.0f} MB above the loaded model."
            )


if __name__ == "__main__":
    main()
