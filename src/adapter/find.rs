//! Finds adapters by the names that people write.

use crate::weights::{CatalogKind, Found, find_models, with_network_folders};
use crate::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders in which other tools keep upscalers.
pub const UPSCALER_FOLDERS: &[&str] = &["upscalers", "upscale_models", "ESRGAN", "RealESRGAN", "SwinIR", "SPAN", "Compact"];

/// Folders in which files of one kind are looked for.
#[derive(Debug, Clone)]
pub struct AdapterFolders {
    /// "LoRA", "embedding" and so on.
    kind: &'static str,
    /// What to do where there is no folder.
    hint: &'static str,
    /// Of networks, which may be folders.
    networks: bool,
    folders: Vec<PathBuf>,
    /// What lies there, once it was asked for.
    found: OnceLock<Vec<Found>>,
}

impl AdapterFolders {
    /// The folders in which LoRAs are looked for: the one that was named, or those that other tools have beside and inside the models
    /// folder.
    pub fn loras(named: Option<&Path>, models: &Path) -> Self {
        Self::new("LoRA", "name one with `lora-dir`", false, named, models, &["loras", "Lora", "lora", "LyCORIS"])
    }

    /// The same of textual inversions.
    pub fn embeddings(named: Option<&Path>, models: &Path) -> Self {
        Self::new("embedding", "name one with `embeddings-dir`", false, named, models, &["embeddings"])
    }

    /// The same of autoencoders, which may be folders.
    pub fn vaes(models: &Path) -> Self {
        Self::new("VAE", "give its path", true, None, models, &["VAE", "vae", "VAE-approx", "vae_approx"])
    }

    /// The same of ControlNets.
    pub fn control_nets(models: &Path) -> Self {
        Self::new("ControlNet", "give its path", true, None, models, &["ControlNet", "controlnet", "control_net"])
    }

    /// The same of IP-Adapters.
    pub fn ip_adapters(models: &Path) -> Self {
        Self::new("IP-Adapter", "give its path", true, None, models, &["ip-adapter", "ipadapter", "ip_adapter"])
    }

    /// The same of networks that estimate depth.
    pub fn depth_networks(models: &Path) -> Self {
        const USUAL: &[&str] = &["depth", "depthanything", "depth_anything", "depth_anything_v2", "DepthAnything"];
        Self::new("depth network", "give its path or its hub id", true, None, models, USUAL)
    }

    /// The same of networks that enlarge images.
    pub fn upscalers(models: &Path) -> Self {
        Self::new("upscaler", "give its path", false, None, models, UPSCALER_FOLDERS)
    }

    /// Those of every kind in their usual places.
    pub fn of_every_kind(models: &Path) -> [Self; 7] {
        [
            Self::loras(None, models),
            Self::embeddings(None, models),
            Self::vaes(models),
            Self::control_nets(models),
            Self::ip_adapters(models),
            Self::depth_networks(models),
            Self::upscalers(models),
        ]
    }

    fn new(kind: &'static str, hint: &'static str, networks: bool, named: Option<&Path>, models: &Path, usual: &[&str]) -> Self {
        let folders = match named {
            Some(folder) => vec![folder.to_owned()],
            None => {
                let beside = models.parent().unwrap_or(Path::new(""));
                let all = usual.iter().flat_map(|name| [models.join(name), beside.join(name)]);
                // Where case does not matter, two names are one folder.
                let mut seen = HashSet::new();
                all.filter(|folder| folder.is_dir() && seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone()))).collect()
            }
        };
        Self { kind, hint, networks, folders, found: OnceLock::new() }
    }

    /// The folders.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Everything in the folders that can be named.
    pub fn all(&self) -> &[Found] {
        self.found.get_or_init(|| self.folders.iter().flat_map(|folder| self.inside(folder)).collect())
    }

    /// The same, under names that begin with their folder's: `loras/detail`.
    pub fn listed(&self) -> Vec<Found> {
        let of = |folder: &PathBuf| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.inside(folder).into_iter().map(move |found| Found { name: format!("{name}/{}", found.name), ..found })
        };
        self.folders.iter().flat_map(of).collect()
    }

    fn inside(&self, folder: &Path) -> Vec<Found> {
        let found = find_models(folder);
        let found = if self.networks { with_network_folders(found) } else { found };
        let is_ours = |found: &Found| found.holds == CatalogKind::File || self.networks && found.holds == CatalogKind::Folder;
        found.into_iter().filter(is_ours).collect()
    }

    /// The file that `name` names: a path, or a file's name in one of the folders, with or without its ending and its folder there.
    ///
    /// # Errors
    /// Nothing of that name, or more than one; the message lists what there is.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.is_file() || self.networks && path.is_dir() {
            return Ok(path.to_owned());
        }
        let inside = || self.folders.iter().map(|folder| folder.join(name)).find(|folder| folder.join("config.json").is_file());
        if let Some(folder) = self.networks.then(inside).flatten() {
            return Ok(folder);
        }
        self.named(name)
    }

    /// The file of that name in one of the folders: what stands in a prompt names no path.
    ///
    /// # Errors
    /// As [`AdapterFolders::find`].
    pub fn named(&self, name: &str) -> Result<PathBuf> {
        let all = self.all();
        let wanted = name.strip_suffix(".safetensors").unwrap_or(name);
        // With the folder's own name before it, as lists of files have it.
        let of_folder = |folder: &PathBuf| wanted.strip_prefix(&*folder.file_name()?.to_string_lossy())?.strip_prefix('/');
        let wanted = self.folders.iter().find_map(of_folder).unwrap_or(wanted);
        let last = |found: &Found| found.name.rsplit('/').next().unwrap_or_default().to_owned();
        let same = |is: &dyn Fn(&str) -> bool| -> Vec<&Found> { all.iter().filter(|found| is(&found.name) || is(&last(found))).collect() };
        let exact = same(&|own| own == wanted);
        let chosen = if exact.is_empty() { same(&|own| own.eq_ignore_ascii_case(wanted)) } else { exact };
        let names = |found: &[&Found]| {
            const MOST: usize = 40;
            let more = if found.len() > MOST { format!(" and {} more", found.len() - MOST) } else { String::new() };
            format!("{}{more}", found.iter().take(MOST).map(|found| found.name.as_str()).collect::<Vec<_>>().join(", "))
        };
        let (kind, hint) = (self.kind, self.hint);
        match chosen.as_slice() {
            [only] => Ok(only.path.clone()),
            [] if self.folders.is_empty() => {
                Err(Error::Input(format!("there is no {kind} {name:?}: no such file, and no folder of them; {hint}")))
            }
            [] => {
                let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
                let there = names(&all.iter().collect::<Vec<_>>());
                let there = if there.is_empty() { "nothing".to_owned() } else { there };
                Err(Error::Input(format!("there is no {kind} {name:?}: no such file; in {}: {there}", folders.join(", "))))
            }
            several => Err(Error::Input(format!("several files are called {name:?}; say which {kind}: {}", names(several)))),
        }
    }
}
