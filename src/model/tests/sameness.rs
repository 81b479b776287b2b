//! The same bits at any number of threads, at sizes where products are tiled, weights widened in groups and long
//! texts cut into spans.

use candle_core::quantized::GgmlDType;

use super::super::Device as At;
use super::*;

/// The weights of `0`, matrices in the form `1` gives them.
struct Stored<'a>(&'a BTreeMap<String, Tensor>, &'a dyn Fn(&Tensor) -> Matrix);

impl WeightSource for Stored<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn matrix(&mut self, name: &str, _: usize, _: usize) -> Result<Matrix> {
        Ok((self.1)(&self.0[name]))
    }

    fn vector(&mut self, name: &str, _: usize) -> Result<Tensor> {
        Ok(self.0[name].clone())
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_at_real_sizes() {
    let config = DecoderConfig::llama(320, 576, 2, 9, 3, 1536, 1024);
    let weights = Model::random("m", config.clone(), tokenizer(320), 3).unwrap().weights().unwrap();
    let bf16 = |t: &Tensor| Matrix::Dense(t.to_dtype(DType::BF16).unwrap());
    let q8 = |t: &Tensor| Matrix::Quantized(Arc::new(QTensor::quantize(t, GgmlDType::Q8_0).unwrap()));
    let plain = |t: &Tensor| Matrix::Dense(t.clone());
    // More rows than a tile has, and a text of more than one span.
    let batch = Batch::new(&[ids(600, 320, 1), ids(190, 320, 2), ids(40, 320, 3)]);
    let capture = Capture {
        detail: Detail::Head,
        received: true,
        probes: vec![vec![599, 3], vec![7], vec![]],
        ..Capture::default()
    };
    let want = Want { logits: Logits::All, capture: Some(capture) };
    let forms = [("f32", &plain as &dyn Fn(&Tensor) -> Matrix), ("bf16", &bf16), ("Q8_0", &q8)];
    let devices = [Ok(At::cpu()), At::cpu().with_bf16x3()].into_iter().flatten();
    for ((name, form), device) in devices.flat_map(|device| forms.map(|form| (form, device.clone()))) {
        let mut source = Stored(&weights, form);
        let model = Model::assemble("m", "0", config.clone(), tokenizer(320), &mut source, &device).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let output = model.forward(&batch, &want).unwrap();
                let mut all = captured(&output.attention);
                all.extend(flat(&output.logits.unwrap()));
                all
            })
        };
        let one = run(1);
        for threads in [2, 5] {
            let other = run(threads);
            let apart = one.iter().zip(&other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!((apart, other.len()), (0, one.len()), "{name}, {device}, {threads} threads");
        }
    }
}
