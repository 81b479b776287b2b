//! The options that name a model, shared by the commands that need one.

use std::path::PathBuf;

use candle_core::Device;
use cluescope::Error;
use cluescope::contrast::{load_model, open_streamed};
use cluescope::model::{Model, Streamed};
use cluescope::train::Adapter;

/// Which model, where it computes, and with how many threads.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Hub id, folder or .gguf file, or nano-small or nano-large
    #[arg(long)]
    model: String,
    /// Where to compute; `auto` takes a GPU when this build supports one and there is one
    #[arg(long, value_enum, default_value_t = Where::Auto)]
    device: Where,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// A LoRA adapter to put on the model.
#[derive(Debug, clap::Args)]
pub(crate) struct AdapterArgs {
    /// Folder of a LoRA adapter (adapter_config.json, adapter_model.safetensors) trained on the model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The model's weights are those the adapter was trained on, in another file or format
    #[arg(long, requires = "adapter")]
    same_weights: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    Auto,
    Cpu,
    Cuda,
    Metal,
}

impl ModelArgs {
    /// Loads it.
    pub(crate) fn load(&self) -> anyhow::Result<Model> {
        super::use_threads(self.threads)?;
        let model = load_model(&self.model)?;
        let device = model.device();
        let (is, name) = match self.device {
            Where::Auto => return Ok(model),
            Where::Cpu => return Ok(model.to_device(&Device::Cpu)?),
            Where::Cuda => (device.is_cuda(), "cuda"),
            Where::Metal => (device.is_metal(), "metal"),
        };
        if !is {
            let expected = format!(
                "this program finds no such device; build it with `--features {name}` on a machine that has one"
            );
            return Err(Error::option("--device", name, expected).into());
        }
        Ok(model)
    }

    /// Opens it to be read from disk block by block, which is done on the CPU.
    pub(crate) fn open_streamed(&self) -> anyhow::Result<Streamed> {
        super::use_threads(self.threads)?;
        let name = match self.device {
            Where::Auto | Where::Cpu => return Ok(open_streamed(&self.model)?),
            Where::Cuda => "cuda",
            Where::Metal => "metal",
        };
        Err(Error::option("--device", name, "cpu, or nothing, with --streamed").into())
    }
}

impl AdapterArgs {
    /// Puts the adapter, if one is named, on `model`.
    pub(crate) fn apply(&self, model: Model) -> anyhow::Result<Model> {
        let Some(folder) = &self.adapter else { return Ok(model) };
        let mut adapter = Adapter::load(folder)?;
        if self.same_weights {
            adapter = adapter.for_model(&model);
        }
        Ok(adapter.apply(&model)?.frozen())
    }
}
