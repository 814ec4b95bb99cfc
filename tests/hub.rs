//! Models by their hub id, against a hub on the loopback.
#![cfg(feature = "hub")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

mod hub_server;

use hub_server::{Answer, Asked, COMMIT, Hub, etag};
use sd_gen::hub::{FetchEvent, HubId, HubSettings, Missing, Token, fetch, missing};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECRET: &str = "hf_secret";

/// A hub, a cache that goes with the test, and what was said.
struct Trial {
    settings: HubSettings,
    cache: tempfile::TempDir,
    prefer: Option<&'static str>,
}

impl Trial {
    fn new(hub: &Hub) -> Trial {
        let cache = tempfile::tempdir().expect("folder");
        let settings = HubSettings {
            endpoint: hub.address.clone(),
            cache: cache.path().to_owned(),
            token: None,
            offline: None,
            patience: Duration::from_secs(20),
            pause: Duration::from_millis(5),
        };
        Trial { settings, cache, prefer: None }
    }

    /// Soon gives up on a server that is silent.
    fn impatient(mut self) -> Trial {
        self.settings.patience = Duration::from_millis(300);
        self
    }

    fn with_token(mut self) -> Trial {
        self.settings.token = Token::new(SECRET, "HF_TOKEN").expect("a token");
        self
    }

    fn fetch(&self, what: &str) -> sd_gen::Result<PathBuf> {
        self.fetch_observed(what, &mut |_| Ok(()))
    }

    fn fetch_observed(&self, what: &str, observer: &mut dyn FnMut(FetchEvent<'_>) -> sd_gen::Result<()>) -> sd_gen::Result<PathBuf> {
        let id = HubId::parse(what).expect("well-formed").expect("a hub id");
        fetch(&self.settings, &id, self.prefer, observer)
    }

    /// Fetches, and gives the sentence that says why not; it is one, and it shows no secret.
    fn refused(&self, what: &str) -> String {
        let error = self.fetch(what).expect_err(what);
        let sentence = error.to_string();
        assert_eq!(error.exit_code(), 3, "{sentence}");
        assert!(sentence.contains(what) && !sentence.contains(SECRET) && !sentence.contains('\n'), "{sentence}");
        sentence
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    fn blob(&self, path: &str, bytes: &[u8]) -> PathBuf {
        self.repository().join("blobs").join(etag(path, bytes))
    }
}

fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

/// Bytes that differ everywhere, so that a piece in the wrong place is seen.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

/// A repository of one file, of a megabyte.
fn single() -> (Hub, Vec<u8>) {
    let content = bytes(1 << 20, 7);
    (Hub::new([("model.safetensors".to_owned(), content.clone()), ("README.md".to_owned(), b"a model".to_vec())]), content)
}

fn is_content(asked: &Asked) -> bool {
    asked.method == "GET" && asked.path.starts_with("/cdn/")
}

/// The files of the emoji model under other names, contents by what they are in it.
fn repository_of(names: &[(&str, &str)]) -> Hub {
    Hub::new(names.iter().map(|(name, of)| {
        let content = if of.is_empty() { b"not a model".to_vec() } else { std::fs::read(emoji().join(of)).expect(of) };
        ((*name).to_owned(), content)
    }))
}

/// A diffusers folder without its weights.
const TEXTS: [(&str, &str); 8] = [
    ("model_index.json", "model_index.json"),
    ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
    ("text_encoder/config.json", "text_encoder/config.json"),
    ("tokenizer/merges.txt", "tokenizer/merges.txt"),
    ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer_config.json"),
    ("tokenizer/vocab.json", "tokenizer/vocab.json"),
    ("unet/config.json", "unet/config.json"),
    ("vae/config.json", "vae/config.json"),
];

fn with_texts(weights: &[(&'static str, &'static str)]) -> Hub {
    repository_of(&[&TEXTS, weights].concat())
}

#[test]
fn only_the_files_that_are_read_are_fetched_and_they_are_the_same() {
    let hub = Hub::of_folder(&emoji());
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched");
    assert_eq!(path, trial.repository().join("snapshots").join(COMMIT));
    let fetched = hub.fetched();
    assert_eq!(
        fetched,
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "sd-gen.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    for file in &fetched {
        let original = std::fs::read(emoji().join(file)).expect("read");
        assert_eq!(std::fs::read(path.join(file)).expect("read"), original, "{file}");
        // The cache's own layout: content under its hash, and a link to it.
        assert_eq!(
            std::fs::canonicalize(path.join(file)).expect("a link"),
            std::fs::canonicalize(trial.blob(file, &original)).expect("a blob")
        );
    }
    assert_eq!(std::fs::read_to_string(trial.repository().join("refs/main")).expect("a ref"), COMMIT);
    // Again: one question, whether there is something new.
    hub.forget();
    assert_eq!(trial.fetch("org/model").expect("cached"), path);
    assert_eq!(hub.asked().len(), 1);
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let (hub, _) = single();
    let trial = Trial::new(&hub);
    for (what, reference) in
        [("org/model@v1", Some("v1")), ("org/model@refs/pr/1", Some("refs/pr/1")), (&format!("org/model@{COMMIT}"), None)]
    {
        let path = trial.fetch(what).expect(what);
        assert_eq!(path, trial.repository().join("snapshots").join(COMMIT).join("model.safetensors"));
        if let Some(reference) = reference {
            assert_eq!(std::fs::read_to_string(trial.repository().join("refs").join(reference)).expect("a ref"), COMMIT);
        }
    }
    // A content that is here is not fetched again.
    assert_eq!(hub.asked().iter().filter(|asked| is_content(asked)).count(), 1);
    let sentence = trial.refused("org/model@v2");
    assert!(sentence.contains("no revision \"v2\""), "{sentence}");
}

#[test]
fn half_precision_takes_the_variant_of_half_the_size_where_there_is_one() {
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let weights = [
        ("unet/diffusion_pytorch_model.safetensors", unet),
        ("unet/diffusion_pytorch_model.fp16.safetensors", unet),
        ("unet/diffusion_pytorch_model.non_ema.safetensors", unet),
        ("unet/diffusion_pytorch_model.bin", ""),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors"),
        ("safety_checker/model.safetensors", ""),
        ("safety_checker/config.json", ""),
        ("v1-5-pruned.safetensors", ""),
    ];
    for (prefer, chosen) in
        [(None, "unet/diffusion_pytorch_model.safetensors"), (Some("fp16"), "unet/diffusion_pytorch_model.fp16.safetensors")]
    {
        let hub = with_texts(&weights);
        let trial = Trial { prefer, ..Trial::new(&hub) };
        trial.fetch("org/model").expect("fetched");
        let fetched: Vec<String> = hub.fetched().into_iter().filter(|file| file.ends_with(".safetensors")).collect();
        assert_eq!(fetched, ["text_encoder/model.fp16.safetensors", chosen, "vae/diffusion_pytorch_model.safetensors"]);
    }
}

#[test]
fn a_tokenizer_of_one_file_is_fetched() {
    // transformers 5 saves tokenizer.json alone, and what a training added beside it.
    let mut files = TEXTS.map(|(name, of)| (name.to_owned(), std::fs::read(emoji().join(of)).expect(of))).to_vec();
    files.retain(|(name, _)| !name.ends_with("vocab.json") && !name.ends_with("merges.txt"));
    let text = |ending: &str| {
        let (_, of) = TEXTS.iter().find(|(name, _)| name.ends_with(ending)).expect(ending);
        std::fs::read_to_string(emoji().join(of)).expect(ending)
    };
    let vocabulary: serde_json::Value = serde_json::from_str(&text("vocab.json")).expect("JSON");
    let merges: Vec<String> = text("merges.txt").lines().skip(1).map(str::to_owned).collect();
    let tokenizer = serde_json::json!({ "model": { "type": "BPE", "vocab": vocabulary, "merges": merges } });
    files.push(("tokenizer/tokenizer.json".into(), tokenizer.to_string().into_bytes()));
    files.push(("tokenizer/added_tokens.json".into(), b"{}".to_vec()));
    for name in ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"] {
        files.push((format!("{name}.safetensors"), bytes(100, 1)));
    }
    let hub = Hub::new(files);
    Trial::new(&hub).fetch("org/model").expect("fetched");
    for name in ["tokenizer/tokenizer.json", "tokenizer/added_tokens.json"] {
        assert!(hub.fetched().iter().any(|file| file == name), "{name}: {:?}", hub.fetched());
    }
}

#[test]
fn shards_are_fetched_as_their_index_says() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let files = TEXTS.iter().map(|(name, of)| ((*name).to_owned(), std::fs::read(emoji().join(of)).expect(of)));
    let weights = [
        ("unet/diffusion_pytorch_model.safetensors", bytes(100, 1)),
        ("vae/diffusion_pytorch_model.safetensors", bytes(100, 2)),
        ("text_encoder/model.safetensors.index.json", index.to_vec()),
        ("text_encoder/model-00001-of-00002.safetensors", bytes(100, 3)),
        ("text_encoder/model-00002-of-00002.safetensors", bytes(100, 4)),
    ];
    let hub = Hub::new(files.chain(weights.map(|(name, content)| (name.to_owned(), content))));
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched");
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        assert!(path.join("text_encoder").join(shard).is_file(), "{shard}");
    }
}

#[test]
fn a_repository_of_single_files_is_asked_for_by_the_files_name() {
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    assert_eq!(std::fs::read(trial.fetch("org/model").expect("the only candidate")).expect("read"), content);

    let hub = repository_of(&[("a b.safetensors", ""), ("sub/c.safetensors", ""), ("d.ckpt", ""), ("config.json", "")]);
    let trial = Trial::new(&hub);
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("several models") && sentence.contains("a b.safetensors, sub/c.safetensors"), "{sentence}");
    assert!(trial.fetch("org/model:sub/c.safetensors").expect("named").ends_with("sub/c.safetensors"));
    assert!(trial.fetch("org/model:a b.safetensors").expect("named").ends_with("a b.safetensors"));
    let sentence = trial.refused("org/model:e.safetensors");
    assert!(sentence.contains("no file e.safetensors") && sentence.contains("it has a b.safetensors"), "{sentence}");
    let sentence = trial.refused("org/model:config.json");
    assert!(sentence.contains("no .safetensors file; it has"), "{sentence}");
    let sentence = trial.refused("org/model:d.ckpt");
    assert!(sentence.contains("pickle"), "{sentence}");
    // A diffusers folder has its single files beside it, and they can be named.
    let hub = with_texts(&[("v1-5-pruned.safetensors", "")]);
    assert!(Trial::new(&hub).fetch("org/model:v1-5-pruned.safetensors").expect("named").ends_with("v1-5-pruned.safetensors"));
}

#[test]
fn pickles_and_repositories_without_a_model_are_refused_before_anything_large_is_fetched() {
    let sentence = Trial::new(&repository_of(&[("v1.ckpt", ""), ("x.bin", "")])).refused("org/model");
    assert!(sentence.contains("no .safetensors file") && sentence.contains("v1.ckpt") && sentence.contains("pickle"), "{sentence}");
    let sentence = Trial::new(&repository_of(&[("README.md", "")])).refused("org/model");
    assert!(sentence.contains("no model"), "{sentence}");

    let large = ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors");
    let hub = with_texts(&[large, ("vae/diffusion_pytorch_model.safetensors", ""), ("text_encoder/pytorch_model.bin", "")]);
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("text_encoder/pytorch_model.bin is a pickle"), "{sentence}");
    assert!(hub.fetched().iter().all(|file| !file.ends_with(".safetensors")));

    // A model whose texts are not all there.
    let hub = Hub::new([
        ("model_index.json".to_owned(), br#"{"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3"]}"#.to_vec()),
        ("transformer/diffusion_pytorch_model.safetensors".to_owned(), bytes(100, 1)),
    ]);
    let error = Trial::new(&hub).fetch("org/model").expect_err("no configuration");
    assert!(error.to_string().contains("transformer/config.json"), "{error}");
    assert_eq!(hub.fetched(), ["model_index.json"]);
}

#[test]
fn a_file_that_is_cut_off_goes_on_where_it_broke() {
    let (hub, content) = single();
    // Every connection ends after 300,000 bytes.
    let hub = hub.with_fault(|asked, _, answer| if is_content(asked) { Answer { cut: Some(300_000), ..answer } } else { answer });
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched over four connections");
    assert_eq!(std::fs::read(path).expect("read"), content);
    let ranges: Vec<_> = hub.asked().iter().filter(|asked| is_content(asked)).map(|asked| asked.headers.get("range").cloned()).collect();
    let wanted = [None, Some("bytes=300000-"), Some("bytes=600000-"), Some("bytes=900000-")].map(|range| range.map(str::to_owned));
    assert_eq!(ranges, wanted);
}

#[test]
fn a_run_that_ended_in_the_middle_is_taken_up_by_the_next_one() {
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    // The user stops it after the first bytes.
    let stopped = trial.fetch_observed("org/model", &mut |event| match event {
        FetchEvent::Received { done, .. } if done >= 100_000 => Err(sd_gen::Error::Cancelled),
        _ => Ok(()),
    });
    assert_eq!(stopped.expect_err("stopped").exit_code(), 130);
    let incomplete = PathBuf::from(format!("{}.incomplete", trial.blob("model.safetensors", &content).display()));
    let left = std::fs::metadata(&incomplete).expect("what was received is kept").len();
    assert!((100_000..1 << 20).contains(&left), "{left}");
    assert!(!trial.repository().join("snapshots").join(COMMIT).join("model.safetensors").exists());
    hub.forget();
    let path = trial.fetch("org/model").expect("the rest");
    assert_eq!(std::fs::read(path).expect("read"), content);
    assert!(!incomplete.exists());
    let asked = hub.asked();
    let range = asked.iter().find(|asked| is_content(asked)).and_then(|asked| asked.headers.get("range").cloned());
    assert_eq!(range, Some(format!("bytes={left}-")));
}

#[test]
fn a_server_that_knows_no_ranges_sends_the_whole_file_again() {
    let (hub, content) = single();
    let whole = content.clone();
    let hub = hub.with_fault(move |asked, before, answer| match is_content(asked) {
        true if before == 0 => Answer { cut: Some(300_000), ..answer },
        true => Answer { status: 200, body: whole.clone(), ..Answer::default() },
        false => answer,
    });
    let trial = Trial::new(&hub);
    assert_eq!(std::fs::read(trial.fetch("org/model").expect("fetched")).expect("read"), content);
}

#[test]
fn what_an_earlier_run_left_wrong_is_found_and_fetched_again() {
    let (hub, content) = single();
    for left in [bytes(500_000, 99), bytes(1 << 20, 99), bytes((1 << 20) + 5, 99), content.clone()] {
        let trial = Trial::new(&hub);
        let incomplete = format!("{}.incomplete", trial.blob("model.safetensors", &content).display());
        std::fs::create_dir_all(trial.repository().join("blobs")).expect("folder");
        std::fs::write(&incomplete, &left).expect("write");
        let path = trial.fetch("org/model").expect("fetched");
        assert_eq!(std::fs::read(path).expect("read"), content, "{} bytes were left", left.len());
    }
    // A content that was cut short under its final name.
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched");
    std::fs::write(trial.blob("model.safetensors", &content), b"short").expect("write");
    assert_eq!(std::fs::read(trial.fetch("org/model").expect("fetched again")).expect("read"), content);
    // A link that leads nowhere.
    std::fs::remove_file(trial.blob("model.safetensors", &content)).expect("remove");
    trial.fetch("org/model").expect("fetched again");
    assert_eq!(std::fs::read(path).expect("read"), content);
}

#[test]
fn a_file_that_is_not_what_the_hub_says_gets_no_name() {
    let (hub, content) = single();
    let mut wrong = content.clone();
    wrong[12_345] ^= 1;
    let kept = "where it is kept";
    for (body, said) in [(wrong, "SHA-256"), ([content.as_slice(), b"more"].concat(), kept), (content[..1000].to_vec(), kept)] {
        hub.set_fault(Some(Box::new(move |asked, _, answer| match is_content(asked) {
            true => Answer { status: 200, body: body.clone(), ..Answer::default() },
            false => answer,
        })));
        let trial = Trial::new(&hub);
        let sentence = trial.refused("org/model");
        assert!(sentence.contains(said), "{sentence}");
        assert!(!trial.blob("model.safetensors", &content).exists());
    }
}

/// Says another size of the one large file: where it is asked for, and in the list too.
fn with_size(hub: Hub, change: i64, in_list: bool) -> Hub {
    hub.with_fault(move |asked, _, mut answer| {
        let changed = |size: i64| (size + change).to_string();
        for (name, value) in &mut answer.headers {
            if name == "X-Linked-Size" {
                *value = changed(value.parse().expect("a size"));
            }
        }
        if in_list && asked.path.starts_with("/api/") {
            let text = String::from_utf8(answer.body).expect("text");
            answer.body = text.replace("1048576", &changed(1_048_576)).into_bytes();
        }
        answer
    })
}

#[test]
fn a_size_that_is_not_the_files_ends_the_download() {
    for (change, in_list, said) in [(1, false, "in the hub's list"), (-1, false, "in the hub's list"), (1, true, "where it is kept")] {
        let hub = with_size(single().0, change, in_list);
        let sentence = Trial::new(&hub).refused("org/model");
        assert!(sentence.contains(said), "{sentence}");
        assert!(hub.asked().iter().filter(|asked| is_content(asked)).count() <= 1, "{change} {in_list}");
    }
    // A server that does not say how long its file is: all of it comes, and then nothing more.
    let (hub, content) = single();
    let hub = with_size(hub, 1, true);
    let state = hub.with_fault({
        let whole = content.clone();
        move |asked, _, answer| match (is_content(asked), asked.headers.contains_key("range")) {
            (true, false) => Answer { status: 200, body: chunked(&whole), ..Answer::default() }.with("Transfer-Encoding", "chunked"),
            (true, true) => Answer::status(416),
            _ if asked.path.starts_with("/api/") => {
                Answer { body: String::from_utf8(answer.body).expect("text").replace("1048576", "1048577").into_bytes(), ..answer }
            }
            _ => Answer { headers: answer.headers.into_iter().map(longer).collect(), ..answer },
        }
    });
    let sentence = Trial::new(&state).refused("org/model");
    assert!(sentence.contains("breaks again and again"), "{sentence}");
    let whole = state.asked().iter().filter(|asked| is_content(asked) && !asked.headers.contains_key("range")).count();
    assert!(whole <= 4, "{whole} whole downloads");
}

fn longer((name, value): (String, String)) -> (String, String) {
    if name == "X-Linked-Size" { (name, "1048577".into()) } else { (name, value) }
}

fn chunked(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat()
}

#[test]
fn a_length_of_nothing_is_no_length() {
    let (hub, content) = single();
    let tag = |answer: Answer| answer.with("ETag", "\"no-hash-at-all\"").with("Content-Length", "0");
    let hub = hub.with_fault(move |asked, _, answer| match asked.method == "HEAD" && asked.path.contains("/resolve/") {
        true => tag(Answer::status(200)),
        false => answer,
    });
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched by the length of the list");
    assert_eq!(std::fs::read(path).expect("read"), content);
    let hub = Hub::new([("model.safetensors".to_owned(), Vec::new())]);
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("is empty on the hub"), "{sentence}");
}

#[test]
fn small_files_are_what_git_says() {
    let hub = Hub::of_folder(&emoji());
    let config = std::fs::read(emoji().join("unet/config.json")).expect("read");
    // What an earlier run left is not its beginning.
    let trial = Trial::new(&hub);
    std::fs::create_dir_all(trial.repository().join("blobs")).expect("folder");
    let blob = trial.blob("unet/config.json", &config);
    std::fs::write(format!("{}.incomplete", blob.display()), vec![b'x'; 100]).expect("write");
    let path = trial.fetch("org/model").expect("fetched");
    assert_eq!(std::fs::read(path.join("unet/config.json")).expect("read"), config);
    // What comes is another file of the same length.
    let mut wrong = config.clone();
    wrong[0] ^= 1;
    let hub = Hub::of_folder(&emoji()).with_fault(move |asked, _, answer| {
        match asked.method == "GET" && asked.path.ends_with("unet/config.json") {
            true => Answer { body: wrong.clone(), ..answer },
            false => answer,
        }
    });
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("git's hash"), "{sentence}");
}

#[test]
fn a_trickle_ends() {
    let (hub, _) = single();
    // A byte a connection: after each there is a pause, and after some of them an end.
    hub.set_fault(Some(Box::new(|asked, _, answer| if is_content(asked) { Answer { cut: Some(1), ..answer } } else { answer })));
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("breaks again and again") && sentence.contains("go on at 4 bytes"), "{sentence}");
    // A byte now and then on one connection.
    let drip = Some(Duration::from_millis(50));
    hub.set_fault(Some(Box::new(move |asked, _, answer| if is_content(asked) { Answer { drip, ..answer } } else { answer })));
    let sentence = Trial::new(&hub).impatient().refused("org/model");
    assert!(sentence.contains("at less than 1000 bytes a second"), "{sentence}");
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_lead_nothing_astray() {
    use std::os::unix::fs::symlink;
    let (hub, content) = single();
    let victim = || {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "theirs").expect("write");
        (folder, path)
    };
    // The lock.
    let (trial, (_keep, path)) = (Trial::new(&hub), victim());
    let locks = trial.cache.path().join(".locks/models--org--model");
    std::fs::create_dir_all(&locks).expect("folder");
    symlink(&path, locks.join(format!("{}.lock", etag("model.safetensors", &content)))).expect("link");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("is a link to another file"), "{sentence}");
    assert_eq!(std::fs::read(&path).expect("read"), b"theirs");
    // A partial file and the reference.
    let (trial, (_keep, path)) = (Trial::new(&hub), victim());
    std::fs::create_dir_all(trial.repository().join("blobs")).expect("folder");
    std::fs::create_dir_all(trial.repository().join("refs")).expect("folder");
    symlink(&path, format!("{}.incomplete", trial.blob("model.safetensors", &content).display())).expect("link");
    symlink(&path, trial.repository().join("refs/main")).expect("link");
    trial.fetch("org/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("read"), b"theirs");
    assert_eq!(std::fs::read(trial.repository().join("refs/main")).expect("read"), COMMIT.as_bytes());
    // The folder that the file is shown in.
    let (trial, (folder, path)) = (Trial::new(&hub), victim());
    std::fs::create_dir_all(trial.repository().join("snapshots")).expect("folder");
    symlink(folder.path(), trial.repository().join("snapshots").join(COMMIT)).expect("link");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("a link leads out of"), "{sentence}");
    assert_eq!(std::fs::read(&path).expect("read"), b"theirs");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let (elsewhere, content) = single();
    let (hub, _) = single();
    // The same machine by another name is another host.
    let other = elsewhere.address.replace("127.0.0.1", "localhost");
    let hub = hub.sending_to(&other);
    let trial = Trial::new(&hub).with_token();
    let path = trial.fetch("org/model").expect("fetched from elsewhere");
    assert_eq!(std::fs::read(path).expect("read"), content);
    let bearer = format!("Bearer {SECRET}");
    assert!(hub.asked().iter().all(|asked| asked.headers.get("authorization") == Some(&bearer)));
    assert_eq!(elsewhere.asked().len(), 1);
    assert!(elsewhere.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
    // The other port of the same name is another host too.
    let hub = single().0.sending_to(&elsewhere.address);
    elsewhere.forget();
    Trial::new(&hub).with_token().fetch("org/model").expect("fetched from elsewhere");
    assert!(elsewhere.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
    // Without a token none is sent.
    let (hub, _) = single();
    Trial::new(&hub).fetch("org/model").expect("fetched");
    assert!(hub.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
}

#[test]
fn a_mirror_that_sends_on_is_followed_without_the_token() {
    for status in [301, 307, 308] {
        let (hub, content) = single();
        let address = hub.address.clone();
        // It knows what there is, and neither the name of a content nor its bytes.
        let mirror = single().0.with_fault(move |asked, _, answer| match asked.path.contains("/resolve/") {
            true => Answer::status(status).with("Location", format!("{address}{}", asked.path)),
            false => answer,
        });
        let trial = Trial::new(&mirror).with_token();
        assert_eq!(std::fs::read(trial.fetch("org/model").expect("fetched")).expect("read"), content, "{status}");
        assert!(!hub.asked().is_empty() && hub.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
    }
}

#[test]
fn a_snapshot_that_was_filled_by_hand_is_used() {
    let (hub, content) = single();
    let mut trial = Trial::new(&hub);
    trial.settings.offline = Some("HF_HUB_OFFLINE");
    let snapshot = trial.repository().join("snapshots/local");
    std::fs::create_dir_all(trial.repository().join("refs")).expect("folder");
    std::fs::create_dir_all(&snapshot).expect("folder");
    std::fs::write(snapshot.join("model.safetensors"), &content).expect("write");
    std::fs::write(trial.repository().join("refs/main"), "local").expect("write");
    assert_eq!(std::fs::read(trial.fetch("org/model").expect("found")).expect("read"), content);
    // A name that leaves the folder is none.
    for name in ["../local", ".", "..", "a/b"] {
        std::fs::write(trial.repository().join("refs/main"), name).expect("write");
        trial.refused("org/model");
    }
    assert!(hub.asked().is_empty());
}

#[test]
fn what_is_missing_can_be_asked_without_fetching_it() {
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    let id = HubId::parse("org/model").expect("well-formed").expect("a hub id");
    let ask = || missing(&trial.settings, &id, None, &mut |_| Ok(())).expect("an answer");
    assert_eq!(ask(), [Missing { path: "model.safetensors".to_owned(), size: Some(content.len() as u64) }]);
    assert!(!hub.asked().iter().any(is_content));
    // Offline, nothing may look as if it were there.
    assert!(!trial.repository().join("refs/main").exists());
    trial.fetch("org/model").expect("fetched");
    assert_eq!(ask(), []);
    // Another commit with the same content costs nothing.
    std::fs::remove_dir_all(trial.repository().join("snapshots")).expect("removed");
    assert_eq!(ask(), []);
}

#[test]
fn a_repository_that_was_renamed_is_found_and_circles_end() {
    let (hub, content) = single();
    let hub = hub.with_fault(|asked, _, answer| match asked.path.contains("org/old") {
        true => Answer::status(307).with("Location", asked.path.replace("org/old", "org/model")),
        false => answer,
    });
    let trial = Trial::new(&hub);
    assert_eq!(std::fs::read(trial.fetch("org/old").expect("fetched")).expect("read"), content);
    let hub = single().0.with_fault(|asked, _, _| Answer::status(302).with("Location", asked.path.clone()));
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("circles"), "{sentence}");
}

/// The sentence for an answer of the hub to every question for `kind` of address.
fn sentence(kind: &'static str, answer: Answer, with_token: bool) -> String {
    let hub = single().0.with_fault(move |asked, _, usual| if asked.path.contains(kind) { answer.clone() } else { usual });
    let trial = Trial::new(&hub);
    if with_token { trial.with_token().refused("org/model") } else { trial.refused("org/model") }
}

#[test]
fn every_refusal_has_its_sentence() {
    let coded = |status: u16, code: &str| Answer::status(status).with("X-Error-Code", code);
    for (kind, answer, with_token, said) in [
        ("/resolve/", coded(401, "GatedRepo"), false, "accept its conditions at http://127.0.0.1"),
        ("/resolve/", coded(403, "GatedRepo"), true, "the account of the token in HF_TOKEN has not been let in"),
        ("/api/", coded(401, "RepoNotFound"), false, "no public model of that name"),
        ("/api/", coded(404, "RepoNotFound"), true, "that the token in HF_TOKEN may see"),
        ("/api/", Answer::status(401), true, "does not accept the token in HF_TOKEN"),
        ("/api/", Answer::status(401), false, "set HF_TOKEN"),
        ("/api/", Answer::status(403), true, "give the token the permission"),
        ("/api/", Answer::status(404), false, "check the spelling"),
        ("/resolve/", coded(404, "EntryNotFound"), false, "no file model.safetensors"),
        ("/api/", Answer::status(429).with("Retry-After", "3600"), false, "try again in 3600 s, or set HF_TOKEN"),
        ("/resolve/", Answer::status(429).with("Retry-After", "0"), true, "limits how often"),
        ("/api/", Answer::status(500), false, "trouble of its own"),
        ("/cdn/", Answer::status(503), false, "trouble of its own"),
        ("/cdn/", Answer::status(403), true, "may not be read"),
        ("/api/", Answer::status(418), false, "status 418"),
        ("/api/", Answer { status: 200, body: b"<html>".to_vec(), ..Answer::default() }, false, "does not answer as a hub does"),
        ("/api/", Answer { status: 200, body: br#"{"sha": "../../x"}"#.to_vec(), ..Answer::default() }, false, "does not answer as a hub"),
        ("/api/", Answer::status(302).with("Location", "nowhere"), false, "does not answer as a hub does"),
        ("/resolve/", Answer::status(200).with("ETag", "\"../../x\""), false, "does not answer as a hub does"),
    ] {
        let shown = format!("{answer:?}");
        let sentence = sentence(kind, answer, with_token);
        assert!(sentence.contains(said), "{shown}: {sentence}");
    }
}

#[test]
fn trouble_that_passes_is_waited_for() {
    let (hub, content) = single();
    let hub = hub.with_fault(|asked, before, answer| match before {
        0 if asked.path.contains("/api/") => Answer::status(502),
        1 if asked.path.contains("/api/") => {
            Answer { silent: Some(Duration::from_millis(600)), ..Answer::status(200).with("Content-Length", "10") }
        }
        0 => Answer::status(429).with("Retry-After", "0"),
        _ => answer,
    });
    let mut notes = Vec::new();
    let trial = Trial::new(&hub).impatient();
    let path = trial.fetch_observed("org/model", &mut |event| {
        if let FetchEvent::Note(note) = event {
            notes.push(note.to_owned());
        }
        Ok(())
    });
    assert_eq!(std::fs::read(path.expect("fetched")).expect("read"), content);
    assert!(notes.iter().any(|note| note.contains("trying again")), "{notes:?}");
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let silent = |answer: Answer| Answer { cut: Some(10), silent: Some(Duration::from_secs(2)), ..answer };
    let hub = single().0.with_fault(move |asked, _, answer| if asked.path.contains("/api/") { silent(answer) } else { answer });
    let sentence = Trial::new(&hub).impatient().refused("org/model");
    assert!(sentence.contains("check the network"), "{sentence}");
    // In the middle of a file: another connection goes on.
    let (hub, content) = single();
    let hub = hub.with_fault(move |asked, before, answer| match is_content(asked) && before == 0 {
        true => Answer { cut: Some(300_000), silent: Some(Duration::from_secs(2)), ..answer },
        false => answer,
    });
    let trial = Trial::new(&hub).impatient();
    assert_eq!(std::fs::read(trial.fetch("org/model").expect("fetched")).expect("read"), content);
}

#[test]
fn nobody_there_is_said() {
    let (hub, _) = single();
    let mut trial = Trial::new(&hub);
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address");
    trial.settings.endpoint = format!("http://{free}");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("refuses the connection") && sentence.contains("check the network"), "{sentence}");
}

#[test]
fn offline_takes_what_the_cache_has_and_asks_nobody() {
    let hub = Hub::of_folder(&emoji());
    let mut trial = Trial::new(&hub);
    trial.settings.offline = Some("--offline");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("run once without --offline"), "{sentence}");
    assert!(hub.asked().is_empty());

    trial.settings.offline = None;
    let path = trial.fetch("org/model").expect("fetched");
    trial.settings.offline = Some("HF_HUB_OFFLINE");
    hub.forget();
    assert_eq!(trial.fetch("org/model").expect("cached"), path);
    assert_eq!(trial.fetch(&format!("org/model@{COMMIT}")).expect("cached"), path);
    assert!(hub.asked().is_empty());
    // A part of a model is none.
    std::fs::remove_file(path.join("unet/diffusion_pytorch_model.safetensors")).expect("remove");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("unet has no weights") && sentence.contains("HF_HUB_OFFLINE forbids"), "{sentence}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_done_without() {
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched");
    hub.set_fault(Some(Box::new(|_, _, _| Answer::status(503))));
    let mut notes = Vec::new();
    let again = trial.fetch_observed("org/model", &mut |event| {
        if let FetchEvent::Note(note) = event {
            notes.push(note.to_owned());
        }
        Ok(())
    });
    assert_eq!(again.expect("cached"), path);
    assert_eq!(std::fs::read(path).expect("read"), content);
    assert!(notes.iter().any(|note| note.contains("taken as it was fetched before")), "{notes:?}");
}

#[test]
fn a_hostile_list_of_files_leads_nowhere() {
    let listed = |siblings: &str| {
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#).into_bytes();
        single().0.with_fault(move |asked, _, answer| match asked.path.contains("/api/") {
            true => Answer { status: 200, body: body.clone(), ..Answer::default() },
            false => answer,
        })
    };
    let evil = [
        "../../x.safetensors",
        "/etc/x.safetensors",
        "a/../../x.safetensors",
        "C:\\\\x.safetensors",
        "a\\u0000.safetensors",
        "x/./y.safetensors",
    ];
    let siblings = evil.map(|path| format!(r#"{{"rfilename": "{path}", "size": 5}}"#)).join(",");
    let hub = listed(&siblings);
    let trial = Trial::new(&hub);
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("no model"), "{sentence}");
    assert_eq!(std::fs::read_dir(trial.cache.path()).expect("folder").count(), 0);

    // A million files are more than any model has; so is a configuration of gigabytes.
    let many = r#"{"rfilename": "some/file/of/a/repository"},"#.repeat(1_000_000);
    let sentence = Trial::new(&listed(many.trim_end_matches(','))).refused("org/model");
    assert!(sentence.contains("list of its files is longer"), "{sentence}");
    let deep = "[".repeat(100_000);
    let sentence = Trial::new(&listed(&deep)).refused("org/model");
    assert!(sentence.contains("does not answer as a hub does"), "{sentence}");
    let hub = single().0.with_fault(|asked, _, answer| match asked.path.contains("/api/") {
        true => {
            let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "model_index.json"}}]}}"#).into_bytes();
            Answer { status: 200, body, ..Answer::default() }
        }
        false if asked.method == "HEAD" => Answer::status(200).with("ETag", "\"0123456789\"").with("Content-Length", "9000000000"),
        false => answer,
    });
    let sentence = Trial::new(&hub).refused("org/model");
    assert!(sentence.contains("too many for a configuration file"), "{sentence}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_cannot_be_written_is_said() {
    let mut trial = Trial::new(&single().0);
    trial.settings.cache = PathBuf::from("/proc/nowhere");
    let sentence = trial.refused("org/model");
    assert!(sentence.contains("cannot be written") && sentence.contains("HF_HOME"), "{sentence}");
}

#[test]
fn two_processes_fetch_a_file_once() {
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    // Another process holds the lock, and is done with the file when it lets go.
    let locks = trial.cache.path().join(".locks/models--org--model");
    std::fs::create_dir_all(&locks).expect("folder");
    let lock = std::fs::File::create(locks.join(format!("{}.lock", etag("model.safetensors", &content)))).expect("create");
    lock.lock().expect("locked");
    let waited = AtomicBool::new(false);
    let mut lock = Some(lock);
    let path = trial.fetch_observed("org/model", &mut |event| {
        if let FetchEvent::Note(note) = event
            && note.contains("another process")
        {
            waited.store(true, Ordering::Relaxed);
            let blob = trial.blob("model.safetensors", &content);
            std::fs::create_dir_all(blob.parent().expect("below")).expect("folder");
            std::fs::write(blob, &content).expect("write");
            lock.take();
        }
        Ok(())
    });
    assert_eq!(std::fs::read(path.expect("fetched")).expect("read"), content);
    assert!(waited.load(Ordering::Relaxed));
    assert!(!hub.asked().iter().any(is_content));
}

#[cfg(unix)]
#[test]
fn a_file_that_another_process_has_just_shown_stays_where_it_is() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let (hub, content) = single();
    let trial = Trial::new(&hub);
    let shown = trial.repository().join("snapshots").join(COMMIT).join("model.safetensors");
    let link = || std::fs::symlink_metadata(&shown).map(|link| (link.ino(), link.ctime_nsec())).ok();
    let mut theirs = None;
    trial
        .fetch_observed("org/model", &mut |event| {
            if matches!(event, FetchEvent::Received { .. }) && theirs.is_none() {
                std::fs::create_dir_all(shown.parent().expect("below")).expect("folder");
                let blob = format!("../../blobs/{}", etag("model.safetensors", &content));
                symlink(blob, &shown).expect("link");
                theirs = link();
            }
            Ok(())
        })
        .expect("fetched");
    // Whoever reads it may be in the middle.
    assert_eq!(link(), theirs);
}

/// The program in `folder`, with its hub at `endpoint` and its cache in `folder`.
fn sd_gen(folder: &Path, endpoint: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env("HF_HOME", folder.join("cache")).env("HF_ENDPOINT", endpoint);
    for name in ["SD_GEN_MODELS", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.output().expect("sd-gen starts")
}

/// The bytes of the one image that a run wrote.
fn image(folder: &Path, output: &Output) -> Vec<u8> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let path = folder.join(String::from_utf8_lossy(&output.stdout).trim_end());
    std::fs::read(&path).expect("an image")
}

const APPLE: [&str; 6] = ["--prompt=a red apple", "--seed=1", "--steps=2", "--overwrite", "--output=apple.png", "--model"];

#[test]
fn a_model_from_the_hub_generates_what_the_local_one_generates() {
    let hub = Hub::of_folder(&emoji());
    let folder = tempfile::tempdir().expect("folder");
    let generate = |endpoint: &str, more: &[&str]| sd_gen(folder.path(), endpoint, &[&APPLE, more].concat());
    let local = image(folder.path(), &generate(&hub.address, &[emoji().to_str().expect("text")]));
    assert!(hub.asked().is_empty(), "a local model asks nobody");

    let output = generate(&hub.address, &["org/emoji"]);
    assert_eq!(image(folder.path(), &output), local, "pixels and metadata, the model's name in it included");
    assert!(String::from_utf8_lossy(&output.stderr).contains("fetching unet/diffusion_pytorch_model.safetensors, 18 MB"));
    // Nobody listens there.
    let nowhere = "http://127.0.0.1:9";
    assert_eq!(image(folder.path(), &generate(nowhere, &["org/emoji", "--offline", "--quiet"])), local);
    let output = generate(nowhere, &["org/other", "--offline"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--offline forbids"));
    // Other commands take the same names.
    let output = sd_gen(folder.path(), nowhere, &["convert", "org/emoji", "emoji.safetensors", "--offline"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(image(folder.path(), &generate(nowhere, &["emoji.safetensors"])).len(), local.len());
}

#[test]
fn a_dry_run_fetches_no_weights_and_says_which_it_would() {
    let hub = Hub::of_folder(&emoji());
    let folder = tempfile::tempdir().expect("folder");
    let lines = "a cat\na dog --model org/emoji --images 3\na cat --model org/emoji\n";
    std::fs::write(folder.path().join("lines.txt"), lines).expect("write");
    let run = |more: &[&str]| {
        let output =
            sd_gen(folder.path(), &hub.address, &[&["batch", "lines.txt", "--output-dir", "out", "--steps", "1"][..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = run(&["--dry-run", "--shard", "1/2"]);
    assert!(hub.fetched().iter().all(|file| !file.ends_with(".safetensors")), "{:?}", hub.fetched());
    let weights =
        ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"].map(|name| format!("{name}.safetensors"));
    let size = |file: &String| std::fs::metadata(emoji().join(file)).expect("metadata").len();
    let all = weights.iter().map(size).sum::<u64>() as f64 / 1e6;
    let first = format!("org/emoji is not here; {all:.1} MB would be fetched for 2 images\n");
    assert!(said.starts_with(&first) && weights.iter().all(|file| said.contains(&format!("\n  {file}, "))), "{said}");
    assert!(said.contains("\n1 image to generate; 2 of models that are not here"), "{said}");
    // Nothing of this is in the way of generating, and what a line generates does not depend on it.
    assert_eq!(run(&[]).lines().count(), 5);
    let again = run(&["--dry-run"]);
    assert!(again.contains("0 images to generate; 5 are there already") && !again.contains("fetched"), "{again}");
}

#[test]
fn programs_hear_of_a_download_as_events() {
    let hub = Hub::of_folder(&emoji());
    let folder = tempfile::tempdir().expect("folder");
    let output = sd_gen(folder.path(), &hub.address, &[&APPLE[..], &["org/emoji", "--progress=json"]].concat());
    image(folder.path(), &output);
    let said = String::from_utf8_lossy(&output.stderr);
    let events: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let size = std::fs::metadata(emoji().join("vae/diffusion_pytorch_model.safetensors")).expect("metadata").len();
    let whole = events.iter().find(|event| event["file"] == "vae/diffusion_pytorch_model.safetensors" && event["bytes"] == size);
    assert_eq!(whole.map(|event| (&event["event"], &event["total"])), Some((&"download".into(), &size.into())), "{said}");
}

#[cfg(unix)]
#[test]
fn what_is_here_wins_and_what_is_no_hub_id_is_not_asked_for() {
    let hub = Hub::of_folder(&emoji());
    let folder = tempfile::tempdir().expect("folder");
    std::fs::create_dir_all(folder.path().join("org")).expect("folder");
    std::fs::create_dir_all(folder.path().join("models/group")).expect("folder");
    std::os::unix::fs::symlink(emoji(), folder.path().join("org/emoji")).expect("link");
    std::os::unix::fs::symlink(emoji(), folder.path().join("models/group/emoji")).expect("link");
    let run = |what: &str| sd_gen(folder.path(), &hub.address, &[&APPLE[..], &[what]].concat());
    image(folder.path(), &run("org/emoji"));
    image(folder.path(), &run("group/emoji"));
    for (what, code, said) in [
        ("org/emojy", 2, "write hf://org/emojy"),
        ("models/emoji.safetensors", 2, "no such file"),
        ("emojy", 2, "no file, folder or model of that name"),
        ("other/emoji@", 2, "a hub id is org/name"),
        ("other/emoji:../x.safetensors", 2, "a hub id is org/name"),
        ("hf://emoji", 2, "a hub id is org/name"),
    ] {
        let output = run(what);
        let sentence = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{sentence}");
        assert!(sentence.contains(said), "{sentence}");
    }
    assert!(hub.asked().is_empty());
    // Named so, it is the hub's in spite of the folder.
    image(folder.path(), &run("hf://org/emoji"));
    assert!(!hub.asked().is_empty());
}

/// Runs where `SD_GEN_TEST_PYTHON` names a Python that has `huggingface_hub`.
#[test]
fn the_cache_is_shared_with_python() {
    let Some(python) = std::env::var_os("SD_GEN_TEST_PYTHON") else {
        println!("skipped: SD_GEN_TEST_PYTHON names no Python with huggingface_hub");
        return;
    };
    let has_it = Command::new(&python).args(["-c", "import huggingface_hub"]).output().expect("Python starts");
    if !has_it.status.success() {
        println!("skipped: the Python of SD_GEN_TEST_PYTHON has no huggingface_hub");
        return;
    }
    let python = |hub: &Hub, trial: &Trial| {
        let script = "import sys; from huggingface_hub import snapshot_download; \
                      print(snapshot_download('org/model', cache_dir=sys.argv[1], allow_patterns=['*.json', '*.txt', '*.safetensors'], \
                      ignore_patterns=['recipe/*']))";
        let output = Command::new(&python)
            .args(["-c", script])
            .arg(trial.cache.path())
            .env("HF_ENDPOINT", &hub.address)
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .output()
            .expect("Python starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    };
    let contents = |hub: &Hub| hub.fetched().len();
    let hub = Hub::of_folder(&emoji());
    // What this program has fetched, Python does not fetch.
    let trial = Trial::new(&hub);
    let path = trial.fetch("org/model").expect("fetched");
    hub.forget();
    assert_eq!((python(&hub, &trial), contents(&hub)), (path, 0));
    // And the other way round.
    let trial = Trial::new(&hub);
    let path = python(&hub, &trial);
    hub.forget();
    assert_eq!((trial.fetch("org/model").expect("cached"), hub.asked().len()), (path, 1));
}
