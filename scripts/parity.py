"""Attention of real models beside transformers, on the same dequantised weights and the same token ids.

    python scripts/parity.py CORPUS.csv MODEL.gguf... [--cluescope PROGRAM] [--threads N] [--texts N] [--dtype TYPE]

`cluescope attend` measures the corpus with every head kept apart and the probes of all its fields. transformers dequantises the same file
(`from_pretrained(folder, gguf_file=...)`), reads the ids that cluescope wrote, and runs in f32 with eager attention; received
attention and probe rows are made from its maps in f64. The table shows the largest absolute difference of any number of any text.
The exit code is 1 when one of the means differs by more than 1e-4. Needs transformers, torch and gguf.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def read(corpus):
    with open(corpus, newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def measure(program, model, corpus, fields, threads, dtype, folder):
    out = Path(folder) / "attention.jsonl"
    command = [program, "attend", "--model", model, "--corpus", corpus, "--out", out, "--per", "head", "--threads", str(threads)]
    command += ["--dtype", dtype]
    run = subprocess.run(command + ["--probe", *fields], capture_output=True, text=True, env=dict(os.environ, CLUESCOPE_CACHE=""))
    if run.returncode:
        sys.exit(run.stderr)
    with open(out, encoding="utf-8") as lines:
        yield from map(json.loads, lines)
    out.unlink()


def difference(found, want):
    return (torch.tensor(found, dtype=torch.float64) - want).abs().max().item()


def compare(model, line, worst):
    ids = torch.tensor([line["ids"]])
    # layer × head, query, key
    maps = torch.cat([a[0] for a in model(ids, output_attentions=True, use_cache=False).attentions]).double()
    queries = ids.shape[1] - torch.arange(ids.shape[1])
    received = maps.sum(1) / queries
    found = dict(received=difference(line["received"], received.mean(0)), by_head=difference(line["received_by"], received))
    for probe in line["probe"].values():
        row = maps[:, probe["position"], : probe["position"] + 1]
        found["probe"] = max(found.get("probe", 0), difference(probe["weights"], row.mean(0)))
        found["by_head"] = max(found["by_head"], difference(probe["weights_by"], row))
    for name, value in found.items():
        worst[name] = max(worst.get(name, 0), value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--cluescope", default="target/release/cluescope")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="f32", help="of cluescope; transformers computes in f32")
    parser.add_argument("--texts", type=int, help="the first N only")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    fields = sorted({field for text in read(options.corpus) for field in re.findall(r"<(\w+)>", text)})
    print("| model | texts | tokens | probes | received | probe rows | any one head |\n|---|---|---|---|---|---|---|", flush=True)
    good = True
    for path in options.models:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
        ).eval()
        worst, texts, tokens, probes = {}, 0, 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(options.cluescope, path, options.corpus, fields, options.threads, options.dtype, folder):
                if options.texts is not None and texts == options.texts:
                    break
                compare(model, line, worst)
                texts, tokens, probes = texts + 1, tokens + len(line["ids"]), probes + len(line["probe"])
        del model
        good &= texts > 0 and max(worst["received"], worst.get("probe", 0)) <= TOLERANCE
        shown = [f"{worst.get(name, 0):.1e}" for name in ("received", "probe", "by_head")]
        print(f"| {path.name} | {texts} | {tokens} | {probes} | {' | '.join(shown)} |", flush=True)
    sys.exit(not good)


if __name__ == "__main__":
    main()
