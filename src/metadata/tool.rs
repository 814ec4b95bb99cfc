//! What sets the tools apart where an image does not say it: whose random numbers, whose noise levels, whose counting.

use super::recipe::{Field, Recipe, file_stem};
use crate::noise::Rng;
use crate::prompt::PromptSyntax;

/// Who computes the noise levels and what else is not written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// k-diffusion as A1111 calls it.
    KDiffusion,
    /// ComfyUI, also behind another surface.
    Comfy,
    /// stable-diffusion.cpp.
    Cpp,
    /// diffusers, or something that counts like it.
    Diffusers,
}

/// Tool, engine, and whose numbers its noise is drawn from.
const TOOLS: &[(&str, Engine, Rng)] = &[
    ("AUTOMATIC1111", Engine::KDiffusion, Rng::TorchCuda),
    ("Forge", Engine::KDiffusion, Rng::TorchCuda),
    ("reForge", Engine::KDiffusion, Rng::TorchCuda),
    ("Forge Classic", Engine::KDiffusion, Rng::TorchCuda),
    ("Forge Neo", Engine::KDiffusion, Rng::TorchCuda),
    ("Easy Diffusion", Engine::KDiffusion, Rng::TorchCuda),
    ("stable-diffusion.cpp", Engine::Cpp, Rng::TorchCuda),
    ("SD.Next", Engine::Diffusers, Rng::TorchCuda),
    ("InvokeAI", Engine::Diffusers, Rng::TorchCpu),
    ("ComfyUI", Engine::Comfy, Rng::TorchCpu),
    ("SwarmUI", Engine::Comfy, Rng::TorchCpu),
    ("Stability Matrix", Engine::Comfy, Rng::TorchCpu),
    ("TensorArt", Engine::Comfy, Rng::TorchCpu),
    ("Civitai", Engine::Comfy, Rng::TorchCpu),
    ("Fooocus", Engine::Comfy, Rng::TorchCpu),
    ("RuinedFooocus", Engine::Comfy, Rng::TorchCpu),
];

/// Words in a model's name that only SDXL and its descendants have.
const XL_WORDS: &[&str] = &["xl", "pony", "illustrious", "noobai", "juggernautx"];
/// Pixels that nobody asks of a first pass with SD 1.x or 2.x.
const XL_PIXELS: f64 = 900_000.0;

impl Recipe {
    /// Who computed the image, where that is known.
    pub(super) fn engine(&self) -> Option<Engine> {
        TOOLS.iter().find(|(tool, ..)| *tool == self.tool).map(|(_, engine, _)| *engine)
    }

    /// The language of its prompts; `None` where it is one of the tool's own.
    pub(super) fn syntax(&self) -> Option<PromptSyntax> {
        match (self.tool.as_str(), self.engine()) {
            ("sd-gen" | "SD.Next" | "Fooocus" | "RuinedFooocus", _) => Some(PromptSyntax::A1111),
            ("mflux" | "mold", _) => Some(PromptSyntax::Plain),
            (_, Some(Engine::KDiffusion | Engine::Cpp)) => Some(PromptSyntax::A1111),
            (_, Some(Engine::Comfy)) => Some(PromptSyntax::ComfyUi),
            (_, Some(Engine::Diffusers) | None) => None,
        }
    }

    /// Whose numbers the tool draws its noise from where the image does not say.
    pub(super) fn usual_rng(&self) -> Option<Rng> {
        TOOLS.iter().find(|(tool, ..)| *tool == self.tool).map(|(.., rng)| *rng)
    }

    /// Whether size, model or pipeline say that this is SDXL.
    pub(super) fn is_xl(&self) -> bool {
        let side = |field| self.get(field).and_then(|text| text.trim().parse::<f64>().ok());
        let large = side(Field::Width).zip(side(Field::Height)).is_some_and(|(width, height)| width * height >= XL_PIXELS);
        let name = self.get(Field::Model).map(|name| file_stem(name).to_lowercase()).unwrap_or_default();
        let said = self.other.iter().any(|(_, value)| value.contains("StableDiffusionXL") || value == "sdxl" || value.contains("sdxl_"));
        large || said || XL_WORDS.iter().any(|word| name.contains(word))
    }
}
