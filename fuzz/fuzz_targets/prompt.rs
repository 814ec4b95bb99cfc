//! Any text is a prompt of every syntax, a template and a sheet of styles, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::prompt::dynamic::{Template, Wildcards};
use sd_gen::prompt::{Emphasis, Prompt, PromptReading, PromptScheduling, PromptSyntax, StyleSheet};

fuzz_target!(|text: &str| {
    for syntax in PromptSyntax::ALL {
        for negative in [false, true] {
            let (emphasis, scheduling) = (Emphasis::Original, PromptScheduling::Current);
            let reading = PromptReading { syntax, emphasis, scheduling, steps: 9, hires_steps: negative.then_some(5), negative };
            if let Ok(prompt) = Prompt::parse(text, reading) {
                let _ = (prompt.to_string(), prompt.slips.iter().map(|slip| slip.show(text)).collect::<Vec<_>>());
                let _ = prompt.networks.iter().map(|tag| tag.as_lora()).collect::<Vec<_>>();
            }
        }
    }
    if let Ok(template) = Template::parse(text) {
        let wildcards = Wildcards::of([("a".to_owned(), vec!["x".to_owned(), "{y|__a__}".to_owned()])]);
        let _ = (template.draw(&wildcards, 1, 2), template.combinations(&wildcards, 1, 5));
    }
    let _ = StyleSheet::parse(text);
});
