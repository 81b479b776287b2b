//! Tokens a second of drawing augmented copies on one thread, the scores known.

use cluescope::augment::{Augment, Removal};
use cluescope::contrast::GuideText;
use cluescope::corpus::Biographies;
use cluescope::random::Stream;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn words(text: &str) -> Vec<(usize, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let borders =
        (1..chars.len()).filter(|&i| chars[i] == ' ' || (!chars[i].is_alphanumeric() && chars[i - 1] != ' '));
    let ends: Vec<usize> = borders.chain([chars.len()]).collect();
    ends.iter().scan(0, |start, &end| Some((std::mem::replace(start, end), end))).collect()
}

fn augment(c: &mut Criterion) {
    let people = Biographies::new(500).seed(1).generate().unwrap();
    let mut stream = Stream::new(1, "bench", &[]);
    let guide: Vec<GuideText> = people
        .documents
        .iter()
        .map(|d| {
            let offsets = words(&d.text);
            let score = offsets.iter().map(|_| stream.unit_f32()).collect();
            GuideText::new(d.id.clone(), offsets, score)
        })
        .collect();
    let tokens: usize = guide.iter().map(|g| g.offsets.len()).sum();
    let mut group = c.benchmark_group("augment");
    group.throughput(Throughput::Elements(10 * tokens as u64));
    for (name, removal) in [("delete", Removal::Delete), ("blank", Removal::Blank)] {
        let one = Augment::by_guide(guide.clone()).copies(10).removal(removal);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        group.bench_function(format!("{name}, plan and 10 copies"), |b| {
            b.iter(|| pool.install(|| one.apply(&people)).unwrap());
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = augment }
criterion_main!(benches);
