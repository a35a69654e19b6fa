//! A user's own images: a folder of pictures, in any nesting.
//!
//! PNG, JPEG, WebP, BMP, GIF (the first frame) and TIFF files are taken in the order of their paths; pictures of other formats
//! are counted in a warning. With a size, each is cropped to the square in its middle and
//! resized; without one, all must have the same height and width. The set has one channel when every file is
//! grey, else three; an alpha channel is dropped, and 16 bits become 8.
//!
//! **Parts.** Folders named `train` (`training`), `valid` (`val`, `validation`, `dev`) and `test` (`testing`), in any case, are
//! the parts, and then every image lies in one of them. Where there are none, the SHA-256 of a
//! file's path decides: of every ten files about eight are for training and one each for validation and test,
//! and a file stays where it is when others come and go.
//!
//! **Labels.** `labels.csv` beside the images may give classes and attributes: a header `file,label` or
//! `file,label,NAME…`, then one row per image with its path from the folder, its class (a number or a name)
//! and its attributes (0 to 255). Without it, where every image (of each part) lies in a folder of its class, as torchvision's
//! ImageFolder has it, the folders are the classes.
//!
//! **Revision.** The SHA-256 over each file's path in the folder and the SHA-256 of its bytes, in the order of the paths, then
//! over `labels.csv`: the same wherever the folder lies.

use super::picture::{self, Kind};
use super::{Dataset, Parts, Revision, Split, Values, npy::MOST_CLASSES, read_file};
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Folders in folders are followed this deep.
const DEPTH: usize = 16;

/// One decoded image: planar bytes of one channel where the file is grey, else of three.
struct Picture {
    grey: bool,
    height: usize,
    width: usize,
    planar: Vec<u8>,
}

/// A row of `labels.csv`.
struct Row {
    label: String,
    attributes: Vec<u8>,
}

/// Collects the paths of all pictures below `dir`, relative to the root and with `/` between their parts: those that are read,
/// and those that are not. `above` are the folders that `dir` lies in, without links, from the root on.
fn list_images(dir: &Path, prefix: &str, above: &[PathBuf], found: &mut [BTreeSet<String>; 2]) -> Result<()> {
    ensure!(above.len() < DEPTH, "{} is nested more than {DEPTH} folders deep: flatten it", dir.display());
    let real = dir
        .canonicalize()
        .with_context(|| format!("cannot list the folder {}: check its path", dir.display()))?;
    ensure!(!above.contains(&real), "{} is a link to a folder that it lies in: remove it", dir.display());
    let above = [above, &[real]].concat();
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("cannot list the folder {}: check its path", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list the folder {}", dir.display()))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            bail!("{} has a name that is not UTF-8: rename it", entry.path().display());
        };
        if name.starts_with('.') {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if entry.path().is_dir() {
            list_images(&entry.path(), &format!("{relative}/"), &above, found)?;
            continue;
        }
        match Kind::of(name) {
            Kind::Read => found[0].insert(relative),
            Kind::NotRead => found[1].insert(relative),
            Kind::Other => continue,
        };
    }
    Ok(())
}

/// Decodes a picture and, with a size, crops and resizes it.
fn decode(bytes: &[u8], size: Option<usize>, name: &str) -> Result<Picture> {
    let mut image = picture::decode(bytes, name)?;
    if let Some(size) = size {
        image = picture::fit(image, size)?;
    }
    let grey = !image.color().has_color();
    let planar = picture::bytes(&image, grey);
    Ok(Picture { grey, height: image.height() as usize, width: image.width() as usize, planar })
}

/// Reads `labels.csv`: the names of the attributes, and a row for each file.
///
/// # Errors
/// When the header is another one, a row is short or long, a file comes twice, or an attribute is not in 0 to
/// 255; each names the line.
fn parse_labels(bytes: &[u8], name: &str) -> Result<(Vec<String>, BTreeMap<String, Row>)> {
    let mut csv = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let header =
        csv.headers().with_context(|| format!("{name} cannot be read at line 1: save it as UTF-8"))?;
    ensure!(
        header.get(0) == Some("file") && header.get(1) == Some("label"),
        "{name} begins with `{}` at line 1, where `file,label` is expected: add that header",
        header.iter().collect::<Vec<_>>().join(",")
    );
    let names = header.iter().skip(2).map(str::to_owned).collect();
    let mut rows = BTreeMap::new();
    for (i, record) in csv.records().enumerate() {
        let record = record.with_context(|| format!("row {} of {name} cannot be read: correct it", i + 1))?;
        let line = record.position().map_or(0, csv::Position::line);
        let attribute = |cell: &str| {
            cell.parse().with_context(|| {
                format!(
                    "{name} has the attribute `{cell}` at line {line}, where 0 to 255 is expected: correct it"
                )
            })
        };
        let attributes = record.iter().skip(2).map(attribute).collect::<Result<Vec<u8>>>()?;
        let (file, label) = (record[0].replace('\\', "/"), record[1].to_owned());
        ensure!(
            rows.insert(file.clone(), Row { label, attributes }).is_none(),
            "{name} names {file} a second time at line {line}: remove one of the rows"
        );
    }
    Ok((names, rows))
}

/// Numbers the classes: numeric labels keep their number, names are numbered in alphabetical order.
fn number(rows: &BTreeMap<String, Row>) -> Result<(Vec<String>, BTreeMap<&str, u32>)> {
    let distinct: BTreeSet<&str> = rows.values().map(|row| row.label.as_str()).collect();
    let numeric: Option<Vec<u32>> = distinct.iter().map(|label| label.parse().ok()).collect();
    if let Some(most) = numeric.as_ref().and_then(|numbers| numbers.iter().max()) {
        ensure!(
            *most < MOST_CLASSES,
            "labels.csv has the label {most}: number classes from 0, below {MOST_CLASSES}"
        );
        let numbers = distinct.into_iter().zip(numeric.iter().flatten().copied()).collect();
        return Ok(((0..=*most).map(|class| class.to_string()).collect(), numbers));
    }
    let classes = distinct.iter().map(|&label| label.to_owned()).collect();
    Ok((classes, distinct.into_iter().zip(0..).collect()))
}

/// The names of the folders of each part: training, validation and test.
const PARTS: [&[&str]; 3] =
    [&["train", "training"], &["valid", "val", "validation", "dev"], &["test", "testing"]];

/// The part that a folder's name stands for, in any case.
fn named_part(folder: &str) -> Option<usize> {
    PARTS.iter().position(|names| names.contains(&folder.to_lowercase().as_str()))
}

/// The part of a file where no folder names one, from the hash of its path: 0 training, 1 validation, 2 test.
fn hashed_part(relative: &str) -> usize {
    let hash = Sha256::digest(relative.as_bytes());
    let word = u64::from_le_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes"));
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 2][(word % 10) as usize]
}

/// The contents of `labels.csv`: the names of the classes and attributes, and each file's class and attributes.
#[derive(Default)]
struct Labels {
    classes: Vec<String>,
    attributes: Vec<String>,
    rows: BTreeMap<String, (u32, Vec<u8>)>,
}

/// Reads the file `labels.csv` of a folder, whose rows must be those of `files`.
fn read_labels(table: &Path, files: &[String], revision: &mut Revision) -> Result<Labels> {
    let bytes = read_file(table)?;
    revision.add("labels.csv", &bytes);
    let (attributes, rows) = parse_labels(&bytes, &table.display().to_string())?;
    if let Some(file) = files.iter().find(|file| !rows.contains_key(*file)) {
        bail!("{} has no row for {file}: add one, or remove the file", table.display());
    }
    if let Some(file) = rows.keys().find(|file| files.binary_search(file).is_err()) {
        bail!(
            "{} has a row for {file}, which is not there: add the file, or remove the row",
            table.display()
        );
    }
    let (classes, numbers) = number(&rows)?;
    let numbered =
        rows.iter().map(|(file, row)| (file.clone(), (numbers[row.label.as_str()], row.attributes.clone())));
    Ok(Labels { classes, attributes, rows: numbered.collect() })
}

/// Whether some folder names a part: then all do.
fn has_parts(files: &[String]) -> bool {
    files.iter().filter_map(|file| file.split_once('/')).any(|(folder, _)| named_part(folder).is_some())
}

/// Assigns each file, by its place in `files`, to training, validation or test.
fn deal(dir: &Path, files: &[String]) -> Result<[Vec<usize>; 3]> {
    let explicit = has_parts(files);
    let names = PARTS.map(|names| names.join(" or ")).join(", ");
    let mut parts = [vec![], vec![], vec![]];
    for (place, file) in files.iter().enumerate() {
        let to = match file.split_once('/').and_then(|(folder, _)| named_part(folder)) {
            Some(part) => part,
            None if !explicit => hashed_part(file),
            None => bail!(
                "{} lies outside the folders that name a part: move it into one of them ({names})",
                dir.join(file).display()
            ),
        };
        parts[to].push(place);
    }
    Ok(parts)
}

/// The classes that folders name: where every file lies in one, beside or in its part, and there are two at least.
fn folder_classes(files: &[String]) -> Option<Labels> {
    let explicit = has_parts(files);
    let class = |file: &String| {
        let rest = if explicit { file.split_once('/')?.1 } else { file };
        rest.split_once('/').map(|(class, _)| class.to_owned())
    };
    let of_files: Vec<String> = files.iter().map(class).collect::<Option<_>>()?;
    let classes: Vec<String> = BTreeSet::from_iter(of_files.iter().cloned()).into_iter().collect();
    let number = |class: &String| classes.binary_search(class).expect("collected from them") as u32;
    let rows = files.iter().cloned().zip(of_files.iter().map(|class| (number(class), vec![])));
    (classes.len() > 1).then(|| Labels { rows: rows.collect(), attributes: vec![], classes: classes.clone() })
}

/// Reads a folder of images.
///
/// # Errors
/// When there are no images, one is unreadable, cut short or (without a size) of another height or width, `labels.csv`
/// does not fit the files; each error names the file.
pub fn read_folder(dir: &Path, size: Option<usize>) -> Result<Dataset> {
    ensure!(size != Some(0), "images of side 0 cannot be made: ask for a size of at least 1");
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    list_images(dir, "", &[], &mut found)?;
    let [files, not_read] = found;
    ensure!(!files.is_empty(), "there are no pictures in {}: put PNG or JPEG files there", dir.display());
    if let Some(one) = not_read.first() {
        tracing::warn!(
            "{}: {} pictures are of formats that are not read, such as {one}: convert them to PNG or JPEG",
            dir.display(),
            not_read.len()
        );
    }
    let files: Vec<String> = files.into_iter().collect();

    let load = |file: &String| -> Result<(Picture, [u8; 32])> {
        let path = dir.join(file);
        let bytes = read_file(&path)?;
        Ok((decode(&bytes, size, &path.display().to_string())?, Sha256::digest(&bytes).into()))
    };
    let loaded: Vec<_> = files.par_iter().map(load).collect::<Result<_>>()?;
    let mut revision = Revision::default();
    for (file, (_, hash)) in files.iter().zip(&loaded) {
        revision.add(file, hash);
    }
    let table = dir.join("labels.csv");
    let labels = match table.is_file() {
        true => Some(read_labels(&table, &files, &mut revision)?),
        false => folder_classes(&files),
    };

    let (height, width) = (loaded[0].0.height, loaded[0].0.width);
    if let Some(odd) = loaded.iter().position(|(p, _)| (p.height, p.width) != (height, width)) {
        bail!(
            "{} is {} × {} pixels but {} is {height} × {width}: give all the same size, or set \
             `data.size` in the recipe",
            dir.join(&files[odd]).display(),
            loaded[odd].0.height,
            loaded[odd].0.width,
            dir.join(&files[0]).display()
        );
    }
    let channels = if loaded.iter().all(|(p, _)| p.grey) { 1 } else { 3 };
    let split = |places: &[usize]| {
        let mut pixels = Vec::with_capacity(places.len() * channels * height * width);
        for &place in places {
            let picture = &loaded[place].0;
            // A grey file among coloured ones becomes three equal channels.
            for _ in 0..if picture.grey { channels } else { 1 } {
                pixels.extend_from_slice(&picture.planar);
            }
        }
        let rows = |labels: &Labels| places.iter().map(|&place| labels.rows[&files[place]].clone()).unzip();
        let (classes, attributes): (Option<Vec<u32>>, Option<Vec<Vec<u8>>>) =
            labels.as_ref().map(rows).unzip();
        let attributes = attributes.filter(|_| labels.as_ref().is_some_and(|l| !l.attributes.is_empty()));
        Split::new(vec![channels, height, width], Values::Pixels(pixels), classes, attributes)
    };
    let [train, valid, test] = deal(dir, &files)?;
    let valid = if valid.is_empty() { None } else { Some(split(&valid)?) };
    let (train, test) = (split(&train)?, split(&test)?);
    let Labels { classes, attributes, .. } = labels.unwrap_or_default();
    let revision = revision.finish(&format!("{} image files", files.len()));
    let set = Dataset::new("folder", train, test, classes, revision);
    let parts = if has_parts(&files) { Parts::Named } else { Parts::Chosen };
    Ok(Dataset { valid, attribute_names: attributes, parts, ..set })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Join, Request, load};
    use crate::testing::mutate;
    use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
    use std::io::Cursor;

    fn colour(width: u32, height: u32, salt: u8) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, salt]))
    }

    fn png(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn without_split_folders_the_hash_of_the_path_decides() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("more")).unwrap();
        assert!(read_folder(dir.path(), None).unwrap_err().to_string().contains("no pictures"));
        for i in 0..40_u8 {
            let place = if i % 2 == 0 { format!("{i:02}.png") } else { format!("more/{i:02}.PNG") };
            std::fs::write(dir.path().join(place), png(&colour(4, 3, i))).unwrap();
        }
        std::fs::write(dir.path().join("notes.txt"), "not an image").unwrap();
        let set = read_folder(dir.path(), None).unwrap();
        let valid = set.valid.as_ref().map_or(0, Split::len);
        assert_eq!(set.train.len() + valid + set.test.len(), 40);
        assert_eq!(set.train.shape, [3, 3, 4]);
        assert!(set.train.len() > 25);
        // Pixel (row 2, column 3) of each channel.
        let p = set.test.pixels(0);
        assert_eq!((p[2 * 4 + 3], p[12 + 2 * 4 + 3]), (3, 2));
        // Another file leaves the others where they are.
        std::fs::write(dir.path().join("zz.png"), png(&colour(4, 3, 99))).unwrap();
        let grown = read_folder(dir.path(), None).unwrap();
        assert!(grown.train.len() >= set.train.len() && grown.test.len() >= set.test.len());
        assert_ne!(grown.revision, set.revision);
        std::fs::write(dir.path().join("odd.png"), png(&colour(5, 3, 0))).unwrap();
        assert!(read_folder(dir.path(), None).unwrap_err().to_string().contains("odd.png is 3 × 5"));
        assert_eq!(read_folder(dir.path(), Some(2)).unwrap().train.shape, [3, 2, 2]);
        std::fs::write(dir.path().join("bad.jpg"), "nonsense").unwrap();
        assert!(read_folder(dir.path(), Some(2)).unwrap_err().to_string().contains("bad.jpg"));
    }

    #[test]
    fn split_folders_labels_and_grey_images_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["train", "test"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            for i in 0..2 {
                let grey = GrayImage::from_fn(6, 4, |x, _| Luma([x as u8 * 10 + i]));
                grey.save(dir.path().join(format!("{part}/{i}.png"))).unwrap();
            }
        }
        let table = dir.path().join("labels.csv");
        let rows = "file,label,hat\ntrain/0.png,cat,1\ntrain/1.png,ant,0\ntest/0.png,dog,7\n";
        std::fs::write(&table, rows).unwrap();
        assert!(read_folder(dir.path(), None).unwrap_err().to_string().contains("no row for test/1.png"));
        std::fs::write(&table, format!("{rows}test/1.png,cat,3\n")).unwrap();
        let set = read_folder(dir.path(), Some(4)).unwrap();
        assert_eq!((set.train.shape.clone(), set.train.len(), set.valid.clone()), (vec![1, 4, 4], 2, None));
        // The middle four of six columns.
        assert_eq!(set.train.pixels(1)[..4], [11, 21, 31, 41]);
        assert_eq!(
            (set.classes.join(" "), set.train.labels.clone()),
            ("ant cat dog".into(), Some(vec![1, 0]))
        );
        assert_eq!(
            (set.attribute_names, set.test.attributes),
            (vec!["hat".to_owned()], Some(vec![vec![7], vec![3]]))
        );
        // One coloured file makes three channels of all.
        std::fs::write(dir.path().join("train/2.png"), png(&colour(6, 4, 9))).unwrap();
        std::fs::write(&table, format!("{rows}test/1.png,cat,3\ntrain/2.png,cat,0\n")).unwrap();
        let mixed = read_folder(dir.path(), None).unwrap();
        assert_eq!(mixed.train.shape, [3, 4, 6]);
        assert_eq!(mixed.train.pixels(0)[..24], mixed.train.pixels(0)[48..]);
    }

    /// Every name of a part means that part, in any case, and no image of a named part lands in another.
    #[test]
    fn folders_that_name_parts_are_the_parts() {
        for (train, valid, test) in [
            ("train", "val", "test"),
            ("Train", "Validation", "TEST"),
            ("training", "dev", "testing"),
            ("TRAIN", "valid", "Test"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (part, n, salt) in [(train, 20, 0), (valid, 6, 100), (test, 4, 200)] {
                std::fs::create_dir(dir.path().join(part)).unwrap();
                for i in 0..n {
                    let path = dir.path().join(format!("{part}/{i:02}.png"));
                    std::fs::write(path, png(&colour(4, 3, salt + i))).unwrap();
                }
            }
            let set = read_folder(dir.path(), None).unwrap();
            // The last channel is the part's number.
            let salts =
                |split: &Split| (0..split.len()).map(|i| split.pixels(i)[24] / 100).collect::<Vec<_>>();
            assert_eq!(salts(&set.train), [0; 20], "{train}");
            assert_eq!(salts(set.valid.as_ref().unwrap()), [1; 6], "{valid}");
            assert_eq!(salts(&set.test), [2; 4], "{test}");
            assert!(set.classes.is_empty());
            // Beside parts every folder names one.
            std::fs::create_dir(dir.path().join("extra")).unwrap();
            std::fs::write(dir.path().join("extra/a.png"), png(&colour(4, 3, 1))).unwrap();
            let error = read_folder(dir.path(), None).unwrap_err().to_string();
            assert!(
                error.contains("extra/a.png lies outside") && error.contains("valid or val or validation"),
                "{error}"
            );
        }
        // Without test images there is an error, and none are taken from another part.
        let dir = tempfile::tempdir().unwrap();
        for part in ["train", "val"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            (0..30).for_each(|i| {
                std::fs::write(dir.path().join(format!("{part}/{i}.png")), png(&colour(4, 3, i))).unwrap();
            });
        }
        let request =
            Request { name: "folder".into(), dir: Some(dir.path().to_owned()), ..Request::default() };
        let error = load(&request, None).unwrap_err().to_string();
        assert!(error.contains("30 training and 0 test examples") && error.contains("`test`"), "{error}");
        // Nothing is trained when all of them are only looked at.
        let all = load(&Request { join: Join::Always, ..request.clone() }, None).unwrap();
        assert_eq!((all.test.len(), all.valid, all.parts), (60, None, Parts::Joined));
        assert!(load(&Request { join: Join::Unnamed, ..request }, None).is_err());
    }

    /// A folder without parts is used whole where nothing is trained on it, however small it is.
    #[test]
    fn a_folder_that_is_only_looked_at_is_used_whole() {
        let dir = tempfile::tempdir().unwrap();
        (0..3).for_each(|i| {
            std::fs::write(dir.path().join(format!("{i}.png")), png(&colour(4, 3, i))).unwrap();
        });
        let request =
            Request { name: "folder".into(), dir: Some(dir.path().to_owned()), ..Request::default() };
        for (join, valid) in [(Join::Unnamed, None), (Join::Always, Some(5000))] {
            let all = load(&Request { join, valid, ..request.clone() }, None).unwrap();
            assert_eq!(all.test.len(), 3, "{join:?}");
        }
    }

    /// As torchvision's ImageFolder: a folder for each class, in each part or in the set.
    #[test]
    fn folders_are_classes() {
        for prefixes in [&["train/", "test/"][..], &[""]] {
            let dir = tempfile::tempdir().unwrap();
            for (k, (prefix, class)) in
                prefixes.iter().flat_map(|p| ["cat", "ant", "dog"].map(|class| (p, class))).enumerate()
            {
                std::fs::create_dir_all(dir.path().join(format!("{prefix}{class}"))).unwrap();
                for i in 0..20 {
                    let path = dir.path().join(format!("{prefix}{class}/{i}.png"));
                    std::fs::write(path, png(&colour(4, 3, k as u8 % 3))).unwrap();
                }
            }
            let set = read_folder(dir.path(), None).unwrap();
            assert_eq!(set.classes, ["ant", "cat", "dog"]);
            for split in [&set.train, &set.test] {
                let labels = split.labels.as_ref().unwrap();
                let want = (0..split.len()).map(|i| [1, 0, 2][usize::from(split.pixels(i)[24])]);
                assert!(labels.iter().copied().eq(want));
            }
            // One image outside the classes, and there are none.
            std::fs::write(dir.path().join(format!("{}x.png", prefixes[0])), png(&colour(4, 3, 1))).unwrap();
            assert!(read_folder(dir.path(), None).unwrap().classes.is_empty());
        }
    }

    #[test]
    fn a_damaged_label_table_is_an_error_with_its_line() {
        let error = |text: &str| parse_labels(text.as_bytes(), "T").map(drop).unwrap_err().to_string();
        assert!(error("name,class\n").contains("`name,class` at line 1"));
        assert!(error("file,label,a\nx,1,256\n").contains("`256` at line 2"));
        assert!(error("file,label\nx,1\nx,2\n").contains("x a second time at line 3"));
        assert!(error("file,label\nx\n").contains("row 1 of T"));
        let (_, rows) = parse_labels(b"file,label\na,2\nb,0\n", "T").unwrap();
        let (classes, numbers) = number(&rows).unwrap();
        assert_eq!((classes.len(), numbers["2"]), (3, 2));
        let (_, rows) = parse_labels(b"file,label\na,4000000000\n", "T").unwrap();
        assert!(number(&rows).is_err());
    }

    #[test]
    fn damaged_files_never_panic() {
        // What decoding may take, for the picture, its crop and its conversion.
        let decodes = |file: &[u8], size| {
            mutate::within(file, 3000, 3 * 4096, |bytes| drop(decode(bytes, size, "P")));
        };
        decodes(&png(&colour(9, 7, 3)), Some(4));
        let mut jpeg = Cursor::new(Vec::new());
        colour(9, 7, 3).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        decodes(&jpeg.into_inner(), None);
        mutate::each(b"file,label,hat\na.png,cat,1\n\"b\",ant,0\n", 20_000, |bytes| {
            drop(parse_labels(bytes, "T"))
        });
    }
}
