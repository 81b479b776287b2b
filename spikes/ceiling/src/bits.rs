//! Do the bits of a row depend on the threads, on the rows beside it, or on the tile its weight came in?

use crate::BUILD;
use crate::linear::{SHAPES, case};
use crate::product::{Cells, View, columns, multiply};
use crate::timing::{line, numbers};
use gemm::Parallelism;

fn forward(
    x: &[f32],
    weight: &[f32],
    rows: usize,
    outputs: usize,
    inputs: usize,
    threads: Parallelism,
) -> Vec<f32> {
    let mut y = vec![0f32; rows * outputs];
    multiply(
        rows,
        outputs,
        inputs,
        &mut y,
        outputs,
        View::rows(x, inputs),
        View::transposed(weight, inputs),
        threads,
    );
    y
}

fn backward(
    dy: &[f32],
    weight: &[f32],
    rows: usize,
    outputs: usize,
    inputs: usize,
    threads: Parallelism,
) -> Vec<f32> {
    let mut dx = vec![0f32; rows * inputs];
    multiply(
        rows,
        inputs,
        outputs,
        &mut dx,
        inputs,
        View::rows(dy, outputs),
        View::rows(weight, inputs),
        threads,
    );
    dx
}

/// How many elements differ in any bit.
fn differing(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count() as f64
}

type Product = fn(&[f32], &[f32], usize, usize, usize, Parallelism) -> Vec<f32>;

pub fn run() {
    const ROWS: usize = 520;
    for shape in SHAPES {
        let (_, _, outputs, inputs) = shape;
        if outputs > 50_000 {
            continue;
        }
        let weight = numbers(outputs * inputs, 1);
        for (direction, width, product) in
            [("forward", inputs, forward as Product), ("backward", outputs, backward)]
        {
            let x = numbers(ROWS * width, 2);
            let all = product(&x, &weight, ROWS, outputs, inputs, Parallelism::None);
            let out_width = all.len() / ROWS;
            for threads in [2, 3, 4, 7] {
                let other = product(&x, &weight, ROWS, outputs, inputs, Parallelism::Rayon(threads));
                line(
                    "bits",
                    &case(direction, shape, ROWS),
                    &format!("{threads} threads against 1, {BUILD}"),
                    differing(&all, &other),
                    "differ",
                );
            }
            for rows in [
                1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129,
                255, 256, 257, 511,
            ] {
                // The same rows from the start of the batch and from inside it.
                for from in [0, 7] {
                    for threads in [Parallelism::None, Parallelism::Rayon(2)] {
                        let some = product(
                            &x[from * width..(from + rows) * width],
                            &weight,
                            rows,
                            outputs,
                            inputs,
                            threads,
                        );
                        let differ = differing(&all[from * out_width..(from + rows) * out_width], &some);
                        if differ > 0.0 {
                            line(
                                "bits",
                                &case(direction, shape, rows),
                                &format!("{rows} rows alone ({threads:?}) against {ROWS}, {BUILD}"),
                                differ,
                                "differ",
                            );
                        }
                    }
                }
            }
            if direction == "forward" {
                // Pieces of outputs, none below 96 wide.
                for rows in [4, 5, 8, 63, 64, 65, 130, ROWS] {
                    for most in [96, 256, 512] {
                        let mut y = vec![0f32; rows * outputs];
                        let cells = Cells::of(&mut y);
                        let pieces = columns(outputs, most);
                        for &(start, end) in &pieces {
                            let w = View::transposed(&weight[start * inputs..end * inputs], inputs);
                            cells.multiply(rows, (start, end), outputs, inputs, &x[..rows * inputs], w);
                        }
                        let differ = differing(&all[..rows * outputs], &y);
                        let name = format!(
                            "{rows} rows in {} pieces against {ROWS} rows whole, {BUILD}",
                            pieces.len()
                        );
                        line("bits", &case(direction, shape, rows), &name, differ, "differ");
                    }
                }
            }
        }
    }
}
