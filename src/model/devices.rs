//! Several devices that share work.

use std::str::FromStr;

use super::Device;
use crate::error::{Error, Result};

/// One device, or several GPUs of one kind that compute in one type: texts of [`attend`](crate::attention::Attend::devices) and
/// [`contrast`](crate::contrast::Contrasting::devices), and cells of an [experiment](crate::experiment::PairRunner::devices), are
/// spread over them.
///
/// Results do not depend on how many there are.
///
/// ```
/// use cluescope::model::{Device, Devices};
///
/// let one = Devices::from(Device::cpu());
/// assert_eq!(one.to_string(), "cpu f32");
/// assert!("cpu,cpu".parse::<Devices>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// These devices, the first of which does what is not shared.
    ///
    /// # Errors
    /// [`Error::Option`] for none; and for several when the CPU is among them, which uses all of its cores already, when one
    /// is named twice, or when they differ in kind or type.
    pub fn new(devices: impl IntoIterator<Item = Device>) -> Result<Devices> {
        let devices: Vec<Device> = devices.into_iter().collect();
        let Some((first, rest)) = devices.split_first() else {
            return Err(Error::option("device", "none", "at least one"));
        };
        let twice = (1..devices.len()).any(|i| devices[..i].contains(&devices[i]));
        let why = if rest.iter().any(|other| other.arithmetic() != first.arithmetic()) {
            "several devices of one kind, computing in one type: results must not depend on which did the work"
        } else if !rest.is_empty() && devices.iter().any(|device| !device.is_gpu()) {
            "the CPU alone; it uses all of its cores already"
        } else if twice {
            "each device once"
        } else {
            return Ok(Devices(devices));
        };
        let names: Vec<String> = devices.iter().map(Device::name).collect();
        Err(Error::option("device", names.join(","), why))
    }

    /// Every NVIDIA GPU that can be used, in bf16.
    ///
    /// # Errors
    /// As [`Device::cuda`], when there is none.
    pub fn all_cuda() -> Result<Devices> {
        let cards: Vec<Device> = Device::cuda_cards().collect();
        if cards.is_empty() { Device::cuda(0).map(Devices::from) } else { Devices::new(cards) }
    }

    /// The same devices, each with a change, such as another type: `devices.map(|device| device.with_dtype(DType::F32))`.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map(self, change: impl Fn(Device) -> Result<Device>) -> Result<Devices> {
        Devices::new(self.0.into_iter().map(change).collect::<Result<Vec<_>>>()?)
    }

    /// The one that does what is not shared.
    pub fn first(&self) -> &Device {
        &self.0[0]
    }

    /// All of them; at least one.
    pub fn as_slice(&self) -> &[Device] {
        &self.0
    }

    /// What `make` makes for each device; where there are several, its errors name the device.
    pub(crate) fn each<T>(&self, make: impl Fn(&Device) -> Result<T>) -> Result<Vec<T>> {
        let named =
            |device: &Device, error: Error| if self.0.len() > 1 { error.on(&device.name()) } else { error };
        self.0.iter().map(|device| make(device).map_err(|error| named(device, error))).collect()
    }

    /// As many devices as one wants on the CPU, for tests.
    #[cfg(test)]
    pub(crate) fn tensors(count: usize, dtype: candle_core::DType) -> Devices {
        Devices::new((0..count).map(|number| Device::numbered_tensors(number, dtype))).unwrap()
    }
}

impl From<Device> for Devices {
    fn from(device: Device) -> Devices {
        Devices(vec![device])
    }
}

/// What [`Device`] reads, several such names with commas between them, or `cuda:all` ([`Devices::all_cuda`]).
impl FromStr for Devices {
    type Err = Error;

    fn from_str(names: &str) -> Result<Devices> {
        if names == "cuda:all" {
            return Devices::all_cuda();
        }
        Devices::new(names.split(',').map(Device::from_str).collect::<Result<Vec<_>>>()?)
    }
}

/// `cuda:0 bf16, cuda:1 bf16`.
impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.iter().map(Device::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn several_are_gpus_of_one_kind_each_once() {
        let of = |devices: Vec<Device>| Devices::new(devices).map_err(|error| error.to_string());
        let card = Device::numbered_tensors;
        let two = of(vec![card(0, DType::F32), card(1, DType::F32)]).unwrap();
        assert_eq!(two.to_string(), "cpu tensors:0 f32, cpu tensors:1 f32");
        assert_eq!(two.first().arithmetic(), "cpu tensors f32");
        let narrow = two.map(|device| device.with_dtype(DType::BF16)).unwrap();
        assert_eq!(narrow, Devices::tensors(2, DType::BF16));
        assert_eq!(of(vec![]).unwrap_err(), "device = none: at least one");
        let twice = of(vec![card(1, DType::F32), card(0, DType::F32), card(1, DType::F32)]).unwrap_err();
        assert_eq!(twice, "device = cpu tensors:1,cpu tensors:0,cpu tensors:1: each device once");
        assert!(of(vec![card(0, DType::F32), card(1, DType::BF16)]).unwrap_err().contains("in one type"));
        assert!(of(vec![card(0, DType::F32), Device::cpu()]).unwrap_err().contains("of one kind"));
        let cpus = "cpu,cpu".parse::<Devices>().unwrap_err().to_string();
        assert_eq!(cpus, "device = cpu,cpu: the CPU alone; it uses all of its cores already");
        assert_eq!("cpu".parse::<Devices>().unwrap(), Devices::from(Device::cpu()));
        assert!("cpu,gpu".parse::<Devices>().unwrap_err().to_string().starts_with("device = gpu: auto"));
        if !cfg!(feature = "cuda") {
            for name in ["cuda:all", "cuda:0,cuda:1"] {
                let message = name.parse::<Devices>().unwrap_err().to_string();
                assert!(message.starts_with("device = cuda: this program is built without it"), "{message}");
            }
        }
    }
}
