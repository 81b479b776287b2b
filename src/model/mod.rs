//! Causal language models: one decoder for every family, exact in f32.
//!
//! A family is a [`DecoderConfig`]; weights arrive from a [`WeightSource`] under canonical names and
//! stay in the type of their file. [`Model::forward`] computes logits and captures attention,
//! [`Model::loss`] is differentiable, [`Model::generate`] decodes greedily.
//!
//! # Canonical names
//! `embed_tokens.weight` `[vocab, hidden]` · `position_embeddings.weight` `[max_positions, hidden]` (learned positions) ·
//! `layers.{i}.self_attn.{q_proj,k_proj,v_proj,o_proj}.{weight,bias}`, weights `[out, in]` ·
//! `layers.{i}.self_attn.{q_norm,k_norm}.weight` `[head_dim]` · `layers.{i}.mlp.{gate_proj,up_proj,down_proj}.{weight,bias}` ·
//! `layers.{i}.input_norm`, `mlp_norm` (before the MLP), and in sandwiches `post_attention_norm`, `post_mlp_norm`, each `.weight` and, for layer norms,
//! `.bias` · `norm` · `lm_head.weight` unless tied. Norm weights are the factors applied (Gemma's one already added).

mod amx;
mod attention;
mod block;
mod cache;
mod capture;
mod config;
mod continuation;
mod decoder;
mod device;
mod devices;
mod family;
mod fields;
mod generate;
mod gguf;
mod graph;
mod hub;
mod init;
mod linear;
mod load;
mod lora;
mod loss;
mod matmul;
mod memory;
mod mlp;
mod norm;
mod parameters;
mod rope;
mod save;
mod scratch;
mod sequences;
mod simd;
mod streamed;
#[cfg(test)]
mod tests;
mod vocabulary;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Tensor, Var};

pub use capture::{Batch, Capture, CapturedText, Detail, Logits, Output, Want};
pub use config::{Activation, DecoderConfig, LayerKind, Mlp, Norm, Position, Residual, RopeScaling};
pub use device::Device;
pub use devices::Devices;
pub use generate::Generate;
pub use gguf::GGUF_TYPES;
pub use hub::Hub;
pub(crate) use linear::with_values;
pub use lora::{LoraConfig, PAPER_TARGETS};
pub use streamed::Streamed;

use crate::error::{Error, Result};
use crate::provenance::content_hash;
use crate::tokens::Tokenizer;
use parameters::Decoder;
use scratch::in_pool;

/// A weight matrix `[out, in]` in the type of its file.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// f32, f16 or bf16.
    Dense(Tensor),
    /// One of candle's GGUF block types.
    Quantized(Arc<QTensor>),
}

/// Where the weights of a model come from; see the module's list of canonical names.
pub trait WeightSource {
    /// Whether `name` exists.
    fn has(&self, name: &str) -> bool;

    /// The matrix `name` of `rows` × `cols`, that is `[out, in]`.
    ///
    /// # Errors
    /// When it is missing, misshapen or of an unsupported type.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix>;

    /// The vector `name` of `len` f32 values.
    ///
    /// # Errors
    /// When it is missing or misshapen.
    fn vector(&mut self, name: &str, len: usize) -> Result<Tensor>;
}

/// How a training pass runs; see [`Model::loss_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrainPass {
    /// Keep only each block's input and compute the rest again in the backward pass: about a tenth of the
    /// memory for a third more work. The loss and the gradients keep their bits.
    pub recompute: bool,
    /// Seed of this step's dropout (LoRA dropout); `None` switches dropout off.
    pub dropout_seed: Option<u64>,
}

/// A causal language model with its tokenizer. Cloning is cheap; clones share the weights.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    name: String,
    hash: String,
    /// Whether the hash stands for these very weights; not while they may be trained.
    settled: bool,
    tokenizer: Tokenizer,
    device: Device,
    decoder: Arc<Decoder>,
    trainable: BTreeMap<String, Var>,
}

/// Refuses a tokenizer whose learned vocabulary has tokens without an embedding. An added token without one is refused when a
/// text uses it (`Batch::check`).
fn tokenizer_fits(model: &str, tokenizer: &Tokenizer, config: &DecoderConfig) -> Result<()> {
    if tokenizer.base_vocab_size() <= config.vocab_size {
        return Ok(());
    }
    Err(Error::model(
        model,
        format!(
            "the tokenizer knows {} tokens, the embedding has {} rows; use the model's own tokenizer",
            tokenizer.base_vocab_size(),
            config.vocab_size
        ),
    ))
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.0.name)
            .field("hash", &self.0.hash)
            .field("parameters", &self.parameter_count())
            .field("trainable", &self.0.trainable.len())
            .field("device", &self.0.device)
            .finish()
    }
}

impl Model {
    /// Builds a model from its parts.
    ///
    /// `hash` identifies the content of the weights; results are cached under it. `weights` gives tensors on `device`.
    ///
    /// # Errors
    /// When the configuration is impossible, a weight is missing or misshapen, or the tokenizer's learned vocabulary is larger
    /// than the embedding.
    pub fn assemble(
        name: impl Into<String>,
        hash: impl Into<String>,
        config: DecoderConfig,
        tokenizer: Tokenizer,
        weights: &mut dyn WeightSource,
        device: &Device,
    ) -> Result<Self> {
        let name = name.into();
        config.validate(&name)?;
        tokenizer_fits(&name, &tokenizer, &config)?;
        let mut decoder = Decoder::load(config, weights, device.place())?;
        decoder.products = device.products();
        Ok(Model(Arc::new(Inner {
            name,
            hash: hash.into(),
            settled: true,
            tokenizer,
            device: device.clone(),
            decoder: Arc::new(decoder),
            trainable: BTreeMap::new(),
        })))
    }

    /// A model with random weights on the CPU ([`Model::to_device`] moves it), the same for the same seed: normal(0, 0.02), the
    /// projections onto the residual stream divided by √(2 · layers), norms one, biases zero (GPT-2's scheme).
    ///
    /// # Errors
    /// As [`Model::assemble`].
    pub fn random(
        name: impl Into<String>,
        config: DecoderConfig,
        tokenizer: Tokenizer,
        seed: u64,
    ) -> Result<Self> {
        let name = name.into();
        let hash = content_hash([
            format!("{config:?}").as_bytes(),
            &seed.to_le_bytes(),
            tokenizer.hash().as_bytes(),
        ]);
        let mut source = init::RandomWeights::new(seed, config.layers);
        Model::assemble(name, hash, config, tokenizer, &mut source, &Device::cpu())
    }

    /// The name it was loaded under.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Identifies the weights' content; training makes a new one. A model made for training ([`Model::with_lora`],
    /// [`Model::with_trainable_weights`]) has one that says no more than what it began from, until it is [`Model::renamed`].
    pub fn hash(&self) -> &str {
        &self.0.hash
    }

    /// Whether [`Model::hash`] stands for these very weights, so that results may be remembered under it.
    pub(crate) fn is_settled(&self) -> bool {
        self.0.settled
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.0.decoder.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Where it computes, and in which type.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Number of weights, adapters included; a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        self.0.decoder.parameter_count()
    }

    /// The same weights under another name and hash, for instance after training.
    pub fn renamed(&self, name: impl Into<String>, hash: impl Into<String>) -> Self {
        Model(Arc::new(Inner {
            name: name.into(),
            hash: hash.into(),
            settled: true,
            tokenizer: self.0.tokenizer.clone(),
            device: self.0.device.clone(),
            decoder: self.0.decoder.clone(),
            trainable: self.0.trainable.clone(),
        }))
    }

    /// Runs the decoder over `batch`. Not differentiable; see [`Model::loss`].
    ///
    /// # Shapes
    /// `logits`: `[texts, vocab_size]` or `[tokens, vocab_size]`; attention: see [`CapturedText`].
    ///
    /// # Errors
    /// When a text is empty, too long or holds an id outside the vocabulary, or the capture names a position, layer or head that does not exist.
    pub fn forward(&self, batch: &Batch, want: &Want) -> Result<Output> {
        let config = self.config();
        batch.check(self.name(), config.vocab_size, config.max_positions)?;
        if let Some(capture) = &want.capture {
            capture.check(self.name(), batch, config.layers, config.heads)?;
        }
        if batch.texts() == 0 {
            return Ok(Output::default());
        }
        match self.0.device.tensor_dtype() {
            None => in_pool(|| self.0.decoder.forward(batch, want)),
            Some(dtype) => graph::forward(&self.0.decoder, batch, want, dtype),
        }
    }

    /// Mean cross-entropy in nats of the `targets` that are `Some`; a scalar with gradients to
    /// every tensor of [`Model::trainable`]. No dropout; see [`Model::loss_with`].
    ///
    /// `targets[i]` is the token that must follow row `i` of the batch, `None` where nothing is to be predicted.
    ///
    /// # Errors
    /// As [`Model::forward`]; also when the targets do not match the batch or all are `None`.
    pub fn loss(&self, batch: &Batch, targets: &[Option<u32>]) -> Result<Tensor> {
        self.loss_with(batch, targets, &TrainPass::default())
    }

    /// [`Model::loss`] with dropout and recomputation of blocks.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn loss_with(&self, batch: &Batch, targets: &[Option<u32>], pass: &TrainPass) -> Result<Tensor> {
        self.check_targets(batch, targets)?;
        let (decoder, variables) = (&self.0.decoder, self.variables());
        let Some(dtype) = self.0.device.tensor_dtype() else {
            return in_pool(|| decoder::loss(decoder, &variables, batch, targets, pass));
        };
        let place = self.0.device.place();
        if variables.is_empty() {
            let value = graph::loss_value(decoder, batch, targets, pass.dropout_seed, dtype)?;
            return Ok(Tensor::new(value as f32, place)?);
        }
        let (value, half) = graph::forward_half(decoder, variables.clone(), batch, targets, pass, dtype)?;
        loss::deferred(value as f32, move || half.backward(), &variables, place)
    }

    fn variables(&self) -> Vec<Tensor> {
        self.0.trainable.values().map(|variable| variable.as_tensor().clone()).collect()
    }

    /// The loss of [`Model::loss_with`] and its gradients, f32, under the names of [`Model::trainable`], without candle's
    /// graph in between: each gradient is made once and not copied.
    ///
    /// A tensor the loss does not depend on is missing from the map.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        targets: &[Option<u32>],
        pass: &TrainPass,
    ) -> Result<(f32, BTreeMap<String, Tensor>)> {
        self.check_targets(batch, targets)?;
        let mut named = BTreeMap::new();
        let (decoder, place) = (&self.0.decoder, self.0.device.place());
        let Some(dtype) = self.0.device.tensor_dtype() else {
            let (value, mut gradients) =
                in_pool(|| decoder::loss_and_gradients(decoder, batch, targets, pass))?;
            for (name, var) in &self.0.trainable {
                if let Some(values) = gradients.take(var) {
                    named.insert(name.clone(), Tensor::from_vec(values, var.shape(), place)?);
                }
            }
            return Ok((value, named));
        };
        let (value, half) = graph::forward_half(decoder, self.variables(), batch, targets, pass, dtype)?;
        let mut gradients = half.backward()?;
        for (name, var) in &self.0.trainable {
            if let Some(gradient) = gradients.remove(&var.id()) {
                named.insert(name.clone(), gradient);
            }
        }
        Ok((value as f32, named))
    }

    fn check_targets(&self, batch: &Batch, targets: &[Option<u32>]) -> Result<()> {
        let config = self.config();
        batch.check(self.name(), config.vocab_size, config.max_positions)?;
        if targets.len() != batch.tokens() {
            return Err(Error::model(
                self.name(),
                format!("{} targets for {} tokens", targets.len(), batch.tokens()),
            ));
        }
        if let Some(id) = targets.iter().flatten().find(|id| **id as usize >= config.vocab_size) {
            return Err(Error::model(
                self.name(),
                format!("target {id} lies outside the vocabulary of {}", config.vocab_size),
            ));
        }
        if targets.iter().all(Option::is_none) {
            return Err(Error::model(self.name(), "no token of the batch has a target"));
        }
        Ok(())
    }

    /// `log p(token | the tokens before it)` in nats, per text; the first entry, which nothing predicts, is 0.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn token_log_probs(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let config = self.config();
        batch.check(self.name(), config.vocab_size, config.max_positions)?;
        if batch.texts() == 0 {
            return Ok(Vec::new());
        }
        let flat = match self.0.device.tensor_dtype() {
            None => in_pool(|| self.0.decoder.token_log_probs(batch))?,
            Some(dtype) => graph::token_log_probs(&self.0.decoder, batch, dtype)?,
        };
        Ok((0..batch.texts()).map(|text| flat[batch.range(text)].to_vec()).collect())
    }

    /// Gives the memory that passes left for the next ones back to the system.
    pub(crate) fn trim(&self) {
        self.0.decoder.pool.trim();
    }

    /// Tensors that [`Model::loss`] has gradients for, by name; empty for a frozen model.
    ///
    /// LoRA names follow PEFT: `layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn trainable(&self) -> &BTreeMap<String, Var> {
        &self.0.trainable
    }

    /// The same model with fresh LoRA adapters on `config.target_modules`; the weights are shared and frozen.
    ///
    /// A is uniform in ±1/√in (PEFT's `kaiming_uniform_(a=√5)`), B zero, so the model's output is unchanged at first. The draw depends on the seed and the
    /// tensor's name alone. Adapters already present are merged into the weights first.
    ///
    /// # Errors
    /// When an option lies outside its range or a target module matches no linear layer.
    pub fn with_lora(&self, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let mut decoder = Decoder::clone(&self.0.decoder);
        decoder.detach();
        let trainable = lora::attach(self.name(), &mut decoder, config, seed, self.0.device.place())?;
        Ok(self.in_training(decoder, trainable))
    }

    /// The same model with an f32 variable of its own for every weight, adapters merged: full fine-tuning.
    ///
    /// # Errors
    /// When a weight cannot be converted.
    pub fn with_trainable_weights(&self) -> Result<Self> {
        let mut decoder = Decoder::clone(&self.0.decoder);
        let mut trainable = BTreeMap::new();
        decoder.for_each_parameter(&mut |name, parameter| {
            let var = Var::from_tensor(&parameter.effective(self.0.device.place())?.detach())?;
            parameter.replace(var.as_tensor().clone());
            trainable.insert(name, var);
            Ok(())
        })?;
        Ok(self.in_training(decoder, trainable))
    }

    /// A model that believes to train `name` while its graph is cut there: what training must notice.
    #[cfg(test)]
    pub(crate) fn with_cut(&self, name: &str) -> Self {
        let mut decoder = Decoder::clone(&self.0.decoder);
        decoder
            .for_each_parameter(&mut |found, parameter| {
                if found == name {
                    let values = parameter.effective(self.0.device.place())?.detach();
                    parameter.replace(values);
                }
                Ok(())
            })
            .unwrap();
        self.with(decoder, self.0.trainable.clone(), self.0.hash.clone(), false)
    }

    /// The same weights without gradients; adapters stay attached.
    pub fn frozen(&self) -> Self {
        let mut decoder = Decoder::clone(&self.0.decoder);
        decoder.detach();
        self.with(decoder, BTreeMap::new(), self.0.hash.clone(), self.0.settled)
    }

    /// The effective weights as dense f32 tensors under their canonical names, adapters merged, in order of name.
    ///
    /// # Errors
    /// When a weight cannot be converted.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        Decoder::clone(&self.0.decoder).for_each_parameter(&mut |name, parameter| {
            all.insert(name, parameter.effective(self.0.device.place())?.detach());
            Ok(())
        })?;
        Ok(all)
    }

    fn in_training(&self, decoder: Decoder, trainable: BTreeMap<String, Var>) -> Self {
        self.with(decoder, trainable, content_hash([self.hash(), "in training"]), false)
    }

    fn with(&self, decoder: Decoder, trainable: BTreeMap<String, Var>, hash: String, settled: bool) -> Self {
        Model(Arc::new(Inner {
            name: self.0.name.clone(),
            hash,
            settled,
            tokenizer: self.0.tokenizer.clone(),
            device: self.0.device.clone(),
            decoder: Arc::new(decoder),
            trainable,
        }))
    }
}
