//! From a recipe to the command that generates it again by the rules of the tool that made it.

use super::command::{PrintedCommand, command};
use super::recipe::Recipe;
use super::tool::Engine;
use crate::noise::Rng;
use crate::sampling::Like;

/// [`command()`] with the rules of the image's own tool. Whatever [`command()`] has translated keeps the meaning that it was given there.
pub fn recreation(recipe: &Recipe) -> PrintedCommand {
    let mut command = command(recipe);
    let like = match recipe.engine() {
        Some(Engine::KDiffusion) => Like::A1111,
        Some(Engine::Comfy) => Like::ComfyUi,
        Some(Engine::Cpp) => Like::SdCpp,
        Some(Engine::Diffusers) | None => return command,
    };
    let has = |command: &PrintedCommand, flag: &str| command.arguments.iter().any(|argument| argument == flag);
    let mut more = vec![("--like", like.name())];
    if let Some(syntax) = recipe.syntax().filter(|_| !has(&command, "--prompt-syntax")) {
        more.push(("--prompt-syntax", syntax.name()));
    }
    if !has(&command, "--rng") {
        more.push(("--rng", Rng::TorchCpu.name()));
    }
    if has(&command, "--clip-skip") {
        more.push(("--clip-skip-counts", "beyond"));
    }
    if !command.arguments.is_empty() {
        command.arguments.extend(more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::super::{Text, understand};
    use super::*;

    fn of(text: &str) -> PrintedCommand {
        recreation(&understand(&[Text::new("PNG tEXt", "parameters", text)]).expect("a recipe"))
    }

    #[test]
    fn an_image_is_made_again_by_its_tools_rules() {
        let a1111 = of("a (cat:1.2)\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 5, Size: 512x512, Clip skip: 2, ENSD: 31337, \
                        Variation seed: 9, Variation seed strength: 0.3, NGMS: 1.5, SGM noise multiplier: True, Version: v1.10.1");
        let shell = a1111.shell();
        for flags in [
            "--like a1111",
            "--sampler ddim",
            "--rng torch-cuda",
            "--ensd 31337",
            "--variation-seed 9",
            "--variation-strength 0.3",
            "--ngms 1.5",
            "--first-noise full",
            "--clip-skip-counts beyond",
        ] {
            assert!(shell.contains(flags), "{flags}: {shell}");
        }
        let cpp = of("a cat\nSteps: 8, CFG scale: 7, Seed: 42, Size: 512x512, Sampler: euler_a, RNG: cpu, Version: stable-diffusion.cpp");
        assert!(cpp.shell().ends_with("--like sdcpp --prompt-syntax a1111 --rng torch-cpu"), "{}", cpp.shell());
        let own = of("a cat\nSteps: 8, Sampler: Euler, Seed: 42, Size: 512x512, RNG: CPU, Version: sd-gen 0.1.0");
        assert!(!own.shell().contains("--like"), "{}", own.shell());
    }
}
