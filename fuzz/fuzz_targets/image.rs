//! Any bytes are an image with a recipe and a command that a shell reads, an image without one, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::metadata::{command, read};

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("sd-gen-fuzz-{}", std::process::id()));
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(Some(image)) = read(&path)
        && let Some(recipe) = image.recipe
    {
        let command = command(&recipe);
        let words = shlex::split(&command.shell()).expect("a line that a shell reads");
        assert_eq!(words.get(1..), Some(&command.arguments[..]));
        let _ = recipe.json();
    }
});
