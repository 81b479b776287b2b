//! Products of f32 matrices on the tile unit (AMX) of Intel's server processors, known as bf16x3.
//!
//! The unit multiplies bf16 numbers sixteen times as fast as vectors multiply f32, and adds in f32. Each f32 is split into two
//! bf16 numbers, `x ≈ x₀ + x₁` with an error below 2⁻¹⁷ · |x|, and of the four products of two such sums the three that matter
//! are made: `x₁y₀ + x₀y₀ + x₀y₁` (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for
//! higher-precision computations"). A product is off by 2⁻¹⁶ of itself at most, where f32 rounds at 2⁻²⁴ and bf16 at 2⁻⁹. PyTorch calls it
//! `set_float32_matmul_precision("high")`. Weights that are bf16 in their file have no second part and cost two products.
//!
//! The order in which an element of the result is summed depends on the inner dimension alone: neither the rows
//! beside it nor the number of threads change its bits. Infinite values come out as NaN.

use super::matmul::{View, ViewMut};

/// Whether this process may use the unit.
pub(super) fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *ANSWER.get_or_init(tiles::usable)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        false
    }
}

/// `dst = lhs · rhs`, added to `dst` when `accumulate`.
///
/// # Panics
/// Where the unit is not [`available`], and when the shapes do not fit: mistakes of the caller.
pub(super) fn multiply(dst: ViewMut<'_>, lhs: View<'_>, rhs: View<'_>, accumulate: bool) {
    assert!(available(), "no tile unit");
    assert!(lhs.rows == dst.rows && rhs.cols == dst.cols && lhs.cols == rhs.rows, "dimensions of a product");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    tiles::multiply(dst, lhs, rhs, accumulate);
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let _ = accumulate;
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::cell::RefCell;
    use std::sync::{Mutex, PoisonError};

    use rayon::prelude::*;

    use super::{View, ViewMut};

    /// Rows or columns of a panel, and inner elements of a step: two tiles beside each other, each 16 rows of 64 bytes.
    const PANEL: usize = 32;
    /// Bytes of a tile.
    const TILE: usize = 1024;
    /// Bytes of a step of a panel: two parts of two tiles. `steps!` below counts on it.
    const STEP: usize = 4 * TILE;
    /// Inner elements of the right side packed at a time: with [`WIDTH`] columns 768 KB, so that they stay in the second cache.
    const DEPTH: usize = 768;
    /// Steps that packing asks the caches for in advance: it reads many short rows, which processors do not foresee.
    const AHEAD: usize = 2;
    /// Most columns of a task.
    const WIDTH: usize = 256;
    /// Most bytes of the packed left side; a longer one is taken in turns.
    const LEFT: usize = 32 << 20;

    /// Whether processor and system have the unit.
    pub(super) fn usable() -> bool {
        // Leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE.
        let has = |bit: u32| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> bit & 1 == 1;
        has(22)
            && has(24)
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && permitted()
    }

    /// Linux lends the unit's registers to a process that asks: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA.
    fn permitted() -> bool {
        // SAFETY: the call takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
    }

    /// Memory in whole cache lines: tiles that straddle them load at a fraction of the speed.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);

    /// The address of at least `bytes` of `lines`, and of a step more, which is read ahead.
    fn room(lines: &mut Vec<Line>, bytes: usize) -> *mut u8 {
        lines.resize(lines.len().max((bytes + STEP) / 64), Line([0; 64]));
        lines.as_mut_ptr().cast()
    }

    /// Packed left sides between products: fresh pages would cost as much as the packing.
    static LEFTS: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

    thread_local! {
        /// The packed piece of a right side.
        static RIGHT: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }

    /// An address within memory of which tasks write parts of their own.
    #[derive(Clone, Copy)]
    struct Place<T>(*mut T);
    // SAFETY: see the type.
    unsafe impl<T> Send for Place<T> {}
    // SAFETY: see the type.
    unsafe impl<T> Sync for Place<T> {}
    impl<T> Place<T> {
        fn at(self, offset: usize) -> *mut T {
            self.0.wrapping_add(offset)
        }
    }

    /// [`super::multiply`], where the unit is usable and shapes fit.
    pub(super) fn multiply(dst: ViewMut<'_>, lhs: View<'_>, rhs: View<'_>, accumulate: bool) {
        let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
        if m == 0 || n == 0 {
            return;
        }
        let (stride, out) = (dst.row_stride, Place(dst.data.as_mut_ptr()));
        let steps = k.div_ceil(PANEL);
        let turn = (LEFT / (steps * STEP).max(1)).max(1) * PANEL;
        let mut packed = LEFTS.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        for top in (0..m).step_by(turn) {
            let height = turn.min(m - top);
            let panels = height.div_ceil(PANEL);
            let left = Place(room(&mut packed, panels * steps * STEP));
            (0..panels).into_par_iter().for_each(|panel| {
                let first = top + panel * PANEL;
                let source = Source {
                    data: &lhs.data[first * lhs.row_stride..],
                    lanes: PANEL.min(m - first),
                    lane_stride: lhs.row_stride,
                    length: k,
                    stride: lhs.col_stride,
                };
                // SAFETY: each panel has a part of `packed` of its own; the processor has the instructions.
                unsafe { pack(left.at(panel * steps * STEP), source, Side::Left) };
            });
            let threads = rayon::current_num_threads();
            let across = n.div_ceil(WIDTH).next_multiple_of(threads).min(n.div_ceil(2 * PANEL));
            let width = n.div_ceil(across).next_multiple_of(PANEL);
            let across = n.div_ceil(width);
            let down = threads.div_ceil(across).min(panels.div_ceil(2));
            (0..across * down).into_par_iter().for_each(|task| {
                let (left_most, row) = (task % across * width, task / across);
                let columns = left_most..n.min(left_most + width);
                let rows = panels * row / down..panels * (row + 1) / down;
                RIGHT.with_borrow_mut(|right| {
                    for depth in (0..k).step_by(DEPTH) {
                        let deep = DEPTH.min(k - depth);
                        let count = deep.div_ceil(PANEL);
                        let right = Place(room(right, columns.len().div_ceil(PANEL) * count * STEP));
                        let mut parts = [0; WIDTH / PANEL];
                        for (index, first) in columns.clone().step_by(PANEL).enumerate() {
                            let source = Source {
                                data: &rhs.data[first * rhs.col_stride + depth * rhs.row_stride..],
                                lanes: PANEL.min(columns.end - first),
                                lane_stride: rhs.col_stride,
                                length: deep,
                                stride: rhs.row_stride,
                            };
                            // SAFETY: `right` has room for a panel at each index; the processor has the instructions.
                            parts[index] =
                                unsafe { pack(right.at(index * count * STEP), source, Side::Right) };
                        }
                        configure();
                        for panel in rows.clone() {
                            let a = left.at((panel * steps + depth / PANEL) * STEP);
                            let first = top + panel * PANEL;
                            for (index, column) in columns.clone().step_by(PANEL).enumerate() {
                                let b = right.at(index * count * STEP);
                                let c = Block {
                                    data: out.at(first * stride + column),
                                    stride,
                                    rows: PANEL.min(m - first),
                                    cols: PANEL.min(n - column),
                                };
                                // SAFETY: tasks have blocks of their own within `dst`; both panels are packed, the tiles configured.
                                unsafe { c.add(a, b, count, parts[index], accumulate || depth > 0) };
                            }
                        }
                        // SAFETY: gives the tiles back, whose content is stored.
                        unsafe { asm!("tilerelease", options(nostack, nomem)) };
                    }
                });
            });
        }
        LEFTS.lock().unwrap_or_else(PoisonError::into_inner).push(packed);
    }

    /// Eight tiles of 16 rows of 64 bytes.
    fn configure() {
        let mut config = Line([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = 16;
        }
        // SAFETY: reads the 64 bytes of `config`. No compiled code touches tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    }

    /// Loads the upper half of a part of the left side's step, or the lower one.
    macro_rules! a0 {
        ($at:literal) => {
            concat!("tileloadd tmm4, [{a} + {line} + ", $at, "]\n")
        };
    }
    macro_rules! a1 {
        ($at:literal) => {
            concat!("tileloadd tmm5, [{a} + {line} + ", $at, " + 1024]\n")
        };
    }
    /// Loads the left half of a part of the right side's step, or the right one.
    macro_rules! b0 {
        ($at:literal) => {
            concat!("tileloadd tmm6, [{b} + {line} + ", $at, "]\n")
        };
    }
    macro_rules! b1 {
        ($at:literal) => {
            concat!("tileloadd tmm7, [{b} + {line} + ", $at, " + 1024]\n")
        };
    }
    /// Adds the product of a half of each to a quarter of the block.
    macro_rules! c00 {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6\n"
        };
    }
    macro_rules! c01 {
        () => {
            "tdpbf16ps tmm1, tmm4, tmm7\n"
        };
    }
    macro_rules! c10 {
        () => {
            "tdpbf16ps tmm2, tmm5, tmm6\n"
        };
    }
    macro_rules! c11 {
        () => {
            "tdpbf16ps tmm3, tmm5, tmm7\n"
        };
    }
    /// All four quarters, then the left side at another place. A half is loaded as soon as nothing needs the one before it: the
    /// unit has few spare registers.
    macro_rules! then_left {
        ($at:literal) => {
            concat!(c00!(), c01!(), a0!($at), c10!(), c11!(), a1!($at))
        };
    }
    /// All four quarters, then the right side at another place.
    macro_rules! then_right {
        ($at:literal) => {
            concat!(c00!(), c10!(), b0!($at), c01!(), c11!(), b1!($at))
        };
    }
    /// All four quarters, then the second part of the left side and the first of the right of the next step.
    macro_rules! then_next {
        () => {
            concat!(
                c00!(),
                c01!(),
                a0!("4096 + 2048"),
                c10!(),
                b0!("4096"),
                c11!(),
                a1!("4096 + 2048"),
                b1!("4096")
            )
        };
    }
    /// All steps of a block.
    macro_rules! steps {
        ($a:ident, $b:ident, $steps:ident, $($body:expr),+) => {
            asm!(
                a0!("2048"), b0!("0"), b1!("0"), a1!("2048"),
                "2:",
                $($body),+,
                "add {a}, 4096",
                "add {b}, 4096",
                "dec {steps}",
                "jnz 2b",
                a = inout(reg) $a => _,
                b = inout(reg) $b => _,
                steps = inout(reg) $steps => _,
                line = in(reg) 64usize,
                options(nostack, readonly),
            )
        };
    }

    /// A block of the result, at most 32 × 32.
    struct Block {
        data: *mut f32,
        stride: usize,
        rows: usize,
        cols: usize,
    }

    impl Block {
        /// Adds a panel of the left side times one of the right (or writes it).
        ///
        /// # Safety
        /// `a` and `b` hold `steps` packed steps (at least one) and room for one more; the block may be written; the tiles are configured.
        unsafe fn add(self, a: *const u8, b: *const u8, steps: usize, parts: usize, accumulate: bool) {
            if (self.rows, self.cols) == (PANEL, PANEL) {
                // SAFETY: the caller's.
                return unsafe { self.add_whole(a, b, steps, parts, accumulate) };
            }
            let mut edge = [0f32; PANEL * PANEL];
            let whole = Block { data: edge.as_mut_ptr(), stride: PANEL, rows: PANEL, cols: PANEL };
            // SAFETY: the caller's; both blocks have these rows and columns.
            unsafe {
                for row in (0..self.rows).filter(|_| accumulate) {
                    self.row(row).copy_to_nonoverlapping(whole.row(row), self.cols);
                }
                whole.add_whole(a, b, steps, parts, accumulate);
                for row in 0..self.rows {
                    whole.row(row).copy_to_nonoverlapping(self.row(row), self.cols);
                }
            }
        }

        fn row(&self, row: usize) -> *mut f32 {
            self.data.wrapping_add(row * self.stride)
        }

        /// [`Block::add`] of 32 × 32. Between the pieces of assembly the sums stay in tiles, which compiled code never touches.
        unsafe fn add_whole(&self, a: *const u8, b: *const u8, steps: usize, parts: usize, accumulate: bool) {
            let (upper, lower, bytes) = (self.row(0), self.row(16), self.stride * 4);
            // SAFETY: the tiles are configured; the addresses are the caller's.
            unsafe {
                if accumulate {
                    asm!(
                        "tileloadd tmm0, [{upper} + {bytes}]", "tileloadd tmm1, [{upper} + {bytes} + 64]",
                        "tileloadd tmm2, [{lower} + {bytes}]", "tileloadd tmm3, [{lower} + {bytes} + 64]",
                        upper = in(reg) upper, lower = in(reg) lower, bytes = in(reg) bytes, options(nostack, readonly),
                    );
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        options(nostack, nomem)
                    );
                }
                if parts == 1 {
                    steps!(a, b, steps, then_left!("0"), then_next!());
                } else {
                    steps!(a, b, steps, then_left!("0"), then_right!("2048"), then_next!());
                }
                asm!(
                    "tilestored [{upper} + {bytes}], tmm0", "tilestored [{upper} + {bytes} + 64], tmm1",
                    "tilestored [{lower} + {bytes}], tmm2", "tilestored [{lower} + {bytes} + 64], tmm3",
                    upper = in(reg) upper, lower = in(reg) lower, bytes = in(reg) bytes, options(nostack),
                );
            }
        }
    }

    /// Up to 32 rows of a left side, or columns of a right one; one of the strides is 1.
    struct Source<'a> {
        data: &'a [f32],
        lanes: usize,
        lane_stride: usize,
        /// Inner elements.
        length: usize,
        stride: usize,
    }

    /// Which side of a product is packed.
    #[derive(Clone, Copy, PartialEq)]
    enum Side {
        /// A tile's row is a row of the matrix: 32 inner elements beside each other.
        Left,
        /// A tile's row is two rows of the matrix: pairs of inner elements of 16 columns.
        Right,
    }

    /// Packs steps of tiles, zeros where the source ends; returns how many of the two parts are not all zero.
    ///
    /// # Safety
    /// `to` has room for all steps.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack(to: *mut u8, source: Source<'_>, side: Side) -> usize {
        let Source { data, lanes, lane_stride, length, stride } = source;
        assert!((lanes - 1) * lane_stride + (length - 1) * stride < data.len(), "a panel leaves its matrix");
        let along = stride == 1;
        assert!(along || lane_stride == 1, "neither rows nor columns lie together");
        let mut second = _mm512_setzero_si512();
        for step in 0..length.div_ceil(PANEL) {
            let inner = PANEL.min(length - step * PANEL);
            for half in 0..2 {
                let lanes = lanes.saturating_sub(half * 16).min(16);
                let from = data.as_ptr().wrapping_add(half * 16 * lane_stride + step * PANEL * stride);
                // SAFETY: the tile lies within the room for all steps.
                let to: *mut __m512i = unsafe { to.add(step * STEP + half * TILE).cast() };
                for row in 0..16 {
                    // SAFETY: masked elements are not read, all others lie within the source (asserted).
                    let words = unsafe {
                        if along {
                            let (low, high) = if row < lanes {
                                (mask(inner), mask(inner.saturating_sub(16)))
                            } else {
                                (0, 0)
                            };
                            let row = from.wrapping_add(row * lane_stride);
                            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * PANEL).cast());
                            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * PANEL + 16).cast());
                            let high = _mm512_maskz_loadu_ps(high, row.wrapping_add(16));
                            beside(_mm512_maskz_loadu_ps(low, row), high)
                        } else {
                            let even = mask(if 2 * row < inner { lanes } else { 0 });
                            let odd = mask(if 2 * row + 1 < inner { lanes } else { 0 });
                            let row = from.wrapping_add(2 * row * stride);
                            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * PANEL * stride).cast());
                            _mm_prefetch::<_MM_HINT_T0>(
                                row.wrapping_add((AHEAD * PANEL + 1) * stride).cast(),
                            );
                            let odd = _mm512_maskz_loadu_ps(odd, row.wrapping_add(stride));
                            pairs(_mm512_maskz_loadu_ps(even, row), odd)
                        }
                    };
                    // SAFETY: both parts' tiles lie within the step.
                    unsafe {
                        _mm512_store_si512(to.add(row), words[0]);
                        _mm512_store_si512(to.add(2 * 16 + row), words[1]);
                    }
                    second = _mm512_or_si512(second, words[1]);
                }
                if along != (side == Side::Left) {
                    // SAFETY: as above.
                    unsafe {
                        transpose(&mut *to.cast());
                        transpose(&mut *to.add(2 * 16).cast());
                    }
                }
            }
        }
        if _mm512_test_epi32_mask(second, second) == 0 { 1 } else { 2 }
    }

    /// The first `count` of 16 lanes.
    #[inline]
    fn mask(count: usize) -> __mmask16 {
        if count >= 16 { !0 } else { (1 << count) - 1 }
    }

    /// Both parts of 32 elements beside each other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn beside(low: __m512, high: __m512) -> [__m512i; 2] {
        let (low, high) = (split(low), split(high));
        [0, 1].map(|part| _mm512_inserti64x4(_mm512_castsi256_si512(low[part]), high[part], 1))
    }

    /// Both parts of 16 columns' pairs of elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pairs(even: __m512, odd: __m512) -> [__m512i; 2] {
        let (even, odd) = (split(even), split(odd));
        [0, 1].map(|part| {
            let odd = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd[part]), 16);
            _mm512_or_si512(_mm512_cvtepu16_epi32(even[part]), odd)
        })
    }

    /// The two bf16 parts of each value.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn split(values: __m512) -> [__m256i; 2] {
        // SAFETY: both types are 256 bits of any value.
        let bits = |half: __m256bh| unsafe { std::mem::transmute::<__m256bh, __m256i>(half) };
        let first = bits(_mm512_cvtneps_pbh(values));
        let wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(first), 16));
        [first, bits(_mm512_cvtneps_pbh(_mm512_sub_ps(values, wide)))]
    }

    /// Swaps rows and columns of 16 × 16 words.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn transpose(rows: &mut [__m512i; 16]) {
        let mut pairs = *rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // fours[4 i + j]: of each quarter of 128 bits the column j, rows 4 i to 4 i + 3.
        let mut fours = pairs;
        for i in 0..4 {
            for j in 0..2 {
                let (upper, lower) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(upper, lower);
                fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(upper, lower);
            }
        }
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        for j in 0..4 {
            let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
            let (upper, lower) = (_mm512_shuffle_i32x4(a, b, EVEN), _mm512_shuffle_i32x4(c, d, EVEN));
            rows[j] = _mm512_shuffle_i32x4(upper, lower, EVEN);
            rows[8 + j] = _mm512_shuffle_i32x4(upper, lower, ODD);
            let (upper, lower) = (_mm512_shuffle_i32x4(a, b, ODD), _mm512_shuffle_i32x4(c, d, ODD));
            rows[4 + j] = _mm512_shuffle_i32x4(upper, lower, EVEN);
            rows[12 + j] = _mm512_shuffle_i32x4(upper, lower, ODD);
        }
    }
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;

    /// Values in (−1, 1) of which the mantissa ends in `zeros` zeros.
    fn values(count: usize, salt: u64, zeros: u32) -> Vec<f32> {
        let value = |i: usize| {
            let mut x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
            x = (x ^ x >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let value = ((x ^ x >> 32) >> 40) as f32 / 8_388_608.0 - 1.0;
            f32::from_bits(value.to_bits() >> zeros << zeros)
        };
        (0..count).map(value).collect()
    }

    /// Every way the operands can lie, every edge of a panel, weights of one part and of two, more columns and depth than one piece.
    #[test]
    fn products_agree_with_sums_in_f64_at_any_thread_count() {
        if !available() {
            return;
        }
        let shapes = [(32, 32, 32), (77, 51, 100), (33, 40, 20), (1, 1, 1), (40, 700, 70), (70, 33, 1600)];
        for (index, (m, n, k)) in shapes.into_iter().enumerate() {
            for form in 0..8 {
                let (zeros, accumulate) = (if index % 2 == 0 { 0 } else { 16 }, form & 4 != 0);
                let (a, b) = (values(m * k, 1, 0), values(n * k, 2, zeros));
                let lhs = if form & 1 == 0 { View::new(&a, m, k, k) } else { View::new(&a, k, m, m).t() };
                let rhs = if form & 2 == 0 { View::new(&b, n, k, k).t() } else { View::new(&b, k, n, n) };
                let run = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut out = vec![0.5f32; m * (n + 3)];
                    pool.install(|| multiply(ViewMut::new(&mut out, m, n, n + 3), lhs, rhs, accumulate));
                    out
                };
                let out = run(1);
                assert_eq!(out, run(3), "{m} {n} {k}, form {form}");
                for i in 0..m {
                    for j in 0..n {
                        let terms = (0..k).map(|l| {
                            let x = a[i * lhs.row_stride + l * lhs.col_stride];
                            f64::from(x) * f64::from(b[l * rhs.row_stride + j * rhs.col_stride])
                        });
                        let (mut sum, mut size) = (if accumulate { 0.5 } else { 0.0 }, 0.5);
                        for term in terms {
                            (sum, size) = (sum + term, size + term.abs());
                        }
                        let found = f64::from(out[i * (n + 3) + j]);
                        // 2⁻¹⁶ of each product for what is left out, and f32's own rounding of sums of up to 2 · k terms.
                        let bound = size * (1.0 / 65_536.0 + k as f64 / 16_777_216.0);
                        assert!((found - sum).abs() <= bound, "{m} {n} {k}, form {form}: {found} for {sum}");
                    }
                    assert_eq!(out[i * (n + 3) + n..(i + 1) * (n + 3)], [0.5; 3], "beside the block");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_beside_others_and_what_is_not_finite_is_not_hidden() {
        if !available() {
            return;
        }
        let (m, n, k) = (50, 40, 200);
        let (mut a, b) = (values(m * k, 3, 0), values(n * k, 4, 0));
        let product = |a: &[f32]| {
            let mut out = vec![0f32; a.len() / k * n];
            let rows = a.len() / k;
            let rhs = View::new(&b, n, k, k).t();
            multiply(ViewMut::new(&mut out, rows, n, n), View::new(a, rows, k, k), rhs, false);
            out
        };
        let all = product(&a);
        for row in [0, 17, 49] {
            assert_eq!(product(&a[row * k..(row + 1) * k]), all[row * n..(row + 1) * n]);
        }
        for bad in [f32::NAN, f32::INFINITY] {
            a[5 * k + 7] = bad;
            let out = product(&a);
            assert!(out[5 * n..6 * n].iter().all(|v| v.is_nan()));
            assert_eq!(out[6 * n..], all[6 * n..]);
        }
    }
}
