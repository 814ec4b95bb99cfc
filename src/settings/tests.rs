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
