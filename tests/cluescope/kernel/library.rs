//! The library inside cells: bars that move, curves that grow, interrupts that keep what was made.

use std::time::Duration;

use super::client::{Client, Outcome, wait};
use crate::hub::Server;

/// A model that takes seconds for anything, and people to ask it about.
const MODEL: &str = r#"
use cluescope::prelude::*;
let people = Biographies::new(200).seed(1).generate()?;
let texts: Vec<&str> = people.documents.iter().map(|d| d.text.as_str()).collect();
let tokenizer = Tokenizer::train_bpe(texts, 600)?;
let config = DecoderConfig::llama(tokenizer.vocab_size(), 768, 8, 12, 12, 2048, 1024);
let model = Model::random("slow", config, tokenizer.clone(), 1)?;
let quick = Model::random("quick", DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 2, 2, 64, 512), tokenizer.clone(), 1)?;
let kept = 7;
"#;

fn html(content: &serde_json::Value) -> &str {
    content["data"]["text/html"].as_str().unwrap_or_default()
}

fn bars(outcome: &Outcome) -> (Vec<&str>, Vec<&str>) {
    let shown = outcome.of("display_data").map(html).filter(|h| h.contains("cluescope-progress")).collect();
    (shown, outcome.of("update_display_data").map(html).collect())
}

#[test]
fn a_bar_moves_and_what_stays_tells_no_time() {
    wait(async {
        let mut kernel = Client::start().await;
        let outcome = kernel
            .run(
                "let progress = cluescope::progress::Progress::start(\"walking\", 40, \"steps\");\n\
                 for _ in 0..40 { progress.advance(1)?; std::thread::sleep(std::time::Duration::from_millis(50)); }\n\
                 drop(progress);",
            )
            .await
            .good();
        let (shown, updates) = bars(&outcome);
        assert_eq!(shown.len(), 1, "{outcome:#?}");
        assert!(updates.len() >= 4, "{} updates", updates.len());
        assert!(updates[0].contains(" s left"), "{}", updates[0]);
        let last = updates.last().unwrap();
        assert!(
            last.contains("max=\"40\" value=\"40\"") && last.contains("walking: 40/40 steps</label>"),
            "{last}"
        );
        let short = kernel
            .run("let p = cluescope::progress::Progress::start(\"short\", 1, \"x\"); p.advance(1)?;")
            .await;
        assert_eq!(short.good().of("display_data").count(), 0);
        kernel.stop().await;
    });
}

/// As in the type's own example: the task is a variable of the notebook and never dropped.
#[test]
fn a_task_kept_in_a_variable_hides_no_later_one() {
    wait(async {
        let mut kernel = Client::start().await;
        let walk = |name: &str| {
            format!(
                "let {name} = cluescope::progress::Progress::start(\"{name}\", 20, \"steps\");\n\
                 for _ in 0..20 {{ {name}.advance(1)?; std::thread::sleep(std::time::Duration::from_millis(50)); }}"
            )
        };
        for name in ["first", "second"] {
            let outcome = kernel.run(&walk(name)).await.good();
            let (shown, updates) = bars(&outcome);
            assert_eq!(shown.len(), 1, "{name}: {outcome:#?}");
            assert!(shown[0].contains(name), "{}", shown[0]);
            let last = updates.last().unwrap();
            assert!(last.contains(&format!("{name}: 20/20 steps</label>")), "{last}");
        }
        // The library is at work again, and has longer than other code to hear of an interrupt.
        let slow = "let third = cluescope::progress::Progress::start(\"third\", 2, \"steps\");\n\
                    for _ in 0..2 { std::thread::sleep(std::time::Duration::from_secs(20)); third.advance(1)?; }";
        let seconds = kernel.interrupted_after(slow, Duration::from_millis(500)).await;
        assert!(seconds > 5.0, "stopped after {seconds} s");
        assert_eq!(kernel.run("first.advance(0).is_ok()").await.good().result(), "true");
        kernel.stop().await;
    });
}

#[test]
fn training_draws_its_loss() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run(MODEL).await.good();
        let outcome =
            kernel.run("let run = quick.finetune(&people, Finetune::lora(4).epochs(100))?;").await.good();
        let (shown, updates) = bars(&outcome);
        assert_eq!(shown.len(), 1, "{outcome:#?}");
        let with_curve =
            updates.iter().filter(|html| html.contains("<svg") && html.contains("loss (nats a token)"));
        assert!(with_curve.count() >= 2, "{updates:#?}");
        let last = updates.last().unwrap();
        assert!(last.contains("<svg") && !last.contains("tokens/s"), "{last}");
        // The value itself is a picture.
        let shown = kernel.run("run").await.good();
        let picture = &shown.of("execute_result").next().unwrap()["data"]["image/svg+xml"];
        assert!(picture.as_str().unwrap().starts_with("<svg"), "{shown:#?}");
        kernel.stop().await;
    });
}

/// A data frame is of the crate polars-core, which no cell can name.
#[test]
fn a_frame_of_a_method_can_be_kept_without_naming_polars() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run(MODEL).await.good();
        kernel
            .run(
                "let few = Biographies::new(2).seed(1).generate()?;\n\
                 let frame = quick.quiz(&few, Quiz::few_shot(1).max_new_tokens(2))?.frame()?;",
            )
            .await
            .good();
        assert_eq!(kernel.run("frame.height()").await.good().result(), "10");
        kernel.stop().await;
    });
}

/// Each crate that the README promises to cells, with values that pass from one to another.
#[test]
fn cells_use_the_librarys_crates() {
    wait(async {
        let mut kernel = Client::start().await;
        let code = "use candle_core::{Device, Tensor};\n\
             let keys = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((1, 2, 2, 3))?;\n\
             let repeated = candle_transformers::utils::repeat_kv(keys, 2)?;\n\
             let normed = candle_nn::ops::softmax(&repeated, candle_core::D::Minus1)?;\n\
             let frame = polars::df!(\"sum\" => [normed.sum_all()?.to_scalar::<f32>()?.round()])?;\n\
             let tokenizer = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());\n\
             let colour = plotters::style::RGBColor(1, 2, 3);\n\
             (repeated.dims().to_vec(), frame.height(), tokenizer.get_vocab_size(true), colour.0)";
        assert_eq!(kernel.run(code).await.good().result(), "([1, 4, 2, 3], 1, 0, 1)");
        kernel.stop().await;
    });
}

#[test]
fn library_work_stops_and_everything_stays() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run(MODEL).await.good();
        for work in [
            "let run = model.finetune(&people, Finetune::lora(8).epochs(50))?;",
            "let attended = model.attend(&people.documents, &Attend::default().cache(cluescope::attention::Cache::Off))?;",
            "let answers = model.quiz(&people, Quiz::few_shot(5))?;",
            "let texts = model.generate(&vec![vec![1; 64]; 32], &cluescope::model::Generate { max_new_tokens: 900, stop_at_newline: false })?;",
        ] {
            // What never ends by itself would run for minutes; that it stopped before its process was replaced is shown below.
            let seconds = kernel.interrupted_after(work, Duration::from_secs(1)).await;
            assert!(seconds < 55.0, "{work}: stopped after {seconds} s");
        }
        let kept = kernel.run("(kept, people.documents.len(), model.name().len(), quick.name().len())").await;
        assert_eq!(kept.good().result(), "(7, 200, 4, 5)");
        kernel.stop().await;
    });
}

/// A hub that is slow, and one that says nothing more.
#[test]
fn a_download_stops_and_goes_on_later() {
    wait(async {
        let server = Server::of("smollm2");
        let weights = || Some("model.safetensors".to_owned());
        server.set(|hub| hub.slow = weights());
        let cache = tempfile::tempdir().unwrap();
        let mut kernel = Client::start_with(&[
            ("HF_ENDPOINT", server.address.as_str()),
            ("HF_HUB_CACHE", cache.path().to_str().unwrap()),
            ("HF_HUB_OFFLINE", "0"),
        ])
        .await;
        kernel.run("use cluescope::prelude::*;\nlet kept = vec![1, 2, 3];").await.good();
        let load = "let small = Model::load(\"HuggingFaceTB/SmolLM2-135M\")?;";
        for stalled in [false, true] {
            server.set(|hub| {
                (hub.slow, hub.stalled) = if stalled { (None, weights()) } else { (weights(), None) }
            });
            let seconds = kernel.interrupted_after(load, Duration::from_secs(1)).await;
            // A second, and what a busy machine adds; the server's half minute of silence is not waited for.
            assert!(seconds < 20.0, "stopped after {seconds} s (stalled: {stalled})");
            assert_eq!(kernel.run("kept.len()").await.good().result(), "3");
        }
        server.set(|hub| hub.stalled = None);
        // In spite of the connection that still hangs.
        let model = kernel.run(&format!("{load}\nsmall.name()")).await;
        assert_eq!(model.good().result(), "\"HuggingFaceTB/SmolLM2-135M\"");
        kernel.stop().await;
    });
}
