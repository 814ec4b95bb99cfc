//! What becomes of a prompt before it is read: styles, and templates that stand for many prompts.

use super::{Draft, Setting, SourcePath};
use crate::prompt::StyleSheet;
use crate::prompt::dynamic::{Template, Wildcards};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Prompts that a template is listed to.
const MOST_COMBINATIONS: usize = 10_000;

/// Where A1111 keeps its styles.
const STYLES: &str = "styles.csv";

settings! {
    /// What becomes of a prompt before it is read; a request holds the outcome, its prompt.
    TemplateDraft, draft.template;

    /// Generate again what an image's metadata says, by the rules of the tool that made it; other flags still win
    recreate: maybe SourcePath => Setting { name: "recreate", value: "FILE", ..Setting::IMAGE };

    /// Read prompts as templates: {a|b}, {2$$a|b|c}, {0.7::a|b}, __file__; each image draws by its seed, "all" makes every combination
    dynamic_prompts: maybe DynamicPrompts => Setting {
        name: "dynamic-prompts", value: "HOW", default: "off", bare: true, words: || vec!["draw", "all", "off"], ..Setting::IMAGE
    };

    /// The folder whose text files __name__ takes a line of; turns --dynamic-prompts on
    wildcards: maybe SourcePath => Setting { name: "wildcards", value: "DIR", ..Setting::IMAGE };

    /// A style of A1111's styles.csv, laid over prompt and negative prompt; repeat for more
    styles: many String => Setting { name: "style", hidden_aliases: &["styles"], value: "NAME", ..Setting::IMAGE };

    /// Where styles are
    styles_file: maybe SourcePath => Setting { name: "styles-file", value: "FILE", default: "./styles.csv", ..Setting::IMAGE };
}

/// What is made of `{a|b}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynamicPrompts {
    /// Nothing: it is text.
    Off,
    /// One of them, by each image's seed.
    Draw,
    /// All of them.
    All,
}

impl DynamicPrompts {
    fn from_name(name: &str) -> Result<Self, &'static str> {
        match name.to_ascii_lowercase().as_str() {
            // As a flag without a value is read, and as configuration files say it.
            "" | "draw" | "true" | "random" => Ok(Self::Draw),
            "all" | "combinatorial" => Ok(Self::All),
            "off" | "false" => Ok(Self::Off),
            _ => Err("give draw, all or off"),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Draw => "draw",
            Self::All => "all",
        }
    }
}

words!(DynamicPrompts, DynamicPrompts::from_name, DynamicPrompts::name);

/// Makes drafts of prompts that stand for others; reads each file of styles and each folder once.
#[derive(Debug, Default)]
pub struct PromptExpander {
    sheets: HashMap<PathBuf, StyleSheet>,
    folders: HashMap<PathBuf, Wildcards>,
    /// Wildcards without a file, which stay in the text.
    missing: Vec<String>,
}

impl PromptExpander {
    /// The drafts that `prompt` stands for in `draft`: itself, or one for each image or combination. `seed` is the first image's.
    ///
    /// # Errors
    /// A style, a file or a folder is not there, or a template makes no sense.
    pub fn expand(&mut self, draft: &Draft, prompt: &str, seed: u64) -> Result<Vec<Draft>> {
        let said = &draft.template;
        let (prompt, negative) = self.styled(draft, prompt)?;
        let with = |prompt: String, negative: Option<String>, seed: u64| {
            let mut made = draft.of_prompt(prompt, seed);
            made.text.negative_prompt = negative;
            made
        };
        let how = said.dynamic_prompts.unwrap_or(if said.wildcards.is_some() { DynamicPrompts::Draw } else { DynamicPrompts::Off });
        if how == DynamicPrompts::Off {
            return Ok(vec![with(prompt, negative, seed)]);
        }
        let template = Template::parse(&prompt)?;
        let negative_template = negative.as_deref().map(Template::parse).transpose()?;
        let wildcards = match said.wildcards.as_ref().map(|folder| folder.as_ref()) {
            Some(folder) => &*kept(&mut self.folders, folder, Wildcards::in_folder)?,
            None => &Wildcards::default(),
        };
        let mut missing = Vec::new();
        let negative_of = |missing: &mut Vec<String>, seed: u64, index: usize| -> Result<Option<String>> {
            let Some(template) = &negative_template else { return Ok(None) };
            let (text, without_file) = template.draw(wildcards, seed, index)?;
            missing.extend(without_file);
            Ok(Some(text))
        };
        let mut made = Vec::new();
        if how == DynamicPrompts::All {
            let all = template.combinations(wildcards, seed, MOST_COMBINATIONS)?;
            if all.cut {
                return Err(Error::setting(
                    "dynamic-prompts",
                    format!(
                        "all: the prompt stands for more than {MOST_COMBINATIONS} others; take fewer choices, or leave out \"all\" to draw"
                    ),
                ));
            }
            for (i, text) in all.texts.into_iter().enumerate() {
                made.push(with(text, negative_of(&mut missing, seed, i)?, seed));
            }
            missing.extend(all.missing);
        } else {
            // What draws nothing stays one request of many images.
            let is_plain = template.is_plain() && negative_template.as_ref().is_none_or(Template::is_plain);
            let images = if is_plain { 1 } else { draft.output.images.unwrap_or(1) };
            for i in 0..images {
                let seed = seed.wrapping_add(i as u64);
                let (text, without_file) = template.draw(wildcards, seed, i)?;
                missing.extend(without_file);
                let mut one = with(text, negative_of(&mut missing, seed, i)?, seed);
                if !is_plain {
                    one.output.images = Some(1);
                }
                made.push(one);
            }
        }
        missing.retain(|name| !self.missing.contains(name));
        self.missing.extend(missing);
        Ok(made)
    }

    /// What the user should know of the prompts so far, each once.
    pub fn remarks(&mut self) -> Vec<String> {
        let mut missing = std::mem::take(&mut self.missing);
        missing.dedup();
        missing
            .into_iter()
            .map(|name| format!("no wildcard is called __{name}__, which stays in the prompt; `wildcards` names their folder"))
            .collect()
    }

    /// The prompt and the negative prompt with their styles.
    fn styled(&mut self, draft: &Draft, prompt: &str) -> Result<(String, Option<String>)> {
        let said = &draft.template;
        let mut texts = (prompt.to_owned(), draft.text.negative_prompt.clone());
        if said.styles.is_empty() {
            return Ok(texts);
        }
        let path = said.styles_file.as_ref().map_or(Path::new(STYLES), |file| file.as_ref());
        if said.styles_file.is_none() && !path.exists() {
            return Err(Error::setting("style", format!("{}: there is no {STYLES} here; name it with `styles-file`", said.styles[0])));
        }
        let sheet = kept(&mut self.sheets, path, StyleSheet::read)?;
        for name in &said.styles {
            let style = sheet.get(name).ok_or_else(|| {
                let names: Vec<&str> = sheet.names().take(40).collect();
                Error::setting("style", format!("{name}: {} has no such style; it has {}", path.display(), names.join(", ")))
            })?;
            let (prompt, negative) = style.apply(&texts.0, texts.1.as_deref().unwrap_or_default());
            let is_said = texts.1.is_some() || !negative.is_empty();
            texts = (prompt, is_said.then_some(negative));
        }
        Ok(texts)
    }
}

fn kept<'a, T>(known: &'a mut HashMap<PathBuf, T>, path: &Path, read: fn(&Path) -> Result<T>) -> Result<&'a mut T> {
    Ok(match known.entry(path.to_owned()) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => entry.insert(read(path)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Seed;

    fn texts(drafts: &[Draft]) -> Vec<&str> {
        drafts.iter().map(|draft| draft.prompts[0].as_str()).collect()
    }

    #[test]
    fn a_template_is_a_draft_for_each_image_or_combination() {
        let mut expander = PromptExpander::default();
        let plain = Draft::new("x {a|b}").with(|draft| draft.output.images = Some(8));
        let same = expander.expand(&plain, "x {a|b}", 3).unwrap();
        assert_eq!((texts(&same), same[0].output.images), (vec!["x {a|b}"], Some(8)));
        let drawn = plain.clone().with(|draft| draft.template.dynamic_prompts = Some(DynamicPrompts::Draw));
        let made = expander.expand(&drawn, "x {a|b}", 3).unwrap();
        assert_eq!((made.len(), made[7].seed, made[7].output.images), (8, Some(Seed::Is(10)), Some(1)));
        assert!(texts(&made).contains(&"x a") && texts(&made).contains(&"x b"));
        assert_eq!(expander.expand(&drawn, "no choice", 3).unwrap()[0].output.images, Some(8));
        let all = plain.with(|draft| draft.template.dynamic_prompts = Some(DynamicPrompts::All));
        assert_eq!(texts(&expander.expand(&all, "{a|b} {c|__d__}", 3).unwrap()), ["a c", "a __d__", "b c", "b __d__"]);
        assert!(expander.remarks()[0].contains("__d__") && expander.remarks().is_empty());
        let said = expander.expand(&all, &"{a|b|c|d|e|f|g|h}".repeat(6), 3).unwrap_err().to_string();
        assert!(said.contains("more than 10000"), "{said}");
    }

    #[test]
    fn styles_and_wildcards_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let styles = folder.path().join("my.csv");
        std::fs::write(&styles, "name,prompt,negative_prompt\nink,\"{prompt}, ink\",\nbad,,blurry\n").unwrap();
        std::fs::write(folder.path().join("colour.txt"), "red\n").unwrap();
        let mut expander = PromptExpander::default();
        let mut draft = Draft::new("a __colour__ cat");
        draft.template.styles = vec!["ink".into(), "bad".into()];
        draft.template.styles_file = Some(SourcePath(styles));
        draft.template.wildcards = Some(SourcePath(folder.path().into()));
        let made = expander.expand(&draft, "a __colour__ cat", 1).unwrap();
        assert_eq!((texts(&made), made[0].text.negative_prompt.as_deref()), (vec!["a red cat, ink"], Some("blurry")));
        draft.template.styles.push("none".into());
        let said = expander.expand(&draft, "a", 1).unwrap_err().to_string();
        assert!(said.contains("no such style; it has ink, bad"), "{said}");
    }
}
