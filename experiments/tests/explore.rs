//! The page of `flow explore` from outside: its pictures beside those of the commands that it shows, and what it refuses.

mod common;
#[path = "common/runs.rs"]
mod runs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::{DType, Device, Tensor};
use common::{error, json, ok};
use runs::{faces, str_of, train};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An affine NICE of a second on two moons.
fn moons(dir: &Path) -> PathBuf {
    let sets = [
        "model.hidden=[[8],[8]]",
        "train.updates=20",
        "train.validate_every=10",
        "data.train=500",
        "data.validation=50",
        "data.test=200",
        "eval.samples=50",
    ];
    train(dir, "moons", "moons", &sets)
}

/// A page that is served; it ends with the test.
struct Page {
    child: Child,
    /// 127.0.0.1 and the port.
    host: String,
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Page {
    fn open(weights: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flow"))
            .args(["explore", str_of(weights), "--port", "0", "--threads", "2"])
            .env_remove("FLOW_DATA")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("it is piped")).read_line(&mut line).expect("a line");
        let address = line.split_whitespace().next().expect("the address comes first");
        let host = address.strip_prefix("http://").expect("an address").to_owned();
        Self { child, host }
    }

    /// Sends a request as it is; the status, the headers and the body.
    fn send(&self, request: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.host).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // What is too long is answered before all of it has been read.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("headers end");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), answer[end + 4..].to_vec())
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let (host, length) = (&self.host, body.len());
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: {host}\r\n") };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        self.send(&[head.as_bytes(), body].concat())
    }

    /// The status and the answer to a request of the page.
    fn ask(&self, name: &str, body: &[u8]) -> (u16, Value) {
        let (status, _, body) = self.request("POST", &format!("/api/{name}"), "", body);
        (status, serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{name}: {e}")))
    }

    /// The answer for these values.
    fn picture(&self, name: &str, values: &Value) -> Value {
        let began = Instant::now();
        loop {
            let (status, answer) = self.ask(name, values.to_string().as_bytes());
            assert_eq!(status, 200, "{name}: {answer}");
            if answer["waiting"].is_null() {
                return answer;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{name} is waited for");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The sentence that a request is refused with.
    fn refused(&self, name: &str, body: &[u8]) -> String {
        let (status, answer) = self.ask(name, body);
        assert!((400..500).contains(&status), "{name}: {status}");
        answer["error"].as_str().expect("a sentence").to_owned()
    }
}

fn decoded(url: &Value) -> image::RgbImage {
    let base64 = url.as_str().unwrap().strip_prefix("data:image/png;base64,").expect("a PNG");
    image::load_from_memory(&STANDARD.decode(base64).unwrap()).unwrap().into_rgb8()
}

/// The largest difference of an answer's image from the values (C, H, W) of a command, in grey levels.
fn off(answer: &Value, image: usize, values: &Tensor) -> u8 {
    let picture = decoded(&answer["images"][image]["url"]);
    let (_, height, width) = values.dims3().unwrap();
    assert_eq!(picture.dimensions(), (width as u32, height as u32));
    let values: Vec<f32> = values.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let area = height * width;
    let mut most = 0;
    for (x, y, pixel) in picture.enumerate_pixels() {
        for (c, seen) in pixel.0.iter().enumerate() {
            let value = values[c * area + y as usize * width + x as usize].floor().clamp(0., 255.) as u8;
            most = most.max(seen.abs_diff(value));
        }
    }
    most
}

/// An array of the numbers beside a command's picture.
fn numbers(args: &[&str], name: &str) -> Tensor {
    let result = json(&[args, &["--json"]].concat());
    let file = result["numbers"].as_str().unwrap().to_owned();
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()[name].clone()
}

#[test]
fn a_picture_of_the_page_is_that_of_its_command() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let page = Page::open(&weights);
    let (w, out) = (str_of(&weights), dir.path().join("x.png"));
    let common = ["--out", str_of(&out), "--threads", "2"];

    let info = page.picture("info", &json!({}));
    let names: Vec<&str> =
        info["panels"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["samples", "mix", "attributes", "levels", "bits"]);
    assert_eq!(info["images"], json!({ "a": { "data": 0 }, "b": { "data": 7 } }));

    // Samples: the files of the command, to the byte.
    let samples = page.picture("samples", &json!({ "temperature": 0.5, "seed": 3 }));
    assert!(
        samples["commands"][0].as_str().unwrap().contains("--temperature 0.5 --seed 3"),
        "{}",
        samples["commands"]
    );
    let folder = dir.path().join("samples");
    ok(&[
        "sample",
        w,
        "-n",
        "16",
        "--temperature",
        "0.5",
        "--seed",
        "3",
        "--threads",
        "2",
        "--out",
        str_of(&folder),
    ]);
    for i in [0, 15] {
        let file = image::open(folder.join(format!("{i:05}.png"))).unwrap().into_rgb8();
        assert_eq!(decoded(&samples["images"][i]["url"]), file);
    }

    // A mixture of an image of the data and a sample, which the command reads from its file.
    let sample = &samples["images"][4];
    let png = sample["url"].as_str().unwrap().split_once(',').unwrap().1;
    let given = json!({ "png": png, "name": sample["file"] });
    for (way, array) in [("arc", "spherical"), ("line", "linear")] {
        let mix = page.picture("mix", &json!({ "t": 0.3, "way": way, "a": { "data": 2 }, "b": given }));
        assert!(
            mix["commands"][0].as_str().unwrap().contains(" 2 samples/00004.png --frames 41"),
            "{}",
            mix["commands"]
        );
        let file = folder.join("00004.png");
        let args = [&["interpolate", w, "2", str_of(&file), "--frames", "41"], &common[..]].concat();
        assert!(off(&mix, 1, &numbers(&args, array).get(12).unwrap()) <= 1);
    }

    // Attributes add up; the directions are kept for the next time.
    let strengths = json!({ "smile": 1.5, "glasses": -2.0 });
    let moved = page.picture("attributes", &json!({ "a": { "data": 5 }, "strengths": strengths }));
    let command = moved["commands"][0].as_str().unwrap();
    assert!(command.contains("5 --label smile --strengths=1.5 --also glasses:-2"), "{command}");
    let args = ["attribute", w, "5", "--label", "smile", "--strengths=1.5", "--also", "glasses:-2"];
    let images = numbers(&[&args[..], &common].concat(), "images");
    assert!(off(&moved, 1, &images.get(0).unwrap().get(0).unwrap()) <= 1);
    assert!(weights.join("attributes.safetensors").exists());
    assert_eq!(
        Page::open(&weights).picture("attributes", &json!({ "a": { "data": 5 }, "strengths": strengths })),
        moved
    );

    // Levels drawn anew together.
    let values = json!({ "a": { "data": 1 }, "levels": [0, 1], "temperature": 0.9, "seed": 8 });
    let levels = page.picture("levels", &values);
    let args = ["levels", w, "1", "--draws", "1", "--together", "0,1", "--temperature", "0.9", "--seed", "8"];
    let images = numbers(&[&args[..], &common].concat(), "images");
    assert!(off(&levels, 1, &images.get(0).unwrap().get(0).unwrap()) <= 1);

    // The bits of an image, and where they are.
    let bits = page.picture("bits", &json!({ "a": { "data": 6 } }));
    let args = [&["reconstruct", w, "6"], &common[..]].concat();
    assert!(off(&bits, 1, &numbers(&args, "decoded").get(0).unwrap()) <= 1);
    let map = numbers(&args, "bits_by_position").flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let per_dim = map.iter().sum::<f64>() / 3072.;
    assert!(
        bits["facts"][0].as_str().unwrap().starts_with(&format!("{per_dim:.4} bits/dim")),
        "{}",
        bits["facts"]
    );
    let most = (0..map.len()).max_by(|&i, &j| map[i].total_cmp(&map[j])).unwrap() as u32;
    assert_eq!(decoded(&bits["images"][2]["url"]).get_pixel(most % 32, most / 32).0, [255; 3]);

    // A film strip has the same pictures, in a file.
    let frame = |t: f64| json!({ "t": t, "way": "arc", "a": { "data": 2 }, "b": { "data": 3 } });
    let film =
        page.picture("strip", &json!({ "panel": "mix", "frames": [frame(0.), frame(0.5), frame(1.)] }));
    let middle = page.picture("mix", &frame(0.5));
    assert_eq!(decoded(&film["images"][1]), decoded(&middle["images"][1]["url"]));
    assert!(film["gif"].as_str().unwrap().starts_with("data:image/gif;base64,"));
}

#[test]
fn a_dropped_file_is_cropped_and_what_is_wrong_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let page = Page::open(&weights);
    let mut jpeg = Vec::new();
    let photo = image::RgbImage::from_fn(90, 64, |x, y| image::Rgb([x as u8, y as u8, 7]));
    photo.write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    let (status, file) = page.ask("file", &jpeg);
    assert_eq!((status, &file["suffix"], &file["from"]), (200, &"-32x32.png".into(), &"90 × 64".into()));
    let own = json!({ "png": file["png"], "name": "me-32x32.png" });
    let bits = page.picture("bits", &json!({ "a": own }));
    assert!(bits["commands"][0].as_str().unwrap().contains("me-32x32.png"));
    // As the command has it, which reads the file that the page offers.
    let cropped = dir.path().join("me-32x32.png");
    std::fs::write(&cropped, STANDARD.decode(file["png"].as_str().unwrap()).unwrap()).unwrap();
    let out = dir.path().join("x.png");
    let args = ["reconstruct", str_of(&weights), str_of(&cropped), "--out", str_of(&out), "--threads", "2"];
    assert!(off(&bits, 0, &numbers(&args, "images").get(0).unwrap()) <= 1);

    let said = |name: &str, body: &str| page.refused(name, body.as_bytes());
    assert!(page.refused("file", b"no picture").contains("no readable picture"));
    assert!(page.refused("file", b"").contains("empty"));
    assert!(page.refused("file", &jpeg[..jpeg.len() / 2]).contains("cut short"));
    // What says that it is too long is not read.
    let head = format!(
        "POST /api/file HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        page.host,
        50 << 20
    );
    let (status, _, body) = page.send(head.as_bytes());
    assert!(status == 413 && String::from_utf8(body).unwrap().contains("at most 32 MB"));
    assert!(said("samples", r#"{"temperature":NaN,"seed":0}"#).contains("JSON"));
    assert!(
        said("samples", r#"{"temperature":null,"seed":0}"#)
            .contains("temperature: give a number from 0 to 2")
    );
    assert!(said("samples", r#"{"temperature":1e300,"seed":0}"#).contains("temperature"));
    assert!(said("samples", r#"{"temperature":1,"seed":-1}"#).contains("seed"));
    assert!(said("mix", r#"{"t":0.5,"way":"arc","a":{"data":0}}"#).contains("b: choose an image"));
    assert!(said("mix", r#"{"t":0.5,"way":"arc","a":{"data":0},"b":{"data":99}}"#).contains("0 to 11"));
    assert!(said("attributes", r#"{"a":{"data":0},"strengths":{"moustache":1}}"#).contains("`moustache`"));
    assert!(said("levels", r#"{"a":{"data":0},"levels":[7],"temperature":1,"seed":0}"#).contains("0 to 1"));
    let other = json!({ "a": { "png": STANDARD.encode(&jpeg), "name": "a.png" } }).to_string();
    assert!(said("bits", &other).contains("64 × 90 pixels"));
    assert!(said("nothing", "{}").contains("no picture `nothing`"));
    assert!(said("strip", r#"{"panel":"mix","frames":[]}"#).contains("1 to 41"));
    assert!(said("..%2f..%2fetc%2fpasswd", "{}").contains("no picture"));

    for path in ["/etc/passwd", "/../Cargo.toml", "/config.json", "/api/samples/x"] {
        assert_eq!(page.request("GET", path, "", b"").0, 404, "{path}");
    }
    assert_eq!(page.request("GET", "/api/info", "", b"").0, 405);
    for headers in
        ["Host: evil.example\r\n", "Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"]
    {
        assert_eq!(page.request("POST", "/api/info", headers, b"").0, 403, "{headers}");
    }
    let (status, head, body) = page.request("GET", "/", "", b"");
    assert_eq!(status, 200);
    assert!(
        head.contains("content-security-policy: default-src 'none'") && head.contains("nosniff"),
        "{head}"
    );
    assert!(String::from_utf8(body).unwrap().contains("<script src=\"script.js\">"));

    // Windows at once, each with its own pictures.
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let ask = |seed: u64| page.picture("samples", &json!({ "temperature": 0.7, "seed": seed % 2 }));
        let all: Vec<_> = (0..8).map(|seed| scope.spawn(move || ask(seed))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(answers[0] != answers[1] && (2..8).all(|i| answers[i] == answers[i - 2]));
}

#[test]
fn a_used_port_is_named_and_ctrl_c_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let weights = moons(dir.path());
    let mut page = Page::open(&weights);
    let port = page.host.split(':').nth(1).unwrap().to_owned();
    let said = error(&["explore", str_of(&weights), "--port", &port]);
    assert!(said.contains(&format!("port {port} is in use: say --port ")), "{said}");

    let info = page.picture("info", &json!({}));
    let names: Vec<&str> =
        info["panels"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["density", "layers", "points"]);
    let density = page.picture("density", &json!({}));
    let out = dir.path().join("d.png");
    let result = json(&["density", str_of(&weights), "--out", str_of(&out), "--threads", "2", "--json"]);
    let nats = result["nats"].as_f64().unwrap();
    assert!(
        density["facts"][0].as_str().unwrap().starts_with(&format!("{nats:.4} nats")),
        "{}",
        density["facts"]
    );
    assert_eq!(density["plots"].as_array().unwrap().len(), 4);
    let layers = page.picture("layers", &json!({ "layer": 0.5 }));
    assert_eq!(layers["plots"][0]["clouds"][0]["points"].as_array().unwrap().len(), 400);
    let points = page.picture("points", &json!({ "temperature": 1, "seed": 2 }));
    assert_eq!(points["plots"][0]["clouds"].as_array().unwrap().len(), 2);
    assert!(page.refused("file", b"x").contains("no images"));

    #[cfg(unix)]
    {
        let began = Instant::now();
        assert!(
            Command::new("kill").args(["-INT", &page.child.id().to_string()]).status().unwrap().success()
        );
        assert_eq!(page.child.wait().unwrap().code(), Some(130));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[test]
fn an_exported_page_has_all_pictures_of_its_controls() {
    let dir = tempfile::tempdir().unwrap();
    let weights = moons(dir.path());
    let out = dir.path().join("page");
    let said = ok(&["explore", str_of(&weights), "--export", str_of(&out), "--threads", "2"]);
    assert!(said.contains(" MB: open ") && said.contains("index.html"), "{said}");
    let text = std::fs::read_to_string(out.join("pictures.js")).unwrap();
    let json = text.strip_prefix("window.flowPictures = ").unwrap().trim_end().strip_suffix(';').unwrap();
    let page: Value = serde_json::from_str(json).unwrap();
    let answers = page["answers"].as_object().unwrap();
    // One density, nine layers, nine temperatures at four seeds.
    assert_eq!(answers.len(), 1 + 9 + 36);
    let raster = answers["density:"]["plots"][1]["raster"].as_str().unwrap();
    assert!(raster.starts_with("images/") && out.join(raster).exists(), "{raster}");
    for file in ["index.html", "style.css", "script.js"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let again = error(&["explore", str_of(&weights), "--export", str_of(&out)]);
    assert!(again.contains("holds files"), "{again}");
}

/// The page asks for training examples only as far as there are any: own data may have few.
#[test]
fn few_vectors_of_ones_own_are_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let (file, weights, page) =
        (dir.path().join("v.npy"), dir.path().join("vectors"), dir.path().join("page"));
    let x = flows::testing::normal(&[100, 3], 0, &Device::Cpu).unwrap();
    x.to_dtype(DType::F32).unwrap().write_npy(&file).unwrap();
    let sets = ["train.updates=2", "train.batch=8", "eval.samples=0"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args = ["train", "vectors", "--data", str_of(&file), "--out", str_of(&weights), "--threads", "2"];
    ok(&args.into_iter().chain(sets).collect::<Vec<_>>());
    ok(&["explore", str_of(&weights), "--data", str_of(&file), "--export", str_of(&page), "--threads", "2"]);
    let text = std::fs::read_to_string(page.join("pictures.js")).unwrap();
    assert!(text.contains(r#""data":"npy (test)""#) && text.contains(r#""name":"data""#), "no data");
}
