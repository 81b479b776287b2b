//! Operations with a backward pass of their own, in candle's graph.
//!
//! candle computes and keeps a gradient for every operand, also for those that are never trained: frozen weights,
//! norm factors, masks, tables of angles. Here such operands stay out of the graph.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, MetalStorage, Shape, Storage, Tensor, Var,
};

use super::super::Matrix;

type Answer<T = Tensor> = candle_core::Result<T>;

/// Puts `y`, computed from the values of `x`, into the graph of `x`: `backward(x, dy)` is the gradient of `x`.
pub(super) fn with_backward<F>(x: &Tensor, y: Tensor, backward: F) -> Answer
where
    F: Fn(&Tensor, &Tensor) -> Answer + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(y);
    }
    let y = y.detach();
    // A storage is handed over whole, so it must hold nothing else.
    let whole = y.is_contiguous() && y.layout().start_offset() == 0;
    let y = if whole { y } else { y.force_contiguous()?.detach() };
    x.apply_op1(Own { y: Mutex::new(Some(y)), backward })
}

struct Own<F> {
    /// The result until the operation has run; the graph keeps no second copy of it.
    y: Mutex<Option<Tensor>>,
    backward: F,
}

impl<F> Own<F> {
    fn take<S>(&self, copy: impl FnOnce(&Storage, &Layout) -> Answer<S>) -> Answer<(S, Shape)> {
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        let y = y.ok_or_else(|| candle_core::Error::Msg("an operation of the decoder ran twice".into()))?;
        let (storage, layout) = y.storage_and_layout();
        Ok((copy(&storage, layout)?, y.shape().clone()))
    }
}

fn elsewhere<S>() -> Answer<S> {
    candle_core::bail!("a result lies on another device than what it was computed from")
}

impl<F: Fn(&Tensor, &Tensor) -> Answer + Send + Sync> CustomOp1 for Own<F> {
    fn name(&self) -> &'static str {
        "decoder"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Answer<(CpuStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Answer<(CudaStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Answer<(MetalStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Metal(storage) => storage.try_clone(layout),
            _ => elsewhere(),
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Answer<Option<Tensor>> {
        (self.backward)(&x.detach(), dy).map(Some)
    }
}

/// `x · Wᵀ` with a frozen weight: widened for this product, again for the backward pass, and never kept.
pub(super) fn frozen(x: &Tensor, weight: &Matrix, dtype: DType) -> crate::error::Result<Tensor> {
    let weight = weight.detach();
    let y = x.detach().matmul(&weight.dense(x.device(), dtype)?.t()?)?;
    let y = with_backward(x, y, move |_, dy| {
        let dense = weight.dense(dy.device(), dtype);
        dy.matmul(&dense.map_err(|error| candle_core::Error::Msg(error.to_string()))?)
    })?;
    Ok(y)
}

/// `x · factor` with a frozen factor that broadcasts.
pub(super) fn scale(x: &Tensor, factor: &Tensor) -> Answer {
    let factor = factor.detach();
    let y = x.detach().broadcast_mul(&factor)?;
    with_backward(x, y, move |_, dy| dy.broadcast_mul(&factor))
}

/// `x + offset` with a frozen offset that broadcasts.
pub(super) fn shift(x: &Tensor, offset: &Tensor) -> Answer {
    let y = x.detach().broadcast_add(&offset.detach())?;
    with_backward(x, y, |_, dy| Ok(dy.clone()))
}

/// `function(x)`, computed in `wide` and returned in `x`'s type; what lies between is computed again in the backward pass.
pub(super) fn in_wide<F>(x: &Tensor, wide: DType, function: F) -> Answer
where
    F: Fn(&Tensor) -> Answer + Send + Sync + 'static,
{
    let y = function(&x.detach().to_dtype(wide)?)?.to_dtype(x.dtype())?;
    with_backward(x, y, move |x, dy| {
        let input = Var::from_tensor(&x.to_dtype(wide)?)?;
        let mut found = pull(&function(&input)?, &dy.to_dtype(wide)?)?;
        let dx = found.remove(&input);
        dx.ok_or_else(|| candle_core::Error::Msg("a function without a gradient".into()))?.to_dtype(x.dtype())
    })
}

/// All gradients behind `output` when its own is `slope`.
pub(super) fn pull(output: &Tensor, slope: &Tensor) -> Answer<candle_core::backprop::GradStore> {
    let slope = slope.detach();
    let end = Tensor::zeros((), output.dtype(), output.device())?;
    with_backward(output, end, move |_, _| Ok(slope.clone()))?.backward()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{D, Device, TensorId};

    use super::*;

    fn drawn(rows: usize, cols: usize, seed: u64) -> Tensor {
        let values = super::super::super::init::normal(seed, "x", rows * cols, 1.0);
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_frozen_weight_gives_the_inputs_gradient_and_keeps_none_of_its_own() {
        let (dense, slope) = (drawn(32, 64, 1), drawn(5, 32, 2));
        let quantized = Arc::new(QTensor::quantize(&dense, GgmlDType::Q8_0).unwrap());
        for (weight, dtype) in [
            (Matrix::Dense(dense.clone()), DType::F32),
            (Matrix::Dense(dense.to_dtype(DType::F16).unwrap()), DType::F32),
            (Matrix::Quantized(quantized), DType::F32),
            (Matrix::Dense(dense.clone()), DType::BF16),
        ] {
            let x = Var::from_tensor(&drawn(5, 64, 3).to_dtype(dtype).unwrap()).unwrap();
            let y = frozen(&x, &weight, dtype).unwrap();
            let values = weight.dense(&Device::Cpu, dtype).unwrap();
            let plain = x.matmul(&values.t().unwrap()).unwrap();
            assert_eq!(flat(&y), flat(&plain));
            let slope = slope.to_dtype(dtype).unwrap();
            let (own, candles) = (pull(&y, &slope).unwrap(), pull(&plain, &slope).unwrap());
            assert_eq!(flat(own.get(&x).unwrap()), flat(candles.get(&x).unwrap()));
            // The end of the graph aside, nothing but the input's gradient is left.
            let left = |store: &candle_core::backprop::GradStore| -> Vec<TensorId> {
                store.get_ids().copied().collect()
            };
            assert_eq!(left(&own), [x.id()]);
            assert!(left(&candles).len() > 1, "candle keeps one for the weight");
        }
    }

    #[test]
    fn backward_passes_are_the_functions_differences() {
        let functions: [(&str, fn(&Tensor) -> Answer); 3] = [
            ("frozen", |x| {
                let weight = Matrix::Dense(drawn(3, 6, 1).to_dtype(DType::F64)?);
                frozen(x, &weight, DType::F64).map_err(|e| candle_core::Error::Msg(e.to_string()))
            }),
            ("scale and shift", |x| {
                let row = drawn(1, 6, 2).to_dtype(DType::F64)?;
                shift(&scale(x, &row)?, &row)
            }),
            ("in_wide", |x| in_wide(x, DType::F64, |x| x.silu())),
        ];
        for (name, function) in functions {
            let start = drawn(4, 6, 5).to_dtype(DType::F64).unwrap();
            let x = Var::from_tensor(&start).unwrap();
            let loss = |x: &Tensor| function(x).unwrap().sqr().unwrap().sum_all().unwrap();
            let gradient = loss(&x).backward().unwrap().remove(&x).unwrap();
            let direction = drawn(4, 6, 7).to_dtype(DType::F64).unwrap();
            let slope = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let at = |step: f64| {
                let there = (&start + (&direction * step).unwrap()).unwrap();
                loss(&there).to_scalar::<f64>().unwrap()
            };
            let measured = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((measured / slope - 1.0).abs() < 1e-6, "{name}: {measured} against {slope}");
        }
    }

    #[test]
    fn nothing_is_put_into_a_graph_that_does_not_exist() {
        let x = drawn(2, 64, 1);
        let y = frozen(&x, &Matrix::Dense(drawn(32, 64, 1)), DType::F32).unwrap();
        assert!(!y.track_op());
        // A result that is a part of something larger is cut out of it.
        let x = Var::from_tensor(&x).unwrap();
        let part = with_backward(&x, x.detach().narrow(1, 3, 5).unwrap(), |_, dy| dy.sum_all()).unwrap();
        assert_eq!(flat(&part), flat(&x.narrow(1, 3, 5).unwrap()));
        assert_eq!(part.sum(D::Minus1).unwrap().dims(), [2]);
    }
}
