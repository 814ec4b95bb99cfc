//! Any text is a prompt of every syntax, a template and a sheet of styles, or an error. Its length chooses which of them it is taken for, so that
//! an input costs one of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::prompt::dynamic::{Template, Wildcards};
use sd_gen::prompt::{Emphasis, Prompt, PromptReading, PromptScheduling, PromptSyntax, StyleSheet};

fn parse(text: &str, syntax: PromptSyntax, negative: bool) {
    let (emphasis, scheduling) = (Emphasis::Original, PromptScheduling::Current);
    let reading = PromptReading { syntax, emphasis, scheduling, steps: 9, hires_steps: negative.then_some(5), negative };
    if let Ok(prompt) = Prompt::parse(text, reading) {
        let _ = (prompt.to_string(), prompt.slips.iter().map(|slip| slip.show(text)).collect::<Vec<_>>());
        let _ = prompt.networks.iter().map(|tag| tag.as_lora()).collect::<Vec<_>>();
    }
}

fn template(text: &str) {
    if let Ok(template) = Template::parse(text) {
        let wildcards = Wildcards::of([("a".to_owned(), vec!["x".to_owned(), "{y|__a__}".to_owned()])]);
        let _ = (template.draw(&wildcards, 1, 2), template.combinations(&wildcards, 1, 5));
    }
}

fuzz_target!(|text: &str| {
    let syntaxes = PromptSyntax::ALL;
    match text.len() % (2 * syntaxes.len() + 2) {
        0 => template(text),
        1 => {
            let _ = StyleSheet::parse(text);
        }
        choice => parse(text, syntaxes[(choice - 2) / 2], choice % 2 == 0),
    }
});
