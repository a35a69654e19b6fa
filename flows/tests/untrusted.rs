//! What a saved folder claims is not believed: every kind of damage is one sentence with the remedy, and a refusal takes no
//! more memory than a few times the files, counted by the allocator, so in a test binary of its own.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Counting, LIVE, PEAK};
use flows::codec::{self, Options};
use flows::models::{
    CouplingTransform, Dequantize, GlowConfig, MafConfig, NiceConfig, Preprocess, PriorConfig, RealNvpConfig,
    maf,
};
use flows::storage::{CONFIG, INDEX, WEIGHTS};
use flows::transforms::RationalQuadraticSpline;
use flows::{Model, ModelConfig, SaveOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of a folder's files.
fn size(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().map(|f| f.unwrap().metadata().unwrap().len() as usize).sum()
}

fn masked() -> ModelConfig {
    ModelConfig::Maf(MafConfig {
        shape: vec![8],
        bits: 8,
        preprocess: Preprocess::None {},
        order: maf::Order::Random,
        layers: 1,
        hidden: vec![4],
        transform: CouplingTransform::RationalQuadraticSpline(RationalQuadraticSpline::default()),
        prior: PriorConfig::default(),
        dequantize: Dequantize::default(),
        context: Default::default(),
    })
}

/// Loads a folder; a megabyte and a few times its size are enough for that, whatever it claims.
fn load(dir: &Path) -> Result<Model> {
    let base = LIVE.load(Ordering::SeqCst);
    PEAK.store(base, Ordering::SeqCst);
    let loaded = Model::load(dir, &Device::Cpu);
    let took = PEAK.load(Ordering::SeqCst) - base;
    // A header is JSON whose parsed form is a few times as large; a tensor is read, compared and kept.
    let may = (1 << 20) + 12 * size(dir);
    assert!(took <= may, "{took} bytes for files of {}", size(dir));
    loaded
}

fn refusal(dir: &Path) -> String {
    let said = match load(dir) {
        Ok(_) => panic!("it was loaded"),
        Err(e) => e.to_string(),
    };
    assert!(!said.contains('\n'), "more than one line: {said}");
    said
}

fn glow() -> ModelConfig {
    ModelConfig::Glow(GlowConfig {
        shape: [1, 8, 8],
        levels: 2,
        depth: 1,
        width: 4,
        ..GlowConfig::cifar_paper()
    })
}

fn saved(config: ModelConfig) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Model::new(config, 1, DType::F32, &Device::Cpu)
        .unwrap()
        .save(dir.path(), &SaveOptions::default())
        .unwrap();
    dir
}

/// A safetensors file of this header and so many bytes.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; bytes]].concat()
}

fn headers_are_compared_with_the_file() {
    let dir = saved(glow());
    let path = dir.path().join(WEIGHTS);
    let good = fs::read(&path).unwrap();
    let say = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let said = refusal(dir.path());
        assert!(said.contains(WEIGHTS) && said.contains("again"), "{said}");
        said
    };
    let mut ten_gigabytes = good.clone();
    ten_gigabytes[..8].copy_from_slice(&10_000_000_000_u64.to_le_bytes());
    assert!(say(&ten_gigabytes).contains("header claims 10000000000 bytes"));
    let one = |begin: u64, end: u64, shape: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    assert!(say(&safetensors(&one(0, 10_000_000_000, "[2500000000]"), 4)).contains("take 10000000000 bytes"));
    assert!(say(&safetensors(&one(0, 4, "[2]"), 4)).contains("not a complete safetensors"));
    assert!(say(&safetensors(&one(4, 8, "[1]"), 8)).contains("not a complete safetensors"));
    assert!(
        say(&safetensors(&one(0, 4, "[4294967296,4294967296,4294967296]"), 4)).contains("not a complete")
    );
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert!(say(&safetensors(two, 12)).contains("not a complete safetensors"), "overlapping");
    assert!(say(&safetensors(two, 16)).contains("not a complete safetensors"));
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(say(&safetensors(twice, 8)).contains("not a complete safetensors"), "one name for two tensors");
    let bytes = r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#;
    assert!(say(&safetensors(bytes, 4)).contains("`a` is of I8"));
    for cut in [0, 7, 8, 100, good.len() - 1] {
        assert!(say(&good[..cut]).contains("not a complete safetensors"));
    }
    assert!(say(&[&good[..], b"x"].concat()).contains("the file holds"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(dir.path()).contains("no such file"));
    fs::create_dir(&path).unwrap();
    assert!(refusal(dir.path()).contains("not a file"));
    fs::remove_dir(&path).unwrap();
    // A pipe is not waited for.
    if std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
        assert!(refusal(dir.path()).contains("not a file"));
    }
}

fn tensors_are_compared_with_the_config() {
    let dir = saved(glow());
    let path = dir.path().join(WEIGHTS);
    // Written again without metadata, as other tools do: only names, shapes and values are left to compare.
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let change = |change: &dyn Fn(&mut std::collections::HashMap<String, Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, &path).unwrap();
    };
    change(&|_| {});
    load(dir.path()).unwrap();
    const NAME: &str = "level0.step0.actnorm.bias";
    let full = |v: f32, n: usize| Tensor::full(v, n, &Device::Cpu).unwrap();
    for (value, names) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinity")] {
        change(&|t| drop(t.insert(NAME.into(), full(value, 4))));
        let said = refusal(dir.path());
        assert!(said.contains(NAME) && said.contains(names) && said.contains("again"), "{said}");
    }
    change(&|t| drop(t.insert(NAME.into(), full(0., 5))));
    let said = refusal(dir.path());
    assert!(said.contains(NAME) && said.contains("[5], the model needs [4]"), "{said}");
    change(&|t| drop(t.remove(NAME)));
    let said = refusal(dir.path());
    assert!(said.contains(NAME) && said.contains("is missing"), "{said}");
    change(&|t| drop(t.insert("more".into(), full(0., 1))));
    let said = refusal(dir.path());
    assert!(said.contains("`more`") && said.contains("belong to no layer"), "{said}");
    let indices = |t: &mut std::collections::HashMap<String, Tensor>| {
        t.insert(NAME.into(), full(0., 4).to_dtype(DType::U32).unwrap());
    };
    change(&indices);
    assert!(refusal(dir.path()).contains("has dtype U32"));
}

fn sizes_are_refused_before_they_are_made() {
    let nice = NiceConfig { shape: vec![8], hidden: vec![vec![4]; 2], ..NiceConfig::mnist_paper() };
    let nvp = RealNvpConfig { shape: [1, 8, 8], features: 4, blocks: 1, ..RealNvpConfig::cifar_code() };
    let latent = ModelConfig::Glow(GlowConfig {
        shape: [1, 8, 8],
        levels: 2,
        depth: 1,
        width: 4,
        learn_top: false,
        learn_latent: true,
        classes: Some(3),
        ..GlowConfig::cifar_paper()
    });
    let cases = [
        (latent, r#""classes": 3"#, r#""classes": 16777216"#, "latent.mean` has shape [3, 64]"),
        (glow(), r#""width": 4"#, r#""width": 1000000000000"#, "`width` = 1000000000000"),
        (glow(), r#""width": 4"#, r#""width": 16777216"#, "level0.step0.net.conv"),
        (glow(), r#""width": 4"#, r#""width": 18446744073709551615"#, "`width` = 18446744073709551615"),
        (glow(), r#""depth": 1"#, r#""depth": 16777216"#, "step1.actnorm.bias` is missing"),
        (glow(), r#""levels": 2"#, r#""levels": 16777216"#, "at level 4 of 16777216"),
        (glow(), "8,\n      8", "1099511627776,\n      1099511627776", "more than 16777216 dimensions"),
        (glow(), "8,\n      8", "4294967296,\n      4294967296", "more than 16777216 dimensions"),
        (ModelConfig::Nice(nice.clone()), "4\n", "1000000000000\n", "`hidden` = 1000000000000"),
        (ModelConfig::Nice(nice), "      8\n", "      16777216\n", "even_odd.index` has shape [8]"),
        (ModelConfig::RealNvp(nvp.clone()), r#""features": 4"#, r#""features": 8388608"#, "has shape"),
        // The second scale has twice as many.
        (
            ModelConfig::RealNvp(nvp.clone()),
            r#""features": 4"#,
            r#""features": 16777216"#,
            "`features` = 33554432",
        ),
        (ModelConfig::RealNvp(nvp.clone()), r#""blocks": 1"#, r#""blocks": 16777216"#, "block1"),
        (
            ModelConfig::RealNvp(nvp.clone()),
            r#""scales": 2"#,
            r#""scales": 16777216"#,
            "at scale 4 of 16777216",
        ),
        (masked(), r#""layers": 1"#, r#""layers": 16777216"#, "layer1.net.order` is missing"),
        (masked(), "4\n", "16777216\n", "layer0.net.0.weight` has shape [4, 8]"),
        (masked(), "      8\n", "      16777216\n", "layer0.net.order` has shape [8]"),
        (masked(), r#""bins": 8"#, r#""bins": 999"#, "layer0.net.1.weight` has shape [184, 4]"),
        (masked(), r#""bins": 8"#, r#""bins": 18446744073709551615"#, "`bins` = 18446744073709551615"),
        // A mask of sixteen million pixels is all that a config alone can make, and only where the tensors fit.
        (ModelConfig::RealNvp(nvp), "8,\n      8", "8388608,\n      4", "more than 16777216 dimensions"),
    ];
    for (config, from, to, names) in cases {
        let dir = saved(config);
        let path = dir.path().join(CONFIG);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let hashed = refusal(dir.path());
        // The hash tells first where the sizes are possible; without it the tensors do.
        assert!(hashed.contains(names) || hashed.contains("config with the sha256"), "{to}: {hashed}");
        let weights = dir.path().join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&tensors, &weights).unwrap();
        let said = refusal(dir.path());
        assert!(said.contains(names), "{to}: {said}");
    }
}

fn configs_and_weights_belong_together() {
    let dir = saved(glow());
    let path = dir.path().join(CONFIG);
    let good = fs::read_to_string(&path).unwrap();
    let say = |text: &str| {
        fs::write(&path, text).unwrap();
        refusal(dir.path())
    };
    // Another layout of the same config is the same config.
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    fs::write(&path, value.to_string()).unwrap();
    load(dir.path()).unwrap();
    let said = say(&good.replace(r#""bits": 8"#, r#""bits": 7"#));
    assert!(said.contains("config with the sha256") && said.contains("fetch both again"), "{said}");
    assert!(say(&good.replace(r#""format": 2"#, r#""format": 3"#)).contains("update flows"));
    assert!(say(&good.replace(r#""format": 2"#, r#""format": 0"#)).contains("never written"));
    assert!(say(&good.replace("\"width\"", "\"breadth\"")).contains("breadth"));
    assert!(say(&"[".repeat(100_000)).contains("not a model's config"));
    assert!(say(&" ".repeat(2 << 20)).contains("2097152 bytes"));
    assert!(say("").contains("not a model's config"));
    // What was saved before there was a hash.
    fs::write(&path, good.replace(r#""format": 2"#, r#""format": 1"#)).unwrap();
    load(dir.path()).unwrap();
    let weights = dir.path().join(WEIGHTS);
    let bytes = fs::read(&weights).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains(r#"{\"format\":2,"#));
    let newer = bytes.windows(8).position(|w| w == br#"mat\":2,"#).unwrap();
    let mut changed = bytes.clone();
    changed[newer + 6] = b'3';
    fs::write(&weights, changed).unwrap();
    assert!(refusal(dir.path()).contains("update flows"));
}

fn shards_stay_in_their_folder() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(glow(), 1, DType::F32, &Device::Cpu).unwrap();
    model.save(dir.path(), &SaveOptions { max_shard_size: 1500, dtype: None }).unwrap();
    load(dir.path()).unwrap();
    let index = dir.path().join(INDEX);
    let good = fs::read_to_string(&index).unwrap();
    let first = format!(
        "model-00001-of-{:05}.safetensors",
        good.split("-of-").nth(1).unwrap()[..5].parse::<u32>().unwrap()
    );
    assert!(good.contains(&first));
    let outside = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join(&first), outside.path().join("x.safetensors")).unwrap();
    let absolute = outside.path().join("x.safetensors").display().to_string();
    for to in [
        "../x.safetensors",
        "..",
        "a/b.safetensors",
        "/x.safetensors",
        "c:x.safetensors",
        "a\\\\b.safetensors",
        "",
        ".",
        "config.json",
        &absolute,
    ] {
        fs::write(&index, good.replacen(&first, to, 1)).unwrap();
        let said = refusal(dir.path());
        assert!(said.contains("no safetensors file in this folder") && said.contains(INDEX), "{to}: {said}");
    }
    fs::write(&index, good.replacen(&first, "missing.safetensors", 1)).unwrap();
    let said = refusal(dir.path());
    assert!(said.contains("missing.safetensors") || said.contains("does not put here"), "{said}");
    let second = first.replace("00001-of", "00002-of");
    fs::write(&index, good.replacen(&first, &second, 1)).unwrap();
    assert!(refusal(dir.path()).contains("index"));
    fs::write(&index, r#"{"metadata":{},"weight_map":{}}"#).unwrap();
    assert!(refusal(dir.path()).contains("no tensor"));
    fs::write(&index, &good).unwrap();
    fs::copy(dir.path().join(&second), dir.path().join(&first)).unwrap();
    assert!(refusal(dir.path()).contains("shard"));
}

/// Damaged copies of a file, the same in every run: flipped bits, extreme bytes, cuts, insertions, repeats, and numbers in
/// its text replaced by extreme ones.
fn damaged(bytes: &[u8], text: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    const NUMBERS: [&str; 8] =
        ["0", "-1", "1e999", "4294967296", "18446744073709551615", "9007199254740993", "65536", "3"];
    let mut copy = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let end = if rng.random() { copy.len().min(text) } else { copy.len() };
        if end == 0 {
            break;
        }
        let at = rng.random_range(0..end);
        match rng.random_range(0..7) {
            0 => copy[at] ^= 1 << rng.random_range(0..8),
            1 => copy[at] = rng.random(),
            2 => copy.truncate(at),
            3 => copy[at..(at + 8).min(end)].fill([0, 0xff, 0x7f][rng.random_range(0..3)]),
            4 => {
                let piece = copy[at..(at + 9).min(end)].to_vec();
                copy.splice(at..at, piece);
            }
            // The length of a safetensors header.
            5 if copy.len() > 8 => {
                let n = [0, 2, 99_999_999, u64::MAX, 1 << 40, text as u64 + 1][rng.random_range(0..6)];
                copy[..8].copy_from_slice(&n.to_le_bytes());
            }
            _ => {
                let Some(begin) = copy[at..end].iter().position(u8::is_ascii_digit).map(|p| at + p) else {
                    continue;
                };
                let digits = copy[begin..end].iter().take_while(|b| b.is_ascii_digit()).count();
                copy.splice(begin..begin + digits, NUMBERS[rng.random_range(0..8)].bytes());
            }
        }
    }
    copy
}

fn no_damage_panics_or_takes_memory() {
    let mut rng = ChaCha8Rng::seed_from_u64(0x0bad);
    let shards = tempfile::tempdir().unwrap();
    let model = Model::new(glow(), 1, DType::F32, &Device::Cpu).unwrap();
    model.save(shards.path(), &SaveOptions { max_shard_size: 1500, dtype: None }).unwrap();
    let nvp = RealNvpConfig { shape: [1, 8, 8], features: 2, blocks: 1, ..RealNvpConfig::cifar_code() };
    let nice = NiceConfig { shape: vec![8], hidden: vec![vec![4]; 2], ..NiceConfig::mnist_paper() };
    let whole =
        [saved(glow()), saved(ModelConfig::RealNvp(nvp)), saved(ModelConfig::Nice(nice)), saved(masked())];
    let mut cases = vec![(shards.path(), INDEX, 600)];
    for dir in &whole {
        cases.extend([(dir.path(), CONFIG, 600), (dir.path(), WEIGHTS, 800)]);
    }
    for (dir, name, rounds) in cases {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        let text = match name {
            WEIGHTS => 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize,
            _ => good.len(),
        };
        let mut loaded = 0;
        for _ in 0..rounds {
            fs::write(&path, damaged(&good, text, &mut rng)).unwrap();
            loaded += usize::from(load(dir).is_ok());
        }
        // Where a digit of a weight changed it is loaded.
        println!(
            "{}: {rounds} damaged copies, {loaded} still a model",
            path.file_name().unwrap().to_string_lossy()
        );
        assert!(loaded < rounds);
        fs::write(&path, good).unwrap();
        load(dir).unwrap();
    }
}

/// Compressed images, with the checksum of the file put right, which would keep most damage from the decoder.
fn damaged_images_take_no_memory() {
    let mut rng = ChaCha8Rng::seed_from_u64(0x0bad);
    let config = NiceConfig { shape: vec![1, 4, 4], hidden: vec![vec![4]; 2], ..NiceConfig::mnist_paper() };
    let model = Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu).unwrap();
    let pixels: Vec<u8> = (0..80).map(|i| i * 3).collect();
    let images = Tensor::from_slice(&pixels, (5, 1, 4, 4), &Device::Cpu).unwrap();
    let o = Options { streams: Some(2), ..Options::default() };
    let good = codec::encode(&model, &images, None, &o).unwrap().bytes;
    let mut decoded = 0;
    for _ in 0..2000 {
        let mut file = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let end = if rng.random() { 120 } else { file.len() - 8 };
            let (at, extreme) = (rng.random_range(0..end), [0, 0xff, 0x7f, 0x80][rng.random_range(0..4)]);
            match rng.random_range(0..3) {
                0 => file[at] ^= 1 << rng.random_range(0..8),
                1 => file[at] = rng.random(),
                _ => file[at..(at + 4).min(end)].fill(extreme),
            }
        }
        let end = file.len() - 8;
        let sum = Sha256::digest(&file[..end]);
        file[end..].copy_from_slice(&sum[..8]);
        let base = LIVE.load(Ordering::SeqCst);
        PEAK.store(base, Ordering::SeqCst);
        if let Ok(back) = codec::decode(&model, &file, None) {
            assert_eq!(back.images.flatten_all().unwrap().to_vec1::<u8>().unwrap(), pixels);
            decoded += 1;
        }
        let took = PEAK.load(Ordering::SeqCst) - base;
        assert!(took <= 1 << 20, "{took} bytes for a file of {}", file.len());
    }
    println!("compressed images: 2000 damaged copies, {decoded} gave the images");
    assert!(decoded < 200);
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn what_a_file_claims_costs_nothing() {
    // SAFETY: the only test of this binary, and nothing reads the environment while it begins. A backtrace is no part of
    // the message, and its symbols are no part of the memory that a reader takes.
    unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
    headers_are_compared_with_the_file();
    tensors_are_compared_with_the_config();
    sizes_are_refused_before_they_are_made();
    configs_and_weights_belong_together();
    shards_stay_in_their_folder();
    no_damage_panics_or_takes_memory();
    damaged_images_take_no_memory();
}
