//! Runs cells on a pair of models: attention once, then dropout, fine-tuning and quiz for each cell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::cell::{Cell, Inputs, LossPoint, Measured, Runner, Stage};
use super::condition::{Condition, Student, Texts};
use super::group::Group;
use super::protocol::Protocol;
use crate::contrast::{Contrast, ModelPair};
use crate::corpus::{Biographies, Corpus, Document, Templates, VersionOf};
use crate::error::{Error, Result};
use crate::evaluate::{Quiz, check_texts};
use crate::files::{read_text, write_text};
use crate::model::{Device, Devices, Model};
use crate::provenance::content_hash;
use crate::train::Finetune;

/// The models of an experiment.
#[derive(Debug, Clone)]
pub struct Models {
    /// Whose attention is compared.
    pub pair: ModelPair,
    /// A third model to be taught, where neither of the pair is.
    pub third: Option<Model>,
}

impl From<ModelPair> for Models {
    fn from(pair: ModelPair) -> Self {
        Models { pair, third: None }
    }
}

impl Models {
    /// The model that `which` names.
    ///
    /// # Errors
    /// [`Error::Option`] when a third one is meant and there is none.
    pub fn student(&self, which: Student) -> Result<&Model> {
        match which {
            Student::Small => Ok(&self.pair.small),
            Student::Large => Ok(&self.pair.large),
            Student::Third => {
                let expected = "a third model; the runner was given a pair only";
                self.third.as_ref().ok_or_else(|| Error::option("student", which, expected))
            }
        }
    }

    fn to_device(&self, device: &Device) -> Result<Models> {
        let pair = ModelPair::new(self.pair.small.to_device(device)?, self.pair.large.to_device(device)?);
        Ok(Models { pair, third: self.third.as_ref().map(|third| third.to_device(device)).transpose()? })
    }
}

type Load = Arc<dyn Fn() -> Result<Models> + Send + Sync>;

/// The experiment with a pair of models, on generated biographies or on texts of one's own.
///
/// The people asked about, the people on whom options are chosen and the people of the held-out texts are three disjoint
/// groups; attention is measured once a group, when the first cell needs it.
#[derive(Clone)]
pub struct PairRunner {
    models: Option<Models>,
    load: Option<Load>,
    devices: Option<Devices>,
    report: Group,
    tune: Group,
    held_out: Vec<Document>,
    /// The texts are the user's: none are generated.
    own: bool,
}

impl std::fmt::Debug for PairRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairRunner")
            .field("models", &self.models)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl PairRunner {
    /// A runner on a pair (or on [`Models`]); people are generated when [`run`](super::run()) says how many.
    pub fn new(models: impl Into<Models>) -> Self {
        PairRunner {
            models: Some(models.into()),
            load: None,
            devices: None,
            report: Group::default(),
            tune: Group::default(),
            held_out: Vec::new(),
            own: false,
        }
    }

    /// A runner that loads its models only when the texts are made and the questions known to be possible: models may
    /// take minutes, and a mistake in the protocol should not.
    pub fn loading(load: impl Fn() -> Result<Models> + Send + Sync + 'static) -> Self {
        PairRunner {
            models: None,
            load: Some(Arc::new(load)),
            devices: None,
            report: Group::default(),
            tune: Group::default(),
            held_out: Vec::new(),
            own: false,
        }
    }

    /// Uses texts and questions of one's own: `reported` for the table, `tuning`, about others, to choose options (empty
    /// where the protocol has no tuning people), `held_out` for perplexity (may be empty). The protocol's numbers of
    /// people then only say whether there is a search.
    pub fn texts(mut self, reported: Corpus, tuning: Corpus, held_out: Vec<Document>) -> Self {
        (self.report, self.tune, self.held_out) = (Group::new(reported), Group::new(tuning), held_out);
        self.own = true;
        self
    }

    /// Spreads the cells over `devices`, each with its own copy of the models and one cell at a time. A cell's result does not
    /// depend on which has it.
    pub fn devices(mut self, devices: &Devices) -> Self {
        self.devices = Some(devices.clone());
        self
    }

    /// The people of the report; none before the run.
    pub fn corpus(&self) -> &Corpus {
        &self.report.corpus
    }

    /// Where the two models look in the texts of the report, by the guide that the copies of `cell` followed.
    ///
    /// # Errors
    /// As [`ModelPair::contrast_with`].
    pub fn contrast(&mut self, cell: &Cell) -> Result<Arc<Contrast>> {
        let models = self.models()?;
        self.report.contrast(&models, Student::Small, cell)
    }

    fn models(&mut self) -> Result<Models> {
        let models = match (&self.models, &self.load) {
            (Some(models), _) => models.clone(),
            (None, Some(load)) => load()?,
            (None, None) => return Err(Error::Stopped("experiment: no models to run".into())),
        };
        let models = match &self.devices {
            Some(devices) => models.to_device(devices.first())?,
            None => models,
        };
        self.models = Some(models.clone());
        Ok(models)
    }

    fn generate(&mut self, protocol: &Protocol) -> Result<()> {
        let (people, tuning, held_out) = (protocol.people, protocol.tuning_people, protocol.held_out);
        let taught = |split, n| biographies(protocol, protocol.texts, protocol.per_person, split, n, 0);
        self.report = Group::new(taught("test", people)?);
        self.tune = Group::new(taught("validation", tuning)?);
        // Other sentences than those trained on: what is measured is what was forgotten, not what was practised.
        let other = if protocol.texts == Texts::Varied { Texts::Paper } else { Texts::Varied };
        self.held_out = biographies(protocol, other, 1, "validation", held_out, tuning)?.documents;
        Ok(())
    }
}

fn biographies(
    protocol: &Protocol,
    texts: Texts,
    each: usize,
    split: &str,
    n: usize,
    offset: usize,
) -> Result<Corpus> {
    if n == 0 {
        return Ok(Corpus::default());
    }
    let people = Biographies::new(n).per_person(each).seed(protocol.people_seed).split(split).offset(offset);
    let people = match texts {
        Texts::Paper => people,
        Texts::Permuted => people.permute_sentences(true),
        Texts::FullName => people.full_name(true),
        Texts::Varied => people.templates(Templates::Varied),
    };
    people.generate()
}

impl Runner for PairRunner {
    fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs> {
        if !self.own {
            self.generate(protocol)?;
        }
        // A quiz that cannot be asked would fail only after the first training: first the questions, which need no model,
        // then what of them the models can read.
        let quiz = Quiz::few_shot(protocol.few_shot).distractors(protocol.distractors);
        let mut asked = vec![("the reported texts", &self.report.corpus)];
        if protocol.tuning_people > 0 {
            asked.push(("the tuning texts", &self.tune.corpus));
        }
        for (name, corpus) in &asked {
            if corpus.questions.is_empty() {
                let message = format!("experiment: {name} have no questions; nothing could be measured");
                return Err(Error::Stopped(message));
            }
            quiz.check(corpus)?;
        }
        if protocol.conditions.contains(&Condition::ProbeDifference) {
            for group in [&self.report, &self.tune] {
                group.check_probes(&protocol.guide_probe)?;
            }
        }
        let models = self.models()?;
        for (model, heads) in
            [(&models.pair.large, &protocol.large_heads), (&models.pair.small, &protocol.small_heads)]
        {
            let shape = model.config();
            heads.check(shape.layers, shape.heads).map_err(|e| Error::model(model.name(), e))?;
        }
        let asked = [&self.report.corpus, &self.tune.corpus];
        // What a cell does after the attention was measured and others were run must not fail there.
        let trains = protocol.conditions.iter().any(|condition| condition.trains());
        for &student in &protocol.students {
            let student = models.student(student)?;
            for corpus in asked.into_iter().filter(|corpus| !corpus.questions.is_empty()) {
                quiz.check_for(student, corpus)?;
                if trains {
                    protocol.finetune().estimate(student, corpus)?;
                }
            }
            if !self.held_out.is_empty() {
                check_texts(student, &self.held_out)?;
            }
        }
        Ok(Inputs {
            models: [models.pair.small.hash().to_string(), models.pair.large.hash().to_string()],
            third: models.third.as_ref().map(|third| third.hash().to_string()),
            arithmetic: models.pair.small.device().noted_arithmetic(),
            reported: corpus_hash(&self.report.corpus)?,
            tuning: corpus_hash(&self.tune.corpus)?,
            held_out: hash(&self.held_out)?,
        })
    }

    fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured> {
        let models = self.models()?;
        let student = models.student(cell.student)?;
        let group = match cell.stage {
            Stage::Tune => &self.tune,
            Stage::Report => &self.report,
        };
        // Attention is measured in here, once a group: it is not this cell's time.
        let texts = group.taught(cell, &models)?;
        let mut clock = Clock::open(scratch)?;
        let run = match &texts {
            Some(texts) => Some(clock.time(|| student.finetune(&texts.corpus, finetune(cell, scratch)))?),
            None => None,
        };
        let trained = run.as_ref().map_or(student, |run| &run.model);
        let quiz = Quiz::few_shot(cell.few_shot)
            .distractors(cell.distractors)
            .checkpoint(scratch.join("answers.json"));
        let quiz = clock.time(|| trained.quiz(&group.corpus, quiz))?;
        let wrong = quiz.answers.iter().find(|a| a.choices.iter().any(|c| !c.log_prob.is_finite()));
        if let Some(answer) = wrong {
            return Err(diverged(format!("ln p of an answer to `{}` is not finite", answer.question)));
        }
        let perplexity = if self.held_out.is_empty() {
            None
        } else {
            Some(clock.time(|| trained.perplexity(&self.held_out))?)
        };
        if perplexity.is_some_and(|p| !p.log_prob.is_finite()) {
            return Err(diverged("ln p of the held-out texts is not finite".into()));
        }
        let steps = run.iter().flat_map(|r| &r.steps);
        Ok(Measured {
            quiz,
            perplexity,
            loss: steps.map(|s| LossPoint { step: s.step, loss: s.loss }).collect(),
            tokens: run.as_ref().map_or(0, |r| r.tokens() as u64),
            truncated: run.as_ref().map_or(0, |r| r.truncated),
            left_out: texts.map_or(0, |t| t.blank) + run.as_ref().map_or(0, |r| r.skipped.len()),
            seconds: clock.seconds,
        })
    }

    fn workers(&mut self) -> Result<Vec<(String, Box<dyn Runner>)>> {
        let Some(devices) = self.devices.clone().filter(|devices| devices.as_slice().len() > 1) else {
            return Ok(Vec::new());
        };
        let models = self.models()?;
        devices.each(|device| {
            // Clones share what was measured of the texts.
            let alone = PairRunner {
                models: Some(models.to_device(device)?),
                devices: Some(device.clone().into()),
                ..self.clone()
            };
            Ok((device.name(), Box::new(alone) as Box<dyn Runner>))
        })
    }
}

/// After training that went through: the last step may have spoilt the weights.
fn diverged(message: String) -> Error {
    Error::Diverged { message: format!("{message}; a smaller learning rate may help"), batch: None }
}

fn finetune(cell: &Cell, scratch: &Path) -> Finetune {
    let mut finetune = cell.lora_r.map_or_else(Finetune::full, Finetune::lora);
    if let Some(rate) = cell.learning_rate {
        finetune = finetune.learning_rate(rate);
    }
    if let Some(noise) = cell.noise {
        finetune = finetune.denoise(noise);
    }
    finetune.epochs(cell.epochs).batch_size(cell.batch_size).seed(cell.seed).checkpoint(scratch)
}

/// Seconds a cell took, over interruptions.
struct Clock {
    path: PathBuf,
    seconds: f64,
}

impl Clock {
    fn open(scratch: &Path) -> Result<Self> {
        let path = scratch.join("seconds");
        // A clock that cannot be read starts anew; no result depends on it.
        let seconds = if path.exists() { read_text(&path)?.trim().parse().unwrap_or(0.0) } else { 0.0 };
        Ok(Clock { path, seconds })
    }

    /// Runs `work` and keeps its time, also when it is interrupted.
    fn time<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work();
        self.seconds += start.elapsed().as_secs_f64();
        write_text(&self.path, &format!("{}\n", self.seconds))?;
        done
    }
}

/// Of all that decides a cell: what is a version of what matters for packing, which no cell uses, and where several texts of one
/// person are asked about.
fn corpus_hash(corpus: &Corpus) -> Result<String> {
    let shared: BTreeMap<&str, &str> =
        corpus.first_asked().into_iter().filter(|(document, first)| document != first).collect();
    let mut texts = corpus.clone();
    for document in &mut texts.documents {
        document.version_of = VersionOf::Itself;
    }
    if shared.is_empty() { hash(&texts) } else { hash(&(texts, shared)) }
}

fn hash<T: serde::Serialize>(texts: &T) -> Result<String> {
    let json =
        serde_json::to_vec(texts).map_err(|e| Error::Stopped(format!("experiment: the texts: {e}")))?;
    Ok(content_hash([json]))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::experiment::{Condition, Outcome, run};
    use crate::model::DecoderConfig;
    use crate::tokens::Tokenizer;

    fn pair() -> ModelPair {
        let texts = Biographies::new(4).generate().unwrap();
        let texts: Vec<&str> = texts.documents.iter().map(|d| d.text.as_str()).collect();
        let tokenizer = Tokenizer::train_bpe(texts, 400).unwrap();
        let config = |layers| DecoderConfig::llama(tokenizer.vocab_size(), 16, layers, 2, 2, 32, 512);
        let model =
            |name, layers| Model::random(name, config(layers), tokenizer.clone(), layers as u64).unwrap();
        ModelPair::new(model("toy-small", 1), model("toy-large", 2))
    }

    fn protocol() -> Protocol {
        Protocol {
            people: 2,
            tuning_people: 2,
            held_out: 2,
            copies: 1,
            epochs: 1,
            lora_r: 2,
            few_shot: 1,
            distractors: 1,
            conditions: vec![Condition::Untrained, Condition::Plain, Condition::AttentionDifference],
            learning_rates: vec![1e-3, 5e-4],
            alphas: vec![0.6, 0.7],
            betas: vec![0.05],
            seeds: vec![1, 2],
            ..Protocol::reduced()
        }
    }

    /// Without the time it took.
    fn timeless(mut outcome: Outcome) -> Outcome {
        outcome.rows.iter_mut().chain(&mut outcome.tuning).for_each(|row| row.measured.seconds = 0.0);
        outcome
    }

    fn on(devices: usize, folder: &Path) -> Result<Outcome> {
        let devices = Devices::tensors(devices, DType::F32);
        run(&protocol(), folder, &mut PairRunner::new(pair()).devices(&devices)).map(timeless)
    }

    #[test]
    fn cells_spread_over_devices_give_the_same_results() {
        let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        let want = on(1, folders[0].path()).unwrap();
        // Two learning rates for both arms that train, another alpha for one; then one cell and two for each seed.
        assert_eq!((want.tuning.len(), want.rows.len()), (2 * 2 + 1, 1 + 2 * 2));
        for devices in [2, 3] {
            assert_eq!(on(devices, folders[devices - 1].path()).unwrap(), want, "{devices} devices");
        }
        // Some cells are gone, and another number of devices goes on.
        let cells = folders[1].path().join("cells");
        let mut files: Vec<_> = std::fs::read_dir(&cells).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.iter().step_by(2).for_each(|file| std::fs::remove_file(file).unwrap());
        assert_eq!(on(3, folders[1].path()).unwrap(), want);
        assert_eq!(std::fs::read_dir(&cells).unwrap().count(), files.len());
        assert_eq!(std::fs::read_dir(folders[1].path().join("scratch")).unwrap().count(), 0);
    }

    /// Fails or is interrupted in its second cell, on one device of two.
    struct Failing {
        inner: PairRunner,
        error: fn() -> Error,
        cells: usize,
    }

    impl Runner for Failing {
        fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs> {
            self.inner.prepare(protocol)
        }

        fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured> {
            self.cells += 1;
            if self.cells == 2 { Err((self.error)()) } else { self.inner.run(cell, scratch) }
        }

        fn workers(&mut self) -> Result<Vec<(String, Box<dyn Runner>)>> {
            let mut workers = self.inner.workers()?;
            let inner = PairRunner { devices: None, ..self.inner.clone() };
            workers[0].1 = Box::new(Failing { inner, error: self.error, cells: 0 });
            Ok(workers)
        }
    }

    #[test]
    fn a_device_that_fails_stops_the_grid_and_the_rest_is_done_later() {
        let whole = tempfile::tempdir().unwrap();
        let want = on(1, whole.path()).unwrap();
        for (error, said) in [
            ((|| Error::Stopped("out of memory".into())) as fn() -> Error, "cpu tensors:0: out of memory"),
            ((|| Error::Interrupted) as fn() -> Error, "interrupted; what was finished is kept"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let inner = PairRunner::new(pair()).devices(&Devices::tensors(2, DType::F32));
            let failed = run(&protocol(), folder.path(), &mut Failing { inner, error, cells: 0 });
            assert_eq!(failed.unwrap_err().to_string(), said);
            let finished = std::fs::read_dir(folder.path().join("cells")).unwrap().count();
            assert!(finished > 0 && finished < want.rows.len() + want.tuning.len(), "{finished}");
            assert_eq!(on(3, folder.path()).unwrap(), want);
        }
    }
}
