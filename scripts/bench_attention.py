"""Received attention of a corpus with transformers and with cluescope, one after the other on the same machine.

    python scripts/bench_attention.py MODEL.gguf CORPUS.csv [--threads N] [--rounds N] [--cluescope PROGRAM]

The Python side works as the published script does: eager attention, `output_attentions=True`, one text at a time, f32, the reduction of
the maps included. The other side is `cluescope attend` with an empty cache. Tokens are the texts' own, without padding; loading is stated apart;
memory is each process's largest resident set. Needs transformers, torch and gguf.
"""

import argparse
import csv
import json
import os
import re
import resource
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


def python_side(model_path, corpus, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    where = dict(gguf_file=model_path.name)
    tokenizer = AutoTokenizer.from_pretrained(model_path.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(model_path.parent, attn_implementation="eager", dtype=torch.float32, **where).eval()
    loaded = time.perf_counter()
    tokens = 0
    for text in texts(corpus):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        length = ids.shape[1]
        maps = model(ids, output_attentions=True, use_cache=False).attentions
        mean = torch.stack([a[0].mean(0) for a in maps]).mean(0)
        (mean.sum(0) / (length - torch.arange(length))).tolist()
        tokens += length
    return dict(tokens=tokens, seconds=time.perf_counter() - loaded, load=loaded - start, peak=peak(resource.RUSAGE_SELF))


def cluescope_side(program, model_path, corpus, threads):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "attention.jsonl"
        command = [program, "attend", "--model", model_path, "--corpus", corpus, "--out", out, "--threads", str(threads)]
        start = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, CLUESCOPE_CACHE=""))
        whole = time.perf_counter() - start
        if run.returncode:
            sys.exit(run.stderr)
        # The last line of progress: "…: 9000/9000 tokens, 8.2 s, 1100.0/s".
        seconds = float(re.findall(r" tokens, ([\d.]+) s", run.stderr)[-1])
        tokens = sum(len(json.loads(line)["ids"]) for line in out.read_text().splitlines())
    return dict(tokens=tokens, seconds=seconds, load=whole - seconds, peak=peak(resource.RUSAGE_CHILDREN))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cluescope", default="target/release/cluescope")
    parser.add_argument("--side", choices=["python", "cluescope"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "python":
        print(json.dumps(python_side(options.model, options.corpus, options.threads)))
        return
    if options.side == "cluescope":
        print(json.dumps(cluescope_side(options.cluescope, options.model, options.corpus, options.threads)))
        return
    print(f"{options.model.name}, {options.threads} threads\n")
    print("| round | what | tokens | load, s | work, s | tokens/s | peak memory |\n|---|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        rates = {}
        # A process each, so that neither's memory counts for the other.
        for side, name in [("python", "transformers, eager"), ("cluescope", "cluescope attend")]:
            run = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr)
            found = json.loads(run.stdout.splitlines()[-1])
            rates[side] = found["tokens"] / found["seconds"]
            print(
                f"| {number} | {name} | {found['tokens']} | {found['load']:.1f} | {found['seconds']:.1f} "
                f"| {rates[side]:.0f} | {found['peak']:.2f} GB |",
                flush=True,
            )
        print(f"| {number} | ratio | | | | {rates['cluescope'] / rates['python']:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
