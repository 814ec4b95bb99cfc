//! What an image asks to be changed of the model: LoRAs and their kin, and words that were learned later.

use super::{By, ControlChoice, Draft, Heading, ImagePrompt, NetworkFile, NumberList, Request, Setting, WeightedFile};
use crate::adapter::{AdapterChoice, LoraChoice, few_steps_of};
use crate::inputs::InputFile;

settings! {
    /// LoRAs, textual inversions, and networks beside or in the place of the model's.
    AdapterSettings, AdapterDraft, draft.adapters, by By<'_>, of |request: &Request| Some(&request.adapters);

    /// A LoRA or one of its kin, or its name in the LoRA folder; the second weight is the text encoders'; repeat for more
    lora: many WeightedFile => Setting {
        name: "lora", value: "FILE[:WEIGHT[:TEXT-WEIGHT]]", heading: Heading::Adapters, infotext: Some("LoRA"), limit: 64 << 30,
        ..Setting::IMAGE
    };

    /// Of a LoRA that does not fit the model as a whole, take what fits
    lora_partial: one bool = |_| false => Setting {
        name: "lora-partial", heading: Heading::Adapters, infotext: Some("LoRA partial"), off: Some("false"), ..Setting::IMAGE
    };

    /// A textual inversion, or its name in the embeddings folder; the file's name is the word; repeat for more
    embedding: many InputFile => Setting {
        name: "embedding", value: "FILE", heading: Heading::Adapters, infotext: Some("Embedding"), limit: 1 << 30, ..Setting::IMAGE
    };

    /// Another autoencoder: a file or a folder, or its name in the VAE folder; a tiny one (TAESD) too
    vae: maybe NetworkFile => Setting {
        name: "vae", hidden_aliases: &["sd-vae"], value: "FILE", heading: Heading::Adapters, infotext: Some("VAE"), limit: 64 << 30,
        ..Setting::IMAGE
    };

    /// A ControlNet and the image that it follows: MODEL,image=FILE, and weight=X, start=X, end=X (shares of the steps) and preprocess=NAME (canny, invert, tile, lineart, scribble or depth); depth-model=FILE is the network that depth needs; type=NAME is what a ControlNet Union is shown; a comma inside a name is written \,; repeat for more
    control: many ControlChoice => Setting {
        name: "control", value: "MODEL,image=FILE,…", example: "net.safetensors,image=edges.png,weight=0.5", heading: Heading::Adapters,
        infotext: Some("ControlNet 0"), limit: 64 << 30, ..Setting::IMAGE
    };

    /// An image as a prompt: an IP-Adapter, image=FILE, and weight=X, start=X, end=X (shares of the steps) and encoder=FOLDER (the image encoder, where it is not beside the adapter); repeat for more
    ip_adapter: many ImagePrompt => Setting {
        name: "ip-adapter", value: "MODEL,image=FILE,…", example: "ip-adapter.safetensors,image=portrait.png,weight=0.5",
        heading: Heading::Adapters, infotext: Some("IP-Adapter"), limit: 64 << 30, ..Setting::IMAGE
    };
}

impl AdapterSettings {
    /// What is asked of the model.
    pub fn choice(&self) -> AdapterChoice {
        let lora = |lora: &WeightedFile| LoraChoice {
            path: lora.file.path().to_owned(),
            weight: lora.weight(),
            text_weight: lora.second_weight(),
        };
        AdapterChoice {
            loras: self.lora.iter().map(lora).collect(),
            embeddings: self.embedding.iter().map(|file| file.path().to_owned()).collect(),
            partial: self.lora_partial,
        }
    }
}

impl Draft {
    /// With the steps, the guidance and the sampler of a LoRA that distils a model to a few steps, as far as nothing else was said.
    pub(super) fn with_few_steps(&self) -> Draft {
        let mut draft = self.clone();
        let used = draft.adapters.lora.iter().filter(|lora| lora.weight() != 0.0);
        let found = used.filter_map(|lora| few_steps_of(lora.file.path(), &lora.file.sha256()?)).next();
        let Some((few, why)) = found else { return draft };
        let said = &draft.scheduler;
        let levels = said.sigmas.is_some() || said.timesteps.is_some();
        if said.sampler.is_none() && said.config.is_none() {
            let own_spacing = said.schedule.is_none() && !levels;
            let own_list = own_spacing && draft.sampling.steps.is_none_or(|steps| steps == few.timesteps.len());
            let scheduler = &mut draft.scheduler;
            scheduler.sampler = Some(few.sampler.to_owned());
            scheduler.eta = scheduler.eta.or(few.eta);
            if own_spacing {
                scheduler.timestep_spacing = scheduler.timestep_spacing.or(few.spacing);
            }
            if own_list && !few.timesteps.is_empty() {
                scheduler.timesteps = Some(NumberList(few.timesteps.to_vec()));
            }
        }
        if draft.sampling.steps.is_none() && !levels {
            draft.sampling.steps = Some(few.steps);
        }
        draft.guidance.scale = draft.guidance.scale.or(few.guidance_scale);
        tracing::info!("{why} Settings that say otherwise win.");
        draft
    }
}
