//! Weights on another device.

use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::parameters::Decoder;
use super::{Matrix, Model};
use crate::error::Result;
use crate::progress::check_interrupt;

impl Model {
    /// This model with its weights on `device`, frozen; quantised weights stay quantised.
    ///
    /// # Errors
    /// When the device has no room or cannot hold a type; [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn to_device(&self, device: &Device) -> Result<Model> {
        if self.0.device.same_device(device) {
            return Ok(self.clone());
        }
        let mut decoder = Decoder::clone(&self.0.decoder);
        decoder.detach();
        decoder.device = device.clone();
        decoder.for_each_linear(&mut |linear| {
            check_interrupt()?;
            linear.weight = match &linear.weight {
                Matrix::Dense(tensor) => Matrix::Dense(tensor.to_device(device)?),
                Matrix::Quantized(tensor) => {
                    let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
                    Matrix::Quantized(Arc::new(QTensor::new(storage, tensor.shape().clone())?))
                }
            };
            move_to(&mut linear.bias, device)?;
            if let Some(lora) = &mut linear.lora {
                lora.a = lora.a.to_device(device)?;
                lora.b = lora.b.to_device(device)?;
            }
            Ok(())
        })?;
        decoder.for_each_norm(&mut |norm| {
            norm.weight = norm.weight.to_device(device)?;
            move_to(&mut norm.bias, device)
        })?;
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

fn move_to(tensor: &mut Option<Tensor>, device: &Device) -> Result<()> {
    if let Some(tensor) = tensor {
        *tensor = tensor.to_device(device)?;
    }
    Ok(())
}
