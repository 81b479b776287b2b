//! Where a model computes, and in which type: decided here and nowhere else.
//!
//! | device | weights, activations, matrix products | norms, softmax, loss, received attention, LoRA, optimiser |
//! |---|---|---|
//! | `cpu` | f32, or products as bf16x3 | f32 |
//! | `cuda`, `cuda:1` … | bf16, or f32 | f32 |
//! | `metal` | f32, or bf16 | f32 |
//!
//! Weights stay in the type of their file and are widened, or narrowed, as they are used.

use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, DeviceLocation, Tensor};

use super::amx;
use super::matmul::Products;
use super::parameters::Decoder;
use super::{Matrix, Model};
use crate::error::{Error, Result};
use crate::progress::check_interrupt;

/// A processor and the type it computes in.
///
/// ```
/// use cluescope::model::Device;
///
/// assert_eq!(Device::cpu().to_string(), "cpu f32");
/// assert!("cuda:x".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone)]
pub struct Device {
    place: candle_core::Device,
    dtype: DType,
    /// Whether tensor operations run, or the CPU's own kernels.
    tensors: bool,
    /// How those kernels multiply.
    products: Products,
    /// Tells the stand-ins for several GPUs apart.
    #[cfg(test)]
    number: usize,
}

/// More cards than machines have.
const CARDS: usize = 16;

/// What [`Device::current`] returns, once it was set.
static CURRENT: RwLock<Option<Device>> = RwLock::new(None);

impl Device {
    /// The CPU, in f32.
    pub fn cpu() -> Device {
        Device { tensors: false, ..Device::gpu(candle_core::Device::Cpu, DType::F32) }
    }

    /// The NVIDIA GPU with this number, in bf16.
    ///
    /// # Errors
    /// When this build has no CUDA (`--features cuda`), and what the driver reports.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        // Tensors of a card that was opened twice would not mix.
        static OPEN: Mutex<Vec<(usize, candle_core::Device)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, place)) = open.iter().find(|(known, _)| *known == ordinal) {
            return Ok(Device::gpu(place.clone(), DType::BF16));
        }
        let name = if ordinal == 0 { "cuda".into() } else { format!("cuda:{ordinal}") };
        let place = usable(&name, "cuda", cfg!(feature = "cuda"), candle_core::Device::new_cuda(ordinal))?;
        open.push((ordinal, place.clone()));
        Ok(Device::gpu(place, DType::BF16))
    }

    /// The Apple GPU, in f32.
    ///
    /// # Errors
    /// When this build has no Metal (`--features metal`), and what the system reports.
    pub fn metal() -> Result<Device> {
        static OPEN: Mutex<Option<candle_core::Device>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = &*open {
            return Ok(Device::gpu(place.clone(), DType::F32));
        }
        let place = usable("metal", "metal", cfg!(feature = "metal"), candle_core::Device::new_metal(0))?;
        *open = Some(place.clone());
        Ok(Device::gpu(place, DType::F32))
    }

    fn gpu(place: candle_core::Device, dtype: DType) -> Device {
        Device {
            place,
            dtype,
            tensors: true,
            products: Products::F32,
            #[cfg(test)]
            number: 0,
        }
    }

    /// The GPU's tensor operations on the CPU, for tests.
    #[cfg(test)]
    pub(crate) fn tensors(dtype: DType) -> Device {
        Device::numbered_tensors(0, dtype)
    }

    /// One of several such.
    #[cfg(test)]
    pub(crate) fn numbered_tensors(number: usize, dtype: DType) -> Device {
        Device { number, ..Device::gpu(candle_core::Device::Cpu, dtype) }
    }

    /// Where tests run the path of GPUs in this type: on the CPU, and on every GPU of this machine that computes in it.
    #[cfg(test)]
    pub(crate) fn present(dtype: DType) -> Vec<Device> {
        let cards =
            Device::cuda_cards().chain(Device::metal()).filter_map(|card| card.with_dtype(dtype).ok());
        std::iter::once(Device::tensors(dtype)).chain(cards).collect()
    }

    /// The first GPU that this build knows and that can be used, otherwise the CPU. Where a GPU cannot be used, standard
    /// error says why, once.
    pub fn best() -> Device {
        static BEST: OnceLock<Device> = OnceLock::new();
        let find = || {
            let mut why = None;
            let mut first =
                |found: Result<Device>| found.map_err(|error| why.get_or_insert(error).to_string()).ok();
            let mut found = None;
            if cfg!(feature = "cuda") {
                found = (0..CARDS).find_map(|card| first(Device::cuda(card)));
            }
            if cfg!(feature = "metal") {
                found = found.or_else(|| first(Device::metal()));
            }
            if let (None, Some(why)) = (&found, why) {
                eprintln!("no GPU can be used, so the CPU computes: {why}");
            }
            found.unwrap_or_else(Device::cpu)
        };
        BEST.get_or_init(find).clone()
    }

    /// The device models are loaded onto where none is named: that of [`Device::make_current`], [`Device::best`] before.
    pub fn current() -> Device {
        let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.unwrap_or_else(Device::best)
    }

    /// Lets all later loading of models go to this device.
    pub fn make_current(&self) {
        *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = Some(self.clone());
    }

    /// The same device computing in f32 or bf16.
    ///
    /// bf16 on NVIDIA needs compute capability 8.0.
    ///
    /// # Errors
    /// [`Error::Option`] for another type, and for bf16 on the CPU.
    pub fn with_dtype(self, dtype: DType) -> Result<Device> {
        match dtype {
            DType::F32 => {}
            DType::BF16 if self.tensors => {}
            DType::BF16 => return Err(Error::option("dtype", "bf16", "f32 or bf16x3 on the CPU")),
            other => return Err(Error::option("dtype", format!("{other:?}"), "f32 or bf16")),
        }
        Ok(Device { dtype, products: Products::F32, ..self })
    }

    /// The CPU with every product of 32 rows or more with a weight made as three products of bf16, on the tile unit (AMX) that
    /// Intel's server processors have since 2023.
    ///
    /// A product of two numbers is then off by 2⁻¹⁶ of itself at most, where f32 rounds at 2⁻²⁴: what PyTorch calls
    /// `set_float32_matmul_precision("high")`. Everything else stays in f32, and results do not depend on the number of threads.
    /// How much faster it is and how far results differ: docs/parity.md.
    ///
    /// # Errors
    /// [`Error::Option`] on a GPU and on a processor or system without the unit.
    pub fn with_bf16x3(self) -> Result<Device> {
        if self.tensors {
            return Err(Error::option("dtype", "bf16x3", "f32 or bf16 on a GPU"));
        }
        if !amx::available() {
            let why =
                "f32: bf16x3 needs Linux and a processor with AMX (Intel Xeon, 4th generation and later)";
            return Err(Error::option("dtype", "bf16x3", why));
        }
        Ok(Device { products: Products::Bf16x3, ..self })
    }

    /// The type of activations and matrix products.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Every NVIDIA GPU that can be used.
    pub(super) fn cuda_cards() -> impl Iterator<Item = Device> {
        (0..CARDS).filter_map(|card| Device::cuda(card).ok())
    }

    /// Whether tensor operations run, and not the CPU's own kernels.
    pub(super) fn is_gpu(&self) -> bool {
        self.tensors
    }

    /// Whether this is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.place.is_cpu()
    }

    /// What decides the bits of a result, `cpu f32` or `cuda bf16`: the kind of device and the type.
    pub fn arithmetic(&self) -> String {
        let name = self.name();
        format!("{} {}", name.split(':').next().unwrap_or(&name), self.type_name())
    }

    /// [`Device::arithmetic`], unless it is that of the CPU in f32, which goes without saying.
    pub fn noted_arithmetic(&self) -> Option<String> {
        Some(self.arithmetic()).filter(|arithmetic| *arithmetic != Device::cpu().arithmetic())
    }

    /// `cpu` or `cuda:0`: the device without the type.
    pub(crate) fn name(&self) -> String {
        match self.place.location() {
            #[cfg(test)]
            DeviceLocation::Cpu if self.tensors => format!("cpu tensors:{}", self.number),
            DeviceLocation::Cpu => "cpu".into(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    fn type_name(&self) -> &'static str {
        match self.products {
            Products::F32 => self.dtype.as_str(),
            Products::Bf16x3 => "bf16x3",
        }
    }

    /// Where candle puts its tensors.
    pub fn place(&self) -> &candle_core::Device {
        &self.place
    }

    /// The type tensor operations compute in; `None` where the CPU's own kernels do the work.
    pub(super) fn tensor_dtype(&self) -> Option<DType> {
        self.tensors.then_some(self.dtype)
    }

    /// How the CPU's own kernels multiply.
    pub(super) fn products(&self) -> Products {
        self.products
    }
}

/// The same processor and the same arithmetic.
impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        let kind = |device: &Device| (device.name(), device.dtype, device.tensors, device.products);
        self.place.same_device(&other.place) && kind(self) == kind(other)
    }
}

impl Eq for Device {}

/// The device `name`, or why it cannot be used.
fn usable(
    name: &str,
    feature: &str,
    built: bool,
    opened: candle_core::Result<candle_core::Device>,
) -> Result<candle_core::Device> {
    opened.map_err(|error| {
        let why = if built {
            format!("cannot be used: {error}")
        } else {
            format!("this program is built without it; build it with `--features {feature}` on a machine that has one")
        };
        Error::option("device", name, why)
    })
}

/// `cpu f32`, `cpu bf16x3`, `cuda:0 bf16`.
impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name(), self.type_name())
    }
}

/// `auto` ([`Device::best`]), `cpu`, `cuda`, `cuda:N` or `metal`.
impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Device> {
        match name.split_once(':') {
            None if name == "auto" => return Ok(Device::best()),
            None if name == "cpu" => return Ok(Device::cpu()),
            None if name == "cuda" => return Device::cuda(0),
            None if name == "metal" => return Device::metal(),
            Some(("cuda", number)) => {
                if let Ok(ordinal) = number.parse() {
                    return Device::cuda(ordinal);
                }
            }
            _ => {}
        }
        Err(Error::option("device", name, "auto, cpu, cuda, cuda:N (N counts from 0) or metal"))
    }
}

impl Model {
    /// This model with its weights on `device`, frozen; quantised weights stay quantised.
    ///
    /// # Errors
    /// When the device has no room or cannot hold a type; [`Error::Interrupted`].
    pub fn to_device(&self, device: &Device) -> Result<Model> {
        if self.0.device == *device {
            return Ok(self.clone());
        }
        let place = device.place();
        let mut decoder = Decoder::clone(&self.0.decoder);
        decoder.detach();
        decoder.device = place.clone();
        decoder.products = device.products();
        decoder.for_each_linear(&mut |linear| {
            check_interrupt()?;
            linear.weight = match &linear.weight {
                Matrix::Dense(tensor) => Matrix::Dense(moved(tensor, place)?),
                Matrix::Quantized(tensor) if tensor.device().same_device(place) => {
                    Matrix::Quantized(tensor.clone())
                }
                Matrix::Quantized(tensor) => {
                    let storage = QStorage::from_data(tensor.data()?, place, tensor.dtype())?;
                    Matrix::Quantized(Arc::new(QTensor::new(storage, tensor.shape().clone())?))
                }
            };
            move_to(&mut linear.bias, place)?;
            if let Some(lora) = &mut linear.lora {
                lora.a = moved(&lora.a, place)?;
                lora.b = moved(&lora.b, place)?;
            }
            Ok(())
        })?;
        decoder.for_each_norm(&mut |norm| {
            norm.weight = moved(&norm.weight, place)?;
            move_to(&mut norm.bias, place)
        })?;
        ready(place)?;
        Ok(Model(Arc::new(super::Inner {
            name: self.0.name.clone(),
            hash: self.0.hash.clone(),
            settled: self.0.settled,
            tokenizer: self.0.tokenizer.clone(),
            device: device.clone(),
            decoder: Arc::new(decoder),
            trainable: Default::default(),
        })))
    }
}

fn move_to(tensor: &mut Option<Tensor>, place: &candle_core::Device) -> Result<()> {
    if let Some(tensor) = tensor {
        *tensor = moved(tensor, place)?;
    }
    Ok(())
}

/// From one card to another by way of the host: not all can read each other's memory.
fn moved(tensor: &Tensor, place: &candle_core::Device) -> Result<Tensor> {
    let host = candle_core::Device::Cpu;
    if tensor.device().same_device(place) || tensor.device().is_cpu() || place.is_cpu() {
        return Ok(tensor.to_device(place)?);
    }
    Ok(tensor.to_device(&host)?.to_device(place)?)
}

/// Waits until what was copied to `place` is there: every thread has a stream of its own on a CUDA device, and none waits for
/// another's.
pub(super) fn ready(place: &candle_core::Device) -> Result<()> {
    Ok(place.synchronize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_what_cannot_be_had_says_why() {
        assert_eq!("cpu".parse::<Device>().unwrap().to_string(), "cpu f32");
        for name in ["gpu", "cuda:", "cuda:-1", "metal:1", ""] {
            let message = name.parse::<Device>().unwrap_err().to_string();
            assert!(message.contains("auto, cpu, cuda, cuda:N"), "{name}: {message}");
        }
        for (name, built) in [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))] {
            if let Err(error) = name.parse::<Device>() {
                let expected = if built { "cannot be used: " } else { "built without it" };
                assert!(error.to_string().contains(expected), "{error}");
            }
        }
        if !cfg!(any(feature = "cuda", feature = "metal")) {
            assert!(Device::best().is_cpu());
        }
    }

    #[test]
    fn types_are_f32_and_bf16_and_the_cpu_has_f32_alone() {
        let message = |device: Device, dtype| device.with_dtype(dtype).unwrap_err().to_string();
        assert_eq!(message(Device::cpu(), DType::BF16), "dtype = bf16: f32 or bf16x3 on the CPU");
        assert!(message(Device::tensors(DType::F32), DType::F16).contains("f32 or bf16"));
        let narrow = Device::tensors(DType::F32).with_dtype(DType::BF16).unwrap();
        assert_eq!((narrow.dtype(), narrow.arithmetic().as_str()), (DType::BF16, "cpu tensors bf16"));
        assert!(Device::tensors(DType::F32).with_bf16x3().unwrap_err().to_string().contains("on a GPU"));
        match Device::cpu().with_bf16x3() {
            Ok(device) => {
                assert_eq!(device.arithmetic(), "cpu bf16x3");
                assert_eq!(device.with_dtype(DType::F32).unwrap().arithmetic(), "cpu f32");
            }
            Err(error) => assert!(error.to_string().contains("AMX") && !amx::available(), "{error}"),
        }
    }
}
