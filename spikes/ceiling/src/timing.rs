//! One median of repeated calls, printed as one line.

use std::time::{Duration, Instant};

/// Calls `f` once to warm up, then for a tenth of a second and at least three times (once where a call takes longer
/// than half a second); the median in seconds.
pub fn median(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    f();
    let first = start.elapsed();
    let least = if first > Duration::from_millis(500) { 1 } else { 3 };
    let mut seconds = Vec::new();
    let begin = Instant::now();
    while seconds.len() < least || (begin.elapsed() < Duration::from_millis(100) && seconds.len() < 2000) {
        let start = Instant::now();
        f();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Prints a line that `table.py` reads.
pub fn line(section: &str, case: &str, implementation: &str, value: f64, unit: &str) {
    println!("{section}\t{case}\t{implementation}\t{}\t{value:.6e}\t{unit}", rayon::current_num_threads());
}

/// Fixed numbers in [-1, 1): a multiplicative hash of the index, no zeros in a row, no denormals.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let x = (i + 1)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .wrapping_add(seed.wrapping_mul(0xD134_2543_DE82_EF95));
            let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x >> 40) as f32) / 8_388_608.0 - 1.0
        })
        .collect()
}
