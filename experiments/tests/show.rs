//! The commands that show latents, and the doctor, from outside: what they draw and write, and what they refuse.

mod common;
#[path = "common/runs.rs"]
mod runs;

use common::{error, flow, json, ok, text};
use runs::{faces, faces_with, str_of, train};
use serde_json::Value;
use std::path::{Path, PathBuf};

#[test]
fn a_class_conditional_model_takes_its_labels_from_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "data.set=faces",
        "data.train=60",
        "data.validation=8",
        "data.test=12",
        "model.levels=1",
        "model.depth=1",
        "model.width=4",
        "model.classes=4",
        "model.learn_latent=true",
        "train.updates=2",
        "train.batch=8",
        "train.init_images=32",
        "eval.samples=0",
    ];
    let weights = train(dir.path(), "classes", "glow-cifar-small", &sets);
    let out = dir.path().join("x.png");
    let run = |command: &'static str, more: &[&'static str]| -> Vec<String> {
        let args = [&[command, str_of(&weights), "--out", str_of(&out), "--threads", "2"], more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let go = |args: Vec<String>| ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    go(run("interpolate", &["--frames", "3"]));
    go(run("levels", &["0", "--draws", "1", "--class", "2"]));
    go(run("temperature", &["-n", "4", "--temperatures", "0.5"]));
    go(run("ood", &["--against", "shuffled", "-n", "4"]));
    go(run("attribute", &["--label", "glasses", "--strengths", "0.5", "--fit", "20"]));
    ok(&["doctor", str_of(&weights), "--threads", "2"]);
    let file = dir.path().join("a.png");
    image::RgbImage::new(32, 32).save(&file).unwrap();
    let args = ["layers", str_of(&weights), str_of(&file), "--out", str_of(&out)];
    assert!(error(&args).contains("--class N"));
    ok(&[&args[..], &["--class", "0"]].concat());
    assert!(error(&[&args[..], &["--class", "4"]].concat()).contains("class 4"));
    // Weights alone, without the recipe that says which data: files and samples serve.
    std::fs::remove_file(weights.join("recipe.toml")).unwrap();
    ok(&[&args[..], &["--class", "0"]].concat());
    let lost = error(&["doctor", str_of(&weights)]);
    assert!(lost.contains("--samples") && lost.contains("--recipe"), "{lost}");
    ok(&["doctor", str_of(&weights), "--samples", "-n", "4", "--threads", "2"]);
}

/// The context of a model of p(x | c) is made of its images; samples are told theirs, as those of `flow sample` are.
#[test]
fn a_model_of_super_resolution_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces_with(dir.path(), &["model.context={ kind = 'downsampled', factor = 4 }"]);
    let [out, small] = ["x.png", "small.png"].map(|name| dir.path().join(name));
    image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8 * 30, y as u8 * 30, 90])).save(&small).unwrap();
    let of = |args: &[&str]| -> Vec<String> {
        let all = [&args[..1], &[str_of(&weights), "--out", str_of(&out), "--threads", "2"], &args[1..]];
        all.concat().into_iter().map(str::to_owned).collect()
    };
    let given = ["--context", str_of(&small)];
    for (command, more) in [
        (&["interpolate", "--frames", "3"][..], &[][..]),
        (&["levels", "0", "1", "--draws", "1"], &[]),
        (&["layers"], &[]),
        (&["reconstruct", "-n", "3"], &[]),
        (&["inpaint", "0", "--steps", "2", "--draws", "1"], &[]),
        (&["attribute", "--label", "glasses", "--strengths", "0.5", "--fit", "20"], &[]),
        (&["temperature", "-n", "2", "--temperatures", "0.5"], &given),
        (&["nearest", "-n", "2", "--temperature", "0.5"], &given),
    ] {
        let args = of(&[command, more].concat());
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let file = str_of(&small).replace("small.png", "a.flow");
    for (args, said) in [
        (of(&["temperature", "-n", "2"]), "say it with --context"),
        (of(&["levels", "0", given[0], given[1]]), "made of the images themselves"),
        (of(&["ood", "--against", "shuffled"]), "one of p(x | c)"),
        (
            ["compress", str_of(&weights), "--out", &file].map(str::to_owned).into(),
            "this is a model of p(x | c)",
        ),
    ] {
        let error = error(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(said), "{error}");
    }
}

/// A picture has as many bits as the model when it becomes its context; numbers that cannot be pixels of so many are refused.
#[test]
fn a_context_of_images_has_the_bits_of_the_model() {
    use candle_core::{Device, Tensor};
    let dir = tempfile::tempdir().unwrap();
    let sets = ["model.context={ kind = 'downsampled', factor = 4 }", "model.bits=5"];
    let weights = faces_with(dir.path(), &sets);
    let [small, bytes, out] = ["small.png", "bytes.npy", "x.npz"].map(|name| dir.path().join(name));
    image::RgbImage::from_pixel(8, 8, image::Rgb([200; 3])).save(&small).unwrap();
    Tensor::full(200u8, (1, 3, 8, 8), &Device::Cpu).unwrap().write_npy(&bytes).unwrap();
    let sample = |context: &Path| {
        ["sample", str_of(&weights), "-n", "1", "--out", str_of(&out), "--context", str_of(context)]
            .map(str::to_owned)
    };
    ok(&sample(&small).each_ref().map(String::as_str));
    let arrays = Tensor::read_npz(&out).unwrap();
    let c = &arrays.iter().find(|(name, _)| name == "c").unwrap().1;
    assert_eq!(c.flatten_all().unwrap().to_vec1::<f32>().unwrap(), vec![25f32; 3 * 64]);
    std::fs::remove_file(&out).unwrap();
    let said = error(&sample(&bytes).each_ref().map(String::as_str));
    assert!(said.contains("holds 200") && said.contains("from 0 to 31"), "{said}");
}

/// Features come with the images of the data, and with --context where an image is a file.
#[test]
fn images_of_files_are_given_features() {
    use candle_core::{Device, Tensor};
    let dir = tempfile::tempdir().unwrap();
    let [data, run, out, file] = ["xc.npz", "run", "x.png", "a.png"].map(|name| dir.path().join(name));
    let pixels: Vec<u8> = (0..60 * 64).map(|i| (i * 37 % 251) as u8).collect();
    let x = Tensor::from_vec(pixels, (60, 1, 8, 8), &Device::Cpu).unwrap();
    let c = flows::testing::normal(&[60, 2], 3, &Device::Cpu).unwrap();
    Tensor::write_npz(&[("x", x), ("c", c)], &data).unwrap();
    let mut args = vec!["train", "glow-cifar-small", "--data", str_of(&data), "--out", str_of(&run)];
    let sets = [
        "data.set=npy",
        "data.validation=6",
        "model.context={ kind = 'features', shape = [2] }",
        "train.hflip=false",
        "model.levels=2",
        "model.depth=1",
        "model.width=4",
        "train.updates=2",
        "train.batch=8",
        "train.init_images=32",
        "eval.samples=0",
        "eval.codec_images=0",
    ];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    ok(&args);
    image::GrayImage::from_fn(8, 8, |x, y| image::Luma([(x * y) as u8])).save(&file).unwrap();
    let levels = ["levels", str_of(&run), "--out", str_of(&out), "--data", str_of(&data), "--draws", "1"];
    ok(&[&levels[..], &["0", "1"]].concat());
    assert!(error(&[&levels[..], &["0", str_of(&file)]].concat()).contains("say it with --context"));
    ok(&[&levels[..], &["0", str_of(&file), "--context", "0.5,-1"]].concat());
    ok(&["temperature", str_of(&run), "--out", str_of(&out), "-n", "2", "--context", "0.5,-1"]);
}

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

#[test]
fn each_command_draws_a_picture_and_writes_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let cases: [(&str, &[&str], &[&str]); 9] = [
        ("interpolate", &["0", "3", "--frames", "3"], &["z", "linear", "spherical", "pixels"]),
        (
            "attribute",
            &["--label", "smile", "--strengths=-1,1", "2", "5"],
            &["direction", "z", "images", "strengths"],
        ),
        ("reconstruct", &["-n", "5"], &["images", "decoded", "error", "level_error", "bits_by_position"]),
        ("temperature", &["-n", "3", "--temperatures", "0,0.5"], &["z", "images"]),
        ("levels", &["4", "--draws", "1"], &["z", "images"]),
        (
            "inpaint",
            &["1", "--steps", "3", "--draws", "2", "--missing", "centre"],
            &["images", "known", "filled", "log_prob"],
        ),
        ("nearest", &["-n", "2", "-k", "3"], &["samples", "places", "distances", "test_distances"]),
        ("ood", &["--against", "constant", "-n", "8"], &["bits_per_dim", "against_bits_per_dim"]),
        ("layers", &["7"], &["states", "log_det", "bits_per_dim_if_ended"]),
    ];
    for (command, more, tensors) in cases {
        let out = dir.path().join(format!("{command}.png"));
        let args =
            [&[command, str_of(&weights), "--out", str_of(&out), "--threads", "2", "--seed", "3"], more]
                .concat();
        let result = json(&[&args[..], &["--json"]].concat());
        assert_eq!((&result["command"], &result["seed"]), (&command.into(), &3.into()));
        assert_eq!(result["file"], str_of(&out));
        let picture = image::open(&out).unwrap_or_else(|e| panic!("{command}: {e}"));
        assert!(picture.width() > 100 && picture.height() > 100, "{command}");
        let numbers = PathBuf::from(result["numbers"].as_str().unwrap());
        let bytes = std::fs::read(&numbers).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<&str> = file.names().into_iter().collect();
        names.sort_unstable();
        let mut want = tensors.to_vec();
        want.sort_unstable();
        assert_eq!(names, want, "{command}");
        // The figures that were printed lie in the file, too.
        let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let figures: Value = serde_json::from_str(&meta.metadata().as_ref().unwrap()["flow"]).unwrap();
        assert!(figures.as_object().unwrap().iter().all(|(k, v)| &result[k] == v), "{command}: {figures}");
        // The same seed gives the same bytes, and people are told where they are.
        let said = ok(&args);
        assert!(said.contains(str_of(&out)), "{said}");
        assert_eq!(std::fs::read(&numbers).unwrap(), bytes, "{command}");
    }
}

#[test]
fn images_are_numbers_or_files() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let (a, b) = (dir.path().join("a.png"), dir.path().join("b.jpg"));
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 8, y as u8 * 8, 90])).save(&a).unwrap();
    image::GrayImage::from_fn(32, 32, |x, _| image::Luma([x as u8 * 8])).save(&b).unwrap();
    let out = dir.path().join("mix.png");
    fn after<'a>(base: &[&'a str], images: &[&'a str]) -> Vec<&'a str> {
        [base, images].concat()
    }
    let base = ["interpolate", str_of(&weights), "--out", str_of(&out), "--scale", "1"];
    assert_eq!(
        json(&[&after(&base, &[str_of(&a), str_of(&b)])[..], &["--json"]].concat())["images"][1],
        "b.jpg"
    );
    json(&[&after(&base, &["3", str_of(&b), "--split", "train"])[..], &["--json"]].concat());

    assert!(error(&after(&base, &["1"])).contains("two images, 1 were given"));
    assert!(error(&after(&base, &["1", "2", "3"])).contains("two images"));
    let beyond = error(&after(&base, &["0", "12"]));
    assert!(beyond.contains("no image 12") && beyond.contains("0 to 11"), "{beyond}");
    let missing = error(&after(&base, &["0", "nothing.png"]));
    assert!(missing.contains("nothing.png") && missing.contains("number"), "{missing}");
    image::GrayImage::new(20, 30).save(&a).unwrap();
    let sized = error(&after(&base, &[str_of(&a), "0"]));
    assert!(sized.contains("30 × 20") && sized.contains("resize"), "{sized}");
    std::fs::write(&a, "no image").unwrap();
    assert!(error(&after(&base, &[str_of(&a), "0"])).contains("a.png is no readable"));
    assert!(error(&after(&base, &["0", "1", "--data-set", "nothing"])).contains("data.set"));
    assert!(error(&["interpolate", str_of(&weights), "--out", "mix.jpg"]).contains(".png"));
    assert!(error(&after(&base, &["0", "1", "--class", "1"])).contains("--class"));
    assert!(error(&["layers", str_of(&weights), "0", "1", "--out", str_of(&out)]).contains("one image"));
    let size = ["levels", str_of(&weights), "0", "--scale", "256", "--draws", "20", "--out", str_of(&out)];
    assert!(error(&size).contains("--scale"));
}

#[test]
fn labels_and_other_data_that_are_not_there_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let out = dir.path().join("x.png");
    let run = |command: &str, more: &[&str]| {
        error(&[&[command, str_of(&weights), "--out", str_of(&out)], more].concat())
    };
    let unknown = run("attribute", &["--label", "moustache"]);
    assert!(unknown.contains("`moustache`") && unknown.contains("smile, glasses"), "{unknown}");
    assert!(unknown.contains("red hair"), "classes are labels, too: {unknown}");
    assert!(run("attribute", &["--label", "hair=9"]).contains("0 have `hair=9`"));
    assert!(run("attribute", &["--label", "hair=x"]).contains("--label hair=x"));
    assert!(run("attribute", &["--label", "smile", "--fit", "0"]).contains("--fit"));
    assert!(run("ood", &["--against", "nothing"]).contains("nothing"));
    assert!(run("ood", &["--against", "noise", "-n", "0"]).contains("-n 0"));
    assert!(run("temperature", &["--temperatures=-1"]).contains("-1"));
    assert!(run("temperature", &["-n", "0"]).contains("-n 0"));
    assert!(run("levels", &["--temperature", "-1"]).contains("--temperature"));
    assert!(!out.exists());
    // A class by its name, one level of several, and a label's own kind of model.
    for label in ["red hair", "hair=2"] {
        let args = [
            "attribute",
            str_of(&weights),
            "--label",
            label,
            "--strengths",
            "0",
            "--out",
            str_of(&out),
            "--json",
        ];
        let result = json(&args);
        assert!(result["with"].as_u64().unwrap() + result["without"].as_u64().unwrap() == 60, "{result}");
    }
}

/// Data that the weights were not trained on are used whole; those that they were trained on are not.
#[test]
fn data_that_are_only_looked_at_are_used_whole() {
    let dir = tempfile::tempdir().unwrap();
    let photos = dir.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    for i in 0..20u32 {
        let image = image::RgbImage::from_fn(40, 32, |x, y| image::Rgb([x as u8, y as u8, (i * 10) as u8]));
        image.save(photos.join(format!("{i:02}.png"))).unwrap();
    }
    let weights = faces(dir.path());
    let looked = |more: &[&str]| {
        let args = ["eval", str_of(&weights), "--data-set", "folder", "--data", str_of(&photos), "--json"];
        json(&[&args[..], &["--set", "data.size=32", "--set", "eval.codec_images=0"], more].concat())
    };
    let all = looked(&[]);
    assert_eq!((&all["images"], &all["split"]), (&20.into(), &"all".into()), "{all}");
    let test = looked(&["--split", "test"]);
    assert!(test["images"].as_u64().unwrap() < 20 && test["split"] == "test", "{test}");
    let own = json(&["eval", str_of(&weights), "--json", "--set", "eval.codec_images=0"]);
    assert_eq!((&own["images"], &own["split"]), (&12.into(), &"test".into()), "{own}");
    let own = json(&["eval", str_of(&weights), "--json", "--split", "all", "--set", "eval.codec_images=0"]);
    assert_eq!(own["images"], 80, "{own}");

    // A run on the folder itself: its test images, and photos given as files are cropped and resized as the run's own.
    let sets = ["data.set=folder", "model.levels=1", "model.depth=1", "model.width=4", "train.updates=2"];
    let sets =
        [&sets[..], &["train.batch=4", "train.init_images=8", "eval.samples=0", "eval.codec_images=0"]];
    let out = dir.path().join("mine");
    let mut args =
        vec!["train", "glow-cifar-small", "--out", str_of(&out), "--data", str_of(&photos), "--size", "32"];
    sets.concat().iter().for_each(|set| args.extend(["--set", set]));
    ok(&args);
    let own = json(&["eval", str_of(&out), "--data", str_of(&photos), "--json"]);
    assert_eq!(own["split"], "test", "{own}");
    let (a, b) = (photos.join("00.png"), photos.join("01.png"));
    ok(&["interpolate", str_of(&out), str_of(&a), str_of(&b), "--out", str_of(&dir.path().join("i.png"))]);
    let refused =
        error(&["layers", str_of(&weights), str_of(&a), "--out", str_of(&dir.path().join("l.png"))]);
    assert!(refused.contains("32 × 40"), "{refused}");
}

/// Names that do not exist come with the one that was probably meant.
#[test]
fn similar_names_are_suggested() {
    let dir = tempfile::tempdir().unwrap();
    for (args, meant) in [
        (&["explain", "glow-cifar10", "--settings"][..], "glow-cifar"),
        (&["explain", "glow-cifar", "--settings", "--set", "train.learning_rate=1e-3"], "lr"),
        (&["explain", "glow-cifar", "--settings", "--set", "lr=1e-3"], "train.lr"),
        (&["explain", "glow-cifar", "--settings", "--set", "train.batch_size=3"], "batch"),
        (&["explain", "glow-cifar", "--settings", "--set", "model.widht=3"], "width"),
        (&["explain", "glow-cifar", "--settings", "--set", "data.set=cifar"], "cifar10"),
        (&["sample", "me/faces"], "hf:me/faces"),
    ] {
        let said = error(args);
        assert!(
            said.contains(&format!("`{meant}`")) || said.contains(&format!(" {meant}")),
            "{args:?}: {said}"
        );
    }
    let weights = faces(dir.path());
    let out = dir.path().join("a.png");
    let said = error(&["attribute", str_of(&weights), "--label", "glases", "--out", str_of(&out)]);
    assert!(said.contains("did you mean `glasses`?"), "{said}");
}

#[test]
fn the_plane_has_a_density_and_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, images) = (moons(dir.path()), faces(dir.path()));
    let out = dir.path().join("density.png");
    let result = json(&["density", str_of(&plane), "--out", str_of(&out), "--json"]);
    assert!(result["kl"].as_f64().unwrap() > 0. && result["points"] == 200, "{result}");
    assert!(out.exists() && dir.path().join("density.safetensors").exists());
    let refused = error(&["interpolate", str_of(&plane), "--out", str_of(&out)]);
    assert!(refused.contains("takes vectors") && refused.contains("flow density"), "{refused}");
    let refused = error(&["density", str_of(&images), "--out", str_of(&out)]);
    assert!(refused.contains("two dimensions"), "{refused}");
    assert!(ok(&["doctor", str_of(&plane)]).contains("verdict: "));
}

#[test]
fn the_doctor_fails_only_for_what_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let report = json(&["doctor", str_of(&weights), "--json"]);
    assert_eq!(report["broken"].as_array().unwrap().len(), 0, "{report}");
    assert!(report["reconstruction"]["max_error"].as_f64().unwrap() < 0.02, "{report}");
    assert!(report["conditions"]["level0.step0.permutation"].as_f64().unwrap() < 10., "{report}");
    for part in ["log_scales", "actnorms"] {
        assert!(report[part]["level0.step0.actnorm"].is_object(), "{part}: {report}");
    }
    assert!(ok(&["doctor", str_of(&weights), "--samples", "-n", "4"]).contains("samples at temperature"));

    // What changes one tensor, and what the doctor says of it.
    let path = weights.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let spoil = |name: &str, value: f32, at: usize| {
        let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let spoiled: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(n, t)| {
                let mut data = t.data().to_vec();
                if n == name {
                    data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
                }
                (n, t.dtype(), t.shape().to_vec(), data)
            })
            .collect();
        let views = spoiled.iter().map(|(n, d, s, data)| {
            (n.as_str(), safetensors::tensor::TensorView::new(*d, s.clone(), data).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    // A scale of exp(9): unusual, and everything works.
    spoil("level0.step0.actnorm.logs", 3., 0);
    let report = json(&["doctor", str_of(&weights), "--json"]);
    let looks: Vec<&str> = report["look"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(looks.iter().any(|l| l.contains("`level0.step0.actnorm` has log-scales")), "{looks:?}");
    assert!(
        looks.iter().any(|l| l.contains("bits/dim")),
        "an image costs more than uniform noise: {looks:?}"
    );
    assert_eq!(report["verdict"], "usable, with something to look at");
    // A channel of a network was constant when it was initialised; or it had a large variance, which is no fault.
    for (logs, constant) in [(3.07, true), (-3.07, false)] {
        spoil("level0.step0.net.norm1.logs", logs, 0);
        let report = json(&["doctor", str_of(&weights), "--json"]);
        let looks = report["look"].to_string();
        assert_eq!(looks.contains("it was constant when it was initialised"), constant, "{logs}: {looks}");
    }
    // A scale of exp(120) overflows.
    spoil("level0.step0.actnorm.logs", 40., 0);
    let output = flow(&["doctor", str_of(&weights), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(report["verdict"], "broken", "the report is printed all the same");
    let said = error(&["doctor", str_of(&weights)]);
    assert!(said.contains("are broken") && said.contains("level0.step0.actnorm"), "{said}");
    // A NaN is refused by the loader itself, which names the tensor.
    spoil("level0.step0.actnorm.logs", f32::NAN, 1);
    let said = error(&["doctor", str_of(&weights)]);
    assert!(said.contains("level0.step0.actnorm.logs") && said.contains("NaN"), "{said}");
    std::fs::write(&path, whole).unwrap();
}

#[test]
fn what_is_there_survives_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let model = weights.join("model.safetensors");
    let before = std::fs::read(&model).unwrap();
    // Its numbers would replace the weights.
    let out = weights.join("model.png");
    let why = error(&["layers", str_of(&weights), "0", "--out", str_of(&out)]);
    assert!(why.contains("model.safetensors") && why.contains("another name"), "{why}");
    assert_eq!(std::fs::read(&model).unwrap(), before);
    // An image that goes in does not come out.
    let image = dir.path().join("image.png");
    image::RgbImage::new(32, 32).save(&image).unwrap();
    let why = error(&["layers", str_of(&weights), str_of(&image), "--out", str_of(&image)]);
    assert!(why.contains("one of the images"), "{why}");
}

/// Without `--out` a command takes a name of its own, which may be someone's file.
#[test]
fn a_default_name_replaces_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flow"));
        let output = command.args(args).args(["--threads", "2"]).current_dir(dir.path()).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    for (name, args, again) in [
        ("samples.png", &["sample", weights, "-n", "1"][..], Some(1)),
        ("temperature.png", &["temperature", weights, "-n", "1", "--temperatures", "0.5"], Some(0)),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, "mine").unwrap();
        let (code, said) = run(args);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("{name} is there")) && said.contains("--out"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        let (code, said) = run(&[args, &["--out", name]].concat());
        assert_eq!(code, Some(0), "{said}");
        assert!(std::fs::read(&file).unwrap().starts_with(b"\x89PNG"));
        // Its numbers beside it say that the command made it; samples have none.
        assert_eq!(run(args).0, again, "{name}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_picture_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let weights = faces(dir.path());
    let out = dir.path().join("inpaint.png");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_flow"))
        .args(["inpaint", str_of(&weights), "0", "--steps", "1000000", "--out", str_of(&out)])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It is at work once it says so.
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("gradients") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "it ended early");
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "only the run is there: {left:?}");
}
