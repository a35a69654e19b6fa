//! Data sets: what a flow is trained and measured on.
//!
//! A [`Dataset`] is a training, an optional validation and a test [`Split`] held in memory, plus where it
//! came from and, for the sets that are drawn here rather than read, what its entropy is. Pixels stay bytes
//! until a batch is made: a number of bits per dimension only means something for the integers that were
//! stored.
//!
//! | name | comes from | values |
//! |---|---|---|
//! | `mnist` | four idx files, plain or `.gz`, or the hub | (N, 1, 28, 28) bytes |
//! | `cifar10` | the binary or the Python batches, the binary `.tar.gz`, or the hub | (N, 3, 32, 32) bytes |
//! | `faces` | drawn from a seed, entropy known to 0.02 bits/dim ([`faces`]) | (N, 3, 32, 32) bytes |
//! | `moons`, `rings`, `spirals`, `checkerboard` | drawn from a seed, entropy known ([`plane`]) | (N, 2) |
//! | `mixture8`, `mixture21`, `warped8`, `warped21` | drawn from a seed, entropy known ([`vectors`]) | (N, 8) or (N, 21) |
//! | `bent` | drawn from a seed with a context, entropy known ([`bent`]) | (N, 2) given (N, 4) |
//! | `folder` | files of pictures ([`folder`]) | (N, C, H, W) bytes |
//! | `npy` | `.npy` and `.npz` arrays ([`npy`]) | bytes or reals |
//!
//! Every reader works on a byte slice and trusts none of it: a size in a header is compared with the bytes
//! that are there before anything is allocated, and an error names the file, the byte offset and the remedy.
//!
//! A reader is one file that uses the types of [`set`] and [`request`]; [`sets`] is the table of names and readers, to
//! which a new data set adds one row. Every property that depends on a set's name is a column there.

pub mod bent;
pub mod cifar;
mod cifar_py;
pub mod faces;
pub mod folder;
pub mod hub;
pub mod idx;
pub mod npy;
pub mod picture;
pub mod plane;
pub mod request;
pub mod set;
pub mod sets;
pub mod vectors;
#[cfg(any(feature = "candle-datasets", test))]
pub mod vision;

pub use request::{Join, Request, example_rng};
pub use set::{
    Dataset, Entropy, LARGEST, Parts, Revision, Rows, Split, Values, file_name, gunzip, hex, read_at_most,
    read_file,
};
pub use sets::{KnownSet, Origin, SETS, known, load, names};

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> Split {
        Split::new(
            vec![1, 1, 2],
            Values::Pixels((0..10).collect()),
            Some(vec![0, 1, 2, 3, 4]),
            Some((0..5).map(|i| vec![i, 9]).collect()),
        )
        .unwrap()
    }

    #[test]
    fn parts_of_a_split_keep_their_labels() {
        let s = split();
        assert_eq!((s.len(), s.dims(), s.is_empty()), (5, 2, false));
        assert_eq!(s.pixels(3), [6, 7]);
        let picked = s.select(&[4, 0, 0]);
        assert_eq!(picked.values, Values::Pixels(vec![8, 9, 0, 1, 0, 1]));
        assert_eq!(picked.labels, Some(vec![4, 0, 0]));
        assert_eq!(picked.attributes.as_ref().unwrap()[0], [4, 9]);
        assert_eq!(s.take(2), s.slice(0..2));
        assert_eq!(s.take(99), s);
        let mut short = s.clone();
        short.truncate(2);
        assert_eq!(short, s.take(2));
    }

    #[test]
    fn parts_that_do_not_fit_are_errors() {
        assert!(Split::new(vec![3], Values::Reals(vec![0.0; 4]), None, None).is_err());
        assert!(Split::new(vec![0], Values::Reals(vec![]), None, None).is_err());
        assert!(Split::new(vec![usize::MAX, 2], Values::Reals(vec![]), None, None).is_err());
        assert!(Split::new(vec![2], Values::Reals(vec![0.0; 4]), Some(vec![1]), None).is_err());
        assert!(Split::new(vec![2], Values::Reals(vec![0.0; 4]), None, Some(vec![])).is_err());
    }

    #[test]
    fn validation_is_the_end_of_training() {
        let mut set = Dataset {
            name: "t".into(),
            train: split(),
            valid: None,
            test: split(),
            classes: vec![],
            attribute_names: vec![],
            entropy: None,
            entropy_of_bits: None,
            parts: Parts::Named,
            revision: String::new(),
        };
        // More than there are: a tenth, here of 5, which is none, and of 40.
        set.carve_validation(5).unwrap();
        assert_eq!((set.train.len(), set.valid.clone()), (5, None));
        let many = split().select(&[0, 1, 2, 3, 4].repeat(8));
        let mut larger = Dataset { train: many, ..set.clone() };
        larger.carve_validation(5000).unwrap();
        assert_eq!((larger.train.len(), larger.valid.unwrap().len()), (36, 4));
        set.carve_validation(2).unwrap();
        assert_eq!(
            (set.train.clone(), set.valid.clone().unwrap()),
            (split().slice(0..3), split().slice(3..5))
        );
        assert!(set.carve_validation(1).is_err());
        // All in one, in the order training, validation, test.
        set.join();
        assert_eq!(set.test, split().select(&[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]));
        assert_eq!((set.valid, set.train.len(), set.parts), (None, 3, Parts::Joined));
    }

    #[test]
    fn gzip_is_unpacked_and_damage_is_an_error() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[7; 5000]).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(gunzip(&packed, "x", 5000).unwrap(), vec![7; 5000]);
        let bomb = gunzip(&packed, "x", 4999).unwrap_err().to_string();
        assert!(bomb.contains("more than the 4999 bytes"), "{bomb}");
        assert!(
            gunzip(&packed[..packed.len() - 3], "x", 9999)
                .unwrap_err()
                .to_string()
                .contains("x is damaged gzip")
        );
        crate::testing::mutate::each(&packed, 2000, |bytes| drop(gunzip(bytes, "x", 1 << 20)));
    }
}
