//! Any bytes in a `.safetensors` file are something that `inspect` can say what it is: a LoRA and what it would change, a model, a network,
//! an embedding, or what is wrong with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::survey::Survey;
use sd_gen::weights::{Checkpoint, trained_words};
use std::sync::OnceLock;

fn model() -> &'static Checkpoint {
    static MODEL: OnceLock<Checkpoint> = OnceLock::new();
    MODEL.get_or_init(|| Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/emoji").as_ref()).expect("the model opens"))
}

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("sd-gen-fuzz-{}.safetensors", std::process::id()));
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let survey = Survey::of(&path).expect("a file that is there");
    let _ = trained_words(&survey.metadata);
    for component in &survey.components {
        let _ = (component.parameters(), component.bytes());
    }
    if let Some(adapter) = &survey.adapter {
        let _ = (adapter.alphas(), adapter.ranks(), adapter.sites(), adapter.base(), adapter.changes());
        let fit = adapter.fit(model());
        assert_eq!(fit.keys + fit.absent.len() + fit.misshapen.len(), adapter.keys());
    }
});
