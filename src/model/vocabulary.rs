//! The tokenizer in a GGUF file, rebuilt so that it encodes as the original `tokenizer.json` does.
//!
//! Byte-level BPE (`tokenizer.ggml.model` = `gpt2`) needs the splitting rule that `tokenizer.ggml.pre` names.
//! SentencePiece BPE (`llama`) has scores instead of merges; the merges are derived from them as transformers'
//! `convert_slow_tokenizer.generate_merges` derives them, so that ids agree to the last rare token.

use std::collections::HashMap;

use serde_json::json;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::gguf::Header;
use crate::error::{Error, Result};
use crate::tokens::{SpecialTokens, Tokenizer};

/// `tokenizer.ggml.token_type`.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer of a GGUF file.
///
/// # Errors
/// [`Error::Format`] naming the key: a tokenizer or splitting rule that is not known, lists of unequal length, ids outside the vocabulary.
pub(crate) fn tokenizer(name: &str, header: &Header<'_>) -> Result<Tokenizer> {
    let bad =
        |key: &str, message: String| Error::format(header.path(), format!("tokenizer.ggml.{key}"), message);
    let tokens = header.need("tokenizer.ggml.tokens", header.texts("tokenizer.ggml.tokens")?)?;
    let types = header.numbers("tokenizer.ggml.token_type")?;
    if let Some(types) = types
        && types.len() != tokens.len()
    {
        return Err(bad("token_type", format!("{} entries for {} tokens", types.len(), tokens.len())));
    }
    let kind_of = |id: usize| types.map_or(1.0, |types| types[id]);
    let architecture = header.text("general.architecture")?.unwrap_or_default();
    let model = header.need("tokenizer.ggml.model", header.text("tokenizer.ggml.model")?)?;
    let (pieces, built, add_bos) = match model {
        "gpt2" => {
            let rule = header.text("tokenizer.ggml.pre")?;
            let (steps, ignore_merges, add_bos) = splitting(rule, architecture).map_err(|m| bad("pre", m))?;
            let pieces: Vec<String> = tokens.iter().map(|t| t.to_string()).collect();
            let merges = header.need("tokenizer.ggml.merges", header.texts("tokenizer.ggml.merges")?)?;
            let merges = merges
                .iter()
                .map(|merge| match merge.split_once(' ') {
                    Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                    None => Err(bad("merges", format!("{merge:?} is not a pair"))),
                })
                .collect::<Result<Vec<_>>>()?;
            let used = |id: usize| kind_of(id) != UNUSED;
            let vocabulary =
                pieces.iter().enumerate().filter(|(id, _)| used(*id)).map(|(id, t)| (t.clone(), id as u32));
            let bpe = BPE::builder()
                .vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), merges);
            let bpe = bpe.ignore_merges(ignore_merges).build().map_err(|e| bad("merges", e.to_string()))?;
            (pieces, assemble(bpe, steps).map_err(|e| bad("model", e.to_string()))?, add_bos)
        }
        "llama" => {
            let scores = header.need("tokenizer.ggml.scores", header.numbers("tokenizer.ggml.scores")?)?;
            if scores.len() != tokens.len() {
                return Err(bad("scores", format!("{} entries for {} tokens", scores.len(), tokens.len())));
            }
            let gemma = architecture.starts_with("gemma");
            let no_tab = gemma && !tokens.iter().any(|t| t == "\t");
            let pieces: Vec<String> = (0..tokens.len())
                .map(|id| match &*tokens[id] {
                    // llama.cpp's converter writes blanks for U+2581 in user-defined tokens.
                    piece if kind_of(id) == USER_DEFINED => piece.replace(' ', "\u{2581}"),
                    // The oldest Gemma vocabulary lacks the tab, and transformers gives it the place of its byte.
                    "<0x09>" if no_tab => "\t".to_owned(),
                    piece => piece.to_owned(),
                })
                .collect();
            // The converter also loses the score, 0, of added tokens.
            let score = |id: usize| if kind_of(id) == 1.0 { scores[id] } else { 0.0 };
            let used: Vec<(usize, &str)> = pieces
                .iter()
                .map(String::as_str)
                .enumerate()
                .filter(|(id, _)| kind_of(*id) != UNUSED)
                .collect();
            let merges = merges_from_scores(&used, score);
            let unknown = (0..pieces.len()).find(|&id| kind_of(id) == UNKNOWN);
            let unknown = match header.count("tokenizer.ggml.unknown_token_id")? {
                Some(id) if id < pieces.len() => Some(id),
                Some(id) => return Err(bad("unknown_token_id", format!("{id} lies outside the vocabulary"))),
                None => unknown,
            };
            let vocabulary = used.iter().map(|&(id, piece)| (piece.to_owned(), id as u32));
            let mut bpe = BPE::builder()
                .vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), merges)
                .byte_fallback(true)
                .fuse_unk(true);
            if let Some(id) = unknown {
                bpe = bpe.unk_token(pieces[id].clone());
            }
            let bpe = bpe.build().map_err(|e| bad("tokens", e.to_string()))?;
            let space = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(!gemma);
            let steps = sentence_piece(gemma, space);
            (pieces, assemble(bpe, steps).map_err(|e| bad("model", e.to_string()))?, true)
        }
        other => {
            return Err(bad(
                "model",
                format!("{other} is not supported; gpt2 (BPE) and llama (SentencePiece BPE) are"),
            ));
        }
    };
    let mut built = built;
    let added = pieces.iter().enumerate().filter_map(|(id, piece)| {
        let kind = kind_of(id);
        let special = kind == CONTROL || kind == UNKNOWN;
        (special || kind == USER_DEFINED).then(|| AddedToken::from(piece.clone(), special).normalized(false))
    });
    built.add_tokens(added).map_err(|e| bad("tokens", e.to_string()))?;
    let json = built.to_string(false).map_err(|e| bad("tokens", e.to_string()))?;

    let id = |key: &str| -> Result<Option<usize>> {
        match header.count(&format!("tokenizer.ggml.{key}"))? {
            Some(id) if id >= pieces.len() => {
                Err(bad(key, format!("{id} lies outside the vocabulary of {}", pieces.len())))
            }
            id => Ok(id),
        }
    };
    let ends = [id("eos_token_id")?, id("eot_token_id")?, id("eom_token_id")?];
    let special = SpecialTokens {
        bos: id("bos_token_id")?.map(|id| pieces[id].clone()),
        eos: Vec::new(),
        eos_ids: ends.into_iter().flatten().map(|id| id as u32).collect(),
        add_bos: Some(header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos)),
        add_eos: Some(header.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false)),
        replace_post_processor: false,
    };
    Tokenizer::with_special(name, json.as_bytes(), &special)
}

/// Normaliser, pre-tokenizer and decoder.
struct Steps {
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    decoder: serde_json::Value,
}

fn assemble(bpe: BPE, steps: Steps) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_normalizer(serde_json::from_value::<Option<NormalizerWrapper>>(steps.normalizer)?)?;
    tokenizer.with_pre_tokenizer(serde_json::from_value::<Option<PreTokenizerWrapper>>(steps.pre_tokenizer)?);
    tokenizer.with_decoder(serde_json::from_value::<Option<DecoderWrapper>>(steps.decoder)?);
    Ok(tokenizer)
}

/// How byte-level BPE splits a text into words; whether whole words of the vocabulary skip the merges;
/// whether llama.cpp adds a start token when the file does not say.
fn splitting(rule: Option<&str>, architecture: &str) -> std::result::Result<(Steps, bool, bool), String> {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    let split = |regex: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let nfc = || json!({"type": "NFC"});
    let none = serde_json::Value::Null;
    let neox = architecture == "gptneox";
    let (normalizer, pre_tokenizer, whole_words) = match rule {
        Some("llama-bpe" | "llama3" | "llama-v3") => (none, split(LLAMA3), true),
        Some("qwen2") => (nfc(), split(QWEN2), false),
        Some("smollm") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (none, json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), false)
        }
        Some("olmo") => (nfc(), bytes(true), false),
        Some("gpt-2" | "default") | None if neox => (nfc(), bytes(true), false),
        Some("gpt-2") => (none, bytes(true), false),
        None if architecture == "gpt2" => (none, bytes(true), false),
        other => {
            let found = other.map_or("missing".to_owned(), |rule| format!("{rule:?} is not known"));
            return Err(format!(
                "{found}; the splitting rules llama-bpe, qwen2, smollm, gpt-2 and olmo are. \
                 Load the original checkpoint, or convert it again with a recent llama.cpp"
            ));
        }
    };
    Ok((Steps { normalizer, pre_tokenizer, decoder: bytes(true) }, whole_words, whole_words))
}

/// The SentencePiece steps of Llama 2 and of Gemma.
fn sentence_piece(gemma: bool, space_prefix: bool) -> Steps {
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if gemma {
        let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        return Steps { normalizer: blanks, pre_tokenizer: split, decoder };
    }
    let mut normalizers = vec![blanks];
    if space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Steps {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: serde_json::Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
    }
}

/// Every split of every piece into two pieces, the best score first; ties as transformers breaks them.
fn merges_from_scores(pieces: &[(usize, &str)], score: impl Fn(usize) -> f64) -> Vec<(String, String)> {
    // A text that occurs twice keeps its last id, as in a Python dictionary.
    let ids: HashMap<&str, usize> = pieces.iter().map(|&(id, piece)| (piece, id)).collect();
    struct Merge<'a> {
        score: f64,
        lengths: (usize, usize),
        pair: (&'a str, &'a str),
    }
    let mut merges: Vec<Merge<'_>> = Vec::new();
    for &(id, piece) in pieces {
        if ids.get(piece) != Some(&id) {
            continue;
        }
        let mut local: Vec<((usize, usize), Merge<'_>)> = Vec::new();
        let length = piece.chars().count();
        for (index, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                let merge = Merge { score: score(id), lengths: (index, length - index), pair: (left, right) };
                local.push(((l, r), merge));
            }
        }
        local.sort_by_key(|(ids, _)| *ids);
        merges.extend(local.into_iter().map(|(_, merge)| merge));
    }
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)));
    merges.into_iter().map(|m| (m.pair.0.to_owned(), m.pair.1.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_scores_then_the_longer_left_half() {
        let pieces: Vec<(usize, &str)> = ["a", "b", "ab", "abb", "bb"].into_iter().enumerate().collect();
        let scores = [0.0, 0.0, -1.0, -3.0, -2.0];
        let merges = merges_from_scores(&pieces, |id| scores[id]);
        let merges: Vec<(&str, &str)> = merges.iter().map(|(l, r)| (l.as_str(), r.as_str())).collect();
        assert_eq!(merges, [("a", "b"), ("b", "b"), ("ab", "b"), ("a", "bb")]);
    }

    #[test]
    fn an_unknown_splitting_rule_is_refused_by_name() {
        let message = splitting(Some("chatglm-bpe"), "llama").err().unwrap();
        assert!(
            message.contains("\"chatglm-bpe\" is not known") && message.contains("llama-bpe"),
            "{message}"
        );
        assert!(splitting(None, "llama").err().unwrap().starts_with("missing"));
    }
}
