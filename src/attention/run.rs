//! The work itself: tokenise, batch, run, gather, in corpus order.
//!
//! Texts of a batch lie end to end without padding, so a batch costs its tokens whatever their lengths:
//! texts are taken in the order given, and finished ones can be handed on at once.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::cache::{self, Store};
use super::gather::{Shape, gather};
use super::options::{Aggregation, Attend};
use super::prepare::Prepared;
use super::reader::Reader;
use super::window::window_of_probe;
use super::{Attended, AttendedText, store};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::model::{Batch, Capture, CapturedText, Model};
use crate::progress::{Progress, check_interrupt};
use crate::provenance::{Provenance, content_hash};
use crate::spread::spread;

impl Model {
    /// Received attention and probe rows of every document.
    ///
    /// # Errors
    /// [`Error::Option`] for options outside their range and a probe's field that no document marks,
    /// [`Error::Interrupted`], and what the tokenizer and the model report.
    pub fn attend(&self, documents: &[Document], options: &Attend) -> Result<Attended> {
        let copies = self.copies(options)?;
        attend(&readers(&copies), documents, options)
    }

    /// As [`Model::attend`], written to `path` (`.jsonl` or `.parquet`) without keeping all texts in memory.
    ///
    /// Finished texts are appended to `path` + `.partial`, which becomes `path` when all are done. If such a
    /// file is there already, its texts are kept and work continues after them. Whole matrices
    /// ([`Attend::map`]) are not written.
    ///
    /// # Errors
    /// As [`Model::attend`]; [`Error::Option`] for another extension or no texts, [`Error::Stopped`] when the partial file
    /// was made with another model, corpus or other options, or is being written by another process.
    pub fn attend_to_file(
        &self,
        documents: &[Document],
        options: &Attend,
        path: impl AsRef<Path>,
    ) -> Result<()> {
        let copies = self.copies(options)?;
        attend_to_file(&readers(&copies), documents, options, path.as_ref())
    }

    /// This model on each of the devices that the texts are spread over.
    fn copies(&self, options: &Attend) -> Result<Vec<Model>> {
        match &options.devices {
            None => Ok(vec![self.clone()]),
            Some(devices) => devices.each(|device| self.to_device(device)),
        }
    }
}

fn readers(copies: &[Model]) -> Vec<&dyn Reader> {
    copies.iter().map(|model| model as &dyn Reader).collect()
}

/// See [`Model::attend`]; `models` are copies of one.
pub(super) fn attend(models: &[&dyn Reader], documents: &[Document], options: &Attend) -> Result<Attended> {
    options.check(documents)?;
    let mut texts = Vec::with_capacity(documents.len());
    run(models, documents, options, 0, &mut |text| {
        texts.push(text);
        Ok(())
    })?;
    let model = models[0];
    let shape = shape(model);
    Ok(Attended {
        model: model.name().into(),
        hash: model.hash().into(),
        layers: shape.layers,
        heads: shape.heads,
        per: options.per,
        texts,
        provenance: provenance(model, documents, options),
    })
}

/// See [`Model::attend_to_file`].
pub(super) fn attend_to_file(
    models: &[&dyn Reader],
    documents: &[Document],
    options: &Attend,
    path: &Path,
) -> Result<()> {
    if documents.is_empty() {
        return Err(Error::option("corpus", "0 texts", "at least one text; an empty file would say nothing"));
    }
    options.check(documents)?;
    let provenance = provenance(models[0], documents, options);
    let mut partial = store::Partial::open(path, documents, &provenance)?;
    run(models, documents, options, partial.done(), &mut |text| partial.append(&text))?;
    partial.finish()
}

fn shape(model: &dyn Reader) -> Shape {
    Shape { layers: model.config().layers, heads: model.config().heads }
}

/// Model, corpus and options of a result.
fn provenance(model: &dyn Reader, documents: &[Document], options: &Attend) -> Provenance {
    let context = options.context.unwrap_or(model.config().max_positions);
    let mut provenance = Provenance::new(&options.command).model(model.name(), model.hash());
    for (name, value) in options.describe(context) {
        provenance = provenance.option(name, value);
    }
    if let Some(arithmetic) = model.device().noted_arithmetic() {
        provenance = provenance.option("device", arithmetic);
    }
    provenance.option("corpus", corpus_hash(documents))
}

/// Changes with any id, text or fact.
pub(crate) fn corpus_hash<'a>(documents: impl IntoIterator<Item = &'a Document>) -> String {
    content_hash(documents.into_iter().flat_map(|d| {
        let spans = d.spans.iter().map(|s| format!("{} {} {}\n", s.field, s.start, s.end));
        [d.id.clone(), d.text.clone(), spans.collect()]
    }))
}

/// What the model shall read of each document.
pub(super) fn prepare(
    model: &dyn Reader,
    documents: &[Document],
    options: &Attend,
    context: usize,
) -> Result<Vec<Prepared>> {
    let mut todo = Vec::with_capacity(documents.len());
    for document in documents {
        check_interrupt()?;
        let prepared = Prepared::new(model.tokenizer(), document, options, context)?;
        refuse_unknown_tokens(model, document, &prepared.read)?;
        if !options.maps.is_empty() && prepared.windows.len() > 1 {
            let message =
                format!("text {}: whole matrices need a text within the context of {context}", document.id);
            return Err(Error::Stopped(message));
        }
        todo.push(prepared);
    }
    Ok(todo)
}

/// Measures `documents[skip..]`, spread over `models`, and gives each text to `each`, in order.
fn run(
    models: &[&dyn Reader],
    documents: &[Document],
    options: &Attend,
    skip: usize,
    each: &mut dyn FnMut(AttendedText) -> Result<()>,
) -> Result<()> {
    let model = models[0];
    let shape = shape(model);
    let context = options.check_for(model.config())?;
    let documents = &documents[skip..];
    let todo = prepare(model, documents, options, context)?;
    // Whole matrices are too large to remember, and weights in training change under the same hash.
    let lasting = options.maps.is_empty() && model.is_settled();
    let cache = if lasting { &options.cache } else { &super::Cache::Off };
    let cache = Mutex::new(Store::open(cache));
    let program = Provenance::new("").program();
    let total = todo.iter().map(Prepared::cost).sum::<usize>() * model.count();
    let progress = Progress::start(format!("attention of {}", model.name()), total as u64, "tokens");
    let mut groups = Groups::new(model, options);
    let next = || {
        let cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |at: usize| {
            cache.is_on().then(|| key(model, &documents[at], &todo[at], options, context, &program))
        };
        Ok(groups.next(&todo, &cache, key))
    };
    let work = |model: &mut &dyn Reader, group: Group| {
        let members: Vec<&Prepared> = group
            .texts
            .iter()
            .zip(&todo[group.from..])
            .filter(|((_, found), _)| found.is_none())
            .map(|(_, prepared)| prepared)
            .collect();
        let mut captured = capture(*model, &members, options, &progress)?.into_iter();
        let mut texts = Vec::with_capacity(group.texts.len());
        let mut remembered = 0;
        for (at, (key, found)) in (group.from..).zip(group.texts) {
            let (prepared, document) = (&todo[at], &documents[at]);
            texts.push(match found {
                Some(mut text) => {
                    text.id.clone_from(&document.id);
                    text.text.clone_from(&document.text);
                    text.spans.clone_from(&document.spans);
                    remembered += prepared.cost() * model.count();
                    text
                }
                None => {
                    let of_text = captured.next().unwrap_or_default();
                    let text = gather(document, prepared, &of_text, options, shape);
                    refuse_what_is_not_finite(model.name(), &text)?;
                    if let Some(key) = key {
                        cache.lock().unwrap_or_else(PoisonError::into_inner).put(&key, &text);
                    }
                    text
                }
            });
        }
        Ok((texts, remembered))
    };
    let devices = models.iter().map(|&model| (model.device().name(), model)).collect();
    spread(devices, next, work, |(texts, remembered)| {
        texts.into_iter().try_for_each(&mut *each)?;
        // Not before the texts are handed on: an interrupt must not cost what is already computed.
        progress.advance(remembered as u64)
    })
}

/// Whole texts up to the batch size, which are read and handed on together; cached ones cost nothing.
struct Group {
    /// Number of the first.
    from: usize,
    /// The key of each, where there is a cache, and what the cache holds of it.
    texts: Vec<(Option<String>, Option<AttendedText>)>,
}

/// Cuts a list of texts into groups, the same ones however many devices work on them: the bits of a GPU's numbers may depend on
/// what lies beside a text in its batch.
struct Groups {
    from: usize,
    /// What the cache lacked: a repeated text is computed again, for whether its first measurement has ended is chance.
    missed: BTreeSet<String>,
    /// The most texts and tokens of a group.
    most: (usize, usize),
}

/// The groups of `todo` where the cache holds nothing of it.
pub(super) fn groups(model: &dyn Reader, todo: &[Prepared], options: &Attend) -> Vec<Range<usize>> {
    let nothing = Store::open(&super::Cache::Off);
    let mut groups = Groups::new(model, options);
    let next = || groups.next(todo, &nothing, |_| None);
    std::iter::from_fn(next).map(|group| group.from..group.from + group.texts.len()).collect()
}

impl Groups {
    fn new(model: &dyn Reader, options: &Attend) -> Self {
        Groups { from: 0, missed: BTreeSet::new(), most: model.group(options) }
    }

    fn next(
        &mut self,
        todo: &[Prepared],
        cache: &Store,
        key: impl Fn(usize) -> Option<String>,
    ) -> Option<Group> {
        let (most_texts, most_tokens) = self.most;
        let mut group = Group { from: self.from, texts: Vec::new() };
        let mut tokens = 0;
        while self.from < todo.len() && group.texts.len() < most_texts {
            let prepared = &todo[self.from];
            let key = key(self.from);
            let new = key.as_ref().filter(|key| !self.missed.contains(*key));
            let found = new.and_then(|key| cache.get(key, &prepared.ids()));
            if found.is_none() {
                self.missed.extend(key.clone());
                if tokens > 0 && tokens + prepared.cost() > most_tokens {
                    break;
                }
                tokens += prepared.cost();
            }
            group.texts.push((key, found));
            self.from += 1;
        }
        (!group.texts.is_empty()).then_some(group)
    }
}

/// An added token may lie beyond the rows of the embedding.
fn refuse_unknown_tokens(model: &dyn Reader, document: &Document, read: &[u32]) -> Result<()> {
    let rows = model.config().vocab_size;
    let Some(&id) = read.iter().find(|&&id| id as usize >= rows) else { return Ok(()) };
    let message = format!(
        "text {}: token {:?}, id {id} lies outside the vocabulary of {rows}; the model has no embedding for it, so take that token \
         out of the text",
        document.id,
        model.tokenizer().token(id),
    );
    Err(Error::model(model.name(), message))
}

/// A damaged weight or an overflow: the numbers would go into files as null and fail whoever reads them.
fn refuse_what_is_not_finite(model: &str, text: &AttendedText) -> Result<()> {
    let mut weights = text.received.iter().chain(text.probe.values().flat_map(|probe| &probe.weights));
    if weights.all(|weight| weight.is_finite()) {
        return Ok(());
    }
    let message = format!(
        "its attention on text {} holds numbers that are not finite; the weights are damaged, or too large for this arithmetic",
        text.id
    );
    Err(Error::model(model, message))
}

/// The stretches of `texts` that the model must read, as text and stretch, cut into batches.
pub(super) fn batches(texts: &[&Prepared], options: &Attend) -> Vec<Vec<(usize, usize)>> {
    let received = options.aggregation == Aggregation::Paper;
    let needed =
        |p: &Prepared| !p.read.is_empty() && (received || !p.probes.is_empty() || !options.maps.is_empty());
    let stretches = (0..texts.len())
        .flat_map(|t| (0..texts[t].windows.len()).map(move |w| (t, w)))
        .filter(|&(t, _)| needed(texts[t]));
    let mut batches: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut tokens = 0;
    for (t, w) in stretches {
        let length = texts[t].windows[w].len();
        match batches.last_mut() {
            Some(batch) if tokens + length <= options.batch_tokens => batch.push((t, w)),
            _ => {
                tokens = 0;
                batches.push(vec![(t, w)]);
            }
        }
        tokens += length;
    }
    batches
}

/// Runs the model over all stretches of `texts`; one list of captures a text.
fn capture(
    model: &dyn Reader,
    texts: &[&Prepared],
    options: &Attend,
    progress: &Progress,
) -> Result<Vec<Vec<CapturedText>>> {
    let mut captured: Vec<Vec<CapturedText>> = texts.iter().map(|_| Vec::new()).collect();
    let chunks = batches(texts, options);
    let read = |chunk: &Vec<(usize, usize)>| {
        let ids: Vec<Vec<u32>> = chunk
            .iter()
            .map(|&(t, w)| texts[t].windows[w].tokens().map(|i| texts[t].read[i]).collect())
            .collect();
        let capture = Capture {
            detail: options.detail(),
            received: options.aggregation == Aggregation::Paper,
            probes: chunk.iter().map(|&(t, w)| probe_places(texts[t], w)).collect(),
            maps: options.maps.clone(),
            depth: options.depth(),
        };
        (Batch::new(&ids), capture)
    };
    let batches: Vec<(Batch, Capture)> = chunks.iter().map(read).collect();
    for (chunk, of_chunk) in chunks.into_iter().zip(model.read(&batches, progress)?) {
        for ((t, _), text) in chunk.into_iter().zip(of_chunk) {
            captured[t].push(text);
        }
    }
    Ok(captured)
}

/// Places within stretch `window` of the probes whose rows come from it.
pub(super) fn probe_places(text: &Prepared, window: usize) -> Vec<usize> {
    text.probes
        .iter()
        .map(|(_, position)| text.kept[*position])
        .filter(|&index| window_of_probe(&text.windows, index) == Some(window))
        .filter_map(|index| text.windows[window].place(index))
        .collect()
}

/// Everything a text's numbers depend on.
fn key(
    model: &dyn Reader,
    document: &Document,
    prepared: &Prepared,
    options: &Attend,
    context: usize,
    program: &str,
) -> String {
    let probes: String = prepared.probes.iter().map(|(field, p)| format!("{field} {p}\n")).collect();
    let mut parts = vec![
        cache::VERSION.into(),
        model.hash().to_string(),
        // Numbers of one kind of device or type are not those of another.
        model.device().arithmetic(),
        model.tokenizer().hash().into(),
        document.text.clone(),
    ];
    parts.push(probes);
    parts.push(program.into());
    // Which probes are wanted is already said by the probes found.
    let options = options.describe(context).into_iter().filter(|(name, _)| *name != "probes");
    parts.extend(options.map(|(name, value)| format!("{name}={value}")));
    content_hash(parts)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::attention::{Cache, Per};
    use crate::model::{DecoderConfig, Device, Devices};
    use crate::tokens::Tokenizer;

    /// A model of random weights, and texts of many lengths, one of them long and one there twice.
    fn some() -> (Model, Vec<Document>) {
        let words = "one two three four five six seven eight nine ten ";
        let texts: Vec<String> = (0..12)
            .map(|n| words.chars().cycle().skip(n % 11).take([40, 90, 15, 600][n % 4]).collect())
            .collect();
        let tokenizer = Tokenizer::train_bpe([words.repeat(20).as_str()], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 4, 2, 48, 64);
        let model = Model::random("m", config, tokenizer, 1).unwrap();
        let named = |(n, text): (usize, String)| Document::new(format!("t{n}"), text, Vec::new());
        (model, texts.into_iter().enumerate().map(named).collect())
    }

    #[test]
    fn texts_spread_over_devices_have_the_same_bits_and_order() {
        let (model, documents) = some();
        let folder = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let alone = model.to_device(&Device::tensors(dtype)).unwrap();
            let options = Attend::new().batch_tokens(60).per(Per::Head).cache(Cache::Off);
            let want = alone.attend(&documents, &options).unwrap();
            for count in 1..4 {
                let options = options.clone().devices(&Devices::tensors(count, dtype));
                // From wherever the model lies.
                for from in [&model, &alone] {
                    assert_eq!(from.attend(&documents, &options).unwrap(), want, "{count} of {dtype:?}");
                }
                // With a cache that is filled on the way, and again from it.
                let cached = Cache::Folder(folder.path().join(format!("{count} {dtype:?}")));
                let options = options.cache(cached);
                for _ in 0..2 {
                    assert_eq!(model.attend(&documents, &options).unwrap(), want, "{count} of {dtype:?}");
                }
            }
        }
    }

    /// Which texts share a batch must not depend on how far the devices have come: here the worst cases, all or nothing.
    #[test]
    fn groups_are_cut_without_a_look_at_what_is_finished() {
        let (model, mut documents) = some();
        documents.extend(documents.clone());
        let folder = tempfile::tempdir().unwrap();
        let options = Attend::new().batch_tokens(60);
        let todo: Vec<Prepared> = documents
            .iter()
            .map(|document| Prepared::new(model.tokenizer(), document, &options, 64).unwrap())
            .collect();
        let cut = |finishes: bool| {
            let path = folder.path().join(finishes.to_string());
            let mut cache = Store::open(&Cache::Folder(path));
            let mut groups = Groups { from: 0, missed: BTreeSet::new(), most: (64, 60) };
            let mut cuts = Vec::new();
            let program = Provenance::new("").program();
            let key = |at: usize| Some(key(&model, &documents[at], &todo[at], &options, 64, &program));
            while let Some(group) = groups.next(&todo, &cache, key) {
                cuts.push(group.from);
                for (at, (key, found)) in (group.from..).zip(group.texts) {
                    assert!(found.is_none());
                    let ids = todo[at].ids();
                    let text = AttendedText { received: vec![0.5; ids.len()], ids, ..Default::default() };
                    if finishes {
                        cache.put(&key.unwrap(), &text);
                    }
                }
            }
            cuts
        };
        let (finished, pending) = (cut(true), cut(false));
        assert!(finished.len() > 10);
        assert_eq!(finished, pending);
    }

    /// What another version computed may differ in its last digits, so it is no answer.
    #[test]
    fn numbers_of_another_version_are_not_taken_from_the_cache() {
        let (model, documents) = some();
        let options = Attend::new();
        let prepared = Prepared::new(model.tokenizer(), &documents[0], &options, 64).unwrap();
        let key = |made: &Provenance| key(&model, &documents[0], &prepared, &options, 64, &made.program());
        let here = Provenance::new("x");
        assert_eq!(key(&here), key(&Provenance::new("another command")));
        for name in here.crates.keys() {
            let mut other = here.clone();
            other.crates.insert(name.clone(), "0.0.1".into());
            assert_ne!(key(&here), key(&other), "{name}");
        }
        assert_ne!(key(&here), key(&Provenance { cluescope: "0.0.1".into(), ..here.clone() }));
    }

    #[test]
    fn a_device_that_fails_is_named_and_what_was_finished_is_kept() {
        let (model, documents) = some();
        let devices = Devices::tensors(2, DType::F32);
        let copies = devices.each(|device| model.to_device(device)).unwrap();
        let nan = |tensor: &candle_core::Tensor| (tensor * f64::NAN).unwrap();
        let broken = copies[1].with_trainable_weights().unwrap();
        for var in broken.trainable().values() {
            var.set(&nan(var.as_tensor())).unwrap();
        }
        let options = Attend::new().batch_tokens(60).cache(Cache::Off);
        let mut texts = Vec::new();
        let readers: [&dyn Reader; 2] = [&broken, &copies[0]];
        let error = run(&readers, &documents, &options, 0, &mut |text| {
            texts.push(text);
            Ok(())
        })
        .unwrap_err();
        let Error::Device { device, .. } = &error else { panic!("{error}") };
        assert_eq!(device, "cpu tensors:1");
        assert!(error.to_string().starts_with("cpu tensors:1: m: its attention on text t"), "{error}");
        let want = copies[0].attend(&documents, &options).unwrap().texts;
        assert!(texts.len() < want.len() && texts[..] == want[..texts.len()]);
    }

    /// Begun on one device and gone on with on three: the file is that of a run in one go.
    #[test]
    fn work_continues_on_another_number_of_devices() {
        let (model, documents) = some();
        let folder = tempfile::tempdir().unwrap();
        let on = |count| {
            let devices = Devices::tensors(count, DType::F32);
            Attend::new().batch_tokens(60).cache(Cache::Off).devices(&devices)
        };
        let [whole, parts] = ["whole.jsonl", "parts.jsonl"].map(|name| folder.path().join(name));
        model.attend_to_file(&documents, &on(1), &whole).unwrap();
        // What an interrupt after the fourth text, a long one that is read alone, leaves.
        let copies = model.copies(&on(1)).unwrap();
        let provenance = provenance(&copies[0], &documents, &on(1));
        let mut partial = store::Partial::open(&parts, &documents, &provenance).unwrap();
        let interrupted = run(&readers(&copies), &documents, &on(1), 0, &mut |text| {
            partial.append(&text)?;
            if text.id == "t3" { Err(Error::Interrupted) } else { Ok(()) }
        });
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        drop(partial);
        model.attend_to_file(&documents, &on(3), &parts).unwrap();
        assert_eq!(std::fs::read(&parts).unwrap(), std::fs::read(&whole).unwrap());
    }

    #[test]
    fn numbers_of_another_device_are_not_taken_from_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let text = "one two three four five six ".repeat(20);
        let texts = [text.as_str()];
        let tokenizer = Tokenizer::train_bpe(texts, 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 4, 2, 48, 64);
        let model = Model::random("m", config, tokenizer, 1).unwrap();
        let document = Document::new("a", texts[0], Vec::new());
        let options = Attend::new().cache(Cache::Folder(folder.path().into()));
        let attend = |model: &Model| model.attend(std::slice::from_ref(&document), &options).unwrap();
        let exact = attend(&model);
        assert!(!exact.provenance.options.contains_key("device"));
        let mut devices = [Device::present(DType::F32), Device::present(DType::BF16)].concat();
        devices.extend(Device::cpu().with_bf16x3());
        for device in devices {
            let there = model.to_device(&device).unwrap();
            let found = attend(&there);
            assert_eq!(found.provenance.options["device"], there.device().arithmetic());
            assert_eq!(attend(&there).texts[0].received, found.texts[0].received);
            // Other products have other numbers, so these come from no cache; f32 may have the same.
            if !device.arithmetic().ends_with("f32") {
                assert_ne!(found.texts[0].received, exact.texts[0].received);
            }
        }
    }
}
