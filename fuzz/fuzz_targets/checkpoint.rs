//! PyTorch's checkpoints: the archive, and the pickle in an archive that is good.
#![no_main]

use flows_fuzz::pth::Checkpoint;
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Write};
use zip::CompressionMethod::Stored;
use zip::write::SimpleFileOptions;

fuzz_target!(|bytes: &[u8]| {
    tell(Checkpoint::parse(bytes, "P"));
    // A checksum would keep most changes from the pickle.
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(Stored);
    zip.start_file("a/data.pkl", stored).expect("a name");
    zip.write_all(bytes).expect("into memory");
    zip.start_file("a/data/0", stored).expect("a name");
    zip.write_all(&[7; 64]).expect("into memory");
    tell(Checkpoint::parse(zip.finish().expect("into memory").get_ref(), "P"));
});
