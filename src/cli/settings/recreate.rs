//! `--recreate FILE`: what an image's metadata says, under what else is said.

use super::args::GenerateArgs;
use crate::inputs::InputFile;
use crate::metadata::{self, recreation};
use crate::settings::{Draft, Effect, table};
use crate::{Error, Result};
use clap::{Args, FromArgMatches};
use std::path::Path;

/// The draft with what the image of `--recreate` says wherever the draft says nothing, and what to tell of it; the draft itself where
/// there is no such image.
///
/// # Errors
/// [`Error::Setting`]: the file cannot be read, or says nothing that is understood.
pub(in crate::cli) fn recreated(said: Draft) -> Result<(Draft, Vec<String>)> {
    let Some(file) = said.template.recreate.clone().map(|file| file.0) else { return Ok((said, Vec::new())) };
    let (base, remarks) = recreated_alone(&file)?;
    Ok((over(&said, base)?, remarks))
}

/// What the image's metadata says, and what to tell of it: first the command that it becomes.
///
/// # Errors
/// As [`recreated`].
pub(in crate::cli) fn recreated_alone(file: &Path) -> Result<(Draft, Vec<String>)> {
    let shown = file.display();
    let wrong = |what: String| Error::setting("recreate", format!("{shown}: {what}"));
    let image = metadata::read(file).map_err(|error| wrong(error.to_string()))?;
    let recipe = image
        .and_then(|image| image.recipe)
        .ok_or_else(|| wrong("says nothing of its making that is understood here; `sd-gen inspect` shows what stands in it".into()))?;
    let command = recreation(&recipe);
    if command.arguments.is_empty() {
        return Err(wrong(command.notes.first().cloned().unwrap_or_else(|| "says nothing that can be made again".into())));
    }
    let mut remarks = vec![format!("{shown}, made by {}: {}", recipe.tool, command.shell())];
    remarks.extend(command.notes.iter().map(|note| format!("{shown}: {note}")));
    let program = GenerateArgs::augment_args(clap::Command::new("sd-gen"));
    let typed = std::iter::once("sd-gen".to_owned()).chain(command.arguments);
    let matches = program.try_get_matches_from(typed).map_err(|error| wrong(error.to_string()))?;
    let GenerateArgs(mut base) = GenerateArgs::from_arg_matches(&matches).map_err(|error| wrong(error.to_string()))?;
    find_beside(file, &mut base);
    Ok((base, remarks))
}

/// Files that the image names without their folders may lie beside it.
fn find_beside(image: &Path, draft: &mut Draft) {
    let folder = image.parent().unwrap_or(Path::new(""));
    for row in table() {
        for file in (row.access.files)(draft) {
            let beside = folder.join(file.path());
            if !file.path().exists() && beside.exists() {
                *file = InputFile::named(&beside);
            }
        }
    }
}

/// What was said, over `base`.
fn over(said: &Draft, mut base: Draft) -> Result<Draft> {
    if said.scheduler.sampler.is_some() || said.scheduler.config.is_some() {
        // Those are another sampler's.
        (base.scheduler.eta, base.scheduler.options) = (None, Vec::new());
    }
    if said.scheduler.sigmas.is_some() || said.scheduler.timesteps.is_some() {
        (base.scheduler.sigmas, base.scheduler.timesteps, base.sampling.steps) = (None, None, None);
    }
    if said.sampling.steps.is_some() {
        (base.scheduler.sigmas, base.scheduler.timesteps) = (None, None);
    }
    for row in table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File)) {
        let values = (row.access.given)(said);
        if !values.is_empty() {
            let values: Vec<std::ffi::OsString> = values.into_iter().map(Into::into).collect();
            (row.access.read)(&mut base, &values).map_err(|(_, what)| Error::setting(row.name, format!(": {what}")))?;
        }
    }
    (base.run, base.template) = (said.run.clone(), said.template.clone());
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ScheduleChoice, Seed};

    fn image(folder: &Path) -> std::path::PathBuf {
        let text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5, Seed: 7, \
                    Size: 64x64, Model: some, Eta: 0.5, Version: v1.10.1";
        let path = folder.join("a.png");
        let file = std::fs::File::create(&path).unwrap();
        crate::image::write_png(&::image::RgbImage::new(8, 8), &[("parameters", text.into())], &mut &file).unwrap();
        path
    }

    #[test]
    fn what_is_said_beats_what_the_image_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        let mut said = Draft::default();
        said.set("recreate", [path.as_os_str()]).unwrap();
        said.set("seed", ["9"]).unwrap();
        said.set("quiet", ["true"]).unwrap();
        let (draft, remarks) = recreated(said.clone()).unwrap();
        assert_eq!((draft.prompts.as_slice(), draft.seed), (["a cat".to_owned()].as_slice(), Some(Seed::Is(9))));
        assert_eq!((draft.sampling.steps, draft.scheduler.eta, draft.run.quiet), (Some(20), Some(0.5), Some(true)));
        assert!(remarks[0].contains("AUTOMATIC1111") && remarks[0].contains("--like a1111"), "{remarks:?}");
        // The eta was the other sampler's.
        said.set("sampler", ["euler"]).unwrap();
        said.set("schedule", ["automatic"]).unwrap();
        let (draft, _) = recreated(said).unwrap();
        assert_eq!((draft.scheduler.eta, draft.scheduler.schedule), (None, Some(ScheduleChoice::Automatic)));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.png");
        ::image::RgbImage::new(8, 8).save(&path).unwrap();
        for file in [path, folder.path().join("absent.png")] {
            let mut said = Draft::default();
            said.set("recreate", [file.as_os_str()]).unwrap();
            let error = recreated(said).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert!(recreated(Draft::new("a cat")).unwrap().1.is_empty());
    }
}
