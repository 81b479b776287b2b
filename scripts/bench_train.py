"""Tokens a second of LoRA steps with transformers and peft: the counterpart of `cargo bench --bench train`.

    python scripts/bench_train.py [threads]

A random model of SmolLM2-135M's shape in f32, batch 8 × 80 tokens, the paper's adapter (r 16 on seven projections), AdamW,
clipping at 1; the first step is not timed.
"""

import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, BATCH, LENGTH = 4, 8, 80


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, max_position_embeddings=8192, rope_theta=1e5, tie_word_embeddings=True,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config).float(), lora).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-4, weight_decay=0.0)

    def step():
        ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    rate = STEPS * BATCH * LENGTH / (time.perf_counter() - start)
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print("| what | batch | tokens/s | peak memory |\n|---|---|---|---|")
    print(f"| transformers + peft, LoRA r 16, {torch.get_num_threads()} threads | {BATCH} × {LENGTH} | {rate:.0f} | {peak:.2f} GB |")


if __name__ == "__main__":
    main()
