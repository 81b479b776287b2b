//! What is run: people, copies, epochs, seeds, conditions and the options tried.

use serde::{Deserialize, Serialize};

use super::condition::{Condition, Student, Texts};
use crate::attention::Heads;
use crate::augment::{ALPHA, Augment, BETA};
use crate::error::{Error, Result};
use crate::train::Finetune;

/// What the best options are chosen by, on people outside the reported table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Exact match, then choice accuracy.
    ExactMatch,
    /// Word F1, then choice accuracy.
    F1,
    /// Choice accuracy, then log-probability: still moves when exact match is at its floor.
    ChoiceAccuracy,
}

/// The whole plan of an experiment; a cell's results depend on nothing else but the models.
///
/// | name | nano | reduced | full | purpose |
/// |---|---|---|---|---|
/// | `people` | 30 | 50 | 100 | people trained on and asked about (paper: 100) |
/// | `texts`, `per_person` | permuted, 5 | paper, 1 | paper, 1 | biographies of each person (paper: one, its sentences in one order) |
/// | `tuning_people` | 0 | 0 | 50 | other people, on whom α, β and the learning rate are chosen; 0: the first of each is taken |
/// | `held_out` | 50 | 50 | 100 | texts about still others, in other sentences, for perplexity |
/// | `copies` | 4 | 10 | 10 | augmented copies a text, beside the original |
/// | `epochs` | 8 | 10 | 20 | passes over originals and copies |
/// | `seeds` | 1–3 | 1–2 | 1–5 | training seeds: copies, order, adapter |
/// | `alphas` | 0.6 | 0.6 | 0.6, 0.7 | largest drop probability |
/// | `betas` | 0.05 | 0.05 | 0.05, 0.03, 0.01, 0.005 | rise with rank |
/// | `learning_rates` | 1e-3 | 1e-3 | 1e-3, 5e-4, 2e-4 | peak |
/// | `guide_probe` | – | – | – | facts whose probes guide `probe_difference`; none named: all that are asked about |
/// | `large_heads`, `small_heads` | all | all | all | layers or heads of each model under `heads_difference` |
/// | `noise` | 0.1 | 0.1 | 0.1 | share of input tokens that D-AR replaces (its source leaves it open) |
/// | `batch_size` | 8 | 8 | 8 | texts a step |
/// | `full_finetuning` | yes | no | no | every weight instead of an adapter |
/// | `lora_r` | – | 16 | 16 | rank of the adapter |
/// | `few_shot` | 5 | 5 | 5 | worked examples before a question |
/// | `distractors` | 9 | 9 | 9 | wrong answers beside the right one |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// `nano`, `reduced`, `full`, or the user's own.
    pub name: String,
    /// The pair of models, as it is loaded.
    pub pair: String,
    /// Source of a third model, where that is the student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub third: Option<String>,
    /// Which models are trained.
    pub students: Vec<Student>,
    /// What is compared.
    pub conditions: Vec<Condition>,
    /// Training seeds of the reported cells.
    pub seeds: Vec<u64>,
    /// Where the texts come from, when they are not generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<String>,
    /// How the biographies are written.
    pub texts: Texts,
    /// Biographies of each person; from the second on they differ only where `texts` leaves something to chance. Of a corpus
    /// of one's own the most texts that any person has.
    pub per_person: usize,
    /// People trained on and asked about.
    pub people: usize,
    /// Seed of the generated people; the people for tuning and held-out texts follow from it and are others.
    pub people_seed: u64,
    /// People on whom options are chosen; 0 takes the first of each list.
    pub tuning_people: usize,
    /// Training seed while choosing.
    pub tuning_seed: u64,
    /// What the choice goes by.
    pub criterion: Criterion,
    /// Texts for perplexity.
    pub held_out: usize,
    /// Augmented copies a text.
    pub copies: usize,
    /// Passes over the training texts.
    pub epochs: usize,
    /// Largest drop probabilities to try.
    pub alphas: Vec<f64>,
    /// Rises with rank to try.
    pub betas: Vec<f64>,
    /// Peak learning rates to try.
    pub learning_rates: Vec<f64>,
    /// Facts whose probes guide [`Condition::ProbeDifference`]; none named: all that are asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guide_probe: Vec<String>,
    /// Layers or heads of the large model under [`Condition::HeadsDifference`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub large_heads: Heads,
    /// Layers or heads of the small model under [`Condition::HeadsDifference`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub small_heads: Heads,
    /// Share of input tokens replaced under [`Condition::Denoising`].
    pub noise: f64,
    /// Texts a step.
    pub batch_size: usize,
    /// Whether every weight is trained instead of an adapter.
    pub full_finetuning: bool,
    /// Rank of the adapter.
    pub lora_r: usize,
    /// Worked examples before a question.
    pub few_shot: usize,
    /// Wrong answers beside the right one.
    pub distractors: usize,
}

impl Protocol {
    /// For the bundled pair, in less than a quarter of an hour on two cores.
    ///
    /// So small a model cannot answer questions about a text it has read in one wording only, whatever the condition: it learns the
    /// words and not the fact (Allen-Zhu and Li 2023, "Physics of language models", part 3.1). Five biographies a person, their sentences in five
    /// orders, and training of every weight lift it off that floor. This was chosen by how the two plain conditions did on people of
    /// the split `validation` (docs/nano.md), before any dropout was tried with it.
    pub fn nano() -> Self {
        Protocol {
            name: "nano".into(),
            people: 30,
            texts: Texts::Permuted,
            per_person: 5,
            copies: 4,
            epochs: 8,
            seeds: vec![1, 2, 3],
            full_finetuning: true,
            ..Protocol::reduced()
        }
    }

    /// Small enough for a first look on two cores at a pair of one's own.
    pub fn reduced() -> Self {
        Protocol {
            name: "reduced".into(),
            people: 50,
            tuning_people: 0,
            held_out: 50,
            copies: 10,
            epochs: 10,
            seeds: vec![1, 2],
            alphas: vec![ALPHA],
            betas: vec![BETA],
            learning_rates: vec![1e-3],
            ..Protocol::full()
        }
    }

    /// The paper's sizes, with five seeds and options chosen on other people.
    pub fn full() -> Self {
        Protocol {
            name: "full".into(),
            people: 100,
            tuning_people: 50,
            held_out: 100,
            copies: 10,
            epochs: 20,
            seeds: vec![1, 2, 3, 4, 5],
            alphas: vec![0.6, 0.7],
            betas: vec![0.05, 0.03, 0.01, 0.005],
            learning_rates: vec![1e-3, 5e-4, 2e-4],
            pair: "nano".into(),
            third: None,
            students: vec![Student::Small],
            conditions: Condition::MAIN.to_vec(),
            corpus: None,
            texts: Texts::Paper,
            per_person: 1,
            people_seed: 2024,
            tuning_seed: 0,
            criterion: Criterion::ChoiceAccuracy,
            guide_probe: Vec::new(),
            large_heads: Heads::All,
            small_heads: Heads::All,
            noise: 0.1,
            batch_size: 8,
            full_finetuning: false,
            lora_r: 16,
            few_shot: 5,
            distractors: 9,
        }
    }

    /// Refuses what cannot be run, before anything is.
    ///
    /// # Errors
    /// [`Error::Option`] naming the option, its value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("people", self.people, 2),
            ("per_person", self.per_person, 1),
            ("copies", self.copies, 1),
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("lora_r", self.lora_r, 1),
            ("students", self.students.len(), 1),
            ("conditions", self.conditions.len(), 1),
            ("seeds", self.seeds.len(), 1),
            ("alphas", self.alphas.len(), 1),
            ("betas", self.betas.len(), 1),
            ("learning_rates", self.learning_rates.len(), 1),
        ];
        for (name, value, least) in counts {
            if value < least {
                return Err(Error::option(name, value, format!("at least {least}")));
            }
        }
        if self.tuning_people == 1 {
            return Err(Error::option("tuning_people", 1, "0 for no search, or at least 2"));
        }
        let inside = |name, values: &[f64], fits: fn(f64) -> bool, expected: &str| match values
            .iter()
            .find(|v| !fits(**v))
        {
            Some(v) => Err(Error::option(name, v, expected)),
            None => Ok(()),
        };
        inside("alphas", &self.alphas, |a| (0.0..=1.0).contains(&a), "from 0 to 1")?;
        inside(
            "betas",
            &self.betas,
            |b| b >= 0.0 && b.is_finite(),
            "0 or more; the paper uses 0.005 to 0.05",
        )?;
        inside(
            "learning_rates",
            &self.learning_rates,
            |r| r > 0.0 && r.is_finite(),
            "above 0; the paper uses 5e-5 to 1e-3",
        )?;
        for &rate in &self.learning_rates {
            self.finetune().learning_rate(rate).settings()?;
        }
        Augment::random().copies(self.copies).check()?;
        if !(0.0..=1.0).contains(&self.noise) {
            return Err(Error::option("noise", self.noise, "a share of the tokens, 0 to 1"));
        }
        if self.students.contains(&Student::Third) != self.third.is_some() {
            let named = self.third.as_deref().unwrap_or("none");
            return Err(Error::option("third", named, "named exactly when a third model is the student"));
        }
        self.validate_guides()?;
        if self.criterion == Criterion::ChoiceAccuracy && self.distractors == 0 && self.tuning_people > 0 {
            return Err(Error::option(
                "distractors",
                0,
                "at least 1, since options are chosen by choice accuracy",
            ));
        }
        for (name, twice) in [
            ("seeds", repeated(&self.seeds)),
            ("conditions", repeated(&self.conditions)),
            ("students", repeated(&self.students)),
        ] {
            if let Some(value) = twice {
                return Err(Error::option(
                    name,
                    value,
                    "each only once: a repetition is not a second observation",
                ));
            }
        }
        Ok(())
    }

    /// What all cells' trainings have in common.
    pub(super) fn finetune(&self) -> Finetune {
        let method = if self.full_finetuning { Finetune::full() } else { Finetune::lora(self.lora_r) };
        method.epochs(self.epochs).batch_size(self.batch_size)
    }

    /// A guide that no condition follows would go unnoticed, and so would a condition without its guide.
    fn validate_guides(&self) -> Result<()> {
        let follows = |condition| self.conditions.contains(&condition);
        if !self.guide_probe.is_empty() && !follows(Condition::ProbeDifference) {
            let expected = "none, unless probe_difference is among the conditions: no other follows them";
            return Err(Error::option("guide_probe", self.guide_probe.join(","), expected));
        }
        let chosen = self.large_heads != Heads::All || self.small_heads != Heads::All;
        if chosen && !follows(Condition::HeadsDifference) {
            let expected = "all, unless heads_difference is among the conditions: no other chooses";
            return Err(Error::option("heads", self.heads(), expected));
        }
        if !chosen && follows(Condition::HeadsDifference) {
            let expected = "layers or heads of at least one model, for the condition heads_difference";
            return Err(Error::option("heads", "all", expected));
        }
        Ok(())
    }

    /// Layers and heads chosen, in words.
    fn heads(&self) -> String {
        format!(
            "{} of the large, {} of the small model",
            self.large_heads.describe(),
            self.small_heads.describe()
        )
    }

    /// Whether any condition has options to choose, for which tuning people are needed.
    pub fn chooses(&self) -> bool {
        self.conditions.iter().any(|&condition| self.may_choose(condition))
    }

    /// Whether `condition` has options of which several values are given.
    pub(super) fn may_choose(&self, condition: Condition) -> bool {
        let lists = [
            (condition.trains(), self.learning_rates.len()),
            (condition.uses_alpha(), self.alphas.len()),
            (condition.uses_beta(), self.betas.len()),
        ];
        lists.into_iter().any(|(used, values)| used && values > 1)
    }

    /// The guides other than the paper's, as a line of [`Protocol::describe`]; empty without any.
    fn guides(&self) -> String {
        let mut guides = Vec::new();
        if self.conditions.contains(&Condition::ProbeDifference) {
            let facts = if self.guide_probe.is_empty() {
                "all facts asked about".into()
            } else {
                self.guide_probe.join(", ")
            };
            guides.push(format!("probes of {facts}"));
        }
        if self.conditions.contains(&Condition::HeadsDifference) {
            guides.push(self.heads());
        }
        if guides.is_empty() { String::new() } else { format!("guides      {}\n", guides.join("; ")) }
    }

    /// What is trained on and asked about, in words.
    pub fn subjects(&self) -> String {
        match (&self.corpus, self.per_person) {
            (None, _) => format!("{} people", self.people),
            (Some(_), 1) => format!("{} texts", self.people),
            (Some(_), most) => format!("{} people or things with up to {most} texts each", self.people),
        }
    }

    /// What intervals are drawn over beside seeds.
    pub(crate) fn clusters(&self) -> &'static str {
        match (&self.corpus, self.per_person) {
            (Some(_), 1) => "texts",
            _ => "people",
        }
    }

    /// What will be run, as plain sentences for the start of a run.
    pub fn describe(&self) -> String {
        let list = |values: &[f64]| values.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let conditions: Vec<&str> = self.conditions.iter().map(|c| c.name()).collect();
        let students: Vec<&str> = self.students.iter().map(|s| s.name()).collect();
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let search = if self.tuning_people > 0 && self.chooses() {
            format!(
                "alpha of {}, beta of {}, learning rate of {}: chosen on {} other people",
                list(&self.alphas),
                list(&self.betas),
                list(&self.learning_rates),
                self.tuning_people
            )
        } else {
            format!(
                "alpha {}, beta {}, learning rate {} (not searched)",
                self.alphas[0], self.betas[0], self.learning_rates[0]
            )
        };
        let training =
            if self.full_finetuning { "every weight".into() } else { format!("LoRA rank {}", self.lora_r) };
        let people = match &self.corpus {
            Some(corpus) => format!("{} of {corpus}", self.subjects()),
            None => {
                let (n, seed, each, texts) =
                    (self.people, self.people_seed, self.per_person, self.texts.name());
                let texts = if each == 1 { format!("{texts} text") } else { format!("{each} {texts} texts") };
                format!("{n} (generated, seed {seed}), {texts} and 5 questions each")
            }
        };
        let third = self.third.as_ref().map_or(String::new(), |third| format!(", third model {third}"));
        format!(
            "protocol    {}\nmodels      {} pair{third}, student: {}\npeople      {people}\n\
             copies      {} a text, with the original\n\
             epochs      {}, {} texts a step, {training}\nseeds       {}\nconditions  {}\n{}options     {search}\n\
             quiz        {}-shot, {} distractors\n",
            self.name,
            self.pair,
            students.join(", "),
            self.copies,
            self.epochs,
            self.batch_size,
            seeds.join(", "),
            conditions.join(", "),
            self.guides(),
            self.few_shot,
            self.distractors
        )
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn repeated<T: PartialEq + std::fmt::Debug>(items: &[T]) -> Option<String> {
    (1..items.len()).find(|&i| items[..i].contains(&items[i])).map(|i| format!("{:?}", items[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_protocols_are_refused_by_name() {
        let with = |change: fn(&mut Protocol)| {
            let mut p = Protocol::full();
            change(&mut p);
            p.validate().unwrap_err().to_string()
        };
        assert!(with(|p| p.alphas = vec![0.6, 1.5]).starts_with("alphas = 1.5: from 0 to 1"));
        assert!(with(|p| p.betas = vec![f64::NAN]).starts_with("betas = NaN"));
        assert!(with(|p| p.seeds.clear()).starts_with("seeds = 0"));
        assert!(with(|p| p.learning_rates = vec![1e-3, 2.0]).starts_with("learning_rate = 2"));
        assert!(with(|p| p.lora_r = 5000).starts_with("r = 5000"));
        assert!(with(|p| p.copies = 200_000).starts_with("copies = 200000"));
        assert!(with(|p| p.seeds = vec![1, 2, 1]).contains("only once"));
        assert!(with(|p| p.noise = 2.0).starts_with("noise = 2"));
        assert!(with(|p| p.students = vec![Student::Third]).starts_with("third = none"));
        assert!(with(|p| p.distractors = 0).starts_with("distractors = 0"));
        assert!(
            with(|p| p.guide_probe = vec!["city".into()]).starts_with("guide_probe = city: none, unless")
        );
        assert!(
            with(|p| p.large_heads = Heads::Layers(vec![1])).starts_with("heads = layers 1 of the large")
        );
        assert!(with(|p| p.conditions = vec![Condition::HeadsDifference]).starts_with("heads = all"));
        for protocol in [Protocol::nano(), Protocol::reduced(), Protocol::full()] {
            assert!(protocol.validate().is_ok(), "{}", protocol.name);
        }
    }

    #[test]
    fn the_description_states_what_is_run() {
        let text = Protocol::reduced().describe();
        for part in ["people      50", "10 a text", "epochs      10", "seeds       1, 2", "not searched"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(Protocol::full().describe().contains("chosen on 50 other people"));
        let nothing = Protocol { tuning_people: 50, ..Protocol::reduced() };
        assert!(nothing.describe().contains("not searched"), "one value each is no choice");
        assert!(!Protocol::full().describe().contains("guides"));
        let guided = Protocol {
            conditions: vec![Condition::ProbeDifference, Condition::HeadsDifference],
            guide_probe: vec!["city".into()],
            large_heads: Heads::Heads(vec![(1, 0)]),
            ..Protocol::nano()
        };
        assert!(guided.validate().is_ok());
        let line = "guides      probes of city; heads 1.0 of the large, all of the small model\n";
        assert!(guided.describe().contains(line), "{}", guided.describe());
        let text = Protocol::nano().describe();
        assert!(
            text.contains("5 permuted texts and 5 questions each") && text.contains("every weight"),
            "{text}"
        );
    }
}
