use super::*;
use serde_json::Value;

/// The recorded answers: the file that `SD_GEN_PROMPTS` names, or the part of it that `tests/data/prompts/take_prompts.py` took.
pub(crate) fn recorded() -> Value {
    match std::env::var_os("SD_GEN_PROMPTS") {
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap(),
        None => serde_json::from_str(include_str!("../../tests/data/prompts/prompts.json")).unwrap(),
    }
}

/// The entries of one kind with their texts.
pub(crate) fn entries(kind: &str) -> Vec<(String, Value)> {
    let all = recorded()[kind].as_array().unwrap().clone();
    all.into_iter().map(|entry| (entry["text"].as_str().unwrap_or_default().to_owned(), entry)).collect()
}

fn a1111(steps: usize) -> PromptReading {
    PromptReading {
        syntax: PromptSyntax::A1111,
        emphasis: Emphasis::Original,
        scheduling: PromptScheduling::Current,
        steps,
        hires_steps: None,
        negative: false,
    }
}

fn pairs(value: &Value) -> Vec<(String, f64)> {
    let pair = |pair: &Value| (pair[0].as_str().unwrap().to_owned(), pair[1].as_f64().unwrap());
    value.as_array().unwrap().iter().map(pair).collect()
}

/// The texts are equal and the weights too; reading the record may change the last bit of one.
fn assert_same(understood: &[WeightedText], recorded: &Value, which: &str) {
    let recorded = pairs(recorded);
    assert_eq!(understood.len(), recorded.len(), "{which}: {understood:?}");
    for (piece, (text, weight)) in understood.iter().zip(&recorded) {
        assert!(
            piece.text == *text && (piece.weight - weight).abs() <= 1e-15 * weight.abs(),
            "{which}: {understood:?}, recorded {recorded:?}"
        );
    }
}

#[test]
fn weights_are_the_tools() {
    let entries = entries("attention");
    assert!(entries.len() > 100);
    for (text, entry) in entries {
        assert_same(&comfyui::parse(&text).unwrap(), &entry["comfyui"], &format!("ComfyUI: {text:?}"));
        let understood = attention::parse(&text).unwrap();
        match entry["a1111"].is_null() {
            // A1111 ends with an error: here the weight is text.
            true => assert_eq!(understood, [WeightedText::new(text.trim_matches(['(', ')']), 1.1)]),
            false => assert_same(&understood, &entry["a1111"], &format!("A1111: {text:?}")),
        }
    }
}

#[test]
fn timelines_are_a1111s() {
    let entries = entries("schedules");
    assert!(entries.len() > 80);
    for (text, entry) in entries {
        let steps = entry["steps"].as_u64().unwrap() as usize;
        let wanted = |key: &str| -> Vec<(usize, String)> {
            let pairs = entry[key].as_array().unwrap().iter();
            pairs.map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_str().unwrap().to_owned())).collect()
        };
        let reading = a1111(steps);
        assert_eq!(schedule::timeline(&text, &reading).unwrap(), wanted("schedule"), "{text:?}");
        let old = PromptReading { scheduling: PromptScheduling::Before1_6, ..reading };
        let key = if entry["before_1.6"].is_null() { "schedule" } else { "before_1.6" };
        assert_eq!(schedule::timeline(&text, &old).unwrap(), wanted(key), "before 1.6: {text:?}");
        if !entry["hires_10"].is_null() {
            let hires = PromptReading { hires_steps: Some(10), ..reading };
            assert_eq!(schedule::timeline(&text, &hires).unwrap(), wanted("hires_10"), "hires: {text:?}");
        }
    }
}

#[test]
fn conjunctions_are_a1111s() {
    for (text, entry) in entries("and") {
        assert_eq!(conjunction::split(&text), pairs(&entry["parts"]), "{text:?}");
    }
}

#[test]
fn tags_are_a1111s() {
    for (text, entry) in entries("networks") {
        let (left, tags) = networks::take(&text);
        assert_eq!(left, entry["prompt"].as_str().unwrap(), "{text:?}");
        // The record has them by their kinds.
        let mut recorded = entry["networks"].as_array().unwrap().clone();
        for tag in tags {
            let place = recorded.iter().position(|other| other["kind"] == tag.kind.as_str()).unwrap_or_else(|| panic!("{text:?}: {tag:?}"));
            let wanted = recorded.remove(place);
            assert_eq!(serde_json::json!(tag.items), wanted["items"], "{text:?}");
            assert_eq!(serde_json::json!(tag.positional().collect::<Vec<_>>()), wanted["positional"], "{text:?}");
            let named: serde_json::Map<String, Value> = tag.named().map(|(name, value)| (name.into(), value.into())).collect();
            assert_eq!(Value::Object(named), wanted["named"], "{text:?}");
            if tag.kind != "lora" {
                continue;
            }
            let lora = tag.as_lora().unwrap();
            if !wanted["error"].is_null() {
                let said = lora.unwrap_err().to_string();
                assert!(said.starts_with(&tag.written()), "{said}");
                continue;
            }
            let lora = lora.unwrap();
            let wanted_number = |key: &str| wanted[key].as_f64().unwrap();
            assert_eq!(lora.name, wanted["name"].as_str().unwrap());
            assert_eq!((lora.text_weight, lora.unet_weight), (wanted_number("text_weight"), wanted_number("unet_weight")), "{text:?}");
            assert_eq!(lora.rank, wanted["rank"].as_u64().map(|rank| rank as usize), "{text:?}");
        }
        assert!(recorded.is_empty(), "{text:?}: {recorded:?}");
    }
}

#[test]
fn comments_are_a1111s() {
    for (text, entry) in entries("comments") {
        assert_eq!(comments::strip(&text), entry["prompt"].as_str().unwrap(), "{text:?}");
    }
    assert_eq!(comments::strip("a\n#one\n#two\nb"), "a\n\nb");
}

#[test]
fn a_prompt_is_read_pass_by_pass() {
    let prompt = Prompt::parse("a [cat:dog:0.5] <lora:x:0.7> AND (b:1.2) :0.4 # no", a1111(10)).unwrap();
    let [first, second] = &prompt.parts[..] else { panic!("{prompt:?}") };
    assert_eq!((first.weight, second.weight), (1.0, 0.4));
    assert_eq!(first.timeline.iter().map(|entry| (entry.until, entry.text.as_str())).collect::<Vec<_>>(), [(5, "a cat"), (10, "a dog")]);
    // Until 5 means the calls 0 to 5; beyond the end A1111 starts over.
    assert_eq!([0, 5, 6, 10, 11].map(|call| first.at(call)), [0, 0, 1, 1, 0]);
    assert_eq!(second.timeline[0].words, [WeightedText::new(" ", 1.0), WeightedText::new("b", 1.2)]);
    assert_eq!(prompt.networks[0].as_lora().unwrap().unwrap().unet_weight, 0.7);
    let negative = Prompt::parse("a AND b <lora:x:1>", PromptReading { negative: true, ..a1111(10) }).unwrap();
    assert!(negative.is_constant() && negative.networks.is_empty());
    let plain = Prompt::parse("a (b:1.2) [c:d:5] # e", PromptReading { syntax: PromptSyntax::Plain, ..a1111(10) }).unwrap();
    assert_eq!(plain.parts[0].timeline[0].words, [WeightedText::new("a (b:1.2) [c:d:5] # e", 1.0)]);
    let none = Prompt::parse("a (b:1.2)", PromptReading { emphasis: Emphasis::None, ..a1111(10) }).unwrap();
    assert_eq!(none.parts[0].timeline[0].words, [WeightedText::new("a (b:1.2)", 1.0)]);
}

#[test]
fn slips_are_shown_with_a_caret() {
    let reading = a1111(20);
    for (text, wanted) in [
        (
            "a (red cat, mars",
            "this `(` is never closed: it weighs 1.1 times all that follows; close it with `)` or write `\\(`\n  a (red cat, mars\n    ^",
        ),
        ("café) here", "this `)` closes nothing, and is text\n  café) here\n      ^"),
        ("猫 ]", "this `]` closes nothing, and is text\n  猫 ]\n     ^"),
        (
            "a <lra:x:1>",
            "<lra:…> is no tag that is known, and is left out; the known ones are <lora:…> and <lyco:…>\n  a <lra:x:1>\n    ^^^^^^^^^",
        ),
        ("one\n(b:1,3)", "\"1,3\" is no weight, and is text; write a number such as 1.3\n  (b:1,3)\n    ^^^^"),
        (
            "a|b [c:d:5]",
            "a `|` outside of [a|b]: A1111 then reads no [from:to:when] and no [a|b] anywhere in the prompt; write `\\|`\n  a|b [c:d:5]\n   ^",
        ),
    ] {
        let prompt = Prompt::parse(text, reading).unwrap();
        assert_eq!(prompt.slips.iter().map(|slip| slip.show(text)).collect::<Vec<_>>(), [wanted]);
    }
    for text in ["a (b) [c] \\( (d:1.2) <lora:x:1> # (", "smile :\\)", "[a|b:0.5]", "16:9, [a:b:0.5]"] {
        assert_eq!(Prompt::parse(text, reading).unwrap().slips, [], "{text:?}");
    }
    let comfyui = PromptReading { syntax: PromptSyntax::ComfyUi, ..reading };
    assert!(Prompt::parse("<lora:x:1> [", comfyui).unwrap().slips[0].what.contains("`lora`"));
}

#[test]
fn what_was_understood_is_shown() {
    let prompt = Prompt::parse("a (red:1.3) BREAK [cat:dog:0.5] AND b :0.5<lora:x:1>", a1111(10)).unwrap();
    let wanted = "prompt, read as a1111\n  part 1 of 2, weight 1\n  calls 0 to 5: a (red)×1.3 ⟨break⟩ cat\n  calls 6 to 10: a (red)×1.3 ⟨break⟩ dog\n  \
                  part 2 of 2, weight 0.5\n   b\n  tag <lora:x:1>";
    assert_eq!(prompt.to_string(), wanted);
}

#[test]
fn styles_are_a1111s() {
    let sheet = "\u{FEFF}name,prompt,negative_prompt\nnone,,\nend,\"oil, thick\",blurry\nframe,\"a {prompt}, framed\",\nend,\"ink\",\n";
    let sheet = StyleSheet::parse(sheet).unwrap();
    assert_eq!(sheet.names().collect::<Vec<_>>(), ["none", "end", "frame", "end"]);
    for (name, wanted) in [("none", ("cat", "bad")), ("end", ("cat, ink", "bad")), ("frame", ("a cat, framed", "bad"))] {
        let (prompt, negative) = sheet.get(name).unwrap().apply("cat", "bad");
        assert_eq!((prompt.as_str(), negative.as_str()), wanted);
    }
    assert_eq!(sheet.get("end").unwrap().apply("", " ").0, "ink");
    assert!(StyleSheet::parse("a,b\n1,2\n").unwrap_err().contains("`name`"));
}

/// Every way in which a text is read.
fn read_every_way(text: &str) {
    for syntax in PromptSyntax::ALL {
        for (negative, scheduling) in [(false, PromptScheduling::Current), (true, PromptScheduling::Before1_6)] {
            for emphasis in [Emphasis::Original, Emphasis::None] {
                let reading = PromptReading { syntax, negative, scheduling, emphasis, ..a1111(9) };
                if let Ok(prompt) = Prompt::parse(text, reading) {
                    assert!(!prompt.parts.is_empty() && prompt.parts.iter().all(|part| !part.timeline.is_empty()));
                    assert_eq!(prompt.parts[0].timeline.last().unwrap().until, 9);
                    let _ = (prompt.to_string(), prompt.slips.iter().map(|slip| slip.show(text)).collect::<Vec<_>>());
                    let _ = prompt.networks.iter().map(NetworkTag::as_lora).collect::<Vec<_>>();
                }
            }
        }
    }
    if let Ok(template) = dynamic::Template::parse(text) {
        let wildcards = dynamic::Wildcards::of([("a".to_owned(), vec!["x".to_owned(), "{y|__a__}".to_owned()])]);
        let _ = (template.draw(&wildcards, 1, 2), template.combinations(&wildcards, 1, 20));
    }
    let _ = StyleSheet::parse(text);
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange(text in proptest::collection::vec(proptest::sample::select(vec![
        "(", ")", "[", "]", ":", "|", "\\", "\n", " ", "a", "1.3", "5", "AND", "BREAK", "<lora:", ">", "#", "{", "}", "$$", "${", "%{", "__",
        "a=", "2", "-", "::", "...", "猫", "\u{1F431}", "\0", "__a__", "~", "@", "!", ",", "\"", "//", "/*",
    ]), 0..60)) {
        read_every_way(&text.concat());
    }

    #[test]
    fn no_characters_are_too_strange(text in "\\PC{0,80}") {
        read_every_way(&text);
    }
}

#[test]
fn long_and_deep_prompts_end_in_time() {
    for unit in [
        "(",
        "[",
        ")",
        "(a",
        "[a:",
        "[a:b:",
        "a|",
        "[a|b]",
        "(a:1.3)",
        "\\(",
        "BREAK ",
        "AND ",
        "<lora:x:1>",
        "<a:",
        "<",
        "#",
        "#\n",
        "[a:b:0.5]",
        "((a)",
        "{",
        "{a|b}",
        "__",
        "__a__ ",
        "__a(",
        "${",
        "%{",
        "$",
        "{2$$",
        ": 0.5",
        "][",
        "(]",
        "[x [y:z:3] : : :",
        "\n",
        "word, ",
        "{__",
        "/*",
    ] {
        let text = unit.repeat((1 << 20) / unit.len());
        for syntax in PromptSyntax::ALL {
            let _ = Prompt::parse(&text, PromptReading { syntax, ..a1111(20) });
        }
        if let Ok(template) = dynamic::Template::parse(&text) {
            let _ = template.draw(&dynamic::Wildcards::default(), 1, 0);
        }
    }
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("[a:", ":3]"),
        ("[a|", "]"),
        ("(b ", ":1.1)"),
        ("{a|", "}"),
        ("__{a", "}__"),
        ("%{", "$$}"),
        ("${a:", "}"),
    ] {
        for depth in [100, 2_000, 100_000] {
            read_every_way(&format!("{}x{}", open.repeat(depth), close.repeat(depth)));
        }
    }
}
