"""Writes seeds/: small inputs, sound and nearly sound, that the fuzz targets start from and that a test reads with mutations.

    python fuzz/make_seeds.py            then fuzz/build.sh, whose head says how to run what it builds

Plain Python; the files are the same bytes each time.
"""

import json
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent
FAMILIES = HERE.parent / "tests/fixtures/families"

TAGGED = {
    "sound": "<name>Ann Øst</name> was born in <city>Rome</city>.",
    "none": "no mark at all",
    "nested": "<a>one <b>two</b></a>",
    "open": "<name>Ann was born in <city>Rome</city>",
    "lone": "</name> < <> <1> a<b",
    "empty": "<name></name>",
}
JSONL = {
    "sound": '{"id":"a","text":"Ann was born in Rome.","spans":[{"field":"city","start":16,"end":20}]}\n{"text":"Bo"}\n',
    "blank": '\n\n{"text":""}\n',
    "outside": '{"text":"Ann","spans":[{"field":"city","start":2,"end":9}]}\n',
    "types": '{"text":3}\n{"id":[],"text":"x"}\n',
    "broken": '{"text":"half a li',
}
CONFIGS = ["llama3.1", "mistral", "qwen2-window", "gemma3", "gpt-neox", "gpt2"]


def safetensors(tensors, data, stated=None):
    header = json.dumps(tensors, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if stated is None else stated) + header + data


def gguf(metadata, tensors, data=b"", version=3):
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()

    def value(v):
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        if isinstance(v, float):
            return struct.pack("<If", 6, v)
        if isinstance(v, list):
            return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
        return struct.pack("<II", 4, v)

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    out += b"".join(text(k) + value(v) for k, v in metadata.items())
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


LLAMA = {
    "general.architecture": "llama",
    "llama.context_length": 16,
    "llama.embedding_length": 8,
    "llama.block_count": 1,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}


def main():
    shutil.rmtree(HERE / "seeds", ignore_errors=True)

    def put(target, name, content):
        path = HERE / "seeds" / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    for name, content in TAGGED.items():
        put("tagged", name, content)
    for name, content in JSONL.items():
        put("jsonl", name, content)
    for name in CONFIGS:
        put("config", name, (FAMILIES / name / "config.json").read_bytes())
    norm = {"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    put("safetensors", "sound", safetensors(norm, b"\0" * 16))
    put("safetensors", "empty", safetensors({}, b""))
    put("safetensors", "short", safetensors(norm, b"\0" * 8))
    put("safetensors", "long_header", safetensors(norm, b"", stated=1 << 60))
    put("safetensors", "f64", safetensors({"x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8))
    embedding = [("token_embd.weight", (8, 3), 0, 0)]
    put("gguf", "header", gguf(LLAMA, embedding, b"\0" * 96))
    put("gguf", "cut", gguf(LLAMA, embedding, b"\0" * 40))
    put("gguf", "huge_array", gguf({**LLAMA, "tokenizer.ggml.tokens": []}, [("x", (1 << 40, 1 << 40), 0, 0)]))
    put("gguf", "quantised", gguf(LLAMA, [("token_embd.weight", (32, 3), 8, 0)], b"\0" * 102))
    put("gguf", "version", gguf({}, [], version=9))


if __name__ == "__main__":
    main()
