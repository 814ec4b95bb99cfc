//! Where the files of adapters, and of networks beside a model, are looked for by name.

use super::download::{self, DownloadStyle};
use super::named::models_folder;
use super::pass_files::PassFiles;
use crate::adapter::AdapterFolders;
use crate::hub::HubId;
use crate::image::Preprocessor;
use crate::inputs::InputFile;
use crate::prompt::{LoraTag, NetworkTag};
use crate::settings::{Draft, LoadSettings, SourcePath, WeightedFile};
use crate::weights::{DepthFile, find_image_encoder};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where adapters are looked for by the names that people write.
pub(in crate::cli) struct AdapterFinder {
    loras: AdapterFolders,
    pub(super) embeddings: AdapterFolders,
    passes: PassFiles,
    vaes: AdapterFolders,
    control_nets: AdapterFolders,
    ip_adapters: AdapterFolders,
    depths: DepthFinder,
}

impl AdapterFinder {
    pub(in crate::cli) fn new(settings: &LoadSettings) -> Self {
        let folder = |named: &Option<SourcePath>| named.as_ref().map(|folder| folder.0.clone());
        let (models, _) = models_folder(folder(&settings.models_dir).as_deref());
        Self {
            loras: AdapterFolders::loras(folder(&settings.lora_dir).as_deref(), &models),
            embeddings: AdapterFolders::embeddings(folder(&settings.embeddings_dir).as_deref(), &models),
            vaes: AdapterFolders::vaes(&models),
            control_nets: AdapterFolders::control_nets(&models),
            ip_adapters: AdapterFolders::ip_adapters(&models),
            depths: DepthFinder::new(&models),
            passes: PassFiles::new(models, folder(&settings.models_dir)),
        }
    }

    /// A depth network that is named by its hub id is fetched, where it is not here. Not for what comes from elsewhere.
    pub(in crate::cli) fn downloading(self, showing: DownloadStyle) -> Self {
        Self { depths: self.depths.downloading(showing), ..self }
    }

    /// Adds the LoRAs of `<lora:name:weight>` in the prompt. One that a flag names too has the flag's weights, so that the command of an
    /// image, which has both, generates it again.
    fn find_tags(&self, draft: &mut Draft) -> Result<()> {
        let syntax = draft.prompt_syntax();
        let flags: Vec<PathBuf> = draft.adapters.lora.iter().map(|lora| lora.file.path().to_owned()).collect();
        let tags = draft.prompts.iter().flat_map(|prompt| NetworkTag::of_prompt(prompt, syntax));
        for tag in tags.filter_map(|tag| tag.as_lora()).collect::<Vec<_>>() {
            let LoraTag { name, text_weight, unet_weight, rank } = tag?;
            if rank.is_some() {
                return Err(Error::Input(format!(
                    "<lora:{name}:…> in the prompt: a LoRA is not cut to a rank; leave the fourth value out"
                )));
            }
            let found = self.loras.named(&name)?;
            if !flags.contains(&found) {
                draft.adapters.lora.push(WeightedFile { file: InputFile::named(&found), weights: vec![unet_weight, text_weight] });
            }
        }
        Ok(())
    }

    /// Finds the files of adapters, upscalers and a refiner that a draft names.
    ///
    /// # Errors
    /// There is no file of a name, or more than one.
    pub(in crate::cli) fn find(&self, draft: &mut Draft) -> Result<()> {
        let one = |setting: &'static str, folders: &AdapterFolders, file: &mut InputFile| -> Result<()> {
            let found = folders.find(&file.path().to_string_lossy()).map_err(|error| match error {
                Error::Input(what) => Error::setting(setting, format!(": {what}")),
                error => error,
            })?;
            if found != file.path() {
                *file = file.found_at(&found);
            }
            Ok(())
        };
        draft.adapters.lora.iter_mut().try_for_each(|lora| one("lora", &self.loras, &mut lora.file))?;
        draft.adapters.embedding.iter_mut().try_for_each(|file| one("embedding", &self.embeddings, file))?;
        draft.adapters.vae.iter_mut().try_for_each(|vae| one("vae", &self.vaes, &mut vae.0))?;
        draft.adapters.control.iter_mut().try_for_each(|control| one("control", &self.control_nets, &mut control.model))?;
        for control in draft.adapters.control.iter_mut().filter(|control| control.preprocess == Some(Preprocessor::Depth)) {
            let found = self.depths.find(control.depth_model.as_ref().map(InputFile::path))?;
            // A second look finds it at its path, and its name stays.
            if control.depth_model.as_ref().map(InputFile::path) != Some(found.path()) {
                control.depth_model = Some(found);
            }
        }
        for prompt in &mut draft.adapters.ip_adapter {
            one("ip-adapter", &self.ip_adapters, &mut prompt.model)?;
            // Named or not, it decides the pixels.
            let encoder = find_image_encoder(prompt.model.path(), prompt.encoder.as_ref().map(InputFile::path))?;
            prompt.encoder = Some(InputFile::of_network(&encoder));
        }
        self.find_tags(draft)?;
        self.passes.find(draft)
    }
}

/// Where depth networks are.
pub(in crate::cli) struct DepthFinder {
    folders: AdapterFolders,
    downloads: Option<DownloadStyle>,
    /// Those that the hub was asked for, by their ids.
    fetched: Mutex<HashMap<String, PathBuf>>,
}

impl DepthFinder {
    /// In folders in and beside that of the models.
    pub(in crate::cli) fn new(models: &Path) -> Self {
        Self { folders: AdapterFolders::depth_networks(models), downloads: None, fetched: Mutex::default() }
    }

    /// What is not here is fetched from the hub.
    pub(in crate::cli) fn downloading(self, showing: DownloadStyle) -> Self {
        Self { downloads: Some(showing), ..self }
    }

    /// The file or folder of the network of this name, or of the only one. What came from the hub is called by its id.
    ///
    /// # Errors
    /// There is none, or several are as good.
    pub(in crate::cli) fn find(&self, named: Option<&Path>) -> Result<InputFile> {
        let file = |path: &Path| InputFile::of_network(&whole(path));
        let Some(named) = named else {
            return match self.folders.all() {
                [only] => Ok(file(&only.path)),
                [] => Err(Error::setting("control", format!(": {}", DepthFile::missing()))),
                several => {
                    let names: Vec<&str> = several.iter().map(|found| found.name.as_str()).collect();
                    let what = format!(": there are several depth networks; say which with depth-model=: {}", names.join(", "));
                    Err(Error::setting("control", what))
                }
            };
        };
        let name = named.to_string_lossy();
        let absent = match self.folders.find(&name) {
            Ok(found) => return Ok(file(&found)),
            Err(absent) => absent,
        };
        let id = HubId::parse(&name).map_err(|error| Error::Input(format!("depth-model {error}")))?;
        let (Some(showing), Some(id)) = (self.downloads, id) else { return Err(absent) };
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match fetched.get(&*name) {
            Some(path) => path.clone(),
            None => download::network(&id, showing)?,
        };
        fetched.insert(name.clone().into_owned(), path.clone());
        Ok(file(&path).called(name))
    }
}

/// The folder of a network's only file, where its configuration is beside it.
fn whole(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| path.ends_with("model.safetensors") && folder.join("config.json").is_file());
    folder.unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ControlChoice, Value};

    #[test]
    fn tags_in_the_prompt_are_loras_unless_a_flag_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/adapters/full.safetensors");
            std::fs::copy(from, folder.path().join(name).with_extension("safetensors")).unwrap();
        }
        let load = Draft::default().with(|draft| draft.load.lora_dir = Some(SourcePath(folder.path().into()))).load.decide(&());
        let finder = AdapterFinder::new(&load);
        let found = |change: &dyn Fn(&mut Draft)| {
            let mut draft = Draft::new("<lora:one:0.5:0.7> a <lora:two:te=0.2>").with(change);
            finder.find(&mut draft)?;
            let named = |lora: &WeightedFile| (lora.file.path().file_stem().unwrap().to_owned(), lora.weight(), lora.second_weight());
            Ok::<_, Error>(draft.adapters.lora.iter().map(named).collect::<Vec<_>>())
        };
        assert_eq!(found(&|_| {}).unwrap(), [("one".into(), 0.7, 0.5), ("two".into(), 0.2, 0.2)]);
        let flag = |draft: &mut Draft| draft.set("lora", ["two:0.9"]).unwrap();
        assert_eq!(found(&flag).unwrap(), [("two".into(), 0.9, 0.9), ("one".into(), 0.7, 0.5)]);
        assert!(found(&|draft| draft.set("prompt-syntax", ["plain"]).unwrap()).unwrap().is_empty());
        for (prompt, said) in [("<lora:none:1>", "no LoRA \"none\""), ("<lora:one:x>", "no weight"), ("<lora:one:1:1:8>", "rank")] {
            let error = found(&|draft| draft.prompts = vec![prompt.into()]).unwrap_err().to_string();
            assert!(error.contains(said), "{prompt}: {error}");
        }
        // A prompt names files in the folder only.
        let path = folder.path().join("one.safetensors").display().to_string();
        let elsewhere = AdapterFinder::new(&Draft::default().load.decide(&()));
        assert!(elsewhere.find(&mut Draft::new(format!("<lora:{path}:1>"))).is_err());
    }

    #[test]
    fn a_depth_network_of_the_hub_is_recorded_by_its_id() {
        let id = "org/depth-small";
        let network = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/depth/original.safetensors");
        let mut finder = AdapterFinder::new(&Draft::default().load.decide(&())).downloading(DownloadStyle::default());
        // As if it had been fetched.
        finder.depths.fetched = Mutex::new(HashMap::from([(id.to_owned(), network.clone())]));
        let mut draft = Draft::new("x");
        let typed = format!("net,image=x.png,preprocess=depth,depth-model={id}");
        draft.adapters.control = vec![ControlChoice::parse(&typed).unwrap()];
        draft.adapters.control[0].model = InputFile::named(&network);
        for look in ["first", "second"] {
            finder.find(&mut draft).unwrap();
            let found = draft.adapters.control[0].depth_model.clone().unwrap();
            assert_eq!((found.path(), found.typed().as_str(), found.public().as_str()), (network.as_path(), id, id), "the {look} look");
        }
    }
}
