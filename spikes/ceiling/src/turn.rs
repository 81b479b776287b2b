//! A matrix turned on its side, eight by eight in registers.

use std::arch::x86_64::*;

/// `out[j, i] = matrix[i, j]`; `out` is `[columns, rows]`, row by row.
pub fn turn(matrix: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    assert!(matrix.len() >= rows * columns && out.len() >= rows * columns);
    let (whole_rows, whole_columns) =
        if is_x86_feature_detected!("avx") { (rows / 8 * 8, columns / 8 * 8) } else { (0, 0) };
    for j in (0..whole_columns).step_by(8) {
        for i in (0..whole_rows).step_by(8) {
            // Sound: AVX was found, and both blocks of eight by eight lie inside, as asserted.
            unsafe {
                turn_block(
                    matrix.as_ptr().add(i * columns + j),
                    columns,
                    out.as_mut_ptr().add(j * rows + i),
                    rows,
                )
            };
        }
    }
    for i in 0..rows {
        for j in if i < whole_rows { whole_columns } else { 0 }..columns {
            out[j * rows + i] = matrix[i * columns + j];
        }
    }
}

/// Eight rows of `columns` into columns of `out`, whose rows are `out_row` apart; fewer where `out` ends.
pub fn turn_eight(eight: &[f32], columns: usize, out: &mut [f32], out_row: usize) {
    assert!(
        eight.len() >= 8 * columns && columns.is_multiple_of(8) && out.len() >= (columns - 1) * out_row + 8
    );
    assert!(is_x86_feature_detected!("avx"), "this part of the spike needs AVX");
    for j in (0..columns).step_by(8) {
        // Sound: AVX was found, and both blocks lie inside, as asserted.
        unsafe { turn_block(eight.as_ptr().add(j), columns, out.as_mut_ptr().add(j * out_row), out_row) };
    }
}

#[target_feature(enable = "avx")]
unsafe fn turn_block(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // Sound: the caller owns eight rows of eight floats on both sides.
    let r: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * from_row)) });
    let t = [
        _mm256_unpacklo_ps(r[0], r[1]),
        _mm256_unpackhi_ps(r[0], r[1]),
        _mm256_unpacklo_ps(r[2], r[3]),
        _mm256_unpackhi_ps(r[2], r[3]),
        _mm256_unpacklo_ps(r[4], r[5]),
        _mm256_unpackhi_ps(r[4], r[5]),
        _mm256_unpacklo_ps(r[6], r[7]),
        _mm256_unpackhi_ps(r[6], r[7]),
    ];
    let s = [
        _mm256_shuffle_ps::<0x44>(t[0], t[2]),
        _mm256_shuffle_ps::<0xEE>(t[0], t[2]),
        _mm256_shuffle_ps::<0x44>(t[1], t[3]),
        _mm256_shuffle_ps::<0xEE>(t[1], t[3]),
        _mm256_shuffle_ps::<0x44>(t[4], t[6]),
        _mm256_shuffle_ps::<0xEE>(t[4], t[6]),
        _mm256_shuffle_ps::<0x44>(t[5], t[7]),
        _mm256_shuffle_ps::<0xEE>(t[5], t[7]),
    ];
    for k in 0..4 {
        // Sound: as above.
        unsafe {
            _mm256_storeu_ps(to.add(k * to_row), _mm256_permute2f128_ps::<0x20>(s[k], s[k + 4]));
            _mm256_storeu_ps(to.add((k + 4) * to_row), _mm256_permute2f128_ps::<0x31>(s[k], s[k + 4]));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn turns_odd_sizes() {
        for (rows, columns) in [(8, 8), (9, 17), (3, 5), (16, 24)] {
            let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let mut out = vec![-1.0; rows * columns];
            super::turn(&matrix, rows, columns, &mut out);
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(out[j * rows + i], matrix[i * columns + j], "{i}, {j} of {rows} by {columns}");
                }
            }
        }
    }
}
