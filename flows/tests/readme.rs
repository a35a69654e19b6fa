//! The program in README.md, compiled and run; a test compares the two texts. And docs/composing.md has every row of the tables that
//! a composed config is read by, as docs/python/flows_torch.py has.

#[rustfmt::skip]
mod program {
    use candle_core::{Device, Result};

    pub fn main() -> Result<()> {
        let model = flows::load("weights/faces-glow-small", &Device::Cpu)?; // config.json + model.safetensors, offline
        println!("{model:?}");

        let x = model.sample(2, 0.7, 42, None)?; // (2, 3, 32, 32), in pixel units: about 0 to 256, not clamped
        println!("bits/dim {}", model.bits_per_dim(&x, None)?); // -log p(x) / (D ln 2), nothing else
        let z = model.encode(&x, None)?; // all of z, (2, 3072)
        let back = model.decode(&z, None)?; // x again, up to rounding
        assert_eq!((x.dims(), z.dims(), back.dims()), (&[2, 3, 32, 32][..], &[2, 3072][..], &[2, 3, 32, 32][..]));

        let (a, b) = (z.narrow(0, 0, 1)?, z.narrow(0, 1, 1)?); // halfway between two images
        let middle = model.decode(&((a + b)? / 2.)?, None)?;
        assert_eq!(middle.dims(), [1, 3, 32, 32]);
        Ok(())
    }
}

#[test]
fn the_readme_has_this_program() {
    let here = include_str!("readme.rs").replace("pub fn main", "fn main");
    let readme = include_str!("../../README.md");
    let block = readme.split("```rust,no_run\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = block.expect("README.md has a program").lines().map(str::trim);
    for line in lines {
        assert!(here.lines().any(|l| l.trim() == line), "not in readme.rs: {line}");
    }
}

#[test]
fn the_program_runs() -> candle_core::Result<()> {
    // From the root of the repository, as a reader runs it.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    program::main()
}

/// The words that serde reads as one of these.
fn kinds<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let error =
        serde_json::from_value::<T>(serde_json::json!({ "kind": "?" })).err().expect("no kind").to_string();
    let (_, known) = error.split_once("expected one of").expect("they are listed");
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_kind_is_in_the_document_and_in_the_loader() {
    let document = include_str!("../../docs/composing.md");
    let loader = include_str!("../../docs/python/flows_torch.py");
    let scales = kinds::<flows::models::ScaleConfig>();
    for kind in kinds::<flows::models::LayerConfig>()
        .into_iter()
        .chain(kinds::<flows::models::TransformConfig>())
        .chain(kinds::<flows::models::NetConfig>())
    {
        assert!(document.contains(&format!("`{kind}`")), "docs/composing.md has no `{kind}`");
        assert!(
            loader.contains(&format!("    \"{kind}\": "))
                || loader.contains(&format!("{{\"{kind}\": "))
                || loader.contains(&format!(", \"{kind}\": ")),
            "flows_torch.py has no {kind}"
        );
    }
    assert!(scales.iter().all(|kind| document.contains(&format!("\"{kind}\""))), "{scales:?}");
}
