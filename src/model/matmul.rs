//! Matrix products on plain slices: the `gemm` crate on tiles, one thread a tile.
//!
//! The tiles follow from the shapes alone, so the bits of a product do not depend on the number of threads.
//! [`Products`] says whether those with weights are made in another way.

use gemm::Parallelism;
use rayon::prelude::*;

use super::amx;

/// A matrix within a slice: element `(i, j)` at `i · row_stride + j · col_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// A matrix to be written within a slice.
#[derive(Debug)]
pub(super) struct ViewMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major `rows × cols` whose rows lie `row_stride` apart.
    ///
    /// # Panics
    /// When the matrix does not fit into `data`: a mistake of the caller.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        View { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix.
    pub(super) fn t(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> ViewMut<'a> {
    /// Row-major `rows × cols` whose rows lie `row_stride` apart.
    ///
    /// # Panics
    /// When the matrix does not fit into `data`: a mistake of the caller.
    pub(super) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        assert!(cols <= row_stride || rows <= 1, "rows of {cols} overlap at stride {row_stride}");
        ViewMut { data, rows, cols, row_stride }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    if rows > 0 && cols > 0 {
        assert!(
            (rows - 1) * row_stride + cols <= len,
            "{rows}×{cols} at stride {row_stride} in {len} values"
        );
    }
}

/// How products with weights are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Products {
    /// Every product of two numbers in f32.
    #[default]
    F32,
    /// As three products of bf16 on the processor's tile unit, which must be [`amx::available`].
    Bf16x3,
}

impl Products {
    /// Rows below which packing for the tile unit costs more than it saves.
    const FEWEST_ROWS: usize = 32;

    /// `dst = lhs · rhs`, added to `dst` when `accumulate`.
    pub(super) fn multiply(self, dst: ViewMut<'_>, lhs: View<'_>, rhs: View<'_>, accumulate: bool) {
        match self {
            Products::Bf16x3 if dst.rows >= Self::FEWEST_ROWS => amx::multiply(dst, lhs, rhs, accumulate),
            _ => multiply(dst, lhs, rhs, 1.0, accumulate),
        }
    }
}

/// Writable memory shared by tasks that promise to touch disjoint parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    pointer: *mut f32,
    len: usize,
}

// SAFETY: the pointer is only written through `Shared::part`, whose callers promise disjoint parts.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares `data` until its borrow ends.
    pub(super) fn new(data: &mut [f32]) -> Self {
        Shared { pointer: data.as_mut_ptr(), len: data.len() }
    }

    /// Writes `alpha · lhs · rhs` (added to what is there when `accumulate`) into the `rows × cols`
    /// block that begins at `offset`, on this thread.
    ///
    /// # Safety
    /// No other task may touch the block meanwhile, and the slice given to [`Shared::new`] must still be borrowed by the caller.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn product(
        self,
        offset: usize,
        row_stride: usize,
        lhs: View<'_>,
        rhs: View<'_>,
        alpha: f32,
        accumulate: bool,
    ) {
        let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
        assert_eq!(k, rhs.rows, "inner dimensions");
        if m == 0 || n == 0 {
            return;
        }
        assert!(offset + (m - 1) * row_stride + n <= self.len, "the product leaves its slice");
        // SAFETY: the block lies within the slice (asserted), the views within theirs (checked when made), and the caller promises exclusive access.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.pointer.add(offset),
                1,
                row_stride as isize,
                accumulate,
                lhs.data.as_ptr(),
                lhs.col_stride as isize,
                lhs.row_stride as isize,
                rhs.data.as_ptr(),
                rhs.col_stride as isize,
                rhs.row_stride as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// Number of row and column tiles of an `m × n` product over `k`, from the shape alone.
///
/// Tiles keep at least some 129 columns: below that `gemm` sums in another order, so a row's bits
/// would depend on how many rows stand beside it. Even numbers suit machines of few cores.
fn tiles(m: usize, n: usize, k: usize) -> (usize, usize) {
    let work = m * n * k;
    if work < 1 << 20 {
        return (1, 1);
    }
    if n >= 258 {
        return (((m + 384) / 768).clamp(1, 16), 2 * ((n + 288) / 576).max(1));
    }
    // Splitting rows packs the right side again for each tile: only where columns do not suffice.
    let rows = (m / 64).min(work >> 21).clamp(1, 16);
    (if rows > 1 { rows.next_multiple_of(2) } else { 1 }, 1)
}

/// Where tile `index` of `count` over `length` begins; a whole number of vectors except at the end.
fn boundary(index: usize, count: usize, length: usize) -> usize {
    if index == count { length } else { index * length / count / 16 * 16 }
}

/// `dst = alpha · lhs · rhs`, added to `dst` when `accumulate`; parallel over tiles of `dst`.
pub(super) fn multiply(dst: ViewMut<'_>, lhs: View<'_>, rhs: View<'_>, alpha: f32, accumulate: bool) {
    let (m, n, k) = (dst.rows, dst.cols, lhs.cols);
    assert!(lhs.rows == m && rhs.cols == n, "outer dimensions");
    let stride = dst.row_stride;
    let out = Shared::new(dst.data);
    let (rows, cols) = tiles(m, n, k);
    if rows * cols == 1 {
        // SAFETY: the only task.
        return unsafe { out.product(0, stride, lhs, rhs, alpha, accumulate) };
    }
    (0..rows * cols).into_par_iter().for_each(|tile| {
        let (row, col) = (tile / cols, tile % cols);
        let (top, left) = (boundary(row, rows, m), boundary(col, cols, n));
        let (height, width) = (boundary(row + 1, rows, m) - top, boundary(col + 1, cols, n) - left);
        if height == 0 || width == 0 {
            return;
        }
        let lhs = View { data: &lhs.data[top * lhs.row_stride..], rows: height, ..lhs };
        let rhs = View { data: &rhs.data[left * rhs.col_stride..], cols: width, ..rhs };
        // SAFETY: tiles are disjoint.
        unsafe { out.product(top * stride + left, stride, lhs, rhs, alpha, accumulate) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_sums_in_f64_at_any_thread_count() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        for (m, n, k) in
            [(1, 7, 5), (33, 65, 40), (200, 16, 300), (130, 260, 96), (1500, 300, 20), (3, 700, 900)]
        {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 11)).collect();
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut out = vec![0.5f32; m * n];
                pool.install(|| {
                    multiply(
                        ViewMut::new(&mut out, m, n, n),
                        View::new(&a, m, k, k),
                        View::new(&b, n, k, k).t(),
                        2.0,
                        true,
                    );
                });
                out
            };
            let out = run(1);
            assert_eq!(out, run(2));
            for i in 0..m {
                for j in 0..n {
                    let exact: f64 =
                        (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum::<f64>() * 2.0
                            + 0.5;
                    // k products of at most 1, each rounded.
                    assert!((f64::from(out[i * n + j]) - exact).abs() < k as f64 * 1e-6, "{m} {n} {k}");
                }
            }
        }
    }
}
