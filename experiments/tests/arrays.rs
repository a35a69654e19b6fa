//! Vectors of the user's own, double precision, and arrays that commands write, from outside.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{error, json, ok};
use flows::{Model, SaveOptions};
use std::path::{Path, PathBuf};

fn str_of(path: &Path) -> &str {
    path.to_str().expect("the test's folders are UTF-8")
}

/// Four columns that depend on each other, in units that lie far apart; with a factor and an offset for each.
fn columns(scales: [(f64, f64); 4], n: usize) -> Tensor {
    let z = flows::testing::normal(&[n, 4], 3, &Device::Cpu).unwrap();
    let z: Vec<Vec<f64>> = z.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    let rows: Vec<f64> = z
        .iter()
        .flat_map(|z| {
            let x = [z[0], z[1] + 0.5 * z[0] * z[0], z[2] - z[0], z[3] * 0.5 + z[1]];
            std::array::from_fn::<f64, 4, _>(|d| scales[d].0 * x[d] + scales[d].1)
        })
        .collect();
    Tensor::from_vec(rows, (n, 4), &Device::Cpu).unwrap()
}

fn train(dir: &Path, name: &str, data: &Tensor) -> PathBuf {
    let (file, out) = (dir.join(format!("{name}.npy")), dir.join(name));
    data.write_npy(&file).unwrap();
    let args = ["train", "vectors", "--data", str_of(&file), "--out", str_of(&out), "--threads", "2"];
    let sets = ["train.updates=150", "train.validate_every=50", "train.ema=0.9", "eval.samples=0"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ok(&args.into_iter().chain(sets).collect::<Vec<_>>());
    out
}

/// A change of units changes the log-likelihood by the log of the factors and nothing else: the columns are standardized, and the
/// factors are counted.
#[test]
fn units_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let plain = [(1., 0.); 4];
    let units = [(1e5, 5e6), (1e-4, 0.), (3e3, -1e4), (1., 100.)];
    let nats = |name: &str, scales| -> f64 {
        let run = train(dir.path(), name, &columns(scales, 4000));
        let file = dir.path().join(format!("{name}.npy"));
        let test = json(&["eval", str_of(&run), "--data", str_of(&file), "--json", "--threads", "2"]);
        test["nats"].as_f64().unwrap_or_else(|| panic!("{test}"))
    };
    let (a, b) = (nats("plain", plain), nats("units", units));
    let factors: f64 = units.iter().map(|(scale, _)| scale.ln()).sum();
    assert!((b - factors - a).abs() < 0.02, "{a} nats, {b} nats in other units, whose logs are {factors}");
    // The entropy of the four columns, whose map from Gaussians has the determinant .5, is the least possible.
    let entropy = 2. * (2. * std::f64::consts::PI * std::f64::consts::E).ln() - 2f64.ln();
    assert!(a > entropy - 0.1 && a < entropy + 0.6, "{a} nats where the entropy is {entropy}");
}

#[test]
fn a_column_without_a_density_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.npy");
    columns([(1., 0.), (0., 7.), (1., 0.), (1., 0.)], 100).write_npy(&file).unwrap();
    let out = dir.path().join("run");
    let sets = ["--set", "train.updates=2", "--set", "train.batch=10"];
    for recipe in [&["vectors"][..], &["moons", "--set", "data.set=npy"]] {
        let args = [&["train"], recipe, &["--data", str_of(&file), "--out", str_of(&out)], &sets].concat();
        let said = error(&args);
        assert!(said.contains("column 1") && said.contains("constant (7)"), "{said}");
    }
}

/// The README's commands for p(x | c), with fewer updates: x = (c_0 + n, c_1 n'), n and n' normal, whose entropy is known.
#[test]
fn a_density_given_columns() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let n = 6000;
    let z: Vec<Vec<f64>> = flows::testing::normal(&[n, 4], 5, &Device::Cpu).unwrap().to_vec2().unwrap();
    let given: Vec<[f64; 2]> = z.iter().map(|z| [z[0], 1.5 + z[1].tanh()]).collect();
    let x: Vec<f64> = z.iter().zip(&given).flat_map(|(z, c)| [1e3 * (c[0] + z[2]), c[1] * z[3]]).collect();
    let array = |values: Vec<f64>| Tensor::from_vec(values, (n, 2), &Device::Cpu).unwrap();
    let both = [("x", array(x)), ("c", array(given.as_flattened().to_vec()))];
    let (data, run) = (at("xc.npz"), at("run"));
    Tensor::write_npz(&both, &data).unwrap();
    let readme = include_str!("../../README.md");
    for command in [
        "flow reproduce conditional --data xc.npz --out runs/xc",
        "flow eval runs/xc --data xc.npz --out log_prob.csv",
        "flow sample runs/xc --context 0.5,-1 -n 1000 --out samples.npy",
    ] {
        assert!(readme.contains(command), "{command}");
    }
    let args = ["reproduce", "conditional", "--data", str_of(&data), "--out", str_of(&run), "--threads", "2"];
    let sets =
        ["train.updates=300", "train.validate_every=100", "train.ema=0.9", "model.hidden=[[32],[32],[32]]"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ok(&args.into_iter().chain(sets).collect::<Vec<_>>());
    let out = at("log_prob.csv");
    let test = json(&["eval", str_of(&run), "--data", str_of(&data), "--json", "--out", str_of(&out)]);
    let logs = given.iter().skip(9).step_by(10).map(|c| c[1].ln()).sum::<f64>() / (n / 10) as f64;
    let entropy = (2. * std::f64::consts::PI * std::f64::consts::E).ln() + 1e3f64.ln() + logs;
    let nats = test["nats"].as_f64().unwrap();
    println!("p(x | c): {nats:.4} nats, entropy {entropy:.4}");
    assert!(nats > entropy - 0.1 && nats < entropy + 0.15, "{nats} against {entropy}");
    assert!(test.get("gaussian_bits_per_dim").is_none(), "{test}");

    let samples = at("samples.npy");
    ok(&["sample", str_of(&run), "--context", "1.5,0.7", "-n", "1000", "--out", str_of(&samples)]);
    let samples = Tensor::read_npy(&samples).unwrap();
    let mean = samples.mean(0).unwrap().to_vec1::<f32>().unwrap();
    assert!((mean[0] - 1500.).abs() < 300. && mean[1].abs() < 0.3, "{mean:?}");
    // Rows of a file are taken in turn, and stand in the file with the samples.
    let rows = at("rows.npy");
    Tensor::new(&[[-2f32, 1.], [2., 1.]], &Device::Cpu).unwrap().write_npy(&rows).unwrap();
    let turns = at("turns.safetensors");
    ok(&["sample", str_of(&run), "--context", str_of(&rows), "-n", "400", "--out", str_of(&turns)]);
    let turns = candle_core::safetensors::load(&turns, &Device::Cpu).unwrap();
    let (x, c) = (turns["samples"].to_vec2::<f32>().unwrap(), turns["c"].to_vec2::<f32>().unwrap());
    assert!(c.iter().enumerate().all(|(i, c)| c[0] == if i % 2 == 0 { -2. } else { 2. }));
    let right = x.iter().zip(&c).filter(|(x, c)| (x[0] > 0.) == (c[0] > 0.)).count();
    assert!(right > 370, "{right} of 400");
    ok(&["encode", str_of(&run), "--data", str_of(&data), "--out", str_of(&at("z.npz"))]);
    // Files end where a disk that is full would end them.
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -f 200; trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_flow")]);
    let (full, n) = (at("full.npz"), "20000");
    let full = limited.args(["sample", str_of(&run), "--context", "1,2", "-n", n, "--out", str_of(&full)]);
    let full = full.output().unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(1) && said.contains("make room") && !said.contains("Zip"), "{said}");
    assert!(!at("full.npz").exists());
    ok(&["doctor", str_of(&run), "--data", str_of(&data)]);
    ok(&["explain", "conditional", "--data", str_of(&data)]);
    let card = std::fs::read_to_string(run.join("README.md")).unwrap();
    assert!(
        card.contains("flows::Context::features(&c)") && card.contains("Spline") | card.contains("spline"),
        "{card}"
    );

    for (args, said) in [
        (&["sample", str_of(&run)][..], "say it with --context"),
        (&["sample", str_of(&run), "--context", "1,2,3"], "where the model takes [2]"),
        (&["density", str_of(&run), "--data", str_of(&data)], "one of p(x | c)"),
    ] {
        let error = error(args);
        assert!(error.contains(said), "{error}");
    }
    let without = at("x.npy");
    both[0].1.write_npy(&without).unwrap();
    let error = error(&["eval", str_of(&run), "--data", str_of(&without)]);
    assert!(error.contains("the data have none"), "{error}");
}

/// Weights in double precision are computed in it, by every command that takes vectors; arrays hold what the library gives.
#[test]
fn arrays_of_vectors_and_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &columns([(1., 0.); 4], 1000));
    let data = dir.path().join("run.npy");
    let double = dir.path().join("double");
    let model = Model::load_as(&run, Some(DType::F64), &Device::Cpu).unwrap();
    model.save(&double, &SaveOptions { dtype: Some(DType::F64), ..Default::default() }).unwrap();
    std::fs::copy(run.join("recipe.toml"), double.join("recipe.toml")).unwrap();
    let at = |name: &str| dir.path().join(name);
    let eval = |weights: &Path, out: &str| {
        json(&["eval", str_of(weights), "--data", str_of(&data), "--json", "--out", str_of(&at(out))])
    };
    let (single, exact) = (eval(&run, "single.csv"), eval(&double, "double.npy"));
    let (a, b) = (single["nats"].as_f64().unwrap(), exact["nats"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-4, "{a} {b}");
    let each = Tensor::read_npy(at("double.npy")).unwrap();
    assert_eq!((each.dims(), each.dtype()), (&[100][..], DType::F64));
    assert!((each.mean_all().unwrap().to_scalar::<f64>().unwrap() + b).abs() < 1e-9);
    let csv = std::fs::read_to_string(at("single.csv")).unwrap();
    assert_eq!((csv.lines().count(), csv.lines().next()), (101, Some("log_prob")));

    for (weights, dtype) in [(&run, DType::F32), (&double, DType::F64)] {
        let z = at(&format!("{dtype:?}.safetensors"));
        ok(&["encode", str_of(weights), "--data", str_of(&data), "--split", "all", "--out", str_of(&z)]);
        let tensors = candle_core::safetensors::load(&z, &Device::Cpu).unwrap();
        assert_eq!((tensors["z"].dims(), tensors["z"].dtype()), (&[1000, 4][..], dtype));
        let x = model.decode(&tensors["z"].to_dtype(DType::F64).unwrap(), None).unwrap();
        let back = (model.log_prob(&x, None).unwrap() - &tensors["log_prob"]).unwrap().abs().unwrap();
        assert!(back.max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-2);
        let samples = at(&format!("{dtype:?}.npz"));
        ok(&["sample", str_of(weights), "-n", "7", "--out", str_of(&samples)]);
        let samples = Tensor::read_npz(&samples).unwrap();
        assert_eq!((samples[0].1.dims(), samples[0].1.dtype()), (&[7, 4][..], dtype));
    }
    // What is there may be someone's data.
    assert!(error(&["sample", str_of(&run), "--out", str_of(&data)]).contains("is there already"));
    assert!(error(&["sample", str_of(&run), "--out", str_of(&at("x.png"))]).contains("--out samples.npy"));
    assert!(error(&["sample", str_of(&run), "--out", str_of(&at("pictures"))]).contains("--out samples.npy"));
    // By default in the current folder, as an array.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flow"));
    let here = command.args(["sample", str_of(&run), "-n", "2"]).current_dir(dir.path()).status().unwrap();
    assert!(here.success() && at("samples.npy").is_file());
}

/// Pictures of a model of images go into one file, or into a folder with one for each.
#[test]
fn samples_of_images_are_files_or_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");
    let at = |name: &str| dir.path().join(name);
    ok(&["sample", weights, "-n", "3", "--out", str_of(&at("one.npy"))]);
    ok(&["sample", weights, "-n", "3", "--out", str_of(&at("each"))]);
    let pixels = Tensor::read_npy(at("one.npy")).unwrap();
    assert_eq!(pixels.dims(), [3, 3, 32, 32]);
    let picture = image::open(at("each/00002.png")).unwrap().to_rgb8();
    let value =
        pixels.get(2).unwrap().get(1).unwrap().get(5).unwrap().get(9).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(f32::from(picture.get_pixel(9, 5)[1]), value.floor().clamp(0., 255.));
    assert_eq!(std::fs::read_dir(at("each")).unwrap().count(), 3);
    assert!(error(&["sample", weights, "--out", str_of(&at("each"))]).contains("holds files"));
}
