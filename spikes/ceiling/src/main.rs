//! What this machine can multiply: `ceiling <peak|linear|attention|widen|few|bits>`.
//!
//! Prints tab-separated lines, `section  case  implementation  threads  value  unit`, one median per process; `table.py`
//! gathers the processes. The number of threads is `RAYON_NUM_THREADS`, as for candle.

mod attention;
mod bits;
mod few;
mod linear;
mod peak;
mod product;
mod timing;
mod turn;
mod widen;

/// The half of gemm this build may choose from at run time.
pub const BUILD: &str = if cfg!(feature = "avx512") { "avx512" } else { "avx2" };

fn main() -> anyhow::Result<()> {
    let section = std::env::args().nth(1).unwrap_or_default();
    // On a worker of the pool, as a decoder would run: handing work over from outside costs a sleep and a wake-up.
    rayon::scope(|_| {
        match section.as_str() {
            "peak" => peak::run(),
            "linear" => linear::run()?,
            "attention" => attention::run()?,
            "widen" => widen::run()?,
            "few" => few::run(),
            "bits" => bits::run(),
            _ => anyhow::bail!("usage: ceiling <peak|linear|attention|widen|few|bits>, not '{section}'"),
        }
        Ok(())
    })
}
