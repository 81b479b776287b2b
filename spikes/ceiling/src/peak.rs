//! The most multiply-adds this machine can do: independent chains of FMA in registers, no memory at all.

use crate::timing::line;
use std::arch::x86_64::*;
use std::time::Instant;

const ROUNDS: usize = 20_000_000;
/// Enough independent chains to cover a latency of four cycles on two ports.
const CHAINS: usize = 12;

#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) -> f32 {
    let (x, y) = (_mm512_set1_ps(0.999_999), _mm512_set1_ps(1e-7));
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_fmadd_ps(*s, x, y);
        }
    }
    sums.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum()
}

#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) -> f32 {
    let (x, y) = (_mm256_set1_ps(0.999_999), _mm256_set1_ps(1e-7));
    let mut sums = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm256_fmadd_ps(*s, x, y);
        }
    }
    sums.into_iter().map(|s| _mm_cvtss_f32(_mm256_castps256_ps128(s))).sum()
}

/// Runs `kernel` on every thread at once; GFLOP/s of all together.
fn measure(name: &str, lanes: usize, kernel: fn(usize) -> f32) {
    let threads = rayon::current_num_threads();
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| std::hint::black_box(kernel(std::hint::black_box(ROUNDS))));
                }
            });
            (threads * ROUNDS * CHAINS * lanes * 2) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    line("peak", "fma in registers", name, rates[rates.len() / 2], "GFLOP/s");
}

pub fn run() {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // Sound: the feature was just found.
        measure("avx2", 8, |n| unsafe { avx2(n) });
    }
    if is_x86_feature_detected!("avx512f") {
        // Sound: the feature was just found.
        measure("avx512", 16, |n| unsafe { avx512(n) });
    }
}
