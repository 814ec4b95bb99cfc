use super::*;
use crate::prompt::tests::{entries, recorded};
use std::collections::{BTreeMap, BTreeSet};

fn recorded_wildcards() -> Wildcards {
    let files: BTreeMap<String, Vec<String>> = serde_json::from_value(recorded()["wildcards"].clone()).unwrap();
    Wildcards::of(files)
}

#[test]
fn templates_become_what_dynamicprompts_makes_of_them() {
    let wildcards = recorded_wildcards();
    let entries = entries("dynamic");
    assert!(entries.len() > 90);
    for (_, entry) in entries {
        let text = entry["template"].as_str().unwrap();
        let template = Template::parse(text);
        if !entry["combinations_error"].is_null() {
            assert!(template.is_err(), "{text:?}");
            continue;
        }
        let template = template.unwrap();
        let wanted: Vec<String> = serde_json::from_value(entry["combinations"].clone()).unwrap();
        let cut = entry["cut"] == true;
        let most = if cut { wanted.len() } else { 1000 };
        let made = template.combinations(&wildcards, 7, most).unwrap();
        match entry["endless"] == true {
            // A part that is drawn gives texts without end there, and here one.
            true => assert!(made.texts.iter().all(|text| wanted.contains(text)), "{text:?}: {made:?}"),
            false => assert_eq!((made.texts, made.cut), (wanted, cut), "{text:?}"),
        }
        let Some(frequencies) = entry["random"].as_object() else { continue };
        let count = 3000;
        let mut drawn: BTreeMap<String, usize> = BTreeMap::new();
        for seed in 0..count {
            *drawn.entry(template.draw(&wildcards, seed as u64, seed).unwrap().0).or_default() += 1;
        }
        // A variable that is drawn at once was drawn ten times there, and not 3000 times.
        let loose = if text.contains("=!") { 1.0 } else { 0.0 };
        for text in frequencies.keys().chain(drawn.keys()).collect::<BTreeSet<_>>() {
            let wanted = frequencies.get(text).and_then(serde_json::Value::as_f64);
            let got = *drawn.get(text).unwrap_or(&0) as f64 / count as f64;
            match wanted {
                // Two counts of 3000 drawings each are apart by less than five of their deviations.
                Some(wanted) => {
                    let deviation = (2.0 * wanted * (1.0 - wanted) / count as f64).sqrt();
                    assert!((wanted - got).abs() <= 5.0 * deviation + 0.002 + loose, "{:?}: {text:?} {wanted} {got}", entry["template"]);
                }
                None => assert!(got < 0.01, "{:?}: {text:?} is drawn here only, {got}", entry["template"]),
            }
        }
    }
}

#[test]
fn text_that_opens_nothing_is_text() {
    for text in ["100% real", "5$ and $5", "a __ b", "snake__case", "{a|b%}", "a}b", "50%%", "$", "%", "_", "__"] {
        let template = Template::parse(text).unwrap();
        let made = template.combinations(&Wildcards::default(), 0, 9).unwrap().texts;
        let wanted: Vec<&str> = if text == "{a|b%}" { vec!["a", "b%"] } else { vec![text] };
        assert_eq!(made, wanted);
    }
}

#[test]
fn a_seed_draws_the_same_text_again() {
    let template = Template::parse("{a|b|c|d} {1-3$$x|y|z} __f__").unwrap();
    let wildcards = Wildcards::of([("f".to_owned(), ["1", "2", "3"].map(String::from).to_vec())]);
    let all: Vec<String> = (0..64).map(|seed| template.draw(&wildcards, seed, 0).unwrap().0).collect();
    assert_eq!(all, (0..64).map(|seed| template.draw(&wildcards, seed, 0).unwrap().0).collect::<Vec<_>>());
    assert!(all.iter().collect::<BTreeSet<_>>().len() > 40);
    let cycle = Template::parse("{@a|b|c}").unwrap();
    assert_eq!((0..4).map(|i| cycle.draw(&wildcards, 1, i).unwrap().0).collect::<Vec<_>>(), ["a", "b", "c", "a"]);
}

#[test]
fn what_makes_no_sense_is_said() {
    let wildcards = Wildcards::of([("self".to_owned(), vec!["__self__".to_owned()]), ("broken".to_owned(), vec!["{a".to_owned()])]);
    for (text, said) in [
        ("a {b|c", "this `{` is never closed; close it with `}`\n  a {b|c\n    ^"),
        ("{2$$$$a|b}", "no sense within braces"),
        ("${", "a variable"),
        ("${x=a|b}", "does not end"),
        ("%{a}", "a wrapper"),
        ("{-1::a|b}", "below 0"),
    ] {
        let error = Template::parse(text).unwrap_err().to_string();
        assert!(error.contains(said), "{text:?}: {error}");
    }
    for (text, said) in [
        ("__self__", "leads to itself"),
        ("{2$$__self__}", "leads to itself"),
        ("__broken__", "a line of the wildcard __broken__"),
        ("${x}", "${x} has no value"),
        ("${x=${x}}${x}", "leads to itself"),
        ("__../secret__", "out of the folder"),
    ] {
        let template = Template::parse(text).unwrap();
        for error in [template.draw(&wildcards, 0, 0).unwrap_err(), template.combinations(&wildcards, 0, 10).unwrap_err()] {
            assert!(error.to_string().contains(said), "{text:?}: {error}");
        }
    }
    let drawn = Template::parse("{0::a|0::b}").unwrap().draw(&wildcards, 0, 0).unwrap_err().to_string();
    assert!(drawn.contains("weight 0"), "{drawn}");
    let many = "{a|b|c|d|e|f|g|h|i|j}".repeat(12);
    let made = Template::parse(&many).unwrap().combinations(&wildcards, 0, 5).unwrap();
    assert_eq!((made.texts.len(), made.cut), (5, true));
}

#[test]
fn files_of_a_folder_are_wildcards() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("deep/er")).unwrap();
    std::fs::write(folder.path().join("colour.txt"), "red\r\n# no\n\n  blue \n").unwrap();
    std::fs::write(folder.path().join("deep/er/size.txt"), b"big\xFF\n").unwrap();
    std::fs::write(folder.path().join("other.md"), "no").unwrap();
    let wildcards = Wildcards::in_folder(folder.path()).unwrap();
    assert_eq!(wildcards.values("colour").unwrap(), ["blue", "red"]);
    // A name without its folder is found as well.
    assert_eq!(wildcards.values("size").unwrap(), ["big"]);
    assert_eq!(wildcards.values("deep\\er\\s[a-j]z?").unwrap(), ["big"]);
    assert!(wildcards.values("other").unwrap().is_empty());
    let (text, missing) = Template::parse("__nothing__ __colour__").unwrap().draw(&wildcards, 3, 0).unwrap();
    assert!(text.starts_with("__nothing__ ") && missing == ["nothing"]);
    assert!(Wildcards::in_folder(&folder.path().join("none")).is_err());
}
