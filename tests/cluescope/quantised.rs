//! Quantised types in GGUF files: each through a whole model, those that are not read, metadata that cannot be right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use cluescope::model::{Batch, Capture, Logits, Want};
use cluescope::tokens::Tokenizer;
use serde_json::{Value, json};

use crate::damage::Noise;
use crate::families::{assert_close, fixture, load};
use crate::loading::{assert_says, refused};

/// The metadata of a GGUF Llama of width 256 with a trained byte-level vocabulary.
pub(crate) fn gguf_metadata(tokenizer: &Tokenizer) -> Vec<(String, gguf_file::Value)> {
    use gguf_file::Value as V;
    let json: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    let size = tokenizer.vocab_size();
    let tokens = (0..size).map(|id| {
        let vocab = json["model"]["vocab"].as_object().unwrap();
        V::String(vocab.iter().find(|(_, v)| v.as_u64() == Some(id as u64)).unwrap().0.clone())
    });
    let merges = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| V::String(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap())));
    let types = (0..size).map(|id| V::I32(if id == 0 { 3 } else { 1 }));
    [
        ("general.architecture", V::String("llama".into())),
        ("llama.context_length", V::U32(64)),
        ("llama.embedding_length", V::U32(256)),
        ("llama.block_count", V::U32(2)),
        ("llama.feed_forward_length", V::U32(512)),
        ("llama.attention.head_count", V::U32(4)),
        ("llama.attention.head_count_kv", V::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5)),
        ("llama.rope.freq_base", V::F32(10000.0)),
        ("tokenizer.ggml.model", V::String("gpt2".into())),
        ("tokenizer.ggml.pre", V::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", V::Array(tokens.collect())),
        ("tokenizer.ggml.token_type", V::Array(types.collect())),
        ("tokenizer.ggml.merges", V::Array(merges.collect())),
        ("tokenizer.ggml.bos_token_id", V::U32(0)),
        ("tokenizer.ggml.eos_token_id", V::U32(0)),
        ("tokenizer.ggml.add_bos_token", V::Bool(true)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

pub(crate) fn write_gguf(
    path: &Path,
    metadata: &[(String, gguf_file::Value)],
    tensors: &[(String, QTensor)],
) {
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// llama.cpp's pairs of a head's rows back to Hugging Face's halves, by reshaping.
fn halves(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = weight.dims2().unwrap();
    let pairs = weight.reshape((heads, rows / heads / 2, 2, cols)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

/// A tiny Llama with every matrix quantised as `dtype`: its GGUF file, and a folder with the dequantised numbers.
pub(crate) fn quantised_pair(folder: &Path, dtype: GgmlDType, tokenizer: &Tokenizer) -> (PathBuf, PathBuf) {
    let mut noise = Noise(7);
    let vocab = tokenizer.vocab_size();
    let mut tensors = Vec::new();
    let mut plain = BTreeMap::new();
    let mut put = |gguf: String, theirs: String, weight: Tensor, heads: Option<usize>| {
        let quantised = QTensor::quantize(&weight, dtype).unwrap();
        let back = quantised.dequantize(&Device::Cpu).unwrap();
        plain.insert(theirs, heads.map_or(back.clone(), |heads| halves(&back, heads)));
        tensors.push((gguf, quantised));
    };
    put("token_embd.weight".into(), "model.embed_tokens.weight".into(), noise.tensor(vocab, 256, 1.0), None);
    put("output.weight".into(), "lm_head.weight".into(), noise.tensor(vocab, 256, 0.2), None);
    for layer in 0..2 {
        for (gguf, theirs, rows, cols, heads) in [
            ("attn_q", "self_attn.q_proj", 256, 256, Some(4)),
            ("attn_k", "self_attn.k_proj", 128, 256, Some(2)),
            ("attn_v", "self_attn.v_proj", 128, 256, None),
            ("attn_output", "self_attn.o_proj", 256, 256, None),
            ("ffn_gate", "mlp.gate_proj", 512, 256, None),
            ("ffn_up", "mlp.up_proj", 512, 256, None),
            ("ffn_down", "mlp.down_proj", 256, 512, None),
        ] {
            let weight = noise.tensor(rows, cols, 0.15);
            put(
                format!("blk.{layer}.{gguf}.weight"),
                format!("model.layers.{layer}.{theirs}.weight"),
                weight,
                heads,
            );
        }
    }
    let norms = (0..2).flat_map(|layer| {
        [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")].map(|(gguf, theirs)| {
            (format!("blk.{layer}.{gguf}.weight"), format!("model.layers.{layer}.{theirs}.weight"))
        })
    });
    for (gguf, theirs) in norms.chain([("output_norm.weight".into(), "model.norm.weight".into())]) {
        let weight = (noise.tensor(1, 256, 0.3).flatten_all().unwrap() + 1.0).unwrap();
        tensors.push((gguf, QTensor::quantize(&weight, GgmlDType::F32).unwrap()));
        plain.insert(theirs, weight);
    }
    let file = folder.join(format!("{dtype:?}.gguf"));
    write_gguf(&file, &gguf_metadata(tokenizer), &tensors);
    let dense = folder.join(format!("{dtype:?}"));
    std::fs::create_dir(&dense).unwrap();
    candle_core::safetensors::save(&plain.into_iter().collect(), dense.join("model.safetensors")).unwrap();
    std::fs::write(dense.join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5f32 as f64, "eos_token_id": 0});
    std::fs::write(dense.join("config.json"), config.to_string()).unwrap();
    (file, dense)
}

pub(crate) fn small_tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(["Ann Lee was born in Oslo. Bo Day was born in Rome."; 4], 280).unwrap()
}

#[test]
fn every_quantised_type_computes_as_its_dequantised_weights_do() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer();
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % tokenizer.vocab_size() as u32).collect();
    let want = Want { logits: Logits::All, capture: Some(Capture::received()) };
    let mut outputs = Vec::new();
    for dtype in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let (file, dense) = quantised_pair(folder.path(), dtype, &tokenizer);
        let (a, b) = (load(&file), load(&dense));
        assert_eq!(a.config(), b.config(), "{dtype:?}");
        let batch = Batch::new(std::slice::from_ref(&ids));
        let (a, b) = (a.forward(&batch, &want).unwrap(), b.forward(&batch, &want).unwrap());
        let flat = |logits: Option<Tensor>| logits.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (found, wanted) = (flat(a.logits), flat(b.logits));
        let scale = wanted.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert_close(&format!("{dtype:?}: logits"), &found, &wanted, 1e-4 * scale);
        assert_close(
            &format!("{dtype:?}: received"),
            &a.attention[0].received,
            &b.attention[0].received,
            1e-5,
        );
        outputs.push(wanted);
    }
    // The types do differ, or the comparison would show nothing.
    assert_ne!(outputs[0], outputs[3]);
    assert_ne!(outputs[3], outputs[8]);
}

#[test]
fn gguf_types_that_are_not_read_are_refused_by_name() {
    let bytes = std::fs::read(fixture("llama2").join("model.gguf")).unwrap();
    let name = b"blk.0.ffn_up.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    // After the name: number of dimensions, two dimensions, the type.
    let kind = at + name.len() + 4 + 16;
    assert_eq!(bytes[kind..kind + 4], 1u32.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for (number, says) in
        [(23u32, "IQ4_XS"), (16, "IQ2_XXS"), (39, "MXFP4"), (9, "Q8_1"), (77, "unknown type 77")]
    {
        let mut bytes = bytes.clone();
        bytes[kind..kind + 4].copy_from_slice(&number.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_says(&refused(&path), &["x.gguf", "blk.0.ffn_up.weight", says, "Q4_K"]);
    }
}

#[test]
fn gguf_metadata_that_cannot_be_right_is_named() {
    use gguf_file::Value as V;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tokenizer = small_tokenizer();
    let norm =
        || QTensor::quantize(&Tensor::ones(256, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
    let embedding = Noise(1).tensor(tokenizer.vocab_size(), 256, 1.0);
    let embedding = || QTensor::quantize(&embedding, GgmlDType::Q8_0).unwrap();
    let cases: [(&str, Option<V>, &[&str]); 11] = [
        ("general.architecture", Some(V::String("mamba".into())), &["mamba", "state-space"]),
        ("general.architecture", Some(V::String("deepseek2".into())), &["deepseek2", "latent"]),
        ("llama.expert_count", Some(V::U32(8)), &["llama with experts", "mixture"]),
        ("llama.block_count", Some(V::U32(u32::MAX)), &["block_count", "at most"]),
        ("llama.embedding_length", None, &["llama.embedding_length", "missing"]),
        ("llama.attention.head_count", Some(V::U32(0)), &["head_count"]),
        ("llama.rope.scaling.type", Some(V::String("yarn".into())), &["rope.scaling.type", "yarn"]),
        ("tokenizer.ggml.model", Some(V::String("bert".into())), &["tokenizer.ggml.model", "bert"]),
        (
            "tokenizer.ggml.pre",
            Some(V::String("tekken".into())),
            &["tokenizer.ggml.pre", "tekken", "llama-bpe"],
        ),
        ("tokenizer.ggml.bos_token_id", Some(V::U32(1 << 30)), &["bos_token_id", "outside the vocabulary"]),
        ("tokenizer.ggml.token_type", Some(V::Array(vec![V::I32(1)])), &["token_type", "1 entries"]),
    ];
    for (key, value, says) in cases {
        let mut metadata = gguf_metadata(&tokenizer);
        metadata.retain(|(k, _)| k != key);
        metadata.extend(value.map(|value| (key.to_owned(), value)));
        let tensors =
            [("token_embd.weight".to_owned(), embedding()), ("output_norm.weight".to_owned(), norm())];
        write_gguf(&path, &metadata, &tensors);
        assert_says(&refused(&path), says);
    }
    // Sound metadata, but the blocks are not there.
    let tensors = [("token_embd.weight".to_owned(), embedding()), ("output_norm.weight".to_owned(), norm())];
    write_gguf(&path, &gguf_metadata(&tokenizer), &tensors);
    assert_says(&refused(&path), &["blk.0.", "missing"]);
}
