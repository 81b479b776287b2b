//! Reused memory: activations come from a pool and go back to it when dropped.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

/// Buffers kept between passes, so that the system need not clear fresh pages for every layer.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<f32>>>,
}

/// f32 values borrowed from a [`Pool`]; their content is arbitrary until written.
#[derive(Debug)]
pub(super) struct Buffer {
    data: Vec<f32>,
    pool: Arc<Pool>,
}

/// What a pool keeps at most when no pass runs, in values: 256 MiB.
const KEEP: usize = 64 << 20;

impl Pool {
    /// `len` values of arbitrary content.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            free.iter().enumerate().filter(|(_, b)| b.capacity() >= len && b.capacity() / 2 <= len.max(1024));
        let best = fits.min_by_key(|(_, b)| b.capacity()).map(|(index, _)| index);
        let data = match best {
            Some(index) => {
                let mut data = free.swap_remove(index);
                drop(free);
                data.resize(len, 0.0);
                data
            }
            None => {
                // Batches differ in length: the buffer of a shorter one makes room instead of lying idle beside its
                // successor, so that what is kept stays within one pass of the longest.
                let outgrown =
                    free.iter().enumerate().filter(|(_, b)| (len / 2..len).contains(&b.capacity()));
                let outgrown = outgrown.max_by_key(|(_, b)| b.capacity()).map(|(index, _)| index);
                drop(outgrown.map(|index| free.swap_remove(index)));
                drop(free);
                vec![0.0; len]
            }
        };
        Buffer { data, pool: self.clone() }
    }

    /// Gives memory beyond a modest reserve back to the system. Training steps leave that to the end of the run: the
    /// next step wants the same again, and a third of the page faults of a step came from this.
    pub(super) fn trim(&self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = 0;
        free.retain(|buffer| {
            kept += buffer.capacity();
            kept <= KEEP
        });
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(data);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

/// Runs `work` on a thread of rayon's pool. Handed over from a thread outside, each product costs a sleep and a wake-up: in a
/// training step three quarters of all context switches.
pub(super) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Rows handled by one task, fixed by the width alone so that results do not depend on threads.
pub(super) fn rows_per_task(width: usize) -> usize {
    (32_768 / width.max(1)).clamp(1, 256)
}

/// Calls `work(first row, rows)` for groups of rows of `data`, in parallel.
pub(super) fn for_rows(data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(width);
    data.par_chunks_mut(rows * width).enumerate().for_each(|(task, chunk)| work(task * rows, chunk));
}

/// `to += from`, in parallel.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    const PIECE: usize = 32_768;
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        super::simd::vectorized(|| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_batches_replace_what_shorter_ones_left() {
        let pool = Arc::new(Pool::default());
        let pass = |tokens: usize| {
            let held = [tokens * 64, tokens * 64, tokens * 512].map(|len| pool.take(len));
            held.iter().map(|b| b.len()).sum::<usize>()
        };
        let kept = || pool.free.lock().unwrap().iter().map(Vec::capacity).sum::<usize>();
        let longest = (100..160).step_by(7).map(pass).max().unwrap();
        assert_eq!(kept(), longest);
        for tokens in 100..150 {
            assert!(pass(tokens) < longest);
        }
        assert_eq!(kept(), longest);
    }
}
