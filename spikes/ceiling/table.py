"""Gathers the lines of all processes (files or standard input) into Markdown: medians over the rounds, largest spread last."""

import collections
import fileinput
import statistics

values = collections.defaultdict(list)
for row in fileinput.input():
    section, case, implementation, threads, value, _unit = row.rstrip("\n").split("\t")
    values[section, case, implementation, int(threads)].append(float(value))


def cell(section, case, implementation, threads, spreads):
    seen = values.get((section, case, implementation, threads))
    if not seen:
        return "–"
    middle = statistics.median(seen)
    spreads.append((max(seen) - min(seen)) / middle)
    return f"{middle:.0f}" if middle >= 10 else f"{middle:.2f}"


def head(*columns):
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * 1 + "---:|" * (len(columns) - 1))


def table(section, titles, label, order=None):
    cases = list(dict.fromkeys(case for s, case, _, _ in values if s == section))
    head(label, *(f"{title}, {threads} thr." for threads in (1, 2) for _, title in titles), "spread")
    for case in sorted(cases, key=order) if order else cases:
        spreads = []
        cells = [cell(section, case, name, threads, spreads) for threads in (1, 2) for name, _ in titles]
        print("|", " | ".join([case.replace("|", " "), *cells, f"{max(spreads, default=0):.0%}"]), "|")
    print()


def layer(titles):
    """Linear layers of one decoder block together: operations over the sum of the times."""
    times = {"q, o": 2, "k, v": 2, "gate, up": 2, "down": 1}
    head("one block's linear layers", *(f"{title}, {threads} thr." for threads in (1, 2) for _, title in titles))
    for direction in ("forward", "backward"):
        for model in ("SmolLM2-135M", "Qwen2.5-0.5B"):
            for rows in (64, 512, 2048):
                cells = []
                for threads in (1, 2):
                    for name, _ in titles:
                        operations = seconds = 0.0
                        for (section, case, implementation, count), seen in values.items():
                            parts = case.split("|")
                            if (section, implementation, count, parts[0]) != ("linear", name, threads, direction):
                                continue
                            if parts[1] == model and parts[2] in times and int(parts[5]) == rows:
                                work = 2.0 * int(parts[3]) * int(parts[4]) * rows * times[parts[2]] / 1e9
                                operations += work
                                seconds += work / statistics.median(seen)
                        cells.append(f"{operations / seconds:.0f}" if seconds else "–")
                print("|", " | ".join([f"{direction}, {model}, {rows} rows", *cells]), "|")
    print()


print("Peak (multiply-adds in registers), GFLOP/s\n")
table("peak", [("avx2", "AVX2"), ("avx512", "AVX-512")], "peak")
LINEAR = [
    ("gemm avx2", "gemm AVX2"),
    ("gemm avx512", "gemm AVX-512"),
    ("pieces avx512", "pieces"),
    ("pieces, W kept as [in, out], avx512", "pieces, Wᵀ kept"),
    ("candle avx512", "candle"),
    ("torch, into place", "torch out="),
    ("torch", "torch"),
    ("torch, bf16 (AMX)", "torch bf16"),
]
print("Linear layers, GFLOP/s\n")
layer(LINEAR)
table("linear", LINEAR, "direction, model, matrix, out, in, rows")
print("Few rows, microseconds a call (less is better)\n")
FEW = [("gemm", "gemm"), ("pieces", "pieces"), ("pieces, W kept as [in, out],", "pieces, Wᵀ kept"), ("dot products", "dots")]
table("few", [(f"{name} avx512", title) for name, title in FEW] + [("torch", "torch")], "direction, model, matrix, out, in, rows")
print("Attention, GFLOP/s of the full product (causal blocks skip half of it)\n")
ATTENTION = [("gemm a head avx512", "gemm a head")]
ATTENTION += [(f"gemm, causal blocks of {b}, avx512", f"causal {b}") for b in (32, 64, 128)]
table("attention", ATTENTION + [("candle avx512", "candle"), ("torch bmm", "torch bmm")], "product, tokens")
print("Widening alone (rows 0), ns a weight\n")
KINDS = [(f"{kind} avx512", kind) for kind in ("f32, copied", "f16", "bf16", "Q8_0", "Q4_K")]
for case in list(values):
    if case[0] == "widen" and case[1].startswith("widen|"):
        values[("widening", *case[1:])] = values[case]
table("widening", KINDS, "matrix")
print("Widened tile by tile and multiplied, GFLOP/s\n")
for case in list(values):
    if case[0] == "widen" and case[1].startswith("forward|"):
        values[("tiles", *case[1:])] = values[case]
TILES = [("f32, gemm avx512", "f32 gemm"), ("f32, pieces avx512", "f32 pieces")]
TILES += [(f"{kind}, {how} of 256 avx512", f"{kind} {how}") for kind in ("f16", "bf16", "Q8_0", "Q4_K") for how in ("tiles", "turned tiles")]
table("tiles", TILES, "direction, model, matrix, out, in, rows")
print("Widened in tiles of other sizes (bf16), GFLOP/s\n")
table("tiles", [(f"bf16, {how} of {n} avx512", f"{how} {n}") for n in (128, 256, 512) for how in ("tiles", "turned tiles")], "direction, model, matrix, out, in, rows")
differ = [(key, seen) for key, seen in values.items() if key[0] == "bits"]
print(f"Bits: {len(differ)} lines; elements that differ, where any do:\n")
told = collections.Counter()
for (_, case, name, _), seen in differ:
    if max(seen) > 0:
        told[case.split("|")[0], name] += 1
for (direction, name), count in sorted(told.items()):
    print(f"- {direction}, {name}: in {count} shapes")
