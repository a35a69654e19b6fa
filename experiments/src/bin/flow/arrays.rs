//! Arrays as files that other programs read: .npy, .npz, .safetensors, .csv.

use crate::output;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::data::npy::write_npz;
use std::path::{Path, PathBuf};

/// A format, by the ending of a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's, one array: the first.
    Npy,
    /// NumPy's archive, uncompressed.
    Npz,
    /// As weights are saved.
    Safetensors,
    /// A line for each example, a column for each of its numbers, named `name` or `name0`, `name1`, ...
    Csv,
}

const FORMATS: [(&str, Format); 4] =
    [("npy", Format::Npy), ("npz", Format::Npz), ("safetensors", Format::Safetensors), ("csv", Format::Csv)];

impl Format {
    /// That of the file `out`, if its name ends as one of arrays does.
    pub fn of(out: &Path) -> Option<Self> {
        let ending = out.extension()?.to_str()?;
        FORMATS.iter().find(|(name, _)| name.eq_ignore_ascii_case(ending)).map(|(_, format)| *format)
    }
}

/// The format of `out`, where nothing is yet and something can be written.
///
/// # Errors
/// When the name has another ending, the file is there already (it may be the only copy of someone's data), or the folder cannot be
/// written to.
pub fn writable(out: &Path) -> Result<Format> {
    let name = out.display();
    let format = Format::of(out)
        .with_context(|| format!("--out {name}: arrays are written as .npy, .npz, .safetensors or .csv"))?;
    ensure!(!out.exists(), "--out {name} is there already: remove it, or give another name");
    let ending = out.extension().unwrap_or_default().to_string_lossy();
    output::writable(out, &ending, "arrays have such an ending")?;
    Ok(format)
}

/// Writes named arrays to `out`, under another name first, in the format of its ending.
///
/// # Errors
/// When the file cannot be written.
pub fn write(out: &Path, tensors: &[(&str, Tensor)]) -> Result<()> {
    let format = writable(out)?;
    let tensors = tensors
        .iter()
        .map(|(name, t)| Ok((*name, t.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<Vec<_>>>()?;
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let tmp: PathBuf = out.with_file_name(format!(".{name}.{}", std::process::id()));
    let put = || -> Result<()> {
        match format {
            Format::Npy => tensors[0].1.write_npy(&tmp)?,
            Format::Npz => write_npz(&tensors, &tmp)?,
            Format::Safetensors => std::fs::write(
                &tmp,
                safetensors::serialize(tensors.iter().map(|(name, t)| (*name, t)), None)?,
            )?,
            Format::Csv => write_csv(&tmp, &tensors)?,
        }
        Ok(std::fs::rename(&tmp, out)?)
    };
    put()
        .inspect_err(|_| _ = std::fs::remove_file(&tmp))
        .with_context(|| format!("cannot write {}: make room, or choose another --out", out.display()))
}

fn write_csv(path: &Path, tensors: &[(&str, Tensor)]) -> Result<()> {
    let mut columns = Vec::new();
    let mut rows: Vec<Vec<String>> = vec![Vec::new(); tensors[0].1.dim(0)?];
    for (name, t) in tensors {
        let flat = if t.rank() == 1 { t.unsqueeze(1)? } else { t.flatten_from(1)? };
        let width = flat.dim(1)?;
        columns.extend(
            (0..width).map(|i| if t.rank() == 1 { (*name).to_owned() } else { format!("{name}{i}") }),
        );
        // As many digits as the numbers have.
        let double = flat.dtype() == DType::F64;
        let values: Vec<f64> = flat.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let text = |v: &f64| if double { v.to_string() } else { (*v as f32).to_string() };
        for (row, values) in rows.iter_mut().zip(values.chunks_exact(width)) {
            row.extend(values.iter().map(text));
        }
    }
    let mut csv = csv::Writer::from_path(path)?;
    csv.write_record(&columns)?;
    for row in &rows {
        csv.write_record(row)?;
    }
    Ok(csv.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use experiments::data::npy::{Numbers, parse_npy, parse_npz};

    #[test]
    fn each_format_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let z = Tensor::new(&[[1.5f32, -2.], [0.1, 3e-9]], &Device::Cpu).unwrap();
        let p = Tensor::new(&[-7.25f64, 0.1], &Device::Cpu).unwrap();
        let both = [("z", z.clone()), ("log_prob", p.clone())];
        for name in ["a.npy", "a.npz", "a.safetensors", "a.csv"] {
            write(&at(name), &both).unwrap();
            let again = write(&at(name), &both).unwrap_err().to_string();
            assert!(again.contains("is there already"), "{again}");
        }
        let read = |name: &str| std::fs::read(at(name)).unwrap();
        let numbers = Numbers::Reals(vec![1.5, -2., 0.1, 3e-9]);
        assert_eq!(parse_npy(&read("a.npy"), "A").unwrap().numbers, numbers);
        let npz = parse_npz(&read("a.npz"), "A").unwrap();
        assert_eq!((npz["z"].sides.as_slice(), &npz["z"].numbers), (&[2, 2][..], &numbers));
        assert_eq!(npz["log_prob"].numbers, Numbers::Reals(vec![-7.25, 0.1]));
        let tensors = candle_core::safetensors::load(at("a.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(tensors["log_prob"].to_vec1::<f64>().unwrap(), [-7.25, 0.1]);
        let csv = String::from_utf8(read("a.csv")).unwrap();
        assert_eq!(csv, "z0,z1,log_prob\n1.5,-2,-7.25\n0.1,0.000000003,0.1\n");
        assert!(
            write(&at("a.txt"), &both).unwrap_err().to_string().contains(".npy, .npz, .safetensors or .csv")
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "nothing is left over");
    }
}
