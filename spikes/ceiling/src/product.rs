//! A safe face for `gemm::gemm` on row-major data.

use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix inside a slice: element (i, j) sits at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> View<'a> {
    /// Rows one after the other, `width` long.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transpose of rows one after the other.
    pub fn transposed(data: &'a [f32], width: usize) -> Self {
        Self { data, row: 1, column: width }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        self.data.len() > (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// `out[m, n] = a[m, k] · b[k, n]`, rows of `out` being `out_row` apart.
pub fn multiply(
    m: usize,
    n: usize,
    k: usize,
    out: &mut [f32],
    out_row: usize,
    a: View,
    b: View,
    threads: Parallelism,
) {
    assert!(a.covers(m, k) && b.covers(k, n) && out.len() > (m - 1) * out_row + n - 1);
    // Sound: the three slices cover what the strides reach, as just asserted.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            false,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// What `RAYON_NUM_THREADS` asks for.
pub fn parallelism() -> Parallelism {
    match rayon::current_num_threads() {
        1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    }
}

/// `count` cut into `pieces` nearly equal ranges that start at the multiple of 48 nearest to the even cut: 48 are the rows
/// of gemm's AVX-512 micro-kernel, twice those of its AVX2 one. An even share of 96 or more leaves no piece below 72.
fn cut(count: usize, pieces: usize) -> Vec<(usize, usize)> {
    let cut = |i: usize| if i == pieces { count } else { (i * count + 24 * pieces) / (48 * pieces) * 48 };
    (0..pieces).map(|i| (cut(i), cut(i + 1))).filter(|(start, end)| start < end).collect()
}

/// Columns in pieces of at most `most`, as many for each thread; where that would leave fewer than 96 columns to a piece,
/// one piece.
pub fn columns(count: usize, most: usize) -> Vec<(usize, usize)> {
    let threads = rayon::current_num_threads();
    let pieces = threads * count.div_ceil(threads * most);
    if count / pieces < 96 { vec![(0, count)] } else { cut(count, pieces) }
}

/// The grid of an `[m, n]` product: columns first; rows only where the columns do not serve every thread.
fn grid(m: usize, n: usize) -> Vec<((usize, usize), (usize, usize))> {
    let columns = columns(n, 512);
    let rows = if columns.len() == 1 { cut(m, rayon::current_num_threads()) } else { vec![(0, m)] };
    rows.iter().flat_map(|&r| columns.iter().map(move |&c| (r, c))).collect()
}

/// An output that several tasks may write to, each to columns of its own.
pub struct Cells<'a> {
    start: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}
// Sound: the tasks of `multiply_pieces` and `widen` write to disjoint pieces.
unsafe impl Send for Cells<'_> {}
unsafe impl Sync for Cells<'_> {}

impl<'a> Cells<'a> {
    pub fn of(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), owner: std::marker::PhantomData }
    }

    /// One piece of `out[.., n]`; `a` starts at its first row, `b` at its first column.
    fn piece(&self, rows: (usize, usize), columns: (usize, usize), n: usize, k: usize, a: View, b: View) {
        let (m, width) = (rows.1 - rows.0, columns.1 - columns.0);
        assert!(a.covers(m, k) && b.covers(k, width) && columns.1 <= n && rows.1 * n <= self.len);
        // Sound: `a` and `b` cover the strides and the piece lies inside, as asserted.
        unsafe {
            gemm::gemm(
                m,
                width,
                k,
                self.start.add(rows.0 * n + columns.0),
                1,
                n as isize,
                false,
                a.data.as_ptr(),
                a.column as isize,
                a.row as isize,
                b.data.as_ptr(),
                b.column as isize,
                b.row as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// All rows of the columns `from..to`: `x[rows, k] · b[k, to - from]`.
    pub fn multiply(&self, rows: usize, columns: (usize, usize), n: usize, k: usize, x: &[f32], b: View) {
        self.piece((0, rows), columns, n, k, View::rows(x, k), b);
    }
}

/// `out[m, n] = a[m, k] · b[k, n]`, `out` row by row; one task a piece of `out`, each on one thread.
pub fn multiply_pieces(m: usize, n: usize, k: usize, out: &mut [f32], a: View, b: View) {
    let cells = Cells::of(out);
    grid(m, n).into_par_iter().for_each(|(rows, columns)| {
        let a = View { data: &a.data[rows.0 * a.row..], ..a };
        let b = View { data: &b.data[columns.0 * b.column..], ..b };
        cells.piece(rows, columns, n, k, a, b);
    });
}
