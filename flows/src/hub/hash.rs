//! The hashes by which the hub and its cache identify the content of files.
//!
//! ```text
//! small files:  sha1("blob " + length + "\0" + bytes)                              git's name of the file
//! large files:  sha256(bytes), and git's name of the pointer that stands for them
//! ```

use super::files::open;
use super::types::Listed;
use crate::storage::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::path::Path;

/// Whether a text is this many hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file's length and hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashes {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    git: String,
}

impl Hashes {
    /// Reads the file once.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (file, length) = open(path)?;
        Self::read(file, length)
    }

    /// The hashes of all that `file` gives, which must be `bytes` bytes.
    pub(super) fn read(mut file: impl Read, bytes: u64) -> io::Result<Self> {
        let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
        git.update(format!("blob {bytes}\0"));
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            sha256.update(&buffer[..n]);
            git.update(&buffer[..n]);
            read += n as u64;
        }
        if read != bytes {
            return Err(io::Error::other("it was changed while it was read"));
        }
        Ok(Self { bytes, sha256: hex(sha256.finalize()), git: hex(git.finalize()) })
    }

    /// Git's name of the pointer to the file.
    fn pointer(&self) -> String {
        let Self { bytes, sha256, .. } = self;
        let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {bytes}\n");
        hex(Sha1::new().chain_update(format!("blob {}\0", text.len())).chain_update(text).finalize())
    }

    /// Whether these are the bytes of a listed file.
    pub(super) fn are(&self, listed: &Listed) -> bool {
        let object = if listed.large { self.pointer() } else { self.git.clone() };
        self.bytes == listed.bytes && object.eq_ignore_ascii_case(&listed.object)
    }
}

/// Compares a cached file with the hash that its blob is named by, else with the listing of its commit. A file that is a copy
/// rather than a link (as on Windows) cannot be checked without a listing.
///
/// # Errors
/// What is wrong, as a sentence.
pub(super) fn verify(path: &Path, listed: Option<&Listed>) -> Result<(), String> {
    let hashes = Hashes::of(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let target = path.read_link().ok();
    let name = target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let (kind, found) = match name {
        name if is_hex(name, 64) => ("sha256", &hashes.sha256),
        name if is_hex(name, 40) => ("git hash", &hashes.git),
        _ => ("", &hashes.git),
    };
    if !kind.is_empty() && !found.eq_ignore_ascii_case(name) {
        return Err(format!("its {kind} is {found}, not {name}"));
    }
    match listed {
        Some(listed) if hashes.bytes != listed.bytes || kind.is_empty() && !hashes.are(listed) => {
            let Hashes { bytes, sha256, .. } = hashes;
            Err(format!("its {bytes} bytes with the sha256 {sha256} are not those of the commit"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `git hash-object` of "abc", and of the pointer that `git lfs pointer` makes of it.
    const GIT: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hashes_are_those_of_git_and_of_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let hashes = Hashes::of(&path).unwrap();
        assert_eq!(hashes, Hashes { bytes: 3, sha256: SHA256.to_owned(), git: GIT.to_owned() });
        let small = Listed { name: "abc".to_owned(), bytes: 3, object: GIT.to_owned(), large: false };
        assert!(hashes.are(&small));
        assert!(!hashes.are(&Listed { bytes: 4, ..small.clone() }));
        assert!(!hashes.are(&Listed { large: true, ..small.clone() }));
        assert!(hashes.are(&Listed { large: true, object: hashes.pointer(), ..small }));
        assert!(Hashes::of(dir.path()).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn cached_files_must_have_their_hash() {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind) in [(SHA256, "sha256"), (GIT, "git hash")] {
            let link = dir.path().join(kind);
            std::fs::write(dir.path().join(name), "abc").unwrap();
            std::os::unix::fs::symlink(name, &link).unwrap();
            verify(&link, None).unwrap();
            std::fs::write(dir.path().join(name), "abd").unwrap();
            assert!(verify(&link, None).unwrap_err().starts_with(&format!("its {kind} is ")));
        }
        // A copy says nothing of itself; the listing does.
        let copy = dir.path().join("copy");
        std::fs::write(&copy, "abd").unwrap();
        verify(&copy, None).unwrap();
        let listed = Listed { name: "copy".to_owned(), bytes: 3, object: GIT.to_owned(), large: false };
        assert!(verify(&copy, Some(&listed)).unwrap_err().contains("not those of the commit"));
    }
}
