//! Trains one model of the nano pair and asks it about people it never met.
//!
//! ```text
//! cargo run --release --example pretrain -- small|large|minute-small|minute-large FOLDER [KEY=NUMBER …]
//! ```

use cluescope::corpus::Biographies;
use cluescope::evaluate::{Examinee, Quiz, quiz};
use cluescope::model::{Batch, Generate, Model};
use cluescope::train::{Recipe, Size, pretrain};

/// The model as the quiz wants it.
struct Pupil(Model);

impl Examinee for Pupil {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn hash(&self) -> &str {
        self.0.hash()
    }
    fn max_positions(&self) -> usize {
        self.0.config().max_positions
    }
    fn encode(&self, text: &str) -> cluescope::Result<Vec<u32>> {
        Ok(self.0.tokenizer().encode(text)?.ids)
    }
    fn decode(&self, ids: &[u32]) -> cluescope::Result<String> {
        self.0.tokenizer().decode(ids)
    }
    fn answer(&self, prompts: &[Vec<u32>], max_new_tokens: usize) -> cluescope::Result<Vec<Vec<u32>>> {
        self.0.generate(prompts, &Generate { max_new_tokens, stop_at_newline: true })
    }
    fn log_probs(&self, texts: &[Vec<u32>]) -> cluescope::Result<Vec<Vec<f32>>> {
        self.0.token_log_probs(&Batch::new(texts))
    }
}

fn main() -> cluescope::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [which, out, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: pretrain small|large|minute-small|minute-large FOLDER [KEY=NUMBER …]");
        std::process::exit(2);
    };
    let mut recipe = match which.as_str() {
        "small" => Recipe::nano(Size::Small),
        "large" => Recipe::nano(Size::Large),
        "minute-small" => Recipe::minute(Size::Small),
        _ => Recipe::minute(Size::Large),
    };
    // KEY=NUMBER changes a value of the recipe, mixture.KEY=NUMBER one of its mixture.
    let mut value = serde_json::to_value(&recipe).expect("a recipe is plain numbers");
    for (key, number) in rest.iter().filter_map(|pair| pair.split_once('=')) {
        let number: serde_json::Value = serde_json::from_str(number).expect("KEY=NUMBER");
        match key.split_once('.') {
            Some((outer, inner)) => value[outer][inner] = number,
            None => value[key] = number,
        }
    }
    recipe = serde_json::from_value(value).expect("the keys of a recipe");
    let start = std::time::Instant::now();
    let trained = pretrain(&recipe, out)?;
    println!("{:?}, {} tokens, {:.0} s", trained.model, trained.report.tokens, start.elapsed().as_secs_f64());
    println!("answer loss by step: {:?}", trained.report.probes);
    let people = Biographies::new(20).split("validation").seed(5).generate()?;
    for (open, shots) in [(true, 0), (true, 5), (false, 5)] {
        let result = quiz(
            &Pupil(trained.model.clone()),
            &people,
            &Quiz::few_shot(shots).distractors(0).open_book(open),
        )?;
        let fields: Vec<String> =
            result.by_field().iter().map(|(f, s)| format!("{f} {:.2}", s.exact_match)).collect();
        println!(
            "open book {open}, {shots} examples: exact match {:.3} ({})",
            result.total().exact_match,
            fields.join(", ")
        );
        for answer in result.answers.iter().take(4) {
            println!("   {:?} right {:?}", answer.prediction, answer.right);
        }
    }
    Ok(())
}
