//! What is sent: right requests of every route, and what chance makes of them.

use super::chance::Chance;
use crate::server::a1111::PLAIN;
use crate::server::files::to_base64;
use crate::server::routes::{QueryKind, ServerRoute, TakenBody, all};
use crate::settings::table;
use ::image::{ImageFormat, Rgba, RgbaImage};
use serde_json::{Map, Value as Json, json};
use std::fmt;
use std::io::Cursor;
use std::path::Path;

/// What stands in files that nobody may read.
pub(super) const CANARY: &str = "yellow-bird-7f3a";

/// A request as it is sent.
pub(super) struct FuzzedRequest {
    pub(super) bytes: Vec<u8>,
    /// It ends before its end.
    pub(super) breaks_off: bool,
}

impl fmt::Display for FuzzedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(3000)]))
    }
}

/// What requests are made of.
pub(super) struct Corpus {
    images: Vec<Vec<u8>>,
    /// Texts that lead astray.
    texts: Vec<String>,
    routes: Vec<(String, &'static ServerRoute)>,
    /// Those of them whose requests have a body.
    takers: Vec<(String, &'static ServerRoute)>,
}

fn written(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbaImage::from_fn(width, height, |x, y| Rgba([(x * 16) as u8, (y * 16) as u8, 99, if x < 4 { 0 } else { 255 }]));
    let mut bytes = Cursor::new(Vec::new());
    let done = match format {
        ImageFormat::Jpeg => ::image::DynamicImage::ImageRgba8(image).to_rgb8().write_to(&mut bytes, format),
        _ => image.write_to(&mut bytes, format),
    };
    done.expect("an image");
    bytes.into_inner()
}

pub(super) fn png(width: u32, height: u32) -> Vec<u8> {
    written(width, height, ImageFormat::Png)
}

/// The check of a PNG's chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }))
}

/// A PNG that says to be of another size.
fn huge_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(16, 16);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let check = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&check.to_be_bytes());
    bytes
}

impl Corpus {
    /// Lays the files out that may be read, and those that may not.
    pub(super) fn new(root: &Path) -> Self {
        let secret = root.join("secret");
        for name in ["canary.txt", "canary.json", "canary.png", "canary.safetensors", "styles.csv"] {
            std::fs::write(secret.join(name), format!("{{\"{CANARY}\": \"{CANARY}\"}}\n{CANARY},{CANARY}\n")).expect("a file");
        }
        std::fs::write(secret.join("real.png"), png(16, 16)).expect("a file");
        std::fs::write(root.join("open/real.png"), png(16, 16)).expect("a file");
        std::fs::write(root.join("open/colour.txt"), "red\nblue\n").expect("a file");
        for (name, target) in [("link.png", "../secret/real.png"), ("link.txt", "../secret/canary.txt"), ("up", "../secret")] {
            std::os::unix::fs::symlink(target, root.join("open").join(name)).expect("a link");
        }
        let inside = |path: &str| root.join(path).to_string_lossy().into_owned();
        let mut texts: Vec<String> = ["real.png", "canary.txt", "canary.json", "canary.png", "canary.safetensors", "styles.csv"]
            .iter()
            .flat_map(|name| {
                [inside(&format!("secret/{name}")), format!("../secret/{name}"), format!("up/{name}"), format!("open/../secret/{name}")]
            })
            .collect();
        texts.extend([
            inside("open"),
            inside("open/link.png"),
            inside("served/server.lock"),
            inside("made-by-a-request.png"),
            "a".repeat(70_000),
            "[".repeat(3_000),
            "((".repeat(300),
        ]);
        texts.extend(
            [
                "",
                " ",
                "real.png",
                "link.png",
                "link.txt",
                "colour.txt",
                ".",
                "..",
                "/",
                "~/.ssh/id_rsa",
                "/etc/passwd",
                "/proc/self/environ",
                "\0",
                "a\0b",
                "..\\..\\x",
                "C:\\x",
                "%00",
                "%2e%2e%2f",
                "file:///etc/passwd",
                "http://127.0.0.1:1/x",
                "a red apple",
                "(a:1e308)",
                "[a:b:0.5]",
                "{a|b}",
                "__colour__",
                "__../../secret/canary__",
                "<lora:../secret/canary:1>",
                "<lora:x:nan>",
                "a AND b",
                "BREAK",
                "a:b::c",
                "0",
                "-1",
                "1e999",
                "NaN",
                "inf",
                "18446744073709551616",
                "0x0",
                "99999999x99999999",
                "64x64",
                "euler",
                "karras",
                "emoji",
                "torch-cuda",
                "true",
                "\u{202e}",
                "😀",
                "data:image/png;base64,",
                "data:image/png;base64,AAAA",
                "left=8,top=100000",
                "x=1",
                "canny,image=../secret/real.png,weight=1",
                "'; DROP",
                "${x}",
                "\r\nX: y",
                "a=b",
                "@/etc/passwd",
                "open/link.png",
            ]
            .map(str::to_owned),
        );
        let mut images = vec![png(16, 16), png(64, 48), png(1, 1), written(16, 16, ImageFormat::Jpeg), written(16, 16, ImageFormat::WebP)];
        images.extend([huge_png(0x7fff_ffff, 0x7fff_ffff), huge_png(60_000, 60_000), huge_png(1, 0x7fff_ffff), huge_png(0, 0)]);
        // The size of a JPEG stands behind FFC0, of a WebP behind VP8L.
        let mut jpeg = written(16, 16, ImageFormat::Jpeg);
        if let Some(at) = jpeg.windows(2).position(|two| two == [0xff, 0xc0]) {
            jpeg[at + 5..at + 9].fill(0xff);
        }
        let mut webp = written(16, 16, ImageFormat::WebP);
        webp[21..25].fill(0xff);
        images.extend([jpeg, webp]);
        let routes = all().flat_map(|(group, route)| {
            let own = Some((route.path.to_owned(), route));
            own.into_iter().chain((group == super::super::routes::ApiGroup::ComfyUi).then(|| (format!("/api{}", route.path), route)))
        });
        let routes: Vec<(String, &'static ServerRoute)> = routes.collect();
        let takers = routes.iter().filter(|(_, route)| !matches!(route.takes, TakenBody::None)).cloned().collect();
        Self { images, texts, routes, takers }
    }

    /// A request, which may name one of the jobs.
    pub(super) fn request(&self, chance: &mut Chance, jobs: &[String]) -> FuzzedRequest {
        // What makes jobs is asked for most.
        let (path, route) = if chance.percent(60) { chance.of(&self.takers).clone() } else { chance.of(&self.routes).clone() };
        let target = format!("{}{}", self.path(chance, &path, jobs), self.query(chance, route));
        let (kind, mut body) = self.body(chance, &path, route, jobs);
        if chance.percent(6) && !body.is_empty() {
            body = self.damaged(chance, body);
        }
        let method = if chance.percent(3) {
            chance.of(&["PUT", "PATCH", "HEAD", "OPTIONS", "DELETE", "POST", "GET", "X"])
        } else {
            route.verb.name()
        };
        let kind = if chance.percent(4) {
            chance.of(&["text/plain", "application/json; charset=x", "multipart/form-data", ""]).to_string()
        } else {
            kind
        };
        let mut head =
            format!("{} {target} HTTP/1.1\r\nHost: 127.0.0.1:7860\r\nConnection: close\r\nContent-Type: {kind}\r\n", method.to_uppercase());
        if path.ends_with("/ws") {
            head = head.replace(
                "Connection: close\r\n",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            );
        }
        if chance.percent(2) {
            head.push_str(chance.of::<&str>(&[
                "Origin: http://evil.example\r\n",
                "X-Api-Key: x\r\n",
                "Authorization: Basic ////\r\n",
                "Expect: 100-continue\r\n",
                "Accept: */*\r\n",
            ]));
        }
        let breaks_off = chance.percent(2) && !body.is_empty();
        let length = if breaks_off { body.len() + 1 + chance.below(1000) } else { body.len() };
        // A socket that is upgraded or refused ends when it has been told so.
        let breaks_off = breaks_off || path.ends_with("/ws") || method == "X";
        let mut bytes = format!("{head}Content-Length: {length}\r\n\r\n").into_bytes();
        bytes.extend(body);
        FuzzedRequest { bytes, breaks_off }
    }

    fn path(&self, chance: &mut Chance, path: &str, jobs: &[String]) -> String {
        let parts = path.split('/').map(|part| match part.starts_with('{') {
            false => part.to_owned(),
            true => match chance.below(10) {
                0..6 if part.contains("id") && !jobs.is_empty() => chance.of(jobs).clone(),
                0..6 => chance.of(&["0", "1", "0.jpeg", "0.webp", "0.x", "emoji", "KSampler", "loras", "x"]).to_string(),
                _ => percent(chance.of::<String>(&self.texts), chance.percent(50)),
            },
        });
        parts.collect::<Vec<_>>().join("/")
    }

    fn query(&self, chance: &mut Chance, route: &ServerRoute) -> String {
        let mut all = Vec::new();
        for (name, kind, _) in route.query {
            if chance.percent(40) {
                let value = match kind {
                    _ if chance.percent(25) => percent(chance.of::<String>(&self.texts), false),
                    QueryKind::Text => percent(chance.of::<String>(&self.texts), false),
                    QueryKind::Whole(least, most) => chance.of(&[least.to_string(), most.to_string(), "7".into()]).clone(),
                    QueryKind::Switch => "true".into(),
                    QueryKind::Words(words) => (*chance.of(words)).to_owned(),
                };
                all.push(format!("{name}={value}"));
            }
        }
        if all.is_empty() { String::new() } else { format!("?{}", all.join("&")) }
    }

    /// The type of a body, and the body.
    fn body(&self, chance: &mut Chance, path: &str, route: &ServerRoute, jobs: &[String]) -> (String, Vec<u8>) {
        let as_form = match route.takes {
            TakenBody::None if chance.percent(90) => return ("text/plain".into(), Vec::new()),
            TakenBody::Form(_) => true,
            TakenBody::JsonOrForm(..) => chance.percent(40),
            _ => false,
        };
        let mut body = self.object(chance, path, jobs);
        for _ in 0..*chance.of(&[0, 0, 1, 1, 2, 5]) {
            self.mutate(chance, &mut body);
        }
        if !as_form {
            return ("application/json".into(), body.to_string().into_bytes());
        }
        let boundary = "x-y-z";
        let mut form = Vec::new();
        let mut part = |head: String, bytes: &[u8]| {
            form.extend(format!("--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n").into_bytes());
            form.extend(bytes);
            form.extend(b"\r\n");
        };
        for (name, value) in body.as_object().into_iter().flatten().take(80) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            part(format!("name=\"{}\"", name.replace(['"', '\r', '\n'], "")), text.as_bytes());
        }
        for _ in 0..*chance.of(&[0, 1, 1, 1, 2, 70]) {
            let name = chance.of(&["image", "mask", "image[]", "init-image", "control", "recreate", "original_ref", "x", ""]);
            let file = chance.of(&self.texts).chars().take(300).filter(|c| !"\"\r\n".contains(*c)).collect::<String>();
            part(format!("name=\"{name}\"; filename=\"{file}\""), &self.image(chance));
        }
        form.extend(format!("--{boundary}--\r\n").into_bytes());
        (format!("multipart/form-data; boundary={boundary}"), form)
    }

    fn image(&self, chance: &mut Chance) -> Vec<u8> {
        let image = chance.of(&self.images).clone();
        if chance.percent(30) { self.damaged(chance, image) } else { image }
    }

    fn damaged(&self, chance: &mut Chance, mut bytes: Vec<u8>) -> Vec<u8> {
        match chance.below(4) {
            0 => bytes.truncate(chance.below(bytes.len())),
            1 => {
                for _ in 0..=chance.below(8) {
                    let at = chance.below(bytes.len());
                    bytes[at] = chance.next() as u8;
                }
            }
            2 => {
                let at = chance.below(bytes.len());
                bytes.splice(at..at, chance.of(&self.texts).bytes());
            }
            _ => {
                let (from, to) = (chance.below(bytes.len()), chance.below(bytes.len()));
                bytes.drain(from.min(to)..from.max(to));
            }
        }
        bytes
    }

    /// A right request of a route's, or as good as.
    fn object(&self, chance: &mut Chance, path: &str, jobs: &[String]) -> Json {
        let file = |chance: &mut Chance| to_base64(&self.image(chance));
        match path.trim_start_matches("/api") {
            "/prompt" => {
                let mut graph = graph();
                if chance.percent(30) {
                    graph["5"] = json!({ "class_type": "VAEEncodeForInpaint", "inputs": { "pixels": ["11", 0], "vae": ["4", 2], "mask": ["11", 1], "grow_mask_by": 3 } });
                    let name = if chance.percent(50) { format!("{}.png", chance.below(3)) } else { chance.of(&self.texts).clone() };
                    graph["11"] = json!({ "class_type": "LoadImage", "inputs": { "image": name } });
                }
                json!({ "prompt": graph, "client_id": "x" })
            }
            "/queue" | "/history" | "/interrupt" => match jobs.first() {
                Some(job) if chance.percent(50) => json!({ "delete": [job], "prompt_id": job }),
                _ => json!({ "clear": true }),
            },
            "/v1/images/generations" => {
                json!({ "prompt": "x", "n": 1, "size": "64x64", "stream": chance.percent(20), "partial_images": 1, "output_format": "jpeg" })
            }
            "/v1/images/edits" => json!({ "prompt": "x", "n": "1", "size": "64x64" }),
            "/sdapi/v1/png-info" | "/v1/inspect" => json!({ "image": file(chance) }),
            "/sdapi/v1/extra-single-image" => json!({ "image": file(chance), "upscaling_resize": 1.5, "upscaler_1": "Lanczos" }),
            "/sdapi/v1/options" => json!({ "sd_model_checkpoint": "emoji", "CLIP_stop_at_last_layers": 1, "x": 1 }),
            "/upload/image" | "/upload/mask" => {
                json!({ "overwrite": "true", "type": "input", "subfolder": "../x", "original_ref": "{\"filename\": \"0.png\"}" })
            }
            path if path.starts_with("/sdapi") => {
                let mut body = json!({ "prompt": "x", "width": 64, "height": 64, "steps": 1, "batch_size": 1 });
                if path.ends_with("img2img") || chance.percent(10) {
                    body["init_images"] = json!([file(chance)]);
                    body["denoising_strength"] = json!(0.5);
                    if chance.percent(40) {
                        body["mask"] = json!(file(chance));
                    }
                }
                if chance.percent(20) {
                    let (name, _) = chance.of(PLAIN);
                    body[*name] = self.value(chance);
                }
                if chance.percent(20) {
                    body["alwayson_scripts"] =
                        json!({ "controlnet": { "args": [{ "enabled": true, "module": "canny", "model": "x", "image": file(chance) }] } });
                }
                body
            }
            _ => {
                let mut body = json!({ "prompt": "x", "size": "64x64", "steps": 1 });
                for _ in 0..*chance.of(&[0, 1, 2, 4]) {
                    let row = chance.of(table());
                    let words = (row.words)();
                    body[row.name] = match chance.below(4) {
                        0 if !words.is_empty() => json!(chance.of(&words)),
                        1 if !row.example.is_empty() => serde_json::from_str(row.example).unwrap_or(json!(row.example)),
                        2 => row.range.map_or(json!(true), |(least, most)| json!(if chance.percent(50) { least } else { most })),
                        _ => self.value(chance),
                    };
                }
                if chance.percent(30) {
                    body["init-image"] = json!(format!("data:image/png;base64,{}", file(chance)));
                }
                body
            }
        }
    }

    fn value(&self, chance: &mut Chance) -> Json {
        match chance.below(16) {
            0 => Json::Null,
            1 => json!(chance.percent(50)),
            2 => json!(chance.next()),
            3 => json!(-(chance.below(100) as i64)),
            4 => json!(f64::from_bits(chance.next())),
            5 => json!(chance.of(&[0.0, 1e308, -1e-308, 0.5, 1e10, 4_294_967_296.0])),
            6 => json!(vec![self.value(chance); chance.below(4)]),
            7 => json!({ chance.of(&["data", "part", "path", "name", "image", "model", "weight", ""]).to_string(): self.value(chance) }),
            8 => json!({ "data": to_base64(&self.image(chance)) }),
            9 => json!({ "name": chance.of(&self.texts), "weight": self.value(chance) }),
            10 => json!({ "model": chance.of(&self.texts), "image": chance.of(&self.texts) }),
            11 => json!(vec!["x"; 100]),
            12 => (0..chance.below(200)).fold(json!(1), |inner, _| json!([inner])),
            _ => json!(chance.of(&self.texts)),
        }
    }

    /// Changes a value somewhere, takes one out, or puts one in.
    fn mutate(&self, chance: &mut Chance, json: &mut Json) {
        let deeper = chance.percent(70);
        match json {
            Json::Object(object) if !object.is_empty() && deeper => {
                let at = chance.below(object.len());
                if let Some((_, inner)) = object.iter_mut().nth(at) {
                    self.mutate(chance, inner);
                }
            }
            Json::Array(items) if !items.is_empty() && deeper => {
                let at = chance.below(items.len());
                self.mutate(chance, &mut items[at]);
            }
            Json::Object(object) => self.change(chance, object),
            other => *other = self.value(chance),
        }
    }

    fn change(&self, chance: &mut Chance, object: &mut Map<String, Json>) {
        let keys: Vec<String> = object.keys().cloned().collect();
        match chance.below(3) {
            0 if !keys.is_empty() => drop(object.remove(chance.of(&keys))),
            1 => drop(object.insert(chance.of(table()).name.to_owned(), self.value(chance))),
            _ => drop(object.insert(chance.of(&self.texts).chars().take(40).collect(), self.value(chance))),
        }
    }
}

/// A text as a part of a path; slashes lead on where they are not escaped.
fn percent(text: &str, escapes_slashes: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || byte == b'/' && !escapes_slashes;
    text.bytes().take(2_000).map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn graph() -> Json {
    json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 5, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0] } },
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "emoji" } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 64, "height": 64, "batch_size": 1 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "x", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "x", "images": ["8", 0] } },
    })
}
