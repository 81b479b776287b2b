//! Random numbers that are the same bytes on every machine and in every version of this library.
//!
//! A stream is named, not shared: ChaCha8 is seeded with the SHA-256 of (seed, purpose, index …), so
//! what one stage draws never depends on what another drew before it, nor on the order of the work.
//! The mappings to integers and floats are written here because those of the `rand` crates change
//! between their versions.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// One named stream of random numbers.
///
/// ```
/// use cluescope::random::Stream;
/// let mut a = Stream::new(1, "people", &[7]);
/// let mut b = Stream::new(1, "people", &[7]);
/// assert_eq!(a.below(1000), b.below(1000));
/// ```
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `purpose` under `seed`; `index` tells apart its parts, such as person or step.
    pub fn new(seed: u64, purpose: &str, index: &[u64]) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        // The length keeps ("ab", [..]) apart from any purpose that continues with index bytes.
        hash.update((purpose.len() as u64).to_le_bytes());
        hash.update(purpose.as_bytes());
        for i in index {
            hash.update(i.to_le_bytes());
        }
        Stream(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// 32 random bits.
    pub fn bits32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// 64 random bits.
    pub fn bits64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A whole number in `0..n`, each equally likely (Lemire 2019, with rejection); 0 for `n` ≤ 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        if n <= 1 {
            return 0;
        }
        let mut wide = u128::from(self.bits64()) * u128::from(n);
        if (wide as u64) < n {
            let threshold = n.wrapping_neg() % n;
            while (wide as u64) < threshold {
                wide = u128::from(self.bits64()) * u128::from(n);
            }
        }
        (wide >> 64) as usize
    }

    /// A number in `[0, 1)`, a multiple of 2⁻²⁴.
    pub fn unit_f32(&mut self) -> f32 {
        (self.bits32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// A number in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn unit_f64(&mut self) -> f64 {
        (self.bits64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A standard normal number (Marsaglia's polar method; the second number of each pair is thrown away
    /// so that a draw depends only on the stream's position). `ln` and `sqrt` are the platform's: equal
    /// bytes are promised on one platform only.
    pub fn normal(&mut self) -> f64 {
        loop {
            let x = 2.0 * self.unit_f64() - 1.0;
            let y = 2.0 * self.unit_f64() - 1.0;
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                return x * (-2.0 * square.ln() / square).sqrt();
            }
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit_f64() < p
    }

    /// Puts `items` in a random order (Fisher–Yates), each order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// One of `items`, or `None` when there are none.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len())) }
    }

    /// `count` different numbers of `0..n` in random order; all of them when `count` ≥ `n`.
    pub fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        let count = count.min(n);
        for i in 0..count {
            all.swap(i, i + self.below(n - i));
        }
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_fixed() {
        let mut s = Stream::new(1, "test", &[2, 3]);
        let got: Vec<u32> = (0..4).map(|_| s.bits32()).collect();
        assert_eq!(got, FIXED, "{got:#x?}");
    }
    const FIXED: [u32; 4] = [0xe60a_bd1a, 0x8ac8_527f, 0x328f_cec7, 0x0108_8191];

    #[test]
    fn seed_purpose_and_index_all_matter() {
        let first = |mut s: Stream| s.bits64();
        let all = [
            first(Stream::new(0, "a", &[])),
            first(Stream::new(1, "a", &[])),
            first(Stream::new(0, "b", &[])),
            first(Stream::new(0, "a", &[0])),
            first(Stream::new(0, "a", &[0, 0])),
        ];
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut s = Stream::new(5, "below", &[]);
        let mut counts = [0usize; 7];
        for _ in 0..70_000 {
            counts[s.below(7)] += 1;
        }
        // Standard deviation sqrt(70000 · 1/7 · 6/7) = 93; five of them.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 465), "{counts:?}");
        assert_eq!((s.below(0), s.below(1)), (0, 0));
    }

    #[test]
    fn units_stay_below_one_and_normals_have_unit_variance() {
        let mut s = Stream::new(6, "floats", &[]);
        let n = 100_000;
        let (mut sum, mut squares, mut unit) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let (a, b, z) = (s.unit_f32(), s.unit_f64(), s.normal());
            assert!((0.0..1.0).contains(&a) && (0.0..1.0).contains(&b));
            unit += b;
            sum += z;
            squares += z * z;
        }
        let n = f64::from(n);
        // Five standard errors each: sqrt(1/12/n), sqrt(1/n), sqrt(2/n).
        assert!((unit / n - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!((sum / n).abs() < 5.0 / n.sqrt());
        assert!((squares / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    }

    #[test]
    fn shuffles_and_samples_are_permutations() {
        let mut s = Stream::new(7, "shuffle", &[]);
        let mut items: Vec<usize> = (0..50).collect();
        s.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        let mut few = s.sample(50, 10);
        few.sort_unstable();
        few.dedup();
        assert_eq!(few.len(), 10);
        assert_eq!(s.sample(3, 9).len(), 3);
        assert_eq!(s.choose::<u8>(&[]), None);
    }
}
