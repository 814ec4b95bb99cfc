//! What holds for every row.

use super::*;
use std::collections::HashSet;

#[test]
fn names_and_letters_belong_to_one_setting_each() {
    let (mut names, mut letters, mut keys) = (HashSet::new(), HashSet::new(), HashSet::new());
    for row in table() {
        for name in [row.name].iter().chain(row.aliases).chain(row.hidden_aliases) {
            assert!(names.insert(fold(name)), "--{name} is there twice");
            assert_eq!(find(name).map(|found| found.name), Some(row.name));
        }
        assert!(row.short.is_none_or(|letter| letters.insert(letter)), "-{:?} is there twice", row.short);
        assert!(row.infotext.is_none_or(|key| keys.insert(key)), "{:?} is there twice", row.infotext);
        assert!(!row.help.is_empty() && !row.help.ends_with('.'), "--{}: the help is a sentence without its full stop", row.name);
        assert_eq!(row.value.is_empty(), row.kind.is_switch(), "--{}: a value has a name in the help", row.name);
        for other in row.conflicts.iter().chain(&row.requires) {
            assert!(find(other).is_some(), "--{}: there is no {other}", row.name);
        }
    }
}

#[test]
fn every_word_that_a_shell_completes_is_taken() {
    for row in table() {
        for word in (row.words)() {
            assert_eq!(row.check(&[word.into()]), Ok(()), "--{} {word}", row.name);
        }
    }
}

#[test]
fn what_does_not_go_with_apg_is_named_itself() {
    let spec = crate::family::well_known("sd15").unwrap();
    let refused = |rescale: f64, prompt: &str| {
        let draft = super::Draft::new(prompt).with(|draft| {
            draft.guidance.apg = Some(super::ProjectedGuidance { eta: 0.0, norm: 15.0, momentum: -0.5 });
            draft.guidance.rescale = Some(rescale);
        });
        draft.resolve(&spec).unwrap_err().to_string()
    };
    let said = refused(0.7, "a AND b");
    assert!(said.contains("guidance-rescale") && said.contains(": this does not go") && !said.contains("AND"), "{said}");
    let said = refused(0.0, "a AND b");
    assert!(said.contains("a prompt with AND does not go"), "{said}");
}

#[test]
fn self_attention_guidance_is_refused_where_it_cannot_guide() {
    let spec = |name| crate::family::well_known(name).unwrap();
    let with = |settings: &[(&str, &str)]| {
        let mut draft = super::Draft::new("a cat");
        for (name, value) in [("sag-scale", "0.75")].iter().chain(settings) {
            draft.set(name, [*value]).unwrap();
        }
        draft
    };
    let said = |settings: &[(&str, &str)], spec: &crate::spec::ModelSpec| with(settings).resolve(spec).unwrap_err().to_string();
    let mut hollow = spec("sd15");
    hollow.unet.mid = None;
    assert!(said(&[], &hollow).contains("sag-scale: needs a UNet with attention in its middle"), "{}", said(&[], &hollow));
    assert!(said(&[], &spec("sd3-medium")).contains("sag-scale"));
    let sd15 = spec("sd15");
    for cache in ["deepcache", "ucache", "tgate"] {
        assert!(said(&[("cache", cache)], &sd15).contains("sag-scale"));
    }
    assert!(said(&[("size", "32x512")], &sd15).contains("at least 40 pixels"));
    assert!(said(&[("hires", "2"), ("hires-window", "512")], &sd15).contains("hires-window"));
    let blur = |settings: &[(&str, &str)]| with(settings).resolve(&sd15).unwrap().guidance.sag_blur;
    assert_eq!(
        [&[][..], &[("like", "comfyui")], &[("sag-blur", "3")], &[("cache", "spectrum")]].map(blur),
        [Some(1.0), Some(2.0), Some(3.0), Some(1.0)]
    );
    // Without its scale it says nothing.
    assert_eq!(blur(&[("sag-scale", "0"), ("sag-blur", "3")]), None);
}
