//! PyTorch's checkpoints (`torch.save`), read without executing anything and without believing what they claim.
//!
//! A checkpoint is a zip archive: `data.pkl` is a pickle, whose objects describe the tensors, and `data/KEY` are their bytes.
//! All that is unpacked is at most four times the file. The pickle is followed by [`Pickle`], since candle's own reader
//! knows protocol 2 alone, allocates what a length field says, and copies whatever a program remembers.
//!
//! The same tensors in a safetensors file are read as well.

use super::pickle::{Id, Object, Pickle};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::data::LARGEST;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

/// A tensor's numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f64>,
}

/// The tensors of a state_dict. Conversion removes each tensor that it uses; tensors left at the end are an error.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: BTreeMap<String, Array>,
}

/// Keys under which training scripts put the state_dict beside an optimiser's.
const NESTED: [&str; 4] = ["model", "net", "state_dict", "model_state_dict"];
/// Parts of a name that PyTorch's wrappers add: DataParallel and AveragedModel, torch.compile, FSDP, and checkpointed layers.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Names with which the tensors of each layout begin.
const ROOTS: [&str; 2] = ["flow", "flows"];
/// The longest name of a tensor, in bytes: many could repeat a long one.
const LONGEST_NAME: usize = 1000;

/// Where a tensor's numbers are.
struct Place {
    key: String,
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

/// The dtype of the numbers in a storage of this class.
fn dtype(class: &str) -> Option<DType> {
    Some(match class {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ByteStorage" | "BoolStorage" => DType::U8,
        _ => return None,
    })
}

/// The numbers that bytes of a storage are.
fn numbers_of(bytes: &[u8], dtype: DType) -> Result<Vec<f64>> {
    let raw = Tensor::from_raw_buffer(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()], &Device::Cpu)?;
    Ok(raw.to_dtype(DType::F64)?.to_vec1()?)
}

fn sizes(pickle: &Pickle, id: Id) -> Option<Vec<usize>> {
    let Object::Tuple(sizes) = pickle.get(id) else { return None };
    // No tensor has more sides, and many tensors could share one long list.
    (sizes.len() <= 8).then(|| sizes.iter().map(|&size| number(pickle, size)).collect())?
}

fn number(pickle: &Pickle, id: Id) -> Option<usize> {
    let Object::Int(n) = pickle.get(id) else { return None };
    usize::try_from(*n).ok()
}

/// The arguments of the function that builds a tensor; `None` where the object is none. A parameter is a tensor in a call of
/// its own.
fn rebuilt<'p>(pickle: &'p Pickle, id: Id, parameter: bool) -> Option<&'p [Id]> {
    let Object::Call(callable, args) = pickle.get(id) else { return None };
    let Object::Tuple(args) = pickle.get(*args) else { return None };
    match pickle.get(*callable) {
        Object::Class("torch._utils", "_rebuild_tensor_v2") => Some(args),
        Object::Class("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            if parameter =>
        {
            rebuilt(pickle, *args.first()?, false)
        }
        _ => None,
    }
}

/// What an object says of a tensor; `None` where it is none.
fn place(pickle: &Pickle, id: Id, name: &str) -> Result<Option<Place>> {
    let Some(args) = rebuilt(pickle, id, true) else { return Ok(None) };
    let odd = || anyhow!("its tensor `{name}` is described in a way that PyTorch does not use");
    let &[storage, offset, shape, stride, ..] = args else { return Err(odd()) };
    let Object::Stored(storage) = pickle.get(storage) else { return Err(odd()) };
    let Object::Tuple(storage) = pickle.get(*storage) else { return Err(odd()) };
    let &[_, class, key, ..] = storage.as_slice() else { return Err(odd()) };
    let (Object::Class(_, class), Object::Text(key)) = (pickle.get(class), pickle.get(key)) else {
        return Err(odd());
    };
    ensure!(class.len() <= LONGEST_NAME && key.len() <= LONGEST_NAME, odd());
    let dtype = dtype(class)
        .with_context(|| format!("its tensor `{name}` is of the type {class}: save it as floats"))?;
    let sides = (number(pickle, offset), sizes(pickle, shape), sizes(pickle, stride));
    let (Some(offset), Some(shape), Some(stride)) = sides else { return Err(odd()) };
    ensure!(shape.len() == stride.len(), odd());
    Ok(Some(Place { key: (*key).to_owned(), dtype, offset, shape, stride }))
}

/// The tensors of a dictionary, by name.
fn places(pickle: &Pickle, id: Id) -> Result<BTreeMap<String, Place>> {
    let mut found = BTreeMap::new();
    let Object::Dict(entries) = pickle.get(id) else { return Ok(found) };
    for &(key, value) in entries {
        let Object::Text(name) = pickle.get(key) else { continue };
        ensure!(name.len() <= LONGEST_NAME, "a key of its dictionary has {} bytes", name.len());
        if let Some(place) = place(pickle, value, name)? {
            found.insert((*name).to_owned(), place);
        }
    }
    Ok(found)
}

/// The state_dict of a checkpoint: the first under a name that training scripts use, else the checkpoint itself.
fn state_dict(pickle: &Pickle, whole: Id) -> Result<BTreeMap<String, Place>> {
    let Object::Dict(entries) = pickle.get(whole) else { return Ok(BTreeMap::new()) };
    for nested in NESTED {
        let is_nested = |key: Id| matches!(pickle.get(key), Object::Text(key) if *key == nested);
        if let Some(&(_, inner)) = entries.iter().rev().find(|&&(key, _)| is_nested(key)) {
            let found = places(pickle, inner)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    places(pickle, whole)
}

/// The tensors of a safetensors file.
fn of_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in candle_core::safetensors::load_buffer(bytes, &Device::Cpu)? {
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        tensors.insert(name, Array { shape: tensor.dims().to_vec(), values });
    }
    ensure!(!tensors.is_empty(), "it holds no tensor");
    Ok(tensors)
}

/// A name without what PyTorch's wrappers add to it.
fn unwrapped(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// What a file is by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A zip archive, as torch.save writes it.
    Zip,
    /// A safetensors file.
    Safetensors,
}

impl Kind {
    /// That of the file `name` with these first bytes.
    ///
    /// # Errors
    /// When it is neither.
    pub fn check(head: &[u8], name: &str) -> Result<Self> {
        match head {
            [b'P', b'K', 3, 4, ..] => Ok(Self::Zip),
            // The length of the header, which is below 2^27, and the header.
            [_, _, _, 0..8, 0, 0, 0, 0, b'{', ..] => Ok(Self::Safetensors),
            [0x1f, 0x8b, ..] => bail!("{name} is packed with gzip: unpack it first, gunzip FILE"),
            _ => bail!(
                "{name} is neither a zip archive nor a safetensors file: save it again with PyTorch 1.6 or later, \
                 torch.save(torch.load(OLD), NEW)"
            ),
        }
    }
}

/// The tensors by the names that the model itself gives them: without wrappers, and without the name under which a module
/// around it, as Lightning's, keeps the model.
fn own_names(tensors: BTreeMap<String, Array>) -> Result<BTreeMap<String, Array>> {
    let mut own = BTreeMap::new();
    for (name, array) in tensors {
        let short = unwrapped(&name);
        // AveragedModel's counter.
        if short == "n_averaged" {
            continue;
        }
        if own.insert(short.clone(), array).is_some() {
            bail!("it holds the tensor `{short}` twice, once in a wrapper of PyTorch's: save one state_dict");
        }
    }
    let root = |name: &str| ROOTS.iter().any(|root| name.split('.').next() == Some(root));
    let outer = |name: &str| {
        let mut at = name.match_indices('.').map(|(at, _)| at + 1);
        at.find(|&at| root(&name[at..])).map(|at| name[..at].to_owned())
    };
    if own.keys().any(|name| root(name)) {
        return Ok(own);
    }
    let outers: BTreeSet<String> = own.keys().filter_map(|name| outer(name)).collect();
    if outers.len() > 1 {
        bail!(
            "it holds several models, {}: save the state_dict of one",
            outers
                .iter()
                .take(4)
                .map(|o| format!("`{}`", o.trim_end_matches('.')))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let Some(outer) = outers.into_iter().next() else { return Ok(own) };
    let short = |name: String| name.strip_prefix(&outer).map(str::to_owned).unwrap_or(name);
    Ok(own.into_iter().map(|(name, array)| (short(name), array)).collect())
}

impl Checkpoint {
    /// Reads a checkpoint: a state_dict, or one under a name that training scripts use; or a safetensors file of one.
    ///
    /// # Errors
    /// When the file is neither a checkpoint of PyTorch 1.6 or later nor a safetensors file, or is damaged: one sentence with the
    /// remedy.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let tensors = match Kind::check(bytes, name)? {
            Kind::Zip => Self::inside(bytes).with_context(|| {
                format!("{name} is a damaged checkpoint, or none of PyTorch: fetch it, or save it, again")
            })?,
            Kind::Safetensors => of_safetensors(bytes).with_context(|| {
                format!("{name} is a damaged safetensors file: fetch it, or save it, again")
            })?,
        };
        Ok(Self { tensors: own_names(tensors).with_context(|| format!("{name} is not one model"))? })
    }

    fn inside(bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
        // A checkpoint's archive begins with the file: the search for another beginning refuses some that PyTorch writes.
        let whole = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(whole, Cursor::new(bytes))?;
        let pickle = (0..zip.len()).find_map(|i| {
            let entry = zip.by_index_raw(i).ok()?;
            String::from_utf8_lossy(entry.name_raw()).strip_suffix("data.pkl").map(str::to_owned)
        });
        let root = pickle.context("there is no data.pkl in it")?;
        let program = unpack(&mut zip, &format!("{root}data.pkl"), bytes.len().saturating_mul(4) as u64)?;
        let (pickle, object) = Pickle::parse(&program)?;
        let found = state_dict(&pickle, object)?;
        ensure!(
            !found.is_empty(),
            "it holds no state_dict, neither itself nor under {}: save model.state_dict()",
            NESTED.join(", ")
        );
        // Storage by storage, so that each is unpacked once.
        let mut found: Vec<(String, Place)> = found.into_iter().collect();
        found.sort_by(|(_, a), (_, b)| a.key.cmp(&b.key));
        // Tensors may share their bytes, as tied weights do, but not by the thousand; and a packed byte may stand for a
        // thousand.
        let (mut room, mut unpacked) = (bytes.len().saturating_mul(4), bytes.len().saturating_mul(4));
        let (mut tensors, mut storage): (_, Option<(String, Vec<u8>)>) = (BTreeMap::new(), None);
        for (name, place) in found {
            let count = place.count(&name, bytes.len())?;
            room =
                room.checked_sub(count.saturating_mul(place.dtype.size_in_bytes())).with_context(|| {
                    format!("its tensors are several times as large as the file, `{name}` is one too many")
                })?;
            let held = match storage.take().filter(|(key, _)| *key == place.key) {
                Some((_, held)) => held,
                None => unpack(&mut zip, &format!("{root}data/{}", place.key), unpacked as u64)
                    .inspect(|held| unpacked -= held.len())?,
            };
            let array = read(&held, &name, &place, count)?;
            storage = Some((place.key, held));
            tensors.insert(name, array);
        }
        Ok(tensors)
    }

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|array| array.shape.as_slice())
    }

    /// Takes a tensor of this many values, whatever its shape.
    ///
    /// # Errors
    /// When it is missing, of another size, or not finite.
    pub fn take(&mut self, name: &str, values: usize) -> Result<Vec<f64>> {
        let array = self.tensors.remove(name).with_context(|| {
            format!(
                "the checkpoint has no tensor `{name}`: it is of another layout, or of another version of it"
            )
        })?;
        ensure!(
            array.values.len() == values,
            "the checkpoint's tensor `{name}` has the shape {:?}, {values} values are expected: it is of another layout",
            array.shape
        );
        ensure!(
            array.values.iter().all(|v| v.is_finite()),
            "the checkpoint's tensor `{name}` holds a NaN or an infinity: take an earlier checkpoint"
        );
        Ok(array.values)
    }

    /// Drops the tensors for which `unused` holds: those that have no part in the likelihood.
    pub fn drop_unused(&mut self, unused: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| !unused(name));
    }

    /// Refuses a checkpoint of which something is left.
    ///
    /// # Errors
    /// With the first name that is.
    pub fn finish(self) -> Result<()> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => bail!(
                "the checkpoint's tensor `{name}` ({} more) has no counterpart here: it is of another layout",
                self.tensors.len() - 1
            ),
        }
    }
}

/// An entry's bytes, no more than `most`: torch.save packs nothing, another tool that writes the archive anew may.
fn unpack(zip: &mut ZipArchive<Cursor<&[u8]>>, name: &str, most: u64) -> Result<Vec<u8>> {
    let entry = zip.by_name(name).with_context(|| format!("there is no {name} in it"))?;
    let mut bytes = Vec::new();
    entry
        .take(most.min(LARGEST) + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{name} cannot be unpacked"))?;
    ensure!(bytes.len() as u64 <= most, "{name} unpacks to more than its share of the file");
    Ok(bytes)
}

impl Place {
    /// The number of a tensor's values, where a file of `file` bytes can hold them.
    fn count(&self, name: &str, file: usize) -> Result<usize> {
        let count = self.shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
        let (Some(count), Some(last)) = (count, self.last()) else {
            bail!("its tensor `{name}` has an impossible shape")
        };
        let held = file / self.dtype.size_in_bytes();
        ensure!(
            count <= held && last < held,
            "its tensor `{name}` of the shape {:?} is larger than the file",
            self.shape
        );
        // No parameter is empty, and a side of an empty tensor would be bounded by nothing.
        ensure!(count > 0, "its tensor `{name}` of the shape {:?} is empty", self.shape);
        Ok(count)
    }

    /// Where its last value is among those of its storage; `None` where that is too far for a number.
    fn last(&self) -> Option<usize> {
        self.shape.iter().zip(&self.stride).try_fold(self.offset, |at, (&side, &stride)| {
            at.checked_add(side.saturating_sub(1).checked_mul(stride)?)
        })
    }
}

/// A tensor of `count` values from the bytes of its storage.
fn read(bytes: &[u8], name: &str, place: &Place, count: usize) -> Result<Array> {
    let size = place.dtype.size_in_bytes();
    let inside = place.last().is_some_and(|last| last < bytes.len() / size);
    ensure!(inside, "its tensor `{name}` ends beyond its bytes");
    let mut picked = Vec::with_capacity(count * size);
    let mut index = vec![0; place.shape.len()];
    for _ in 0..count {
        let at: usize = place.offset + index.iter().zip(&place.stride).map(|(i, s)| i * s).sum::<usize>();
        picked.extend_from_slice(&bytes[at * size..][..size]);
        for (i, &side) in index.iter_mut().zip(&place.shape).rev() {
            *i += 1;
            if *i < side {
                break;
            }
            *i = 0;
        }
    }
    Ok(Array { shape: place.shape.clone(), values: numbers_of(&picked, place.dtype)? })
}

/// The distinct numbers between a prefix and the next dot of the names: `a.0.x`, `a.2.y` under `a.` are 0 and 2.
#[must_use]
pub fn numbers<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> BTreeSet<usize> {
    names.filter_map(|name| name.strip_prefix(prefix)?.split('.').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, mutate};
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    /// A checkpoint of this pickle and one storage of eight floats.
    fn archive(program: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("archive/data.pkl", stored).unwrap();
        zip.write_all(program).unwrap();
        zip.start_file("archive/data/0", stored).unwrap();
        zip.write_all(&(0..8).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        zip.finish().unwrap().into_inner()
    }

    fn text(s: &str) -> Vec<u8> {
        [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
    }

    fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
        [b"(".to_vec(), parts.concat(), b"t".to_vec()].concat()
    }

    fn int(n: u8) -> Vec<u8> {
        vec![b'K', n]
    }

    /// A dictionary of one tensor with this offset, shape and stride.
    fn one(offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
        let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(8)];
        let sides = |sides: &[u8]| tuple(&sides.iter().map(|&n| int(n)).collect::<Vec<_>>());
        let args = [[tuple(&storage), b"Q".to_vec()].concat(), int(offset), sides(shape), sides(stride)];
        let value = [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&args), b"R".to_vec()].concat();
        [b"\x80\x02}".to_vec(), text("w"), value, b"s.".to_vec()].concat()
    }

    fn refusal(program: &[u8]) -> String {
        format!("{:#}", Checkpoint::parse(&archive(program), "F").unwrap_err())
    }

    #[test]
    fn strides_and_offsets_are_followed() {
        let values =
            |program: &[u8], n| Checkpoint::parse(&archive(program), "F").unwrap().take("w", n).unwrap();
        assert_eq!(values(&one(0, &[2, 4], &[4, 1]), 8), [0., 1., 2., 3., 4., 5., 6., 7.]);
        assert_eq!(values(&one(2, &[3, 2], &[1, 3]), 6), [2., 5., 3., 6., 4., 7.]);
        assert_eq!(values(&one(7, &[], &[]), 1), [7.]);
    }

    #[test]
    fn tensors_stay_in_their_bytes() {
        for (offset, shape, stride) in
            [(1, &[8][..], &[1][..]), (0, &[3], &[4]), (0, &[200, 200], &[0, 0]), (0, &[2], &[255])]
        {
            let said = refusal(&one(offset, shape, stride));
            assert!(said.contains("`w`") && (said.contains("beyond") || said.contains("larger")), "{said}");
        }
        assert!(refusal(&one(0, &[2], &[1, 1])).contains("does not use"));
        assert!(refusal(&one(0, &[0, 4], &[4, 1])).contains("is empty"));
    }

    #[test]
    fn programs_that_would_take_the_machine_are_refused() {
        // Each pair holds the pair before it twice: 2^60 objects.
        let mut doubling = b"\x80\x02)q\x00".to_vec();
        (0..60).for_each(|_| doubling.extend(b"h\x00h\x00\x86q\x00"));
        doubling.push(b'.');
        let deep = [b"\x80\x02)".to_vec(), vec![0x85; 1 << 20], b".".to_vec()].concat();
        let long = [b"\x80\x02X".to_vec(), u32::MAX.to_le_bytes().to_vec(), b"a.".to_vec()].concat();
        let longest = [b"\x80\x04\x8d".to_vec(), u64::MAX.to_le_bytes().to_vec(), b"a.".to_vec()].concat();
        let marks = [b"(".repeat(1 << 20), b"N.".to_vec()].concat();
        let remember = [
            b"\x80\x02(".to_vec(),
            b"K\x00".repeat(3000),
            b"t".to_vec(),
            b"q\x00".repeat(100_000),
            b".".to_vec(),
        ]
        .concat();
        for (program, says) in [
            (&doubling[..], "no state_dict"),
            (&deep, "no state_dict"),
            (&long, "ends inside"),
            (&longest, "ends inside"),
            (&remember, "no state_dict"),
            (&marks, "no state_dict"),
            (b"\x80\x02\x8a\xff", "ends inside"),
            (b"\x80\x02cos\nsystem\n", "ends inside"),
            (b"\x80\x02i", "opcode 0x69"),
            (b"t.", "no mark"),
            (b"R.", "where there is none"),
            (b"h\x07.", "never met"),
            (b"}.", "no state_dict"),
        ] {
            let mut said = String::new();
            let took = testing::peak(|| said = refusal(program));
            assert!(said.contains(says) && said.contains("again"), "{says}: {said}");
            assert!(took < (1 << 19) + 300 * program.len(), "{says}: {took} bytes for {}", program.len());
        }
    }

    /// The tensor of [`one`] as protocols 4 and 5 describe it: in a frame, with classes from texts, remembered without a number.
    fn framed(protocol: u8) -> Vec<u8> {
        let text = |s: &str| [&[0x8c, s.len() as u8][..], s.as_bytes(), b"\x94"].concat();
        let class = |module, name| [text(module), text(name), b"\x93\x94".to_vec()].concat();
        let storage =
            [text("storage"), class("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x08".to_vec()];
        let args = [
            [tuple(&storage), b"\x94Q".to_vec()].concat(),
            b"K\x00K\x02K\x04\x86\x94K\x04K\x01\x86\x94\x89".to_vec(),
            [class("collections", "OrderedDict"), b")R\x94".to_vec()].concat(),
        ];
        let value =
            [class("torch._utils", "_rebuild_tensor_v2"), tuple(&args), b"\x94R\x94".to_vec()].concat();
        // What else lies in a checkpoint: a set, bytes, a long number, an object that is called with keywords.
        let others = b"\x8c\x01s\x8f\x94(K\x01\x90\x8c\x01bC\x01a\x8c\x01n\x8b\x01\0\0\0\x07\x8c\x01o\x8c\x01a\x8c\x01b\x93)}\x92";
        let dict = [class("collections", "OrderedDict"), b")R\x94(".to_vec(), text("w"), value];
        let body = [dict.concat(), others.to_vec(), b"u}b.".to_vec()].concat();
        [&[0x80, protocol, 0x95][..], &(body.len() as u64).to_le_bytes(), &body].concat()
    }

    #[test]
    fn protocols_4_and_5_are_read() {
        for protocol in [4, 5] {
            let mut read = Checkpoint::parse(&archive(&framed(protocol)), "F").unwrap();
            assert_eq!(read.shape("w"), Some(&[2, 4][..]));
            assert_eq!(read.take("w", 8).unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
            read.finish().unwrap();
        }
        mutate::each(&framed(4), 5000, |program| drop(Checkpoint::parse(&archive(program), "F")));
    }

    fn named(names: &[&str]) -> Result<Vec<String>> {
        let array = |i: usize| Array { shape: vec![1], values: vec![i as f64] };
        let tensors = names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), array(i))).collect();
        Ok(own_names(tensors)?.into_keys().collect())
    }

    #[test]
    fn names_are_the_models_own() {
        let own = ["flow.layers.1.w", "prior_h"];
        for around in ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "ema_model.", "net.model."]
        {
            let names = own.map(|name| format!("{around}{name}"));
            assert_eq!(named(&names.each_ref().map(String::as_str)).unwrap(), own, "{around}");
        }
        assert_eq!(named(&["model._orig_mod.flow.module.layers.1.w", "model.prior_h"]).unwrap(), own);
        assert_eq!(named(&["module.flow.layers.1.w", "n_averaged", "module.prior_h"]).unwrap(), own);
        // What stands beside the model keeps its name: the layout refuses it by that.
        assert_eq!(named(&["loss.w", "model.flows.0.w"]).unwrap(), ["flows.0.w", "loss.w"]);
        let error = |names: &[&str]| named(names).unwrap_err().to_string();
        assert!(error(&["model.flow.a", "ema_model.flow.a"]).contains("`ema_model`, `model`: save"));
        assert!(error(&["flow.a", "module.flow.a"]).contains("`flow.a` twice"));
    }

    #[test]
    fn safetensors_are_read_as_they_are() {
        let tensor = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
        let bytes = safetensors::serialize([("model.flow.w", &tensor)], None).unwrap();
        let mut read = Checkpoint::parse(&bytes, "F").unwrap();
        assert_eq!(read.take("flow.w", 4).unwrap(), [1., 2., 3., 4.]);
        let cut = Checkpoint::parse(&bytes[..bytes.len() - 1], "F").unwrap_err().to_string();
        assert!(cut.contains("F is a damaged safetensors file") && cut.contains("again"), "{cut}");
        mutate::each(&bytes, 2000, |bytes| drop(Checkpoint::parse(bytes, "F")));
    }

    #[test]
    fn a_storage_is_unpacked_once_and_bombs_are_not() {
        let packed = |program: &[u8], storage: &[u8]| {
            let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
            for (name, bytes) in [("a/data.pkl", program), ("a/data/0", storage)] {
                zip.start_file(name, deflated).unwrap();
                zip.write_all(bytes).unwrap();
            }
            zip.finish().unwrap().into_inner()
        };
        for (program, storage) in [
            (one(0, &[2], &[1]), vec![0; 1 << 24]),
            ([b"\x80\x02".to_vec(), vec![b'N'; 1 << 24]].concat(), vec![]),
        ] {
            let bomb = packed(&program, &storage);
            let mut said = String::new();
            let took = testing::peak(|| said = format!("{:#}", Checkpoint::parse(&bomb, "F").unwrap_err()));
            assert!(said.contains("its share of the file"), "{said}");
            assert!(took < 1 << 20, "{took} bytes");
        }
        // A thousand tensors of one number each in the same storage of a megabyte.
        let value = one(0, &[1], &[1]);
        let value = &value[b"\x80\x02}".len() + text("w").len()..value.len() - 2];
        let entries = (0..1000).flat_map(|i| [&text(&format!("w{i}")), value, b"s"].concat());
        let program = [b"\x80\x02}".to_vec(), entries.collect(), b".".to_vec()].concat();
        let start = std::time::Instant::now();
        assert_eq!(Checkpoint::parse(&packed(&program, &noise(1 << 20)), "F").unwrap().names().count(), 1000);
        assert!(start.elapsed().as_secs() < 5);
    }

    /// Bytes that cannot be packed, and are finite floats.
    fn noise(n: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..n / 4).flat_map(|_| next().to_le_bytes()).collect()
    }

    #[test]
    fn nothing_is_called() {
        // What a pickle does harm with: os.system("true"), once as an object and once as a tensor.
        let call = [b"cos\nsystem\n".to_vec(), tuple(&[text("true")]), b"R".to_vec()].concat();
        let program = [b"\x80\x02}".to_vec(), text("w"), call, b"s.".to_vec()].concat();
        assert!(refusal(&program).contains("no state_dict"));
    }

    #[test]
    fn halves_are_what_they_mean() {
        let half = |bits: u16| numbers_of(&bits.to_le_bytes(), DType::F16).unwrap()[0];
        for (bits, value) in [
            (0x3c00, 1.),
            (0xc000, -2.),
            (0x7bff, 65504.),
            (0x0001, 2f64.powi(-24)),
            (0x3555, 0.333251953125),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e01).is_nan());
        assert_eq!(numbers_of(&[0x80, 0x3f], DType::BF16).unwrap(), [1.]);
    }

    #[test]
    fn no_damage_panics() {
        mutate::each(&archive(&one(0, &[2, 4], &[4, 1])), 5000, |bytes| drop(Checkpoint::parse(bytes, "F")));
        // The zip's checksum hides most damage from the pickle.
        mutate::each(&one(0, &[2, 4], &[4, 1]), 5000, |program| {
            drop(Checkpoint::parse(&archive(program), "F"))
        });
    }
}
