"""The same products in PyTorch: `torch_side.py <peak|linear|attention|few>`, lines as the Rust side prints them."""

import sys
import time

import torch
import torch.nn.functional as F

SHAPES = [
    ("SmolLM2-135M", "q, o", 576, 576),
    ("SmolLM2-135M", "k, v", 192, 576),
    ("SmolLM2-135M", "gate, up", 1536, 576),
    ("SmolLM2-135M", "down", 576, 1536),
    ("SmolLM2-135M", "head", 49152, 576),
    ("Qwen2.5-0.5B", "q, o", 896, 896),
    ("Qwen2.5-0.5B", "k, v", 128, 896),
    ("Qwen2.5-0.5B", "gate, up", 4864, 896),
    ("Qwen2.5-0.5B", "down", 896, 4864),
    ("Qwen2.5-0.5B", "head", 151936, 896),
]


def median(call):
    """As `timing::median`: a warm-up, then a tenth of a second and at least three calls (one above half a second)."""
    start = time.perf_counter()
    call()
    least = 1 if time.perf_counter() - start > 0.5 else 3
    seconds, begin = [], time.perf_counter()
    while len(seconds) < least or (time.perf_counter() - begin < 0.1 and len(seconds) < 2000):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def line(section, case, implementation, value, unit):
    print(section, case, implementation, torch.get_num_threads(), f"{value:.6e}", unit, sep="\t")


def linear():
    for model, matrix, outputs, inputs in SHAPES:
        weight = torch.rand(outputs, inputs) * 2 - 1
        for rows in (64, 512, 2048) if outputs < 100_000 else (64, 512):
            flops = 2 * rows * outputs * inputs
            case = f"|{model}|{matrix}|{outputs}|{inputs}|{rows}"
            x = torch.rand(rows, inputs) * 2 - 1
            y = torch.empty(rows, outputs)
            rate = lambda call: flops / median(call) / 1e9
            line("linear", "forward" + case, "torch, into place", rate(lambda: torch.mm(x, weight.t(), out=y)), "GFLOP/s")
            line("linear", "forward" + case, "torch", rate(lambda: F.linear(x, weight)), "GFLOP/s")
            dy, dx = torch.rand(rows, outputs) * 2 - 1, torch.empty(rows, inputs)
            line("linear", "backward" + case, "torch, into place", rate(lambda: torch.mm(dy, weight, out=dx)), "GFLOP/s")
            line("linear", "backward" + case, "torch", rate(lambda: torch.mm(dy, weight)), "GFLOP/s")
            if outputs < 10_000:
                xb, wb = x.bfloat16(), weight.bfloat16()
                line("linear", "forward" + case, "torch, bf16 (AMX)", rate(lambda: F.linear(xb, wb)), "GFLOP/s")


def few():
    for model, matrix, outputs, inputs in (SHAPES[2], SHAPES[7], SHAPES[4]):
        weight = torch.rand(outputs, inputs) * 2 - 1
        for rows in (1, 2, 3, 4, 6, 8, 12, 16, 32):
            x = torch.rand(rows, inputs) * 2 - 1
            seconds = median(lambda: F.linear(x, weight))
            line("few", f"forward|{model}|{matrix}|{outputs}|{inputs}|{rows}", "torch", seconds * 1e6, "us")


def attention():
    heads, width = 8, 64
    for tokens in (64, 128, 256, 512):
        q, k, v = (torch.rand(heads, tokens, width) * 2 - 1 for _ in range(3))
        p = torch.rand(heads, tokens, tokens)
        flops = 2 * heads * tokens * tokens * width
        for name, call in (("q·kᵀ", lambda: torch.bmm(q, k.transpose(1, 2))), ("p·v", lambda: torch.bmm(p, v))):
            line("attention", f"{name}|{tokens}", "torch bmm", flops / median(call) / 1e9, "GFLOP/s")


if __name__ == "__main__":
    with torch.inference_mode():
        {"linear": linear, "few": few, "attention": attention}[sys.argv[1]]()
