//! The options that name a model, shared by the commands that need one.

use std::path::PathBuf;

use candle_core::DType;
use cluescope::Error;
use cluescope::contrast::{load_model, open_streamed};
use cluescope::model::{Device, Devices, Model, Streamed};
use cluescope::train::Adapter;

/// Which model, where it computes, and with how many threads.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Hub id, folder or .gguf file, or nano-small or nano-large
    #[arg(long)]
    model: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// Where models compute.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, cuda, cuda:N or metal; the first GPU that this build knows and that can be used when left out.
    /// `attend`, `contrast` and `reproduce` also take several, cuda:0,cuda:1 or cuda:all; the result does not depend on how many
    #[arg(long)]
    device: Option<String>,
    /// The type to compute in: bf16 on CUDA and f32 elsewhere when left out; bf16x3 is nearly f32, on the tile unit of Intel's server
    /// processors
    #[arg(long, value_enum)]
    dtype: Option<Type>,
}

/// Types of activations and matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    F32,
    Bf16,
    #[value(name = "bf16x3")]
    Bf16x3,
}

impl DeviceArgs {
    /// Lets all models be loaded onto the device, the first of several; no other is touched.
    pub(crate) fn choose(&self) -> anyhow::Result<Devices> {
        let mut devices = match &self.device {
            Some(names) => names.parse::<Devices>().map_err(flagged)?,
            None => Device::best().into(),
        };
        if let Some(dtype) = self.dtype {
            let typed = |device: Device| match dtype {
                Type::F32 => device.with_dtype(DType::F32),
                Type::Bf16 => device.with_dtype(DType::BF16),
                Type::Bf16x3 => device.with_bf16x3(),
            };
            devices = devices.map(typed).map_err(flagged)?;
        }
        if devices.as_slice().len() > 1 {
            eprintln!("computing on {devices}");
        }
        devices.first().make_current();
        Ok(devices)
    }

    /// As [`DeviceArgs::choose`], for work that is not shared.
    fn choose_one(&self) -> anyhow::Result<()> {
        if let Some(names) = self.device.as_ref().filter(|names| names.contains(',') || *names == "cuda:all")
        {
            let expected = "one device; only attend, contrast and reproduce share their work among several";
            return Err(Error::option("--device", names, expected).into());
        }
        self.choose().map(|_| ())
    }
}

/// The library's error about an option, under the flag's name.
fn flagged(error: Error) -> Error {
    match error {
        Error::Option { name: "device", value, expected } => Error::option("--device", value, expected),
        Error::Option { name: "dtype", value, expected } => Error::option("--dtype", value, expected),
        other => other,
    }
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

impl ModelArgs {
    /// Loads it onto the one device.
    pub(crate) fn load(&self) -> anyhow::Result<Model> {
        super::use_threads(self.threads)?;
        self.device.choose_one()?;
        Ok(load_model(&self.model)?)
    }

    /// Loads it onto the first of the devices.
    pub(crate) fn load_for_all(&self) -> anyhow::Result<(Model, Devices)> {
        super::use_threads(self.threads)?;
        let devices = self.device.choose()?;
        Ok((load_model(&self.model)?, devices))
    }

    /// Opens it to be read from disk block by block, which is done on the CPU.
    pub(crate) fn open_streamed(&self) -> anyhow::Result<Streamed> {
        super::use_threads(self.threads)?;
        match (self.device.device.as_deref(), self.device.dtype) {
            (None | Some("cpu"), None | Some(Type::F32)) => Ok(open_streamed(&self.model)?),
            (None | Some("cpu"), Some(other)) => {
                let name = if other == Type::Bf16 { "bf16" } else { "bf16x3" };
                Err(Error::option("--dtype", name, "f32 with --streamed").into())
            }
            (Some(name), _) => {
                Err(Error::option("--device", name, "cpu, or nothing, with --streamed").into())
            }
        }
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
