"""Greedy answers and their speed: `cluescope quiz` beside transformers on the same machine.

    python scripts/compare_generation.py MODEL.gguf [--questions 50] [--threads N] [--cluescope PROGRAM] [--out FILE.json]

Both sides answer the same few-shot questions about generated people with at most 10 new tokens and stop at a line end. The Python side is
`generate` in f32 on batches of 8, left-padded with an attention mask, and stops as soon as all of a batch have ended. The time of both is that
of all answers, without loading. Both read the token ids that cluescope makes of the prompts (`cluescope attend` writes them): the tokenizer that transformers
makes of a GGUF file may put a start token where the model's own has none. Where two answers differ, the first differing token is looked up and the gap
between the two largest logits printed: a gap below 1e-3 is rounding, more would be a fault. Needs transformers, torch and gguf.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

BATCH = 8
NEW_TOKENS = 10
MARGIN = 1e-3


def cluescope_side(program, model, questions, threads):
    with tempfile.TemporaryDirectory() as folder:
        people, answers = Path(folder) / "people.jsonl", Path(folder) / "answers.jsonl"
        subprocess.run([program, "biographies", str(-(-questions // 5)), "--seed", "1", "--out", people], check=True, capture_output=True)
        command = [program, "quiz", "--model", model, "--corpus", people, "--distractors", "0", "--threads", str(threads), "--out", answers]
        run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, CLUESCOPE_CACHE=""))
        if run.returncode:
            raise SystemExit(f"cluescope failed:\n{run.stderr}")
        seconds = float(re.search(r"answered in ([0-9.]+) s", run.stdout).group(1))
        rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        return [(row["prompt"], row["prediction"]) for row in rows if "prompt" in row], seconds


def token_ids(program, model, prompts):
    with tempfile.TemporaryDirectory() as folder:
        texts, out = Path(folder) / "prompts.jsonl", Path(folder) / "attention.jsonl"
        texts.write_text("".join(json.dumps(dict(text=prompt)) + "\n" for prompt in prompts), encoding="utf-8")
        command = [program, "attend", "--model", model, "--corpus", texts, "--out", out]
        subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, CLUESCOPE_CACHE=""))
        rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        return [row["ids"] for row in rows if "ids" in row]


def first_line(text):
    return text.split("\n")[0].strip()


def python_side(path, prompts, prompt_ids, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    where = dict(gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where).eval()
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    ends = [i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])]
    ends += [i for i in (tokenizer.eos_token_id, model.generation_config.eos_token_id) if isinstance(i, int)]
    answers = []
    start = time.perf_counter()
    for at in range(0, len(prompts), BATCH):
        rows = prompt_ids[at : at + BATCH]
        longest = max(map(len, rows))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends,
            pad_token_id=pad,
            repetition_penalty=1.0,
        )
        new = made[:, longest:]
        answers += [first_line(tokenizer.decode(row, skip_special_tokens=True)) for row in new]
    seconds = time.perf_counter() - start

    def gap(number, ours):
        """Top-two logit gap where `ours` leaves transformers' own greedy path, read without padding."""
        ids = torch.tensor([prompt_ids[number]])
        whole = tokenizer(prompts[number] + " " + ours + "\n", add_special_tokens=False)["input_ids"]
        assert whole[: ids.shape[1]] == prompt_ids[number], "the answer's tokens change the prompt's"
        for token in whole[ids.shape[1] :]:
            top = model(ids).logits[0, -1].topk(2)
            if top.indices[0].item() != token:
                return (top.values[0] - top.values[1]).item()
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        return None

    return answers, seconds, gap


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cluescope", default="target/release/cluescope")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ours, our_seconds = cluescope_side(args.cluescope, args.model, args.questions, args.threads)
    prompts = [prompt for prompt, _ in ours]
    prompt_ids = token_ids(args.cluescope, args.model, prompts)
    theirs, their_seconds, gap = python_side(args.model, prompts, prompt_ids, args.threads)
    differing = []
    for number, ((prompt, our), their) in enumerate(zip(ours, theirs)):
        if our != their:
            question = prompt.rsplit("\n\n", 1)[-1].split("\n")[0]
            # Batched and padded, transformers may leave its own unpadded path: then ours has no gap to show.
            differing.append(dict(question=question, cluescope=our, transformers=their, gap=gap(number, our)))
            print(f"{number}: {differing[-1]}")
    unexplained = [d for d in differing if d["gap"] is not None and d["gap"] >= MARGIN]
    result = dict(
        model=args.model.name,
        questions=len(ours),
        threads=args.threads,
        cluescope_questions_per_second=len(ours) / our_seconds,
        transformers_questions_per_second=len(ours) / their_seconds,
        ratio=their_seconds / our_seconds,
        differing=differing,
        unexplained=len(unexplained),
    )
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
