//! Few-shot prompts (paper, section 2).
//!
//! ```text
//! When was Marie Curie born?          n worked examples with the question's own field,
//! Answer: November 7, 1867            drawn with a fixed seed, blank lines between
//!
//! When was Ada Example born?          the question
//! Answer:                             the model goes on from here, with a blank and the answer
//! ```
//!
//! All questions of one field share their examples, in one order: the shared beginning need be computed only once.

use std::collections::HashMap;

use crate::corpus::{Corpus, Question};
use crate::error::{Error, Result};
use crate::random::Stream;

/// Makes the prompts of one corpus.
#[derive(Debug)]
pub(crate) struct Prompter<'a> {
    examples: usize,
    /// By field: the examples in the order drawn.
    drawn: HashMap<&'a str, Vec<&'a Question>>,
    /// By document id, where the text may be looked up while answering.
    books: Option<HashMap<&'a str, &'a str>>,
    /// By document id, what stands for all documents about the same person.
    first: HashMap<&'a str, &'a str>,
}

impl<'a> Prompter<'a> {
    /// Draws the order of each field's examples.
    pub(crate) fn new(corpus: &'a Corpus, examples: usize, seed: u64, open_book: bool) -> Self {
        let mut drawn: HashMap<&str, Vec<&Question>> = HashMap::new();
        for example in corpus.examples.iter().filter(|e| !e.answers.is_empty()) {
            drawn.entry(&example.field).or_default().push(example);
        }
        for (field, pool) in &mut drawn {
            // A stream of each field's own: another field's examples do not change this one's.
            Stream::new(seed, &format!("few-shot {field}"), &[]).shuffle(pool);
        }
        let books =
            open_book.then(|| corpus.documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect());
        Prompter { examples, drawn, books, first: corpus.first_asked() }
    }

    /// What stands for the person that `document` is about.
    fn first<'b>(&self, document: &'b str) -> &'b str
    where
        'a: 'b,
    {
        self.first.get(document).copied().unwrap_or(document)
    }

    /// The examples of the question that has fewest.
    pub(crate) fn fewest_examples(&self, questions: &[Question]) -> usize {
        questions.iter().map(|question| self.examples_for(question).count()).min().unwrap_or(0)
    }

    /// Those of its field, without any about the person asked for, which would give the answer away.
    fn examples_for(&self, question: &Question) -> impl Iterator<Item = &'a Question> {
        let pool = self.drawn.get(question.field.as_str()).map_or(&[][..], Vec::as_slice);
        pool.iter().copied().filter(|e| self.first(&e.document) != self.first(&question.document))
    }

    /// The prompt of `question`; ends in `Answer:`, without a blank.
    ///
    /// # Errors
    /// [`Error::Option`] when the field has too few examples about others, [`Error::Stopped`] when the text of an
    /// open-book question is missing.
    pub(crate) fn prompt(&self, question: &Question) -> Result<String> {
        let mut text = String::new();
        let mut left = self.examples;
        for example in self.examples_for(question).take(self.examples) {
            text += &format!("{}\nAnswer: {}\n\n", example.question, example.answers[0]);
            left -= 1;
        }
        if left > 0 {
            return Err(Error::option(
                "few_shot",
                self.examples,
                format!(
                    "the corpus has {} worked examples of field `{}` about others; ask for no more, or add \
                     some",
                    self.examples - left,
                    question.field
                ),
            ));
        }
        if let Some(books) = &self.books {
            let book = books.get(question.document.as_str()).ok_or_else(|| {
                Error::Stopped(format!(
                    "quiz: no document `{}` for its question; an open-book quiz needs every text",
                    question.document
                ))
            })?;
            text += book;
            text.push('\n');
        }
        text += &question.question;
        text += "\nAnswer:";
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Document;

    fn question(document: &str, field: &str) -> Question {
        Question {
            document: document.into(),
            field: field.into(),
            question: format!("{field} of {document}?"),
            answers: vec![format!("{document}'s {field}")],
            distance: None,
        }
    }

    fn corpus() -> Corpus {
        let examples = ["A", "B", "C", "D", "E", "F", "G"]
            .iter()
            .flat_map(|p| [question(p, "city"), question(p, "date")])
            .collect();
        let documents = vec![Document::new("X", "X was born.", vec![])];
        Corpus { documents, questions: vec![question("X", "city")], examples }
    }

    #[test]
    fn the_form_is_the_papers() {
        let corpus = corpus();
        let prompt = Prompter::new(&corpus, 1, 0, false).prompt(&corpus.questions[0]).unwrap();
        let person = prompt["city of ".len()..].split('?').next().unwrap();
        assert_eq!(prompt, format!("city of {person}?\nAnswer: {person}'s city\n\ncity of X?\nAnswer:"));
    }

    #[test]
    fn examples_are_seeded_of_the_same_field_and_never_about_the_person_asked() {
        let corpus = corpus();
        let make = |seed| Prompter::new(&corpus, 5, seed, false).prompt(&question("A", "city")).unwrap();
        assert_eq!(make(1), make(1));
        assert!((2..20).any(|seed| make(seed) != make(1)), "the seed changes nothing");
        for seed in 0..20 {
            let prompt = make(seed);
            assert_eq!(prompt.matches("Answer:").count(), 6);
            assert!(!prompt.contains("date") && !prompt.contains("A's"), "{prompt}");
        }
    }

    #[test]
    fn too_few_examples_are_refused_with_the_number_there_is() {
        let corpus = corpus();
        let err = Prompter::new(&corpus, 8, 0, false).prompt(&corpus.questions[0]).unwrap_err().to_string();
        assert!(err.contains("few_shot = 8") && err.contains("7 worked examples of field `city`"), "{err}");
    }

    #[test]
    fn an_open_book_stands_before_the_question() {
        let corpus = corpus();
        let prompt = Prompter::new(&corpus, 0, 0, true).prompt(&corpus.questions[0]).unwrap();
        assert_eq!(prompt, "X was born.\ncity of X?\nAnswer:");
        assert!(Prompter::new(&corpus, 0, 0, true).prompt(&question("Y", "city")).is_err());
    }
}
