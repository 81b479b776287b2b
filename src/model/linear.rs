//! `y = x · Wᵀ + b`, with an optional low-rank adapter: `y += (lora_alpha / r) · dropout(x) · Aᵀ · Bᵀ`.
//!
//! Weights stay in the type of their file. Groups of rows are widened to f32 in a reused scratch that
//! serves all rows of `x`. A frozen weight costs its backward pass the input's gradient alone.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, k_quants as k};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, TensorId};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::matmul::{Products, View, ViewMut, multiply};
use super::scratch::{Pool, add, for_rows};
use super::simd::vectorized;
use super::{Matrix, WeightSource, init};
use crate::error::{Error, Result};
use crate::progress::check_interrupt;

/// A linear layer. A tensor that is a candle variable is trained, all others are frozen.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) name: String,
    /// `[out, in]`.
    pub(super) weight: Matrix,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) lora: Option<Lora>,
}

/// A low-rank adapter of a [`Linear`].
#[derive(Debug, Clone)]
pub(super) struct Lora {
    /// `[r, in]`.
    pub(super) a: Tensor,
    /// `[out, r]`.
    pub(super) b: Tensor,
    /// `lora_alpha / r`.
    pub(super) scale: f32,
    /// Share of the inputs set to zero while training.
    pub(super) dropout: f32,
}

/// What every layer needs while a pass runs.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) pool: Arc<Pool>,
    /// How products with weights are made; adapters and attention stay in f32.
    pub(super) products: Products,
    /// `None` switches dropout off.
    pub(super) dropout_seed: Option<u64>,
}

/// Gradients on their way to their variables.
#[derive(Debug, Default)]
pub(super) struct Gradients(HashMap<TensorId, Vec<f32>>);

impl Gradients {
    /// The gradient of `variable` so far; zeros at first.
    pub(super) fn slot(&mut self, variable: &Tensor) -> &mut [f32] {
        self.0.entry(variable.id()).or_insert_with(|| vec![0.0; variable.elem_count()])
    }

    /// Takes the finished gradient of `variable`, if it got one.
    pub(super) fn take(&mut self, variable: &Tensor) -> Option<Vec<f32>> {
        self.0.remove(&variable.id())
    }
}

/// A tensor's values in row-major order, without a copy where they lie so as f32 on the CPU.
pub(crate) fn with_values<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    if matches!(tensor.device(), Device::Cpu) && tensor.dtype() == DType::F32 {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        {
            return work(&values[start..end]);
        }
    }
    work(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?)
}

fn unsupported(tensor: &Tensor) -> Error {
    candle_core::Error::Msg(format!(
        "a weight of type {:?}, shape {:?} on {:?}: the CPU kernels need contiguous f32, f16 or bf16",
        tensor.dtype(),
        tensor.dims(),
        tensor.device()
    ))
    .into()
}

/// A weight's values as they lie in memory.
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Quantized(GgmlDType, &'a [u8]),
}

/// Widened values at a time: 16 MiB, large enough to keep all threads busy.
pub(super) const GROUP: usize = 4 << 20;

impl Matrix {
    /// The whole matrix as a dense tensor; differentiable when it is a variable.
    pub(super) fn dense(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        Ok(match self {
            Matrix::Dense(tensor) => tensor.to_device(device)?.to_dtype(dtype)?,
            Matrix::Quantized(tensor) => tensor.dequantize(device)?.to_dtype(dtype)?,
        })
    }

    /// The same values without a gradient.
    pub(super) fn detach(&self) -> Self {
        match self {
            Matrix::Dense(tensor) => Matrix::Dense(tensor.detach()),
            Matrix::Quantized(tensor) => Matrix::Quantized(tensor.clone()),
        }
    }

    /// The variable behind it, when it is trained.
    pub(super) fn variable(&self) -> Option<&Tensor> {
        match self {
            Matrix::Dense(tensor) if tensor.is_variable() => Some(tensor),
            _ => None,
        }
    }

    fn with_values<R>(&self, work: impl FnOnce(Values<'_>) -> Result<R>) -> Result<R> {
        match self {
            Matrix::Dense(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                match (&*storage, layout.contiguous_offsets()) {
                    (Storage::Cpu(CpuStorage::F32(v)), Some((start, end))) => {
                        work(Values::F32(&v[start..end]))
                    }
                    (Storage::Cpu(CpuStorage::F16(v)), Some((start, end))) => {
                        work(Values::F16(&v[start..end]))
                    }
                    (Storage::Cpu(CpuStorage::BF16(v)), Some((start, end))) => {
                        work(Values::Bf16(&v[start..end]))
                    }
                    _ => Err(unsupported(tensor)),
                }
            }
            Matrix::Quantized(tensor) => work(Values::Quantized(tensor.dtype(), &tensor.data()?)),
        }
    }

    /// Calls `work(first row, rows)` with all rows in f32, group by group.
    fn for_groups(
        &self,
        rows: usize,
        cols: usize,
        pool: &Arc<Pool>,
        mut work: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.with_values(|values| {
            if let Values::F32(all) = values {
                work(0, all);
                return Ok(());
            }
            let group = (GROUP / cols).clamp(1, rows);
            let mut scratch = pool.take(group * cols);
            for first in (0..rows).step_by(group) {
                let count = group.min(rows - first);
                let part = &mut scratch[..count * cols];
                let piece = (16_384 / cols).max(1);
                part.par_chunks_mut(piece * cols)
                    .enumerate()
                    .try_for_each(|(index, out)| values.widen((first + index * piece) * cols, out))?;
                work(first, part);
            }
            Ok(())
        })
    }

    /// Writes the rows `ids`, times `factor`, into `out`.
    pub(super) fn rows(&self, ids: &[u32], cols: usize, factor: f32, out: &mut [f32]) -> Result<()> {
        self.with_values(|values| {
            out.par_chunks_mut(cols).zip(ids).try_for_each(|(out, id)| {
                values.widen(*id as usize * cols, out)?;
                if factor != 1.0 {
                    out.iter_mut().for_each(|v| *v *= factor);
                }
                Ok(())
            })
        })
    }
}

impl Values<'_> {
    /// Writes the values from `start` on, as many as `out` holds, in f32. For quantised weights
    /// `start` and the length must be whole blocks.
    fn widen(&self, start: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Values::F32(v) => out.copy_from_slice(&v[start..start + out.len()]),
            Values::F16(v) => v[start..start + out.len()].convert_to_f32_slice(out),
            Values::Bf16(v) => {
                let v = &v[start..start + out.len()];
                vectorized(|| {
                    for (out, v) in out.iter_mut().zip(v) {
                        *out = f32::from_bits(u32::from(v.to_bits()) << 16);
                    }
                });
            }
            Values::Quantized(dtype, bytes) => {
                let (size, block) = (dtype.type_size(), dtype.block_size());
                if !start.is_multiple_of(block) || !out.len().is_multiple_of(block) {
                    return Err(candle_core::Error::Msg(format!(
                        "rows of a {dtype:?} weight are not whole blocks of {block} values"
                    ))
                    .into());
                }
                let bytes = &bytes[start / block * size..(start + out.len()) / block * size];
                dequantize(*dtype, bytes, out)?;
            }
        }
        Ok(())
    }
}

/// Exact values of whole blocks.
fn dequantize(dtype: GgmlDType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    fn blocks<B: k::GgmlType>(bytes: &[u8], out: &mut [f32]) -> Result<()> {
        // SAFETY: the block types are plain old data (`repr(C)`, integers and f16): any bytes are valid values.
        let (before, blocks, after) = unsafe { bytes.align_to::<B>() };
        if !before.is_empty() || !after.is_empty() {
            return Err(candle_core::Error::Msg("a quantised weight is not aligned in memory".into()).into());
        }
        B::to_float(blocks, out);
        Ok(())
    }
    match dtype {
        GgmlDType::F32 => blocks::<f32>(bytes, out),
        GgmlDType::F16 => blocks::<f16>(bytes, out),
        GgmlDType::BF16 => blocks::<bf16>(bytes, out),
        GgmlDType::Q4_0 => blocks::<k::BlockQ4_0>(bytes, out),
        GgmlDType::Q4_1 => blocks::<k::BlockQ4_1>(bytes, out),
        GgmlDType::Q5_0 => blocks::<k::BlockQ5_0>(bytes, out),
        GgmlDType::Q5_1 => blocks::<k::BlockQ5_1>(bytes, out),
        GgmlDType::Q8_0 => blocks::<k::BlockQ8_0>(bytes, out),
        GgmlDType::Q8_1 => blocks::<k::BlockQ8_1>(bytes, out),
        GgmlDType::Q2K => blocks::<k::BlockQ2K>(bytes, out),
        GgmlDType::Q3K => blocks::<k::BlockQ3K>(bytes, out),
        GgmlDType::Q4K => blocks::<k::BlockQ4K>(bytes, out),
        GgmlDType::Q5K => blocks::<k::BlockQ5K>(bytes, out),
        GgmlDType::Q6K => blocks::<k::BlockQ6K>(bytes, out),
        GgmlDType::Q8K => blocks::<k::BlockQ8K>(bytes, out),
    }
}

impl Linear {
    /// Reads `{name}.weight` and, when `bias`, `{name}.bias`.
    pub(super) fn load(
        source: &mut dyn WeightSource,
        name: String,
        rows: usize,
        cols: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = match source.matrix(&format!("{name}.weight"), rows, cols)? {
            Matrix::Dense(tensor) => Matrix::Dense(tensor.contiguous()?),
            quantized => quantized,
        };
        let bias =
            if bias { Some(source.vector(&format!("{name}.bias"), rows)?.contiguous()?) } else { None };
        Ok(Linear { name, weight, bias, rows, cols, lora: None })
    }

    /// Whether the backward pass needs the layer's input.
    pub(super) fn needs_input(&self) -> bool {
        self.lora.is_some() || self.weight.variable().is_some()
    }

    /// Whether anything in it is trained.
    pub(super) fn trained(&self) -> bool {
        self.weight.variable().is_some()
            || self.bias.as_ref().is_some_and(Tensor::is_variable)
            || self.lora.as_ref().is_some_and(|l| l.a.is_variable() || l.b.is_variable())
    }

    /// `y = layer(x)`, or `y += layer(x)` when `accumulate`, for rows of `x`.
    ///
    /// # Shapes
    /// x `[n, in]`, y `[n, out]`.
    ///
    /// # Errors
    /// [`Error::Interrupted`]: all long work on the CPU passes here, so one look is enough for all of it.
    pub(super) fn forward(&self, x: &[f32], y: &mut [f32], accumulate: bool, work: &Work) -> Result<()> {
        check_interrupt()?;
        let n = x.len() / self.cols;
        self.weight.for_groups(self.rows, self.cols, &work.pool, |first, group| {
            let count = group.len() / self.cols;
            let dst = ViewMut::new(&mut y[first..], n, count, self.rows);
            let w = View::new(group, count, self.cols, self.cols);
            work.products.multiply(dst, View::new(x, n, self.cols, self.cols), w.t(), accumulate);
        })?;
        if let Some(bias) = &self.bias {
            with_values(bias, |bias| {
                for_rows(y, self.rows, |_, rows| {
                    vectorized(|| {
                        for row in rows.chunks_exact_mut(self.rows) {
                            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                        }
                    });
                });
                Ok(())
            })?;
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        let r = lora.a.dim(0)?;
        let dropped = self.dropped(lora, x, work);
        let x = dropped.as_deref().unwrap_or(x);
        let mut low = work.pool.take(n * r);
        with_values(&lora.a, |a| {
            let dst = ViewMut::new(&mut low, n, r, r);
            multiply(
                dst,
                View::new(x, n, self.cols, self.cols),
                View::new(a, r, self.cols, self.cols).t(),
                1.0,
                false,
            );
            Ok(())
        })?;
        with_values(&lora.b, |b| {
            let dst = ViewMut::new(y, n, self.rows, self.rows);
            multiply(dst, View::new(&low, n, r, r), View::new(b, self.rows, r, r).t(), lora.scale, true);
            Ok(())
        })
    }

    /// Inputs after dropout; `None` when it is off.
    fn dropped(&self, lora: &Lora, x: &[f32], work: &Work) -> Option<Vec<f32>> {
        let seed = work.dropout_seed.filter(|_| lora.dropout > 0.0)?;
        let mut factors = init::dropout(seed, &self.name, x.len(), lora.dropout);
        factors.iter_mut().zip(x).for_each(|(f, x)| *f *= x);
        Some(factors)
    }

    /// Adds the gradients of what is trained and, when asked, writes (or adds) the input's.
    ///
    /// # Shapes
    /// x `[n, in]` (may be empty unless [`Linear::needs_input`]), dy `[n, out]`, dx `[n, in]`.
    pub(super) fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        accumulate: bool,
        gradients: &mut Gradients,
        work: &Work,
    ) -> Result<()> {
        check_interrupt()?;
        let n = dy.len() / self.rows;
        let (out, inn) = (self.rows, self.cols);
        if let Some(dx) = dx.as_deref_mut() {
            let mut accumulate = accumulate;
            self.weight.for_groups(out, inn, &work.pool, |first, group| {
                let count = group.len() / inn;
                let dst = ViewMut::new(dx, n, inn, inn);
                let w = View::new(group, count, inn, inn);
                work.products.multiply(dst, View::new(&dy[first..], n, count, out), w, accumulate);
                accumulate = true;
            })?;
        }
        if let Some(variable) = self.weight.variable() {
            let dst = ViewMut::new(gradients.slot(variable), out, inn, inn);
            work.products.multiply(dst, View::new(dy, n, out, out).t(), View::new(x, n, inn, inn), true);
        }
        if let Some(bias) = self.bias.as_ref().filter(|b| b.is_variable()) {
            add_columns(gradients.slot(bias), dy);
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        let r = lora.a.dim(0)?;
        let dropped = self.dropped(lora, x, work);
        let x = dropped.as_deref().unwrap_or(x);
        // With u = x·Aᵀ: dB = s·dyᵀ·u, du = s·dy·B, dA = duᵀ·x, dx += du·A.
        let mut du = work.pool.take(n * r);
        with_values(&lora.b, |b| {
            let dst = ViewMut::new(&mut du, n, r, r);
            multiply(dst, View::new(dy, n, out, out), View::new(b, out, r, r), lora.scale, false);
            Ok(())
        })?;
        with_values(&lora.a, |a| {
            let a = View::new(a, r, inn, inn);
            if lora.b.is_variable() {
                let mut u = work.pool.take(n * r);
                multiply(ViewMut::new(&mut u, n, r, r), View::new(x, n, inn, inn), a.t(), 1.0, false);
                let dst = ViewMut::new(gradients.slot(&lora.b), out, r, r);
                multiply(dst, View::new(dy, n, out, out).t(), View::new(&u, n, r, r), lora.scale, true);
            }
            let Some(dx) = dx else { return Ok(()) };
            let du = View::new(&du, n, r, r);
            match work.dropout_seed.filter(|_| lora.dropout > 0.0) {
                None => multiply(ViewMut::new(dx, n, inn, inn), du, a, 1.0, true),
                Some(seed) => {
                    let mut through = work.pool.take(n * inn);
                    multiply(ViewMut::new(&mut through, n, inn, inn), du, a, 1.0, false);
                    let factors = init::dropout(seed, &self.name, n * inn, lora.dropout);
                    through.iter_mut().zip(&factors).for_each(|(v, f)| *v *= f);
                    add(dx, &through);
                }
            }
            Ok(())
        })?;
        if lora.a.is_variable() {
            let dst = ViewMut::new(gradients.slot(&lora.a), r, inn, inn);
            multiply(dst, View::new(&du, n, r, r).t(), View::new(x, n, inn, inn), 1.0, true);
        }
        Ok(())
    }
}

/// `sums[j] += Σ_i values[i, j]`, rows in order; parallel over columns.
pub(super) fn add_columns(sums: &mut [f32], values: &[f32]) {
    const WIDTH: usize = 256;
    let width = sums.len();
    sums.par_chunks_mut(WIDTH).enumerate().for_each(|(index, sums)| {
        vectorized(|| {
            for row in values.chunks_exact(width) {
                let row = &row[index * WIDTH..][..sums.len()];
                sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
            }
        });
    });
}
