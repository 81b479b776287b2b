"""The tokenizer rebuilt from a GGUF file beside the original tokenizer.json: ids and character offsets, text by text.

    python scripts/compare_tokenizers.py ORIGINAL.json MODEL.gguf [--corpus FILE...] [--cluescope PROGRAM]

The reference is the `tokenizers` package reading ORIGINAL.json; ours is what `cluescope attend` writes. So that nothing else is computed, the
architecture and every `tokenizer.*` key of MODEL.gguf are copied as they stand into a random model of one small layer: MODEL.gguf may be of any
size, or one of llama.cpp's own files that hold a vocabulary alone (models/ggml-vocab-llama-bpe.gguf and so on). The texts are awkward ones
listed here, random ones with a fixed seed, and those of the corpora: the `text` of a .csv, tags removed, or the paragraphs of any other file.
They are compared without start and end tokens, which are shown once.

The exit code is 1 when any text differs; the first differences are shown. Needs tokenizers and numpy.
"""

import argparse
import csv
import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tokenizers

SPECIAL = (
    "<s> </s> <unk> <pad> <bos> <eos> <mask> <start_of_turn> <end_of_turn> <unused7> <start_of_image> <h1> <table> "
    "<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <|fim_prefix|> <|repo_name|> <tool_call> "
    "<file_sep> <reponame> <jupyter_start> <0x41> <0x0A> [PAD151935] [multimodal] </h1> <br>"
).split()

AWKWARD = [
    # Blanks: runs, ends, tabs, all kinds of line ends, Unicode's own.
    *(" " * n for n in (1, 2, 3, 4, 7, 16, 17, 33, 100)),
    *("\n" * n for n in (1, 2, 3, 4, 9, 31, 32, 40)),
    *("\t" * n for n in (1, 2, 3, 8, 35)),
    *("a" + " " * n + "b" for n in range(1, 20)),
    *("x" + "\n" * n + " y" for n in range(1, 8)),
    " Ann", "Ann ", "  Ann  ", "\tAnn\t", "\nAnn\n", "Ann\r\nLee\r\n", "Ann\rLee", "a \n b", "a\n \nb", " \n\t \r\n ", "\u2581", "\u2581\u2581a \u2581",
    "a\u00a0b\u2009c\u3000d\u200be\u2028f\u2029g\u0085h\u1680i\ufeffj", "\ufeffstart", "a\x0bb\x0cc", "\x00", "a\x00b\x7f\x1b[0m", "soft\u00adhyphen",
    # Numbers.
    "1", "12", "123", "1234", "1234567890123", "3.14159 1,234,567.89 -5 +6 1e-9 0x1F 50% $9.99 №5", "March 14, 1987; 14/03/1987; 1987-03-14T09:05:00Z",
    "a1b22c333d4444", "1st 2nd 3rd", "½ ¾ ² ³ ⅷ Ⅷ ① ㊿", "٠١٢٣٤٥ ۰۱۲۳ ०१२३ ๐๑๒ 〇一二三 𝟘𝟙𝟚", "10 000 000", "1 2 3 4 5",
    # Contractions, also with the sign of typographers and the letters that fold oddly.
    "It's what they'll do; we've I'm you'd you're can't", "IT'S THEY'LL WE'VE I'M YOU'D YOU'RE CAN'T", "it’s they’ll we’ve I’m", "'s 't 're 've 'm 'll 'd",
    "O'Brien's 'tis rock'n'roll '90s ''s ' s", "it'\u017f x'\u212a", "don'T 'Re 'lL",
    # Scripts.
    "日本語のテキストと漢字、カタカナ。「引用」", "中文文本，没有空格。２０２４年", "한국어 문장입니다. 가각갂", "한글 자모", "العربيةُ نصٌّ بالتشكيل ٢٠٢٤", "שָׁלוֹם עולם", "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में क्षत्रिय", "தமிழ் தெலుగు ಕನ್ನಡ മലയാളം", "Ελληνικά ἀρχαῖα", "Русский ёлка ЩИ", "ქართული Հայերեն አማርኛ ខ្មែរ မြန်မာ བོད་ཡིག", "Łódź Ærø İstanbul ıi ẞß ŉ ﬁ ﬂ ǆ",
    "Zürich Zu\u0308rich e\u0301t\u00e9 n\u0303 A\u030a \u212b \u2126", "z\u0351\u036b\u0343\u036aa\u0304\u0310\u034al\u0352\u0349g\u0348o", "\u0301lone mark", "क\u094d\u200dष", "ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ",
    "\u1100\u1161\u11a8 \u0915\u093c \u0958 \u2adc", "q\u0307\u0323 q\u0323\u0307", "\u0344 \u0374 \u037e \uf900 \U0002f800",
    # Emoji: joined, coloured, flags, key caps, variation selectors.
    "👩‍🔬 met 👨‍👩‍👧‍👦!", "👍🏽👍🏿 🏳️‍🌈 🇳🇴🇯🇵 1️⃣ ❤️ ☺︎", "😀😀😀😀", "🫠🪿🩷", "a😀b", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\u200d\ufe0f",
    # Private, unassigned and noncharacters; what bad decoders leave; wrongly decoded UTF-8.
    "\ue000\uf8ff", "\U000f0000\U0010ffff", "\ufffd\ufffd \ufffe \uffff", "\u0378 \U000e0080", "ZÃ¼rich â€œquotedâ€\x9d Â£", "𝕬𝓫𝗰 𐍈 𒀀 𓀀",
    # Code.
    "fn main() {\n    let x: Vec<u8> = vec![0; 16];\n\tprintln!(\"{x:?}\");\n}\n", "def f(a, *b, **c):\n        return a[1:-1] if a else None  # why\n",
    "<div class=\"a\">&amp;<br/></div>", "SELECT * FROM t WHERE a>=1 AND b!='x';", "a+=b; c--; d<<=2; e->f::g; !h && ~i || j^k", "https://example.org/a?b=c&d=%20#e user@example.com",
    "{\"a\": [1, 2.5, null, true], \"b\": {}}", "C:\\Users\\x\\n\\t", "#!/usr/bin/env bash\nset -euo pipefail\n", "\\frac{1}{2} $x^2$ ```rust\n```", "-- --- ---- ===== ***** ..... ?!?! ;;;", "(((())))[[]]{{}}",
    # Long words.
    "a" * 300, "ab" * 200, "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen", "pneumonoultramicroscopicsilicovolcanoconiosis", "snake_case_and_camelCaseAndSCREAMING_CASE",
    "漢" * 70, "é" * 70, "😀" * 40, "ACGT" * 60, "0" * 90, "!" * 90, "-" * 90, "_" * 90,
    # Texts of special tokens: alone, between letters, between blanks, broken.
    *SPECIAL, *(f"x{t}y" for t in SPECIAL), *(f"x {t} y" for t in SPECIAL), *(f"{t}{t}\n{t}" for t in SPECIAL),
    "<|im_end|", "|im_end|>", "<| im_end |>", "<|IM_END|>", "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "<start_of_turn>user\nWho?<end_of_turn>\n", "<s>[INST] Who? [/INST]", "< s >", "<<s>>",
]


def noise(count, seed):
    ranges = [(0x20, 0x5F), (0x20, 0x5F), (0x09, 5), (0xA0, 0x200), (0x300, 0x70), (0x370, 0x90), (0x400, 0x100), (0x590, 0x70), (0x600, 0x100), (0x900, 0x80)]
    ranges += [(0xE00, 0x60), (0x1E00, 0x100), (0x2000, 0x70), (0x3040, 0xC0), (0x4E00, 0x400), (0xAC00, 0x200), (0x1F300, 0x300), (0x1D400, 0x100)]
    draw = random.Random(seed)
    for index in range(count):
        # Every second text is of one range and blanks, so that words of one script are long.
        some = [ranges[0], draw.choice(ranges)] if index % 2 else ranges
        letters = (draw.choice(some) for _ in range(draw.randint(1, 40)))
        yield "".join(chr(start + draw.randrange(size)) for start, size in letters)


def read(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return [re.sub(r"</?\w+>", "", row["text"]) for row in csv.DictReader(text.splitlines(keepends=True))]
    return re.split(r"(?<=\n)\n+(?=\S)", text)


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST, UINT32, FLOAT32 = 8, 9, 4, 6


def metadata(path):
    """Key, bytes of the whole pair and bytes of its value, of each pair. By hand: gguf's own reader takes long over long lists."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        number = lambda form, at: struct.unpack_from(form, data, at)[0]
        after_text = lambda at: at + 8 + number("<Q", at)
        at = 24
        for _ in range(number("<Q", 16)):
            start, at = at, after_text(at)
            key, kind = data[start + 8 : at].decode(), number("<I", at)
            at = value = at + 4
            if kind == LIST:
                of, count = number("<I", at), number("<Q", at + 4)
                at += 12
                if of == TEXT:
                    for _ in range(count):
                        at = after_text(at)
                else:
                    at += count * SIZES[of]
            else:
                at = after_text(at) if kind == TEXT else at + SIZES[kind]
            yield key, data[start:at], data[value:at]


def small_model(source, path):
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    pairs, width = [], 32
    for key, pair, value in metadata(source):
        if key == "general.architecture":
            arch = value[8:].decode()
            pairs.append(pair)
        elif key.startswith("tokenizer."):
            pairs.append(pair)
        if key == "tokenizer.ggml.tokens":
            vocabulary = struct.unpack_from("<Q", value, 4)[0]
    counts = {"context_length": 4096, "block_count": 1, "attention.head_count": 1, "attention.head_count_kv": 1, "attention.sliding_window": 512}
    counts |= dict.fromkeys(("embedding_length", "feed_forward_length", "attention.key_length", "attention.value_length", "rope.dimension_count"), width)
    pairs += [text(f"{arch}.{key}") + struct.pack("<II", UINT32, count) for key, count in counts.items()]
    for key, number in (("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)):
        pairs.append(text(f"{arch}.{key}") + struct.pack("<If", FLOAT32, number))
    draw = np.random.default_rng(0)
    matrix = lambda rows: draw.standard_normal((rows, width), np.float32).astype(np.float16)
    tensors = {"token_embd.weight": matrix(vocabulary)}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{part}.weight"] = matrix(width)
    norms = ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]
    if arch == "gemma3":
        norms += [f"blk.0.{name}" for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")]
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
    if arch == "qwen2":
        for part in ("attn_q", "attn_k", "attn_v"):
            tensors[f"blk.0.{part}.bias"] = np.zeros(width, np.float32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", tensor.dtype == np.float16, offset)
        offset += tensor.nbytes + -tensor.nbytes % 32
    data = b"".join(tensor.tobytes() + bytes(-tensor.nbytes % 32) for tensor in tensors.values())
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def ours(program, model, texts):
    with tempfile.TemporaryDirectory() as folder:
        small, corpus, out = (Path(folder) / name for name in ("small.gguf", "texts.jsonl", "attention.jsonl"))
        small_model(model, small)
        corpus.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)), encoding="utf-8")
        command = [program, "attend", "--model", small, "--corpus", corpus, "--out", out]
        run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, CLUESCOPE_CACHE=""))
        if run.returncode:
            sys.exit(run.stderr)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: int(row["id"]))
    assert len(rows) == len(texts), f"{len(rows)} rows for {len(texts)} texts"
    return [(row["ids"], [tuple(span) for span in row["offsets"]]) for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", nargs="*", type=Path, default=[])
    parser.add_argument("--cluescope", default="target/release/cluescope")
    options = parser.parse_args()
    reference = tokenizers.Tokenizer.from_file(str(options.original))
    reference.no_truncation()
    reference.no_padding()
    texts = [*AWKWARD, *noise(400, 3), *(text for path in options.corpus for text in read(path) if text)]
    found = ours(options.cluescope, options.model, texts)
    # A start token has an empty span and is the same in front of every text.
    heads = {tuple(ids[: next((i for i, (a, b) in enumerate(spans) if a < b), len(ids))]) for ids, spans in found}
    start = list(min(heads, key=len))
    total = differ = 0
    for text, (ids, spans) in zip(texts, found):
        want = reference.encode(text, add_special_tokens=False)
        total += len(want.ids)
        got, at = (ids[len(start) :], spans[len(start) :]) if ids[: len(start)] == start else (ids, spans)
        if (got, at) == (want.ids, want.offsets):
            continue
        differ += 1
        if differ <= 20:
            place = next((i for i, pair in enumerate(zip(got, at)) if i >= len(want.ids) or pair != (want.ids[i], want.offsets[i])), len(got))
            show = lambda ids, spans: [(reference.id_to_token(id), id, span) for id, span in list(zip(ids, spans))[place : place + 4]]
            print(f"{text[:80]!r}, token {place}: ours {show(got, at)}, original {show(want.ids, want.offsets)}")
    added = reference.encode("a")
    named = lambda ids: [reference.id_to_token(id) for id in ids]
    print(f"{options.model.name}: {len(texts)} texts, {total} tokens, {differ} texts differ; tokenizers {tokenizers.__version__}")
    print(f"start tokens: ours {named(start)}, original {named(id for id, s in zip(added.ids, added.special_tokens_mask) if s)}")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
