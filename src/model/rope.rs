//! Rotary position embeddings (Su et al. 2021): pairs of a head's values are rotated by `position · frequency`.

use std::sync::Arc;
use std::sync::{PoisonError, RwLock};

use super::config::{DecoderConfig, Position, RopeScaling};
use super::scratch::for_rows;
use super::simd::vectorized;

/// Cosines and sines of one layer's angles.
#[derive(Debug)]
pub(super) struct Rope {
    /// Rotated leading part of each head.
    pub(super) rotary_dim: usize,
    /// Pairs are neighbours when true, half of `rotary_dim` apart otherwise.
    pub(super) interleaved: bool,
    /// Angular frequencies, `rotary_dim / 2` of them, f32 as in the reference implementations.
    pub(super) frequencies: Vec<f32>,
    /// Angles known so far.
    angles: RwLock<Arc<Angles>>,
}

/// Cosines and sines of the first positions, each `[positions, rotary_dim / 2]`.
#[derive(Debug, Default)]
pub(super) struct Angles {
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl PartialEq for Rope {
    fn eq(&self, other: &Self) -> bool {
        (self.rotary_dim, self.interleaved) == (other.rotary_dim, other.interleaved)
            && self.frequencies == other.frequencies
    }
}

impl Rope {
    /// The rotation of `layer`; `None` for learned positions.
    pub(super) fn of_layer(config: &DecoderConfig, layer: usize) -> Option<Self> {
        let Position::Rope { theta, rotary_dim, scaling, interleaved } = &config.position else {
            return None;
        };
        let kind = &config.layer_kinds[layer];
        let theta = kind.rope_theta.unwrap_or(*theta);
        let scaling = kind.rope_scaling.as_ref().unwrap_or(scaling);
        let frequencies = (0..rotary_dim / 2)
            .map(|i| {
                let plain = theta.powf(-((2 * i) as f64) / *rotary_dim as f64);
                scale(plain, i, scaling) as f32
            })
            .collect();
        Some(Rope {
            rotary_dim: *rotary_dim,
            interleaved: *interleaved,
            frequencies,
            angles: RwLock::default(),
        })
    }

    /// `(cos, sin)` for positions `start .. start + count`, each `[count, rotary_dim / 2]`.
    pub(super) fn table(&self, start: usize, count: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (start..start + count)
            // The product is rounded to f32 first, as the reference implementations do.
            .flat_map(|position| self.frequencies.iter().map(move |f| f64::from(position as f32 * f)));
        angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip()
    }

    /// The angles of at least the first `positions` positions.
    pub(super) fn angles(&self, positions: usize) -> Arc<Angles> {
        let known = self.angles.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.positions >= positions {
            return known;
        }
        // Doubling keeps the number of rebuilds logarithmic when texts grow token by token.
        let positions = positions.next_power_of_two().max(64);
        let (cos, sin) = self.table(0, positions);
        let angles = Arc::new(Angles { positions, cos, sin });
        *self.angles.write().unwrap_or_else(PoisonError::into_inner) = angles.clone();
        angles
    }

    /// Rotates the heads of every row of `x` (`[n, heads · head_dim]`) by its position, or back when `inverse`.
    pub(super) fn rotate(&self, x: &mut [f32], head_dim: usize, positions: &[u32], inverse: bool) {
        if positions.is_empty() {
            return;
        }
        let width = x.len() / positions.len();
        let longest = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let angles = self.angles(longest);
        let half = self.rotary_dim / 2;
        let sign = if inverse { -1.0 } else { 1.0 };
        for_rows(x, width, |first, rows| {
            vectorized(|| {
                for (row, position) in rows.chunks_exact_mut(width).zip(&positions[first..]) {
                    let at = *position as usize * half;
                    let (cos, sin) = (&angles.cos[at..at + half], &angles.sin[at..at + half]);
                    for head in row.chunks_exact_mut(head_dim) {
                        let rotated = &mut head[..self.rotary_dim];
                        if self.interleaved {
                            turn_neighbours(rotated, cos, sin, sign);
                        } else {
                            turn_halves(rotated, cos, sin, sign);
                        }
                    }
                }
            });
        });
    }
}

#[inline(always)]
fn turn_halves(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let s = s * sign;
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

#[inline(always)]
fn turn_neighbours(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    for ((pair, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let s = s * sign;
        *pair = [pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s];
    }
}

fn scale(frequency: f64, index: usize, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let original = *original_max_positions as f64;
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
        RopeScaling::Factors(factors) => frequency / f64::from(factors[index]),
    }
}
