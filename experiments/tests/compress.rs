//! `flow compress` and `flow decompress` from outside.

mod common;

use common::{error, flow, json, ok};
use experiments::data::npy::{Numbers, parse_npy};
use std::path::Path;
use std::process::Command;

const FACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");

fn at(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().expect("the test's folders are UTF-8").to_owned()
}

/// Drawn faces, as a data set, as pictures and as an array, come back to the byte; two threads write what one reads.
#[test]
fn images_come_back_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [file, pngs, array, again] = ["a.flow", "pngs", "a.npy", "b.flow"].map(|name| at(dir.path(), name));
    let args = ["compress", FACES, "--images", "6", "--streams", "2", "--out", &file, "--json"];
    let report = json(&[&args[..], &["--threads", "2"]].concat());
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    let bytes = std::fs::metadata(&file).unwrap().len();
    assert_eq!(report["bytes"], bytes);
    let (disk, start, model) =
        (number("bits_per_dim_on_disk"), number("initial_bits_per_dim"), number("bits_per_dim"));
    assert!((disk - 8. * bytes as f64 / (6. * 3072.)).abs() < 1e-9);
    // A header of a hundred bytes or so, and the noise of six images.
    assert!((disk - start - model).abs() < 0.1, "{report}");
    assert!((4. ..18.).contains(&(start * 3.)), "{report}");

    let decoded = json(&["decompress", FACES, &file, "--out", &pngs, "--json", "--threads", "1"]);
    assert_eq!(decoded["images"], 6);
    ok(&["decompress", FACES, &file, "--out", &array]);
    let npy = parse_npy(&std::fs::read(&array).unwrap(), "A").unwrap();
    assert_eq!(npy.sides, [6, 3, 32, 32]);
    let Numbers::Bytes(pixels) = npy.numbers else { panic!("bytes") };
    let pictures: Vec<String> = (0..6).map(|i| format!("{pngs}/{i:05}.png")).collect();
    for (path, planar) in pictures.iter().zip(pixels.chunks_exact(3072)) {
        let image = image::open(path).unwrap().to_rgb8();
        let same = image
            .enumerate_pixels()
            .all(|(x, y, p)| (0..3).all(|c| p.0[c] == planar[c * 1024 + y as usize * 32 + x as usize]));
        assert!(same, "{path}");
    }
    // The pictures as files, with the same seed and streams: the same images, the same file.
    let mut args = vec!["compress", FACES];
    args.extend(pictures.iter().map(String::as_str));
    args.extend(["--streams", "2", "--out", &again, "--threads", "1"]);
    ok(&args);
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&file).unwrap());
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [file, out, other] = ["a.flow", "out", "other.png"].map(|name| at(dir.path(), name));
    ok(&["compress", FACES, "--images", "1", "--out", &file]);
    let good = std::fs::read(&file).unwrap();
    let again = error(&["compress", FACES, "--images", "1", "--out", &file]);
    assert!(again.contains("is there already"), "{again}");
    assert_eq!(std::fs::read(&file).unwrap(), good);
    image::RgbaImage::new(32, 32).save(&other).unwrap();
    let lossy = error(&["compress", FACES, &other, "--out", &at(dir.path(), "b.flow")]);
    assert!(lossy.contains("4 channels of 8 bits") && lossy.contains("loses nothing"), "{lossy}");
    let cifar = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/cifar10-glow-small");
    let unmade = at(dir.path(), "b.flow");
    for misused in [&[other.as_str(), "--images", "2"][..], &["--streams", "0"]] {
        let args = [&["compress", FACES, "--out", &unmade][..], misused].concat();
        assert_eq!(flow(&args).status.code(), Some(2), "{misused:?}");
    }
    let wrong = error(&["decompress", cifar, &file, "--out", &out]);
    assert!(wrong.contains("another model"), "{wrong}");
    let mut damaged = good.clone();
    damaged[200] ^= 4;
    for (bytes, said) in [
        (&damaged[..], "checksum"),
        (&good[..100], "cut short"),
        (&b"PNG"[..], "no file of compressed images"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let text = error(&["decompress", FACES, &file, "--out", &out]);
        assert!(text.contains(said), "{text}");
    }
    std::fs::write(&file, &good).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(at(dir.path(), "out/mine.txt"), "mine").unwrap();
    let full = error(&["decompress", FACES, &file, "--out", &out]);
    assert!(full.contains("holds files"), "{full}");
    let picture = error(&["decompress", FACES, &file, "--out", &at(dir.path(), "all.jpg")]);
    assert!(picture.contains("name a folder"), "{picture}");
    // Before the images are decoded, which may take long.
    let nowhere = error(&["decompress", FACES, &file, "--out", &at(dir.path(), "other.png/out")]);
    assert!(nowhere.contains("cannot be made"), "{nowhere}");
    // No file may have more than a kilobyte, as on a disk that is full.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1; trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_flow")]);
    let full = limited.args(["decompress", FACES, &file, "--out", &at(dir.path(), "new")]).output().unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(
        full.status.code() == Some(1) && said.contains("picture 0 cannot be written: make room"),
        "{said}"
    );
    // Nothing half-written is left beside.
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.flow", "other.png", "out"]);
}

#[test]
fn what_was_recorded_is_in_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("faces");
    std::fs::create_dir(&run).unwrap();
    for name in ["config.json", "model.safetensors", "recipe.toml", "summary.json"] {
        std::fs::copy(format!("{FACES}/{name}"), run.join(name)).unwrap();
    }
    let (run, file) = (at(dir.path(), "faces"), at(dir.path(), "a.flow"));
    let report = json(&["compress", &run, "--images", "2", "--out", &file, "--record", "--json"]);
    let table = ok(&["table", &run]);
    let disk = format!("{:.3}", report["bits_per_dim_on_disk"].as_f64().unwrap());
    assert!(table.contains("on disk") && table.contains(&disk), "{disk} in {table}");
    let read = |dir: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(format!("{dir}/summary.json")).unwrap()).unwrap()
    };
    let (before, after) = (read(FACES), read(&run));
    for key in ["recipe", "data_revision", "training", "codecs", "commit", "machine"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(after["test"]["bits_per_dim"], before["test"]["bits_per_dim"]);
    assert_eq!(after["on_disk"]["images"], 2);
    let none =
        error(&["compress", "hf:user/name", "--images", "2", "--out", &at(dir.path(), "b.flow"), "--record"]);
    assert!(none.contains("of the hub"), "{none}");
}
