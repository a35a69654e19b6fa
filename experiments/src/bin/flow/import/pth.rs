//! PyTorch's checkpoints (`torch.save`), read without executing anything and without believing what they claim.
//!
//! A checkpoint is a zip archive: `data.pkl` is a pickle, a program for a stack machine that builds Python objects, and
//! `data/KEY` are the tensors' bytes. The pickle is interpreted by `candle_core::pickle`, which knows the opcodes that
//! describe tensors and calls nothing. That reader allocates what a length field says and copies whatever a program
//! remembers, so a program of a hundred bytes can ask for gigabytes or nest until the stack ends; therefore [`Meter`] first
//! runs the program on sizes alone and refuses what would take more than a small multiple of its length. Tensors are then
//! found among the objects here, since candle's own search panics on tuples that are too short.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::pickle::{Object, Stack};
use candle_core::{DType, Device, Tensor};
use experiments::data::LARGEST;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// Bytes of an object in candle's reader, about.
const OBJECT: usize = 64;
/// Objects inside objects, at most: a state_dict has six.
const DEEPEST: u32 = 64;

/// The size and the depth of an object.
#[derive(Clone, Copy)]
struct Cost {
    bytes: usize,
    depth: u32,
    mark: bool,
}

impl Cost {
    fn leaf(bytes: usize) -> Self {
        Self { bytes: OBJECT + bytes, depth: 1, mark: false }
    }

    fn joined(parts: &[Self]) -> Self {
        Self {
            bytes: parts.iter().fold(OBJECT, |sum, part| sum.saturating_add(part.bytes)),
            depth: parts.iter().map(|part| part.depth).max().unwrap_or(0) + 1,
            mark: false,
        }
    }
}

/// A run of a pickle on the sizes of its objects alone. Objects are copied when they are remembered and when they are
/// recalled, as candle does it.
struct Meter<'a> {
    /// The part of the program that has not been run.
    rest: &'a [u8],
    stack: Vec<Cost>,
    memo: HashMap<u32, Cost>,
    /// Bytes of all objects and copies that were made.
    made: usize,
}

impl<'a> Meter<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n).context("the pickle ends inside an object")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A number of `n` bytes, at most four.
    fn number(&mut self, n: usize) -> Result<u32> {
        Ok(self.take(n)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte)))
    }

    fn pop(&mut self, n: usize) -> Result<Vec<Cost>> {
        let at = self.stack.len().checked_sub(n).context("the pickle takes an object where there is none")?;
        Ok(self.stack.split_off(at))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Cost>> {
        let mark = self.stack.iter().rposition(|cost| cost.mark);
        let objects = self.stack.split_off(mark.context("the pickle has no mark to go back to")? + 1);
        self.stack.pop();
        Ok(objects)
    }

    /// Runs one opcode other than the last. The object that it pushes, if it does, and how many of its bytes are new: what was
    /// popped is part of what is pushed, or dropped, so that only copies and leaves grow, and leaves are what the program
    /// spells out.
    fn step(&mut self, opcode: u8) -> Result<Option<(Cost, usize)>> {
        let parts = match opcode {
            0x80 => return self.take(1).map(|_| None),
            b'q' | b'r' => {
                let id = self.number(if opcode == b'q' { 1 } else { 4 })?;
                let top = *self.stack.last().context("the pickle remembers an object where there is none")?;
                // Also where it replaces another: the copy takes its time.
                self.made = self.made.saturating_add(top.bytes);
                self.memo.insert(id, top);
                return Ok(None);
            }
            b'h' | b'j' => {
                let id = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let cost = *self.memo.get(&id).context("the pickle recalls what it never met")?;
                return Ok(Some((cost, cost.bytes)));
            }
            b'(' => return Ok(Some((Cost { mark: true, ..Cost::leaf(0) }, OBJECT))),
            b't' => self.pop_to_mark()?,
            b'Q' | 0x85 => self.pop(1)?,
            0x86 | b'R' | b'b' | 0x81 | b'a' => self.pop(2)?,
            0x87 | b's' => self.pop(3)?,
            b'e' | b'u' => {
                let mut parts = self.pop_to_mark()?;
                parts.extend(self.pop(1)?);
                parts
            }
            _ => {
                let leaf = Cost::leaf(self.leaf(opcode)?);
                return Ok(Some((leaf, leaf.bytes)));
            }
        };
        Ok(Some((Cost::joined(&parts), OBJECT)))
    }

    /// Reads an object that the program spells out: the bytes that it takes beyond those of every object.
    fn leaf(&mut self, opcode: u8) -> Result<usize> {
        let length = match opcode {
            b')' | b']' | b'}' | b'd' | b'N' | 0x88 | 0x89 => 0,
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            b'G' => 8,
            0x8a => {
                let n = self.number(1)?;
                ensure!(n <= 8, "the pickle holds a number of {n} bytes");
                n as usize
            }
            b'c' => {
                let ends = self.rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
                let second = ends.clone().nth(1).context("the pickle ends inside an object")?;
                self.take(second + 1)?;
                return Ok(second - 1);
            }
            b'X' => {
                let n = self.number(4)? as usize;
                self.take(n)?;
                return Ok(n);
            }
            other => bail!("the pickle uses the opcode {other:#04x}, which describes no tensor"),
        };
        self.take(length)?;
        Ok(0)
    }
}

/// Refuses a pickle whose objects would be too many or too deep for the memory that its length allows.
///
/// # Errors
/// Also on an opcode or a length that the reader could not follow.
fn affordable(program: &[u8]) -> Result<()> {
    let most = program.len().saturating_mul(4 * OBJECT).saturating_add(1 << 16);
    let mut meter = Meter { rest: program, stack: Vec::new(), memo: HashMap::new(), made: 0 };
    loop {
        let opcode = meter.take(1)?[0];
        if opcode == b'.' {
            return Ok(());
        }
        if let Some((cost, new)) = meter.step(opcode)? {
            meter.made = meter.made.saturating_add(new);
            ensure!(cost.depth <= DEEPEST, "the pickle nests objects more than {DEEPEST} deep");
            meter.stack.push(cost);
        }
        ensure!(
            meter.made <= most,
            "the pickle of {} bytes describes more than {most} bytes of objects",
            program.len()
        );
    }
}

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

fn is_class(object: &Object, module: &str, class: &str) -> bool {
    matches!(object, Object::Class { module_name, class_name } if module_name == module && class_name == class)
}

fn sizes(object: &Object) -> Option<Vec<usize>> {
    let Object::Tuple(sizes) = object else { return None };
    sizes.iter().map(number).collect()
}

fn number(object: &Object) -> Option<usize> {
    match object {
        Object::Int(n) => usize::try_from(*n).ok(),
        Object::Long(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// What an object says of a tensor; `None` where it is none.
fn place(object: &Object, name: &str) -> Result<Option<Place>> {
    let Object::Reduce { callable, args } = object else { return Ok(None) };
    let Object::Tuple(args) = args.as_ref() else { return Ok(None) };
    if is_class(callable, "torch._utils", "_rebuild_parameter") {
        return args.first().map_or(Ok(None), |inner| place(inner, name));
    }
    if !is_class(callable, "torch._utils", "_rebuild_tensor_v2") {
        return Ok(None);
    }
    let odd = || anyhow!("its tensor `{name}` is described in a way that PyTorch does not use");
    let [Object::PersistentLoad(storage), offset, shape, stride, ..] = args.as_slice() else {
        return Err(odd());
    };
    let Object::Tuple(storage) = storage.as_ref() else { return Err(odd()) };
    let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = storage.as_slice() else {
        return Err(odd());
    };
    let dtype = dtype(class_name)
        .with_context(|| format!("its tensor `{name}` is of the type {class_name}: save it as floats"))?;
    let (Some(offset), Some(shape), Some(stride)) = (number(offset), sizes(shape), sizes(stride)) else {
        return Err(odd());
    };
    ensure!(shape.len() == stride.len() && shape.len() <= 8, odd());
    Ok(Some(Place { key: key.clone(), dtype, offset, shape, stride }))
}

/// The tensors of a dictionary, by name.
fn places(object: &Object) -> Result<BTreeMap<String, Place>> {
    let mut found = BTreeMap::new();
    let Object::Dict(entries) = object else { return Ok(found) };
    for (key, value) in entries {
        if let Object::Unicode(name) = key
            && let Some(place) = place(value, name)?
        {
            found.insert(name.clone(), place);
        }
    }
    Ok(found)
}

impl Checkpoint {
    /// Reads a checkpoint: a state_dict, or one under a name that training scripts use.
    ///
    /// # Errors
    /// When the file is no checkpoint of PyTorch 1.6 or later, or is damaged: one sentence with the remedy.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        ensure!(
            bytes.starts_with(b"PK\x03\x04"),
            "{name} is no zip archive: save it again with PyTorch 1.6 or later, torch.save(torch.load(OLD), NEW)"
        );
        Self::inside(bytes).with_context(|| {
            format!("{name} is a damaged checkpoint, or none of PyTorch: fetch it, or save it, again")
        })
    }

    fn inside(bytes: &[u8]) -> Result<Self> {
        // A checkpoint's archive begins with the file: the search for another beginning refuses some that PyTorch writes.
        let whole = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(whole, Cursor::new(bytes))?;
        let pickle = (0..zip.len()).find_map(|i| {
            let entry = zip.by_index(i).ok()?;
            String::from_utf8_lossy(entry.name_raw()).strip_suffix("data.pkl").map(str::to_owned)
        });
        let root = pickle.context("there is no data.pkl in it")?;
        let program = unpack(&mut zip, &format!("{root}data.pkl"), bytes.len() as u64)?;
        affordable(&program)?;
        let mut stack = Stack::empty();
        stack.read_loop(&mut Cursor::new(&program))?;
        let object = stack.finalize()?;
        let mut found = places(&object)?;
        if found.is_empty()
            && let Object::Dict(entries) = &object
        {
            let nested =
                |key: &str| entries.iter().find(|(k, _)| matches!(k, Object::Unicode(k) if k == key));
            if let Some((_, inner)) = NESTED.iter().find_map(|key| nested(key)) {
                found = places(inner)?;
            }
        }
        ensure!(
            !found.is_empty(),
            "it holds no state_dict, neither itself nor under {}: save model.state_dict()",
            NESTED.join(", ")
        );
        // Tensors may share their bytes, as tied weights do, but not by the thousand.
        let mut room = bytes.len().saturating_mul(4);
        let mut tensors = BTreeMap::new();
        for (name, place) in found {
            // What torch.nn.DataParallel puts before every name.
            let short = name.strip_prefix("module.").unwrap_or(&name).to_owned();
            let array = read(&mut zip, &root, &name, &place, bytes.len(), &mut room)?;
            tensors.insert(short, array);
        }
        Ok(Self { tensors })
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

/// An entry's bytes, no more than `most`: torch.save packs nothing.
fn unpack(zip: &mut ZipArchive<Cursor<&[u8]>>, name: &str, most: u64) -> Result<Vec<u8>> {
    let entry = zip.by_name(name).with_context(|| format!("there is no {name} in it"))?;
    let mut bytes = Vec::new();
    entry
        .take(most.min(LARGEST) + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{name} cannot be unpacked"))?;
    ensure!(bytes.len() as u64 <= most, "{name} unpacks to more than the whole file");
    Ok(bytes)
}

fn read(
    zip: &mut ZipArchive<Cursor<&[u8]>>,
    root: &str,
    name: &str,
    place: &Place,
    file: usize,
    room: &mut usize,
) -> Result<Array> {
    let count = place.shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
    let last = place.shape.iter().zip(&place.stride).try_fold(place.offset, |at, (&side, &stride)| {
        at.checked_add(side.saturating_sub(1).checked_mul(stride)?)
    });
    let (Some(count), Some(last)) = (count, last) else {
        bail!("its tensor `{name}` has an impossible shape")
    };
    let size = place.dtype.size_in_bytes();
    let held = file / size;
    ensure!(
        count <= held && last < held,
        "its tensor `{name}` of the shape {:?} is larger than the file",
        place.shape
    );
    // No parameter is empty, and a side of an empty tensor would be bounded by nothing.
    ensure!(count > 0, "its tensor `{name}` of the shape {:?} is empty", place.shape);
    *room = room.checked_sub(count.saturating_mul(size)).with_context(|| {
        format!("its tensors are several times as large as the file, `{name}` is one too many")
    })?;
    let bytes = unpack(zip, &format!("{root}data/{}", place.key), file as u64)?;
    ensure!(last < bytes.len() / size, "its tensor `{name}` ends beyond its bytes");
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
        let deep = [b"\x80\x02)".to_vec(), vec![0x85; 1 << 20], b".".to_vec()].concat();
        let long = [b"\x80\x02X".to_vec(), u32::MAX.to_le_bytes().to_vec(), b"a.".to_vec()].concat();
        let remember = [
            b"\x80\x02(".to_vec(),
            b"K\x00".repeat(3000),
            b"t".to_vec(),
            b"q\x00".repeat(100_000),
            b".".to_vec(),
        ]
        .concat();
        for (program, says) in [
            (&doubling[..], "of objects"),
            (&deep, "deep"),
            (&long, "ends inside"),
            (&remember, "of objects"),
            (b"\x80\x02\x8a\xff", "255 bytes"),
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
