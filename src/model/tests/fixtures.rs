//! The tensor operations on padded batches against what transformers computed (`tests/fixtures/make_families.py`, which checks
//! that its own padded batches agree): the pass that runs on a GPU, of every family, on the CPU and on every GPU there is.

use std::path::Path;

use super::super::Device as At;
use super::*;

#[test]
fn padded_batches_compute_what_transformers_computes() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut seen = 0;
    for entry in std::fs::read_dir(families).unwrap() {
        let folder = entry.unwrap().path();
        let file = folder.join("expected.safetensors");
        if !file.exists() {
            continue;
        }
        seen += 1;
        let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let values = |name: String| flat(&expected[&name]);
        let model = Model::load_onto(folder.to_str().unwrap(), &At::cpu()).unwrap();
        // The shortest text between two longer ones, so that every length but one is padded.
        let order = [1, 0, 2];
        let texts: Vec<Vec<u32>> = order
            .iter()
            .map(|k| values(format!("ids.{k}")).into_iter().map(|id| id as u32).collect())
            .collect();
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        assert!(lengths[1] < lengths[0] && lengths[0] != lengths[2], "{lengths:?}");
        let batch = Batch::new(&texts);
        let probes = lengths.iter().map(|length| vec![length / 2]).collect();
        let capture = Capture { detail: Detail::Head, received: true, probes, ..Capture::default() };
        let want = Want { logits: Logits::All, capture: Some(capture) };
        for device in At::present(DType::F32) {
            let found = model.to_device(&device).unwrap().forward(&batch, &want).unwrap();
            let logits: Vec<Vec<f32>> = found.logits.unwrap().to_vec2().unwrap();
            for (slot, k) in order.into_iter().enumerate() {
                let what = format!("{}, {device}, text {k}", folder.display());
                let text = &found.attention[slot];
                let off = difference(&text.received_by.concat(), &values(format!("received.{k}")));
                assert!(off < 1e-5, "{what}: received differs by {off}");
                let rows: Vec<f32> = text.probes_by.iter().flat_map(|group| group[0].clone()).collect();
                let off = difference(&rows, &values(format!("probe.{k}")));
                assert!(off < 1e-5, "{what}: the probe's row differs by {off}");
                let mine = &logits[batch.range(slot)];
                let length = lengths[slot];
                let mine =
                    if k == 0 { mine.concat() } else { [&mine[length / 2][..], &mine[length - 1]].concat() };
                let wanted = values(format!("logits.{k}"));
                let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
                let off = difference(&mine, &wanted) / largest;
                assert!(off < 1e-4, "{what}: logits differ by {off} of the largest");
            }
        }
    }
    assert!(seen >= 14, "only {seen} families");
}
