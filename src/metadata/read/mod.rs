//! A reader for each dialect that tools write.
//!
//! # What is refused
//! A reader says nothing where the texts are not its own, and leaves out what it does not understand: no guess takes the place of a
//! value, and no prompt is made up.

pub(super) mod a1111;
mod comfyui;
mod draw_things;
mod inner;
mod invokeai;
mod mochi;
mod novelai;
mod objects;

pub(super) use a1111::pairs;

use super::containers::Text;
use super::recipe::{Field, Recipe};

/// Nothing where the texts are not its own.
type Reader = fn(&[Text]) -> Option<Recipe>;

/// The first that understands the texts has them; who is easily mistaken for another comes first.
const READERS: &[Reader] = &[
    objects::read,
    draw_things::read,
    novelai::read,
    mochi::read,
    invokeai::read,
    comfyui::read,
    a1111::read,
    objects::read_keywords,
    objects::read_unnamed,
    a1111::read_prompt,
];

/// What the texts of an image mean.
pub fn understand(texts: &[Text]) -> Option<Recipe> {
    let texts = inner::with_inner_texts(texts);
    let mut recipe = READERS.iter().find_map(|reader| reader(&texts))?;
    split_schedule(&mut recipe);
    Some(recipe)
}

/// What a graph of ComfyUI's means, as its API is sent it.
pub fn understand_graph(graph: &str) -> Option<Recipe> {
    let mut recipe = comfyui::read(&[Text::new("the request", "prompt", graph)])?;
    split_schedule(&mut recipe);
    Some(recipe)
}

/// The text under one of the keywords, which are tried in order.
fn text<'a>(texts: &'a [Text], keywords: &[&'static str]) -> Option<&'a str> {
    texts_under(texts, keywords).next()
}

/// All texts under the keywords, in the keywords' order.
fn texts_under<'a>(texts: &'a [Text], keywords: &[&'static str]) -> impl Iterator<Item = &'a str> {
    keywords.iter().flat_map(|keyword| texts.iter().filter(move |text| text.keyword == *keyword)).map(|text| text.text.as_str())
}

/// Words that end a sampler's name and name a schedule.
const SCHEDULE_WORDS: &[&str] = &[
    "polyexponential",
    "sgm_uniform",
    "sgm uniform",
    "ddim_uniform",
    "kl_optimal",
    "linear_quadratic",
    "align_your_steps",
    "bong_tangent",
    "smoothstep",
    "exponential",
    "discrete",
    "default",
    "trailing",
    "karras",
    "simple",
    "normal",
    "beta",
    "gits",
    "ays",
];

/// `DPM++ 2M Karras`, `euler_simple` and `Euler A Trailing` name a sampler and a schedule.
fn split_schedule(recipe: &mut Recipe) {
    if recipe.get(Field::Schedule).is_some_and(|schedule| !schedule.eq_ignore_ascii_case("automatic")) {
        return;
    }
    let Some(sampler) = recipe.get(Field::Sampler) else { return };
    let ends = |word: &&str| {
        let at = sampler.len().checked_sub(word.len())?;
        let (name, end) = sampler.split_at_checked(at)?;
        let name = name.strip_suffix([' ', '_'])?;
        end.eq_ignore_ascii_case(word).then(|| (name.trim_end().to_owned(), end.to_owned()))
    };
    if let Some((name, schedule)) = SCHEDULE_WORDS.iter().find_map(ends) {
        recipe.fields.insert(Field::Sampler, name);
        recipe.fields.insert(Field::Schedule, schedule);
    }
}
