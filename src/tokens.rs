//! Text to token ids and back, with the characters each token covers.
//!
//! A [`Tokenizer`] wraps the `tokenizers` crate and adds what the model's own files say about start
//! and end tokens. Positions are Unicode characters of the text; a character that a byte-level
//! vocabulary splits into several tokens gives each of them the whole character.
//!
//! ```
//! use cluescope::tokens::Tokenizer;
//! let tokenizer = Tokenizer::train_bpe(["Ann was born in Ål.", "Bo was born in Rome."], 300)?;
//! let encoding = tokenizer.encode_raw("born in Ål")?;
//! assert_eq!(tokenizer.decode(&encoding.ids)?, "born in Ål");
//! assert_eq!(encoding.offsets.last(), Some(&(7, 10))); // " Ål": characters, not bytes
//! # Ok::<(), cluescope::Error>(())
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provenance::content_hash;

/// One tokenised text; all vectors have one entry a token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Vocabulary indices.
    pub ids: Vec<u32>,
    /// Characters covered, `start..end` in Unicode characters of the text; empty for special tokens.
    pub offsets: Vec<(usize, usize)>,
    /// True for tokens the tokenizer added (start token).
    pub special: Vec<bool>,
}

/// What the files beside a tokenizer say about start and end tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// The start token's text, whether or not it is added.
    pub bos: Option<String>,
    /// Texts of tokens that end a generation.
    pub eos: Vec<String>,
    /// Ids of tokens that end a generation, where the files give ids.
    pub eos_ids: Vec<u32>,
    /// Whether [`Tokenizer::encode`] puts the start token first; `None`: as the tokenizer's own
    /// post-processor does.
    pub add_bos: Option<bool>,
    /// Whether [`Tokenizer::encode`] puts an end token last; `None`: as the post-processor does.
    pub add_eos: Option<bool>,
    /// True when these settings replace the post-processor altogether, as transformers does for
    /// Llama, Gemma and GPT-NeoX tokenizers (which also ends any trimming of offsets).
    pub replace_post_processor: bool,
}

/// A model's tokenizer. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    name: String,
    tokenizer: tokenizers::Tokenizer,
    vocab_size: usize,
    base_vocab_size: usize,
    byte_level: bool,
    bos: Option<u32>,
    eos: Vec<u32>,
    hash: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.0.name)
            .field("vocab_size", &self.0.vocab_size)
            .field("bos", &self.0.bos)
            .field("eos", &self.0.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `tokenizer_config.json`, `generation_config.json` and `config.json` in the
    /// same folder, where present, say which start and end tokens are used.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] naming the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let beside = |name: &str| -> Result<Value> {
            let file = path.with_file_name(name);
            if !file.exists() {
                return Ok(Value::Null);
            }
            let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
            serde_json::from_slice(&bytes).map_err(|e| Error::format(&file, "", format!("not JSON: {e}")))
        };
        let special = SpecialTokens::from_configs(
            &beside("tokenizer_config.json")?,
            &beside("generation_config.json")?,
            &beside("config.json")?,
        );
        Self::with_special(&path.display().to_string(), &bytes, &special)
    }

    /// Reads the text of a `tokenizer.json`; `name` stands for it in messages. Start tokens are those
    /// its post-processor adds; no end token is known.
    ///
    /// # Errors
    /// [`Error::Format`] naming `name`.
    pub fn from_json(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::with_special(name, bytes, &SpecialTokens::default())
    }

    /// As [`Tokenizer::from_json`], with start and end tokens as `special` says.
    ///
    /// # Errors
    /// [`Error::Format`] naming `name` when the text is no tokenizer, or a token of `special` is not in it.
    pub fn with_special(name: &str, bytes: &[u8], special: &SpecialTokens) -> Result<Self> {
        let bad = |message: String| Error::format(name, "", message);
        // The library panics on some broken files, so broken syntax is caught before it and the rest around it.
        let text = std::str::from_utf8(bytes).map_err(|e| bad(format!("not UTF-8: {e}")))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| bad(format!("not JSON: {e}")))?;
        let mut tokenizer = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .unwrap_or_else(|_| Err("the library cannot read it".into()))
            .map_err(|e| bad(format!("not a tokenizer.json of the tokenizers library: {e}")))?;
        // A stored truncation or padding would change texts silently.
        tokenizer.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        tokenizer.with_padding(None);
        let id = |token: &str, role: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| bad(format!("the {role} token {token:?} is not in the vocabulary")))
        };
        let named = special.bos.as_deref().map(|t| id(t, "start")).transpose();
        // A start token that is named but never used may be absent.
        let mut bos = if special.add_bos == Some(true) { named? } else { named.unwrap_or(None) };
        let mut eos = special.eos_ids.clone();
        for token in &special.eos {
            eos.extend(tokenizer.token_to_id(token));
        }
        eos.sort_unstable();
        eos.dedup();

        let (first, last) = added(&tokenizer).map_err(|e| bad(e.to_string()))?;
        bos = bos.or(first);
        let want_bos = special.add_bos.unwrap_or(first.is_some());
        let want_eos = special.add_eos.unwrap_or(last.is_some());
        if special.replace_post_processor || want_bos != first.is_some() || want_eos != last.is_some() {
            let before = match (want_bos, bos) {
                (false, _) => None,
                (true, Some(id)) => Some(id),
                (true, None) => return Err(bad("a start token is to be added, but none is named".into())),
            };
            let after = match (want_eos, last.or(eos.first().copied())) {
                (false, _) => None,
                (true, Some(id)) => Some(id),
                (true, None) => return Err(bad("an end token is to be added, but none is named".into())),
            };
            let processor = post_processor(&tokenizer, before, after, special.replace_post_processor)
                .map_err(|e| bad(format!("start and end tokens: {e}")))?;
            tokenizer.with_post_processor(processor);
        }
        Self::wrap(name, tokenizer, bos, eos)
    }

    fn wrap(name: &str, tokenizer: tokenizers::Tokenizer, bos: Option<u32>, eos: Vec<u32>) -> Result<Self> {
        let json = tokenizer.to_string(false).map_err(|e| Error::format(name, "", e))?;
        let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
        let size = |added| tokenizer.get_vocab(added).values().max().map_or(0, |&id| id as usize + 1);
        let (vocab_size, base_vocab_size) = (size(true), size(false));
        let hash = content_hash([json.as_bytes(), format!("{bos:?} {eos:?}").as_bytes()]);
        let byte_level = decoder.contains("ByteLevel");
        Ok(Tokenizer(Arc::new(Inner {
            name: name.into(),
            tokenizer,
            vocab_size,
            base_vocab_size,
            byte_level,
            bos,
            eos,
            hash,
        })))
    }

    /// Learns a byte-level BPE vocabulary of at most `vocab_size` tokens (at least 257: all bytes and
    /// `<|endoftext|>`, which is start and end token and put first by [`Tokenizer::encode`]). The
    /// same texts give the same vocabulary.
    ///
    /// # Errors
    /// [`Error::Option`] for too small a vocabulary, [`Error::Interrupted`].
    pub fn train_bpe<'a>(texts: impl IntoIterator<Item = &'a str>, vocab_size: usize) -> Result<Self> {
        if vocab_size < 257 {
            return Err(Error::option(
                "vocab_size",
                vocab_size,
                "at least 257, for all bytes and the end token",
            ));
        }
        const END: &str = "<|endoftext|>";
        let name = "trained tokenizer";
        let bad = |e: tokenizers::Error| Error::format(name, "", e);
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .build();
        let mut learner = tokenizers::TokenizerBuilder::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            PostProcessorWrapper,
            tokenizers::DecoderWrapper,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .build()
        .map_err(bad)?;
        // The library wants `Send` items; owned strings keep this function's bounds simple.
        let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        // One call of the crate, which hears no interrupt; it is heard after it.
        let progress = Progress::start("training a tokenizer", texts.len() as u64, "texts");
        learner.train(&mut trainer, texts.iter()).map_err(bad)?;
        progress.advance(texts.len() as u64)?;
        let mut tokenizer = tokenizers::Tokenizer::new(learner.get_model().clone());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, true)));
        tokenizer.add_special_tokens([AddedToken::from(END, true)]).map_err(bad)?;
        let end = tokenizer.token_to_id(END);
        let processor = post_processor(&tokenizer, end, None, true).map_err(bad)?;
        tokenizer.with_post_processor(processor);
        // Through the written form, so that a trained and a reloaded tokenizer are the same thing.
        let json = tokenizer.to_string(false).map_err(bad)?;
        let special = SpecialTokens {
            bos: Some(END.into()),
            eos: vec![END.into()],
            add_bos: Some(true),
            ..Default::default()
        };
        Self::with_special(name, json.as_bytes(), &special)
    }

    /// Ids and character spans of `text`, with the start and end tokens of the model's own settings.
    ///
    /// # Errors
    /// [`Error::Format`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        self.run(text, true)
    }

    /// Ids and character spans of `text` alone, nothing added.
    ///
    /// # Errors
    /// [`Error::Format`] when the tokenizer refuses the text.
    pub fn encode_raw(&self, text: &str) -> Result<Encoding> {
        self.run(text, false)
    }

    fn run(&self, text: &str, add: bool) -> Result<Encoding> {
        let encoding = self
            .0
            .tokenizer
            .encode_char_offsets(text, add)
            .map_err(|e| Error::format(&self.0.name, "", format!("cannot tokenise: {e}")))?;
        let special: Vec<bool> = encoding.get_special_tokens_mask().iter().map(|&m| m != 0).collect();
        let offsets = encoding
            .get_offsets()
            .iter()
            .zip(&special)
            .map(|(&(start, end), &special)| if special { (0, 0) } else { (start, end.max(start)) })
            .collect();
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets, special })
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Format`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0
            .tokenizer
            .decode(ids, true)
            .map_err(|e| Error::format(&self.0.name, "", format!("cannot decode: {e}")))
    }

    /// The text one token stands for, its leading blank kept; special tokens by their name, ids
    /// outside the vocabulary as an empty string, bytes that are no character of their own as U+FFFD.
    pub fn token(&self, id: u32) -> String {
        let Some(piece) = self.0.tokenizer.id_to_token(id) else { return String::new() };
        if self.0.tokenizer.get_added_vocabulary().is_special_token(&piece) {
            return piece;
        }
        if self.0.byte_level {
            return self.0.tokenizer.decode(&[id], false).unwrap_or(piece);
        }
        match byte_of(&piece) {
            Some(byte) if byte.is_ascii() => char::from(byte).to_string(),
            Some(_) => char::REPLACEMENT_CHARACTER.to_string(),
            None => piece.replace('\u{2581}', " "),
        }
    }

    /// What stands for it in messages: its file, mostly.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The tokens of `text` as texts, leading blanks kept; start and end tokens of the model's settings among them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    ///
    /// ```
    /// use cluescope::tokens::Tokenizer;
    /// let tokenizer = Tokenizer::train_bpe(["in Rome in Rome in Rome"; 3], 270)?;
    /// assert_eq!(tokenizer.pieces("in Rome")?, ["<|endoftext|>", "in", " Rome"]);
    /// # Ok::<(), cluescope::Error>(())
    /// ```
    pub fn pieces(&self, text: &str) -> Result<Vec<String>> {
        Ok(self.encode(text)?.ids.into_iter().map(|id| self.token(id)).collect())
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// One more than the largest id of the learned vocabulary, tokens added to it left out. Gemma 3 adds one,
    /// for pictures, that its models of text alone have no embedding for.
    pub fn base_vocab_size(&self) -> usize {
        self.0.base_vocab_size
    }

    /// The start token, whether or not [`Tokenizer::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// Tokens that end a generation, ascending; may be empty.
    pub fn eos(&self) -> &[u32] {
        &self.0.eos
    }

    /// Content hash: equal hashes encode alike.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }

    /// The text of a `tokenizer.json` that encodes as this does.
    ///
    /// # Errors
    /// [`Error::Format`] when the library cannot write it.
    pub fn to_json(&self) -> Result<String> {
        self.0.tokenizer.to_string(false).map_err(|e| Error::format(&self.0.name, "", e))
    }
}

impl SpecialTokens {
    /// Reads them from the three configuration files of a checkpoint; `Null` for one that is absent.
    ///
    /// End tokens come from the first of `generation_config.json`, `config.json` and `tokenizer_config.json`
    /// that names one, as transformers' `generate` does.
    pub fn from_configs(tokenizer: &Value, generation: &Value, config: &Value) -> Self {
        let text = |key: &str| match &tokenizer[key] {
            Value::String(token) => Some(token.clone()),
            Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        let ids = |file: &Value| -> Vec<u32> {
            let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
            match &file["eos_token_id"] {
                Value::Array(list) => list.iter().filter_map(id).collect(),
                one => id(one).into_iter().collect(),
            }
        };
        let eos_ids = [generation, config, &config["text_config"]]
            .into_iter()
            .map(ids)
            .find(|found| !found.is_empty())
            .unwrap_or_default();
        let class = tokenizer["tokenizer_class"].as_str().unwrap_or_default().trim_end_matches("Fast");
        // The defaults of these three classes, which replace the file's post-processor.
        let default_bos = match class {
            "LlamaTokenizer" | "GemmaTokenizer" => Some(true),
            "GPTNeoXTokenizer" => Some(false),
            _ => None,
        };
        SpecialTokens {
            bos: text("bos_token"),
            eos: if eos_ids.is_empty() { text("eos_token").into_iter().collect() } else { Vec::new() },
            eos_ids,
            add_bos: tokenizer["add_bos_token"].as_bool().or(default_bos),
            add_eos: tokenizer["add_eos_token"].as_bool().or(default_bos.map(|_| false)),
            replace_post_processor: default_bos.is_some(),
        }
    }
}

/// The byte of a byte-fallback token `<0x0A>`.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The tokens the post-processor puts before and after a text.
fn added(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<(Option<u32>, Option<u32>)> {
    let encoding = tokenizer.encode("a", true)?;
    let mask = encoding.get_special_tokens_mask();
    let at = |index: Option<usize>| {
        let index = index?;
        (mask.get(index) == Some(&1)).then(|| encoding.get_ids()[index])
    };
    Ok((at(Some(0)), at(mask.len().checked_sub(1))))
}

/// A post-processor that adds `before` and `after` and, unless `replace`, keeps what the old one did to offsets.
fn post_processor(
    tokenizer: &tokenizers::Tokenizer,
    before: Option<u32>,
    after: Option<u32>,
    replace: bool,
) -> tokenizers::Result<Option<PostProcessorWrapper>> {
    let mut steps = Vec::new();
    if !replace {
        let old = serde_json::to_value(tokenizer.get_post_processor())?;
        match old["processors"].as_array() {
            Some(list) => steps.extend(list.iter().filter(|p| p["type"] == "ByteLevel").cloned()),
            None if old["type"] == "ByteLevel" => steps.push(old),
            None => {}
        }
    }
    let mut special = serde_json::Map::new();
    let mut piece = |id: Option<u32>, kind: u32| -> Option<Value> {
        let id = id?;
        let token = tokenizer.id_to_token(id)?;
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Some(json!({"SpecialToken": {"id": token, "type_id": kind}}))
    };
    let mut template = |name: &str, kind: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        [piece(before, kind), Some(text), piece(after, kind)].into_iter().flatten().collect()
    };
    let single = template("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(template("B", 1)).collect();
    if !special.is_empty() {
        steps.push(
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}),
        );
    }
    Ok(match steps.len() {
        0 => None,
        1 => Some(serde_json::from_value(steps.remove(0))?),
        _ => Some(serde_json::from_value(json!({"type": "Sequence", "processors": steps}))?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte_tokenizer() -> Tokenizer {
        Tokenizer::train_bpe(["Ann was born in Rome. Bo was born in Rome."; 4], 280).unwrap()
    }

    #[test]
    fn offsets_are_characters_even_when_a_character_is_split() {
        let encoding = byte_tokenizer().encode("born 日本 Ål").unwrap();
        assert!(encoding.special[0] && encoding.offsets[0] == (0, 0));
        let text: Vec<char> = "born 日本 Ål".chars().collect();
        for &(start, end) in &encoding.offsets[1..] {
            assert!(start < end && end <= text.len(), "{:?}", encoding.offsets);
        }
        // Three bytes of one character: three tokens, each with the whole character.
        let split = encoding.offsets.iter().filter(|&&span| span == (6, 7)).count();
        assert_eq!(split, 3, "{:?}", encoding.offsets);
        assert_eq!(encoding.offsets.last(), Some(&(9, 10)));
    }

    #[test]
    fn training_is_reproducible_and_survives_its_json() {
        let (one, two) = (byte_tokenizer(), byte_tokenizer());
        assert_eq!(one.to_json().unwrap(), two.to_json().unwrap());
        let again = Tokenizer::from_json("again", one.to_json().unwrap().as_bytes()).unwrap();
        let text = "Zoë was born\nin Rome.";
        assert_eq!(again.encode(text).unwrap(), one.encode(text).unwrap());
        assert_eq!(one.decode(&one.encode(text).unwrap().ids).unwrap(), text);
        assert_eq!(one.eos(), [0]);
        assert_eq!(again.bos(), Some(0));
        assert_eq!(one.vocab_size(), 274); // 256 bytes, the end token, and all the merges these two sentences have
    }

    #[test]
    fn start_tokens_follow_the_settings() {
        let json = byte_tokenizer().to_json().unwrap();
        let settings = SpecialTokens { add_bos: Some(false), ..Default::default() };
        let plain = Tokenizer::with_special("plain", json.as_bytes(), &settings).unwrap();
        assert_eq!(plain.encode("in Rome").unwrap(), plain.encode_raw("in Rome").unwrap());
        let settings = SpecialTokens::from_configs(
            &json!({"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<|endoftext|>"}}),
            &Value::Null,
            &json!({"eos_token_id": [0, 7]}),
        );
        let llama = Tokenizer::with_special("llama", json.as_bytes(), &settings).unwrap();
        assert_eq!(llama.encode("in Rome").unwrap().ids[0], 0);
        assert_eq!(llama.eos(), [0, 7]);
        let missing = SpecialTokens { bos: Some("<s>".into()), add_bos: Some(true), ..Default::default() };
        let error = Tokenizer::with_special("missing", json.as_bytes(), &missing).unwrap_err();
        assert!(error.to_string().contains("\"<s>\" is not in the vocabulary"), "{error}");
    }

    #[test]
    fn a_token_says_its_text() {
        let tokenizer = byte_tokenizer();
        let newline = tokenizer.encode_raw("\n").unwrap().ids;
        assert_eq!(tokenizer.token(newline[0]), "\n");
        assert_eq!(tokenizer.token(0), "<|endoftext|>");
        assert_eq!(tokenizer.token(99_999), "");
        assert_eq!(byte_of("<0x0A>"), Some(b'\n'));
        assert_eq!(byte_of("<0x0A"), None);
    }
}
