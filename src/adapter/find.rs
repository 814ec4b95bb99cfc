//! Finds adapters by the names that people write.

use crate::weights::{CatalogKind, Found, find_models};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
        Self::new("LoRA", "name one with `lora-dir`", false, named, models, &["loras", "Lora", "lora"])
    }

    /// The same of textual inversions.
    pub fn embeddings(named: Option<&Path>, models: &Path) -> Self {
        Self::new("embedding", "name one with `embeddings-dir`", false, named, models, &["embeddings"])
    }

    /// The same of autoencoders, which may be folders.
    pub fn vaes(models: &Path) -> Self {
        Self::new("VAE", "give its path", true, None, models, &["VAE", "vae"])
    }

    /// The same of ControlNets.
    pub fn control_nets(models: &Path) -> Self {
        Self::new("ControlNet", "give its path", true, None, models, &["ControlNet", "controlnet"])
    }

    /// The same of IP-Adapters.
    pub fn ip_adapters(models: &Path) -> Self {
        Self::new("IP-Adapter", "give its path", true, None, models, &["ip-adapter", "ipadapter", "ip_adapter"])
    }

    fn new(kind: &'static str, hint: &'static str, networks: bool, named: Option<&Path>, models: &Path, usual: &[&str]) -> Self {
        let folders = match named {
            Some(folder) => vec![folder.to_owned()],
            None => {
                let beside = models.parent().unwrap_or(Path::new(""));
                let all = usual.iter().flat_map(|name| [models.join(name), beside.join(name)]);
                all.filter(|folder| folder.is_dir()).collect()
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
        self.found.get_or_init(|| {
            let found = self.folders.iter().flat_map(|folder| find_models(folder));
            found.filter(|found| found.holds == CatalogKind::File).collect()
        })
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
