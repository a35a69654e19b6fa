//! Python's `huggingface_hub` as the outside client.

use super::server::{READER, TestHub};
use super::user::{FILES, ID, RUN, User, path, published, text};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A Python with the outside client, or `None` where the test is to be left out.
fn python() -> Option<String> {
    let python = std::env::var("FLOWS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import huggingface_hub, safetensors.numpy"]).output();
    if has.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(
        std::env::var_os("FLOWS_NEED_PYTHON").is_none(),
        "{python} has no huggingface_hub and safetensors"
    );
    // Not by a macro, whose output is not shown for a test that passes.
    let left_out = "left out: no Python with huggingface_hub and safetensors (FLOWS_PYTHON: see tests/hub/requirements.txt)\n";
    std::io::stderr().write_all(left_out.as_bytes()).unwrap();
    None
}

impl User<'_> {
    /// The last line of what a script prints.
    fn script(&self, python: &str, script: &str, args: &[&str]) -> String {
        let mut command = Command::new(python);
        command.arg("-c").arg(script).args(args);
        self.clean(&mut command);
        let output = command.env("HF_HUB_DISABLE_TELEMETRY", "1").output().unwrap();
        assert!(output.status.success(), "{}\n{:#?}", text(&output.stderr), self.hub.log());
        text(&output.stdout).lines().last().unwrap_or_default().to_owned()
    }
}

#[test]
fn python_reads_what_we_push() {
    let Some(python) = python() else { return };
    let hub = TestHub::start();
    let user = published(&hub);
    let read = "
import hashlib, json, os, sys
from huggingface_hub import ModelCard, scan_cache_dir, snapshot_download
from safetensors.numpy import load_file
folder = snapshot_download(sys.argv[1])
tensors = load_file(os.path.join(folder, 'model.safetensors'))
card = ModelCard.load(os.path.join(folder, 'README.md'))
index = card.data.to_dict()['model-index']
print('model-index:', json.dumps(index), file=sys.stderr)
sha = {f: hashlib.sha256(open(os.path.join(folder, f), 'rb').read()).hexdigest() for f in sorted(os.listdir(folder))}
print(json.dumps({'tensors': len(tensors), 'model-index': index, 'sha256': sha, 'card': card.content,
                  'cached': [r.repo_id for r in scan_cache_dir().repos]}))
";
    let read_all = read;
    let read: Value = serde_json::from_str(&user.script(&python, read_all, &[ID])).unwrap();
    println!("model-index as Python reads it: {}", read["model-index"]);
    assert_eq!(read["model-index"][0]["results"][0]["metrics"][0]["type"], "bits_per_dim");
    assert!(read["tensors"].as_u64().unwrap() > 0);
    assert_eq!(read["cached"][0], ID);
    // A trained model, whose card is made for its repository while the folder's stays as it is.
    let faces = Path::new(env!("CARGO_MANIFEST_DIR")).join("../weights/faces-glow-small");
    let local = std::fs::read_to_string(faces.join("README.md")).unwrap();
    user.ok(&["push", path(&faces), "user/faces"]);
    let trained: Value = serde_json::from_str(&user.script(&python, read_all, &["user/faces"])).unwrap();
    println!("model-index of a trained model as Python reads it: {}", trained["model-index"]);
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(faces.join("summary.json")).unwrap()).unwrap();
    let metric = &trained["model-index"][0]["results"][0]["metrics"][0];
    assert_eq!(metric["value"], summary["test"]["bits_per_dim"]);
    assert!(trained["card"].as_str().unwrap().contains("from_pretrained(\"user/faces\""));
    assert_eq!(std::fs::read_to_string(faces.join("README.md")).unwrap(), local);
    let listed = user.json(&["push", path(RUN.path()), ID, "--dry-run"]);
    for file in listed["files"].as_array().unwrap() {
        assert_eq!(read["sha256"][file["file"].as_str().unwrap()], file["sha256"]);
    }
    // Its cache is ours, and ours passes its check.
    let asked = hub.log().len();
    let mut offline = user.command(&["eval", "hf:user/moons"]);
    assert!(offline.env("HF_HUB_OFFLINE", "1").output().unwrap().status.success());
    assert_eq!(hub.log().len(), asked);
    let ours = User::new(&hub);
    ours.ok(&["pull", "hf:user/moons"]);
    let check = "
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], local_files_only=True))
";
    let folder = ours.script(&python, check, &[ID]);
    // Both at once, in one cache.
    let both = User::new(&hub);
    hub.slow_storage(Some(Duration::from_millis(300)));
    let first = both.spawn(&["pull", "hf:user/moons"]);
    both.script(&python, "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1])", &[ID]);
    let output = first.wait_with_output().unwrap();
    hub.heal();
    assert!(output.status.success(), "{}", text(&output.stderr));
    both.same_bits();
    assert_eq!(folder, ours.json(&["pull", "hf:user/moons"])["folder"].as_str().unwrap());
}

#[test]
fn we_read_what_python_pushes() {
    let Some(python) = python() else { return };
    let hub = TestHub::start();
    let user = User::new(&hub);
    let write = "
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], private=True)
info = api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2], allow_patterns=sys.argv[3:])
print(info.oid)
";
    let commit = user.script(&python, write, &[&[ID, path(RUN.path())], &FILES[..]].concat());
    assert_eq!(hub.commit(ID, "main"), Some(commit.clone()));
    assert_eq!(hub.private(ID), Some(true));
    let reader = User { token: Some(READER), ..User::new(&hub) };
    assert_eq!(reader.json(&["pull", "hf:user/moons"])["commit"], commit.as_str());
    reader.same_bits();
    // What they have pushed is what we would push, but for the file that reads it in Python.
    assert_eq!(user.push()["uploaded"], 1);
    assert!(hub.files(ID, "main").contains(&"flows_torch.py".to_owned()));
}
