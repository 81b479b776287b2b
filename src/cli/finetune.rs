//! `cluescope finetune`: teaches a model a corpus, by LoRA or with every weight.

use std::path::PathBuf;

use anyhow::Context;
use cluescope::files::{clear_leftovers, make_ready, write_text};
use cluescope::memory;
use cluescope::train::{Adapter, Finetune, Run, Schedule};

use super::model::ModelArgs;

/// Options of `cluescope finetune`. What is left out has the paper's value, given in brackets.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts to train on: tagged .csv, .jsonl, .parquet, SQuAD .json, .txt, or a folder of .txt files
    #[arg(long)]
    corpus: PathBuf,
    /// Folder for the result (adapter/ or model/, training.json) and the state; the same command goes on from there
    #[arg(long)]
    out: PathBuf,
    /// Train every weight instead of an adapter
    #[arg(long, conflicts_with_all = ["lora_r", "lora_alpha", "lora_dropout", "target_modules"])]
    full: bool,
    /// Rank of the adapter [16]
    #[arg(long, alias = "lora_r")]
    lora_r: Option<usize>,
    /// The adapter is scaled by lora-alpha / lora-r [16]
    #[arg(long, alias = "lora_alpha")]
    lora_alpha: Option<f32>,
    /// Dropout on the adapter's input [0]
    #[arg(long, alias = "lora_dropout")]
    lora_dropout: Option<f32>,
    /// Projections that get an adapter [q_proj k_proj v_proj o_proj gate_proj up_proj down_proj, those of them the model has]
    #[arg(long, alias = "target_modules", num_args = 1..)]
    target_modules: Option<Vec<String>>,
    /// Highest learning rate [5e-4; 2e-4 with --full]
    #[arg(long, alias = "learning_rate")]
    learning_rate: Option<f64>,
    /// Decay after the warm-up [linear]
    #[arg(long, value_enum)]
    schedule: Option<Decay>,
    /// Share of the steps spent warming up [0.1]
    #[arg(long, alias = "warmup_ratio")]
    warmup_ratio: Option<f64>,
    /// Passes over the texts [20]
    #[arg(long)]
    epochs: Option<usize>,
    /// Optimiser steps in all, instead of epochs
    #[arg(long, alias = "max_steps", conflicts_with = "epochs")]
    max_steps: Option<usize>,
    /// Texts a forward pass [8]
    #[arg(long, alias = "batch_size")]
    batch_size: Option<usize>,
    /// Forward passes an optimiser step [1]
    #[arg(long, alias = "gradient_accumulation_steps")]
    gradient_accumulation_steps: Option<usize>,
    /// Tokens after which a text is cut [1024]
    #[arg(long, alias = "max_length")]
    max_length: Option<usize>,
    /// Longest gradient; 0 switches clipping off [1]
    #[arg(long, alias = "max_grad_norm")]
    max_grad_norm: Option<f64>,
    /// Decoupled weight decay [0]
    #[arg(long, alias = "weight_decay")]
    weight_decay: Option<f64>,
    /// AdamW's decays [0.9 0.999]
    #[arg(long, num_args = 2, value_names = ["BETA1", "BETA2"])]
    betas: Option<Vec<f64>>,
    /// AdamW's epsilon [1e-8]
    #[arg(long)]
    epsilon: Option<f64>,
    /// Put several texts into a window of max-length tokens; they do not see each other, and no two versions of one text
    /// share a window
    #[arg(long)]
    packing: bool,
    /// Less memory for a third more work, the same result
    #[arg(long, alias = "gradient_checkpointing")]
    gradient_checkpointing: bool,
    /// Decides adapter initialisation, order and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Texts whose loss is looked at while training; the result is the step of lowest loss
    #[arg(long)]
    evaluate: Option<PathBuf>,
    /// Optimiser steps between evaluations [each epoch's end]
    #[arg(long, alias = "eval_steps", requires = "evaluate")]
    eval_steps: Option<usize>,
    /// End after so many evaluations without a lower loss
    #[arg(long, alias = "early_stopping_patience", requires = "evaluate")]
    early_stopping_patience: Option<usize>,
    /// Return what was learned at the end, even if an evaluation before was better
    #[arg(long, requires = "evaluate")]
    keep_last: bool,
    /// Also save the state each time so many optimiser steps are done [by time alone, each 45 s or CLUESCOPE_SAVE_SECONDS]
    #[arg(long, alias = "save_steps")]
    save_steps: Option<usize>,
    /// Write TensorBoard event files to this folder
    #[arg(long, alias = "logging_dir")]
    logging_dir: Option<PathBuf>,
    /// Also write the adapted model as a plain checkpoint, model/; always done for models whose adapters no PEFT file can
    /// name (GPT-2, GPT-NeoX)
    #[arg(long)]
    merge: bool,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Decay {
    Linear,
    Cosine,
    Constant,
}

/// Trains and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let finetune = args.finetune()?;
    let corpus = super::texts(&args.corpus)?;
    if args.packing {
        let alone = corpus.documents.iter().filter(|d| d.version_of().is_none()).count();
        if alone > 0 {
            eprintln!(
                "note: {alone} texts have a window each: {} does not say which are versions of one text (.jsonl and .parquet do)",
                args.corpus.display()
            );
        }
    }
    let model = args.model.load()?;
    // A form that cannot be written must not be found out after the training.
    let unnamed = if args.full { None } else { Adapter::check_names(&model).err() };
    if let Some(reason) = &unnamed {
        eprintln!("note: {reason}: model/ will be written, and no adapter/");
    }
    let writes = Writes {
        adapter: !args.full && unnamed.is_none(),
        model: args.full || args.merge || unnamed.is_some(),
    };
    if writes.model {
        model.check_save()?;
    }
    let estimate = finetune.estimate(&model, &corpus)?;
    let weights = if writes.model { (model.parameter_count() * size_of::<f32>()) as u64 } else { 0 };
    make_ready(&args.out, finetune.disk_bytes(&estimate) + estimate.trainable + weights)?;
    for part in [ADAPTER, MODEL] {
        clear_leftovers(args.out.join(part))?;
    }
    let peak = estimate.peak();
    eprintln!("memory expected: {} in all; {estimate}", memory::readable(peak));
    let more = peak.saturating_sub(memory::resident().unwrap_or(0));
    if let Some(available) = memory::available().filter(|&available| more > available) {
        eprintln!(
            "warning: the {} still to come are more than the {} available; --gradient-checkpointing, a smaller --batch-size or a \
             quantised .gguf model need less",
            memory::readable(more),
            memory::readable(available)
        );
    }
    let mut trained = model.finetune(&corpus, finetune)?;
    trained.provenance.command = super::command_line();
    args.write(&trained, writes, peak)
}

/// Folders of the results.
const ADAPTER: &str = "adapter";
const MODEL: &str = "model";

/// Which of the results are written.
#[derive(Clone, Copy)]
struct Writes {
    adapter: bool,
    model: bool,
}

impl Args {
    fn finetune(&self) -> cluescope::Result<Finetune> {
        let mut f = if self.full { Finetune::full() } else { Finetune::default() };
        if let Some(r) = self.lora_r {
            f = Finetune::lora(r);
        }
        if let Some(value) = self.lora_alpha {
            f = f.lora_alpha(value);
        }
        if let Some(value) = self.lora_dropout {
            f = f.lora_dropout(value);
        }
        if let Some(names) = &self.target_modules {
            f = f.target_modules(names.clone());
        }
        if let Some(value) = self.learning_rate {
            f = f.learning_rate(value);
        }
        if let Some(decay) = self.schedule {
            f = f.schedule(match decay {
                Decay::Linear => Schedule::Linear,
                Decay::Cosine => Schedule::Cosine,
                Decay::Constant => Schedule::Constant,
            });
        }
        if let Some(value) = self.warmup_ratio {
            f = f.warmup_ratio(value);
        }
        if let Some(value) = self.epochs {
            f = f.epochs(value);
        }
        if let Some(value) = self.max_steps {
            f = f.max_steps(value);
        }
        if let Some(value) = self.batch_size {
            f = f.batch_size(value);
        }
        if let Some(value) = self.gradient_accumulation_steps {
            f = f.gradient_accumulation_steps(value);
        }
        if let Some(value) = self.max_length {
            f = f.max_length(value);
        }
        if let Some(value) = self.max_grad_norm {
            f = f.max_grad_norm(value);
        }
        if let Some(value) = self.weight_decay {
            f = f.weight_decay(value);
        }
        if let Some(&[beta1, beta2]) = self.betas.as_deref() {
            f = f.betas(beta1, beta2);
        }
        if let Some(value) = self.epsilon {
            f = f.epsilon(value);
        }
        if let Some(path) = &self.evaluate {
            f = f.evaluate(&super::texts(path)?).load_best_model_at_end(!self.keep_last);
        }
        if let Some(value) = self.eval_steps {
            f = f.eval_steps(value);
        }
        if let Some(value) = self.early_stopping_patience {
            f = f.early_stopping_patience(value);
        }
        if let Some(folder) = &self.logging_dir {
            f = f.logging_dir(folder);
        }
        let f = f
            .packing(self.packing)
            .gradient_checkpointing(self.gradient_checkpointing)
            .seed(self.seed)
            .checkpoint(&self.out)
            .save_steps(self.save_steps.unwrap_or(0));
        // Before anything is read or loaded.
        f.settings()?;
        Ok(f)
    }

    fn write(&self, trained: &Run, writes: Writes, expected: u64) -> anyhow::Result<()> {
        let mut written = Vec::new();
        if writes.adapter {
            let folder = self.out.join(ADAPTER);
            trained.adapter()?.save(&folder)?;
            written.push(folder);
        }
        if writes.model {
            let folder = self.out.join(MODEL);
            trained.model.save(&folder)?;
            written.push(folder);
        }
        let path = self.out.join("training.json");
        let report = serde_json::json!({
            "base": trained.base.0,
            "base_hash": trained.base.1,
            "settings": trained.settings,
            "texts": trained.texts,
            "truncated": trained.truncated,
            "skipped": trained.skipped,
            "step": trained.step,
            "steps": trained.steps,
            "evaluations": trained.evaluations,
            "memory_expected": trained.estimate,
            "peak_memory": trained.peak_memory,
            "provenance": trained.provenance,
        });
        let text = serde_json::to_string_pretty(&report).context("the record of the run")?;
        write_text(&path, &format!("{text}\n"))?;
        written.push(path);
        let last = trained.steps.last().map_or(f64::NAN, |step| step.loss);
        println!("{} texts, {} steps, last loss {last:.4}", trained.texts, trained.steps.len());
        if let Some(best) = trained.best() {
            println!(
                "lowest evaluation loss {:.4} at step {}; kept: step {}",
                best.loss, best.step, trained.step
            );
        }
        if let Some(peak) = trained.peak_memory {
            println!("memory: {} at most, {} expected", memory::readable(peak), memory::readable(expected));
        }
        for path in written {
            println!("{}", path.display());
        }
        Ok(())
    }
}
