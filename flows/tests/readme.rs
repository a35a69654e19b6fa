//! The program in README.md, compiled and run; a test compares the two texts.

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
