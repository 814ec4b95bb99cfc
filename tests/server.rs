//! `sd-gen serve` as its clients meet it: over a socket, with the built-in model.
#![cfg(all(feature = "builtin-model", feature = "serve", unix))]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its files has failed")]

use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything takes; a loaded machine is no failure.
const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Server {
    fn start(folder: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--output-dir", "served", "--size", "64x64", "--steps", "1", "-q"]).args(more);
        command.current_dir(folder).env_remove("SD_GEN_MODELS").env_remove("SD_GEN_API_KEY");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("sd-gen starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{line:?}");
        Self { child, address }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
        assert!(!head.contains("transfer-encoding: chunked"), "{head}");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head, body: all[end + 4..].to_vec() }
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Json) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Puts a job into the queue.
    fn job(&self, settings: &Json) -> String {
        let answer = self.post("/v1/jobs", settings);
        assert_eq!(answer.status, 202, "{}", answer.json());
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a job is as it should be.
    fn wait(&self, id: &str, is: impl Fn(&Json) -> bool) -> Json {
        let began = Instant::now();
        loop {
            let job = self.get(&format!("/v1/jobs/{id}")).json();
            if is(&job) {
                return job;
            }
            assert!(began.elapsed() < PATIENCE, "{job}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ended(&self, id: &str) -> Json {
        self.wait(id, |job| ["done", "failed", "cancelled"].contains(&job["state"].as_str().unwrap_or_default()))
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("folder")
}

fn size(bytes: &[u8]) -> (u32, u32) {
    let image = image::load_from_memory(bytes).expect("an image");
    (image.width(), image.height())
}

fn has_begun(job: &Json) -> bool {
    job["progress"]["step"].as_u64().is_some_and(|step| step > 0)
}

#[test]
fn a_job_becomes_an_image_in_each_format() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let id = server.job(&json!({ "prompt": "a red apple", "seed": 5 }));
    let job = server.ended(&id);
    assert_eq!((job["state"].as_str(), job["images"][0]["seed"].as_u64()), (Some("done"), Some(5)), "{job}");
    let url = job["images"][0]["url"].as_str().expect("a url");
    let png = server.get(url);
    assert_eq!((png.status, size(&png.body)), (200, (64, 64)));
    assert!(png.head.contains("content-type: image/png"), "{}", png.head);
    for format in ["jpeg", "webp"] {
        assert_eq!(size(&server.get(&format!("{url}?format={format}")).body), (64, 64));
    }
    assert_eq!(server.get(&format!("/v1/jobs/{id}/images/1")).status, 404);
    // The same settings make the same image.
    let again = server.job(&json!({ "prompt": "a red apple", "seed": 5 }));
    server.ended(&again);
    assert_eq!(server.get(&format!("/v1/jobs/{again}/images/0")).body, png.body);
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_no_other_file_is_read() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("open")).expect("folder");
    std::fs::write(folder.path().join("secret.png"), "x").expect("write");
    std::os::unix::fs::symlink("../secret.png", folder.path().join("open/link.png")).expect("link");
    let server = Server::start(folder.path(), &["--allow-dir", "open", "--max-steps", "5", "--max-images", "2"]);
    let wrong = server.post("/v1/jobs", &json!({ "steps": "many", "stepz": 1, "model": "../x", "output": "/tmp/a.png" }));
    assert_eq!(wrong.status, 422);
    let problems = wrong.json()["error"]["problems"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<&str> = problems.iter().filter_map(|problem| problem["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["model", "output", "prompt", "steps", "stepz"], "{}", wrong.json());
    for path in ["/etc/passwd", "../secret.png", "link.png", "open/../../secret.png"] {
        let refused = server.post("/v1/jobs", &json!({ "prompt": "x", "init-image": path }));
        assert_eq!((refused.status, refused.json()["error"]["problems"][0]["path"].as_str()), (422, Some("init-image")), "{path}");
    }
    // What is wrong with the model or the folders is said at once too.
    let wrong = server.post("/v1/jobs", &json!({ "prompt": "x", "lora": "nonesuch", "vae": "nonesuch", "upscale": "nonesuch" }));
    let problems = wrong.json()["error"]["problems"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<&str> = problems.iter().filter_map(|problem| problem["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!((wrong.status, paths.as_slice()), (422, ["lora", "upscale", "vae"].as_slice()), "{}", wrong.json());
    for (path, body) in [("/v1/jobs", json!({ "prompt": [] })), ("/sdapi/v1/txt2img", json!({ "prompt": [], "steps": 2 }))] {
        assert_eq!(server.post(path, &body).status, 422, "{path}");
    }
    let beyond = server.post("/v1/jobs", &json!({ "prompt": "x", "steps": 6, "images": 3 }));
    assert_eq!(beyond.json()["error"]["problems"].as_array().map(Vec::len), Some(2), "{}", beyond.json());
    for name in ["lora", "embedding", "vae"] {
        assert_eq!(server.post("/v1/jobs", &json!({ "prompt": "x", name: "/etc/passwd" })).status, 422, "{name}");
    }
    for (name, value) in [("steps", 6), ("images", 3)] {
        let refused = server.post("/v1/jobs", &json!({ "prompt": "x", name: value }));
        assert_eq!((refused.status, refused.json()["error"]["problems"][0]["path"].as_str()), (422, Some(name)));
    }
    assert_eq!(server.get("/v1/jobs").json()["jobs"], json!([]));
}

#[test]
fn a_job_at_work_is_cancelled_and_a_full_queue_says_so() {
    let folder = folder();
    let server = Server::start(folder.path(), &["--max-queue", "2"]);
    let id = server.job(&json!({ "prompt": "x", "size": "256x256", "steps": 150 }));
    server.wait(&id, has_begun);
    let waiting = server.job(&json!({ "prompt": "y" }));
    // What the engine has taken ahead waits no more.
    let full = (0..50).map(|_| server.post("/v1/jobs", &json!({ "prompt": "z" }))).find(|answer| answer.status != 202).expect("an end");
    assert_eq!(full.status, 429);
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    assert_eq!(server.send("DELETE", &format!("/v1/jobs/{id}"), &[], b"").json()["state"], "cancelled");
    assert_eq!(server.ended(&waiting)["state"], "done");
    assert_eq!(server.send("DELETE", &format!("/v1/jobs/{id}?forget=true"), &[], b"").json()["forgotten"], true);
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).status, 404);
}

#[test]
fn other_sites_and_those_without_the_key_are_refused() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Host", "evil.example")], b"").status, 403);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Origin", "http://evil.example")], b"").status, 403);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Origin", &format!("http://{}", server.address))], b"").status, 200);
    assert_eq!(server.send("POST", "/v1/jobs", &[("Content-Type", "text/plain")], b"{\"prompt\":\"x\"}").status, 415);
    assert_eq!((server.get("/").status, server.get("/nowhere").status, server.get("/health").status), (200, 404, 200));
    server.kill();
    let server = Server::start(folder.path(), &["--api-key", "key", "--cors", "https://a.example"]);
    assert_eq!((server.get("/v1/jobs").status, server.get("/metrics").status, server.get("/health").status), (401, 401, 200));
    assert_eq!(server.send("GET", "/v1/jobs", &[("X-Api-Key", "kez")], b"").status, 401);
    let allowed = server.send("GET", "/v1/jobs", &[("Authorization", "Bearer key"), ("Origin", "https://a.example")], b"");
    assert_eq!(allowed.status, 200);
    assert!(allowed.head.contains("access-control-allow-origin: https://a.example"), "{}", allowed.head);
}

#[test]
fn a1111s_clients_get_their_images() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let request =
        json!({ "prompt": "a red apple", "seed": 7, "steps": 2, "sampler_name": "Euler a", "width": 64, "height": 64, "no_such": 1 });
    let answer = server.post("/sdapi/v1/txt2img", &request);
    assert_eq!(answer.status, 200, "{}", answer.json());
    let answer = answer.json();
    let info: Json = serde_json::from_str(answer["info"].as_str().expect("a text")).expect("info is JSON");
    assert_eq!((&info["seed"], &info["not_understood"]), (&json!(7), &json!(["no_such"])), "{info}");
    let image = &answer["images"][0];
    let read = server.post("/sdapi/v1/png-info", &json!({ "image": image })).json();
    let text = read["info"].as_str().unwrap_or_default();
    assert!(text.contains("Sampler: Euler a") && text.contains("Seed: 7"), "{read}");
    // The image goes back as the one to begin with.
    let request =
        json!({ "prompt": "a pear", "init_images": [image], "mask": image, "steps": 2, "width": 64, "height": 64, "inpainting_fill": 1 });
    let answer = server.post("/sdapi/v1/img2img", &request);
    assert_eq!((answer.status, answer.json()["images"].as_array().map(Vec::len)), (200, Some(1)), "{}", answer.json());
    assert_eq!(server.get("/sdapi/v1/progress").json()["progress"], 0.0);
}

#[test]
fn what_a_killed_server_left_is_made_by_the_next() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let id = server.job(&json!({ "prompt": "x", "images": 2, "batch-size": 1, "seed": 3 }));
    let long = server.job(&json!({ "prompt": "y", "steps": 150, "seed": 4, "size": "256x256" }));
    server.ended(&id);
    server.wait(&long, has_begun);
    let after = server.job(&json!({ "prompt": "z", "seed": 9 }));
    let kept = server.get(&format!("/v1/jobs/{id}/images/1")).body;
    server.kill();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get(&format!("/v1/jobs/{id}/images/1")).body, kept);
    server.wait(&long, has_begun);
    // Stopped by SIGTERM, it puts the job at work back.
    let mut server = server;
    let process = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("a signal");
    assert!(server.child.wait().expect("it ends").success());
    let server = Server::start(folder.path(), &[]);
    server.wait(&long, has_begun);
    server.send("DELETE", &format!("/v1/jobs/{long}"), &[], b"");
    let job = server.ended(&after);
    assert_eq!((job["state"].as_str(), job["images"][0]["seed"].as_u64()), (Some("done"), Some(9)), "{job}");
}

#[test]
fn the_document_names_every_status_that_comes() {
    let folder = folder();
    let server = Server::start(folder.path(), &["--api-key", "key"]);
    // The document and its page say nothing of anybody: they are open.
    let document = server.get("/openapi.json");
    assert_eq!((document.status, server.get("/docs").status), (200, 200));
    let document = document.json();
    let key = [("X-Api-Key", "key"), ("Content-Type", "application/json")];
    let paths = document["paths"].as_object().expect("paths");
    for (path, item) in paths {
        for (verb, operation) in item.as_object().expect("an item") {
            let path = path.split('{').next().map(|before| if before == path { path.clone() } else { format!("{before}nothing") });
            let verb = verb.to_uppercase();
            let body: &[u8] = if operation["requestBody"].is_null() { b"" } else { b"[]" };
            let answer = server.send(&verb, &path.expect("a path"), &key, body);
            let known = operation["responses"].as_object().expect("responses");
            assert!(
                answer.status < 500 && known.contains_key(&answer.status.to_string()),
                "{verb} {}: {}",
                operation["operationId"],
                answer.status
            );
            let without = server.send(&verb, "/v1/files", &[], b"");
            assert_eq!(without.status, 401);
        }
    }
}

fn graph(latent: &Json) -> Json {
    json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 7, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0] } },
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "emoji" } },
        "5": latent,
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "a red apple", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "x", "images": ["8", 0] } },
    })
}

fn from_nothing() -> Json {
    let mut graph = graph(&json!({ "class_type": "EmptyLatentImage", "inputs": { "width": 64, "height": 64, "batch_size": 1 } }));
    graph["3"]["inputs"]["denoise"] = json!(1);
    graph
}

impl Server {
    /// Waits until a graph is in the history.
    fn history(&self, id: &str) -> Json {
        let began = Instant::now();
        loop {
            let found = self.get(&format!("/history/{id}")).json();
            if let Some(entry) = found.get(id) {
                return entry.clone();
            }
            assert!(began.elapsed() < PATIENCE, "{found}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The image of an output.
    fn shown(&self, entry: &Json) -> Answer {
        let image = &entry["outputs"]["9"]["images"][0];
        let name = image["filename"].as_str().unwrap_or_else(|| panic!("{entry}"));
        self.get(&format!("/view?filename={name}&subfolder=&type=output"))
    }

    /// A WebSocket after its handshake.
    fn socket(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            said.push(byte[0]);
        }
        assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
        stream
    }
}

/// A message of a server: whether it is text, and what it says.
fn message(stream: &mut TcpStream) -> (bool, Vec<u8>) {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).expect("a message");
        bytes
    };
    let head = take(2);
    let length = match head[1] & 0x7f {
        126 => u16::from_be_bytes(take(2).try_into().expect("two")) as usize,
        127 => u64::from_be_bytes(take(8).try_into().expect("eight")) as usize,
        short => short as usize,
    };
    (head[0] & 0xf == 1, take(length))
}

#[test]
fn comfyuis_clients_follow_their_graphs() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let mut socket = server.socket("/ws?clientId=me");
    let mut heard: Vec<(String, Json)> = Vec::new();
    // As ComfyUI's own example sends it: JSON that says it is a form.
    let body = json!({ "prompt": from_nothing(), "client_id": "me" }).to_string();
    let answer = server.send("POST", "/prompt", &[("Content-Type", "application/x-www-form-urlencoded")], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.json());
    let id = answer.json()["prompt_id"].as_str().expect("an id").to_owned();
    assert_eq!((id.len(), &answer.json()["node_errors"]), (36, &json!({})));
    let mut previews = 0;
    loop {
        let (is_text, said) = message(&mut socket);
        if !is_text {
            assert_eq!(said[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
            size(&said[8..]);
            previews += 1;
            continue;
        }
        let said: Json = serde_json::from_slice(&said).expect("JSON");
        heard.push((said["type"].as_str().expect("a type").to_owned(), said["data"].clone()));
        if said["type"] == "executing" && said["data"]["node"].is_null() {
            break;
        }
    }
    let kinds: Vec<&str> =
        heard.iter().map(|(kind, _)| kind.as_str()).filter(|kind| !["status", "progress", "executing"].contains(kind)).collect();
    assert_eq!(kinds, ["execution_start", "execution_cached", "executed", "execution_success"], "{heard:?}");
    assert!(heard.iter().any(|(kind, data)| kind == "status" && data["sid"] == "me"), "{heard:?}");
    assert!(previews <= 4, "{previews}");
    let entry = server.history(&id);
    assert_eq!((&entry["status"]["completed"], &entry["prompt"][1]), (&json!(true), &json!(id)), "{entry}");
    let shown = server.shown(&entry);
    assert_eq!((shown.status, size(&shown.body)), (200, (64, 64)));
    // The same as the command line makes of that graph, were it in an image.
    let settings = json!({
        "prompt": "a red apple", "negative-prompt": "", "seed": 7, "steps": 2, "guidance-scale": 5, "sampler": "euler", "schedule": "normal",
        "like": "comfyui", "prompt-syntax": "comfyui", "rng": "torch-cpu", "width": 64, "height": 64, "model": "emoji",
        "timestep-spacing": "linspace",
    });
    let job = server.job(&settings);
    server.ended(&job);
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).expect("an image").to_rgb8();
    assert!(pixels(&server.get(&format!("/v1/jobs/{job}/images/0")).body) == pixels(&shown.body), "the pixels differ");
    let webp =
        server.get(&format!("/view?filename={}&preview=webp;90", entry["outputs"]["9"]["images"][0]["filename"].as_str().expect("a name")));
    assert!(webp.head.contains("content-type: image/webp"), "{}", webp.head);
    assert_eq!(server.post("/history", &json!({ "delete": [id] })).status, 200);
    assert_eq!(server.get(&format!("/api/history/{id}")).json(), json!({}));
}

#[test]
fn comfyuis_clients_send_images_and_hear_what_is_wrong() {
    let folder = folder();
    std::fs::write(folder.path().join("secret.png"), "x").expect("write");
    let server = Server::start(folder.path(), &[]);
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(64, 72, image::Rgb([200, 30, 30])).write_to(&mut png, image::ImageFormat::Png).expect("a PNG");
    let mut form =
        b"--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"../../secret.png\"\r\nContent-Type: image/png\r\n\r\n".to_vec();
    form.extend_from_slice(png.get_ref());
    form.extend_from_slice(b"\r\n--x--\r\n");
    let sent = server.send("POST", "/upload/image", &[("Content-Type", "multipart/form-data; boundary=x")], &form);
    assert_eq!((sent.status, sent.json()), (200, json!({ "name": "secret.png", "subfolder": "", "type": "input" })));
    assert_eq!(std::fs::read(folder.path().join("secret.png")).expect("read"), b"x");
    assert_eq!(server.get("/view?filename=secret.png&type=input").body, *png.get_ref());
    let mut over = graph(&json!({ "class_type": "VAEEncode", "inputs": { "pixels": ["10", 0], "vae": ["4", 2] } }));
    over["10"] = json!({ "class_type": "LoadImage", "inputs": { "image": "secret.png" } });
    let answer = server.post("/prompt", &json!({ "prompt": over, "prompt_id": "mine" }));
    assert_eq!((answer.status, &answer.json()["prompt_id"]), (200, &json!("mine")), "{}", answer.json());
    assert_eq!(size(&server.shown(&server.history("mine")).body), (64, 72));
    // Of an image that was made and of one that is elsewhere.
    for (name, status) in [("../../secret.png", 400), ("/etc/passwd", 400), ("absent.png", 400)] {
        over["10"]["inputs"]["image"] = json!(name);
        let refused = server.post("/prompt", &json!({ "prompt": over }));
        assert_eq!(
            (refused.status, refused.json()["node_errors"]["10"]["class_type"].as_str()),
            (status, Some("LoadImage")),
            "{}",
            refused.json()
        );
    }
    for path in ["/view?filename=../server.lock&type=input", "/view?filename=../../secret.png", "/view?filename=absent-0.png"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let mut unknown = from_nothing();
    unknown["8"]["class_type"] = json!("VAEDecodeByMagic");
    let refused = server.post("/prompt", &json!({ "prompt": unknown })).json();
    assert_eq!(
        (&refused["error"]["type"], &refused["node_errors"]["8"]["dependent_outputs"]),
        (&json!("missing_node_type"), &json!(["9"])),
        "{refused}"
    );
    let mut many = from_nothing();
    many["3"]["inputs"]["steps"] = json!(151);
    let refused = server.post("/prompt", &json!({ "prompt": many }));
    assert_eq!((refused.status, refused.json()["node_errors"]["3"]["errors"][0]["type"].as_str()), (400, Some("custom_validation_failed")));
    let nodes = server.get("/object_info").json();
    assert!(
        nodes["KSampler"]["input"]["required"]["sampler_name"][0].as_array().is_some_and(|names| names.len() > 10),
        "{}",
        nodes["KSampler"]
    );
    assert_eq!(server.get("/object_info/LoadImage").json()["LoadImage"]["input"]["required"]["image"][0], json!(["secret.png"]));
    assert_eq!(server.get("/models/checkpoints").json(), json!(["emoji"]));
    assert_eq!(
        (server.get("/models/nonesuch").status, server.get("/system_stats").json()["devices"][0]["type"].as_str()),
        (404, Some("cpu"))
    );
    // One at work is interrupted; one that waits is taken out.
    let mut long = from_nothing();
    (long["3"]["inputs"]["steps"], long["5"]["inputs"]["width"], long["5"]["inputs"]["height"]) = (json!(150), json!(256), json!(256));
    let id = |answer: &Answer| answer.json()["prompt_id"].as_str().expect("an id").to_owned();
    let running = id(&server.post("/prompt", &json!({ "prompt": long })));
    let began = Instant::now();
    while server.get("/queue").json()["queue_running"].as_array().is_none_or(Vec::is_empty) {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut waiting = from_nothing();
    waiting["5"]["inputs"]["width"] = json!(128);
    let waiting = id(&server.post("/prompt", &json!({ "prompt": waiting })));
    assert_eq!(server.get("/prompt").json(), json!({ "exec_info": { "queue_remaining": 2 } }));
    assert_eq!(server.post("/queue", &json!({ "delete": [waiting] })).status, 200);
    assert_eq!(server.send("POST", "/interrupt", &[], b"").status, 200);
    let entry = server.history(&running);
    assert_eq!(
        (&entry["status"]["status_str"], &entry["status"]["messages"][2][0]),
        (&json!("error"), &json!("execution_interrupted")),
        "{entry}"
    );
    assert_eq!(server.get(&format!("/history/{waiting}")).json(), json!({}));
}

/// `sd-gen batch` of a file in the folder.
#[cfg(feature = "hub")]
fn batch(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(["batch", "prompts.txt", "--output-dir", "out"]).args(more).current_dir(folder);
    command.env_remove("SD_GEN_MODELS").env_remove("SD_GEN_API_KEY");
    command
}

#[cfg(feature = "hub")]
#[test]
fn servers_share_a_batch_and_one_may_vanish() {
    let (folder, other) = (folder(), folder());
    image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30])).save(folder.path().join("apple.png")).expect("a PNG");
    let mut lines: String = (0..8).map(|seed| format!("an apple --seed {seed} --size 256x256 --steps 12\n")).collect();
    lines.push_str("a pear --seed 5 --init-image apple.png --strength 0.5 --steps 4 --output pears/{seed}.png\n");
    std::fs::write(folder.path().join("prompts.txt"), lines).expect("write");
    let (first, second) = (Server::start(folder.path(), &[]), Server::start(other.path(), &[]));
    let urls = [first.address.clone(), format!("http://{}", second.address)];
    let servers: [&str; 4] = ["--server", &urls[0], "--server", &urls[1]];
    let mut child = batch(folder.path(), &servers).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // Both have lines; then one is killed.
    let began = Instant::now();
    let has_begun = |server: &Server| server.get("/v1/jobs").json()["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(has_begun));
    while !(has_begun(&first) && has_begun(&second)) && child.try_wait().expect("its state").is_none() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill();
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = folder.path().join("out");
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> =
            entries.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.ends_with(".png")).collect();
        names.sort();
        names
    };
    let wanted: Vec<String> = (0..8).map(|seed| format!("an-apple-{seed}.png")).collect();
    assert_eq!((names(&out), names(&out.join("pears"))), (wanted, vec!["5.png".to_owned()]));
    let manifest = std::fs::read_to_string(out.join("sd-gen.manifest.jsonl")).expect("a manifest");
    let done = manifest.lines().filter(|line| serde_json::from_str::<Json>(line).is_ok_and(|record| record["status"] == "ok")).count();
    assert_eq!(done, 9, "{manifest}");
    // An image is what the server makes of the same settings.
    let text = std::fs::read(out.join("an-apple-3.png")).expect("an image");
    assert_eq!(size(&text), (256, 256));
    // Nothing is left to do, whoever is there.
    let again = batch(folder.path(), &servers).output().expect("it runs");
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("9 images are there already"), "{again:?}");
    // A job that nobody waits for is not left behind.
    let left = second.get("/v1/jobs").json();
    assert_eq!(left["jobs"], json!([]));
}

#[cfg(feature = "hub")]
#[test]
fn a_batch_without_a_server_that_takes_it_says_so() {
    let folder = folder();
    std::fs::write(folder.path().join("prompts.txt"), "an apple --seed 1\nan apple --seed 2 --model nonesuch\n").expect("write");
    let server = Server::start(folder.path(), &["--api-key", "key"]);
    let refused = batch(folder.path(), &["--server", &server.address]).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("no server is left") && said.contains("key"), "{said}");
    // The key opens it; what is wrong with a line is that line's.
    let output = batch(folder.path(), &["--server", &server.address, "--api-key", "key"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("no such model"), "{said}");
    assert!(folder.path().join("out/an-apple-1.png").is_file());
    let device = batch(folder.path(), &["--server", &server.address, "--device", "cpu"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&device.stderr).contains("the server's own"), "{device:?}");
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let mut stream = TcpStream::connect(&server.address).expect("a connection");
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x").expect("sent");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let began = Instant::now();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(began.elapsed() > Duration::from_secs(20) && began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}
