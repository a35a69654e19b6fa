//! Weights that travel, against a hub on loopback: the command line as a child process with a cache and a port of its own,
//! and Python's `huggingface_hub` as the outside client.
//!
//! `FLOWS_PYTHON` names a Python with requirements.txt installed; without it those tests say that they are left out, and with
//! `FLOWS_NEED_PYTHON` set they fail instead.

mod cards;
mod python;
mod server;
mod user;

use candle_core::{Device, Tensor};
use flows::hub::{Hub, Repository, Revision, Settings};
use flows::{Model, SaveOptions};
use server::{How, READER, Storage, TestHub, WRITER};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};
use user::{FILES, ID, PUSHED, RUN, User, path, published, sentence, text};

#[test]
fn there_and_back_again() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let pushed = user.push();
    assert_eq!(pushed["uploaded"], PUSHED.len());
    assert_eq!(hub.files(ID, "main"), [&[".gitattributes"], &PUSHED[..]].concat());
    assert_eq!(hub.private(ID), Some(false));
    assert_eq!(hub.commits(ID), 2, "one commit has everything");
    assert_eq!(pushed["commit"].as_str(), hub.commit(ID, "main").as_deref());
    assert_eq!(user.push()["uploaded"], 0);
    assert_eq!(hub.commits(ID), 2, "pushing the same again changes nothing");

    // Somebody else, without anything in a cache and without a token.
    let reader = User { token: None, ..User::new(&hub) };
    let pulled = reader.json(&["pull", &format!("hf:{ID}")]);
    assert_eq!(pulled["commit"], pushed["commit"]);
    let folder = Path::new(pulled["folder"].as_str().unwrap());
    assert!(folder.starts_with(reader.home.path().join("hub")), "{}", folder.display());
    for file in FILES {
        let same = std::fs::read(folder.join(file)).unwrap() == std::fs::read(RUN.path().join(file)).unwrap();
        assert!(same, "{file}");
    }
    assert!(!folder.join(".gitattributes").exists());
    reader.same_bits();
    assert_eq!(reader.json(&["eval", &format!("hf:{ID}")])["weights_commit"], pushed["commit"]);
    let picture = reader.home.path().join("s.png");
    reader.ok(&["sample", &format!("hf:{ID}@main"), "-n", "4", "--out", path(&picture)]);
    assert!(picture.exists());

    // In a folder of one's own, at once or not at all.
    let out = reader.home.path().join("mine");
    for _ in 0..2 {
        assert_eq!(reader.ok(&["pull", ID, "--out", path(&out)]).trim(), path(&out));
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, FILES);
    reader.fails("another folder", &["pull", ID, "--out", path(reader.home.path())], &["holds other files"]);

    // Offline, and with the hub gone: what is in the cache does; what is not there is said.
    let offline = |args: &[&str]| {
        let output = reader.command(args).env("HF_HUB_OFFLINE", "1").output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let before = hub.log().len();
    assert_eq!(offline(&["eval", &format!("hf:{ID}")]).0, Some(0));
    let (code, _, stderr) = offline(&["eval", "hf:user/other"]);
    assert!(code == Some(1) && stderr.contains("HF_HUB_OFFLINE forbids"), "{stderr}");
    let (code, _, stderr) = offline(&["push", path(RUN.path()), ID]);
    assert!(code == Some(1) && stderr.contains("HF_HUB_OFFLINE forbids to push"), "{stderr}");
    assert_eq!(hub.log().len(), before, "nothing was asked");
    let mut gone = reader.command(&["eval", &format!("hf:{ID}")]);
    let output = gone.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("is taken from the cache"), "{}", text(&output.stderr));
}

#[test]
fn a_published_model_of_megabytes_gives_the_same_bits() {
    let hub = TestHub::start();
    let faces = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/faces-glow-small");
    User::new(&hub).ok(&["push", faces, "user/faces", "--tag", "v1.0"]);
    let few =
        ["--images", "20", "--set", "data.train=100", "--set", "data.validation=10", "--set", "data.test=20"];
    let user = User { token: None, ..User::new(&hub) };
    let (there, here) = (user.bits("hf:user/faces@v1.0", &few), user.bits(faces, &few));
    println!("hf:user/faces@v1.0 {there}, weights/faces-glow-small {here}");
    assert_eq!(there, here);
    // Other commands take the hub's weights, too.
    let dir = tempfile::tempdir().unwrap();
    user.ok(&["export", "hf:user/faces@v1.0", "--out", path(&dir.path().join("copy"))]);
    let picture = dir.path().join("warm.png");
    user.ok(&["temperature", "hf:user/faces@v1.0", "--out", path(&picture)]);
    assert!(picture.is_file());
}

#[test]
fn branches_tags_and_private_ones() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let first = user.json(&["push", path(RUN.path()), ID, "--tag", "v1.0"]);
    assert_eq!(hub.commit(ID, "v1.0").as_deref(), first["commit"].as_str());
    user.json(&["push", path(RUN.path()), ID, "--tag", "v1.0"]);

    // Other weights, on a branch with a slash in its name.
    let other = tempfile::tempdir().unwrap();
    let entries = std::fs::read_dir(RUN.path()).unwrap().map(|entry| entry.unwrap().path());
    for file in entries.filter(|path| path.is_file()) {
        std::fs::copy(&file, other.path().join(file.file_name().unwrap())).unwrap();
    }
    let recipe = other.path().join("recipe.toml");
    std::fs::write(&recipe, format!("# changed\n{}", std::fs::read_to_string(&recipe).unwrap())).unwrap();
    let push = ["push", path(other.path()), ID, "--revision", "try/two"];
    let second = user.json(&push);
    assert_eq!(second["uploaded"], 1, "only what the branch does not have is sent");
    assert_eq!(hub.commit(ID, "main").as_deref(), first["commit"].as_str());
    let clash = [&push[..], &["--tag", "v1.0"]].concat();
    user.fails("a tag that is elsewhere", &clash, &["v1.0 is at commit", "is published as commit"]);
    for (revision, commit) in
        [("v1.0", &first), ("try/two", &second), (second["commit"].as_str().unwrap(), &second)]
    {
        let reader = User { token: Some(READER), ..User::new(&hub) };
        let pulled = reader.json(&["pull", &format!("hf:{ID}@{revision}")]);
        assert_eq!(pulled["commit"], commit["commit"], "{revision}");
        let folder = Path::new(pulled["folder"].as_str().unwrap());
        let changed = std::fs::read_to_string(folder.join("recipe.toml")).unwrap().starts_with("# changed");
        assert_eq!(changed, commit == &second, "{revision}");
        let mut offline = reader.command(&["eval", &format!("hf:{ID}@{revision}")]);
        assert!(offline.env("HF_HUB_OFFLINE", "true").output().unwrap().status.success(), "{revision}");
    }

    user.json(&["push", path(RUN.path()), "user/mine", "--private"]);
    assert_eq!(hub.private("user/mine"), Some(true));
    user.json(&["push", path(RUN.path()), "user/mine"]);
    assert_eq!(hub.private("user/mine"), Some(true));
    user.ok(&["eval", "hf:user/mine"]);
    let anybody = User { token: None, ..User::new(&hub) };
    anybody.fails("401, no token", &["eval", "hf:user/mine"], &["does not exist or is private", "HF_TOKEN"]);
    let public = ["push", path(RUN.path()), ID, "--private"];
    user.fails(
        "a public one in place of a private one",
        &public,
        &["is there already, for everybody to see"],
    );
}

#[test]
fn a_home_folder_is_not_published() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let run = tempfile::tempdir().unwrap();
    for file in FILES {
        std::fs::copy(RUN.path().join(file), run.path().join(file)).unwrap();
    }
    let summary = std::fs::read_to_string(run.path().join("summary.json")).unwrap();
    // As an earlier version wrote it of a file of points.
    let old = summary.replace("moons generator", "/home/ann/f.npy, sha256 moons generator");
    assert_ne!(old, summary);
    std::fs::write(run.path().join("summary.json"), old).unwrap();
    let push = ["push", path(run.path()), ID, "--dry-run"];
    let output = user.command(&push).env("HOME", "/home/ann").output().unwrap();
    assert!(sentence(&push, &output).contains("summary.json holds the path of your home folder"));
    // What this version writes names no folder.
    assert!(!summary.contains(path(RUN.path())) && !summary.contains("/tmp"), "{summary}");
}

#[test]
fn a_dry_run_sends_nothing() {
    let hub = TestHub::start();
    let user = User { token: None, ..User::new(&hub) };
    let dry = ["push", path(RUN.path()), ID, "--dry-run"];
    let listed = user.json(&dry);
    let names: Vec<&str> =
        listed["files"].as_array().unwrap().iter().map(|f| f["file"].as_str().unwrap()).collect();
    assert_eq!(names, PUSHED);
    let people = user.ok(&dry);
    for file in listed["files"].as_array().unwrap() {
        let folder = match file["file"] == "flows_torch.py" {
            true => Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/python")),
            false => RUN.path(),
        };
        let meta = folder.join(file["file"].as_str().unwrap()).metadata().unwrap();
        assert_eq!(file["bytes"], meta.len());
        assert!(people.contains(file["sha256"].as_str().unwrap()));
    }
    assert!(people.contains("nothing was sent") && !people.contains("secret"), "{people}");
    assert!(hub.log().is_empty(), "{:?}", hub.log());
    let empty = tempfile::tempdir().unwrap();
    user.fails("a folder without a model", &["push", path(empty.path()), ID, "--dry-run"], &["config.json"]);
    assert_eq!(user.command(&["push", path(RUN.path()), "../x"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn what_is_not_there_is_named() {
    let hub = TestHub::start();
    let user = published(&hub);
    user.fails("404, repository", &["pull", "hf:user/mons"], &["has no repository user/mons"]);
    user.fails("404, revision", &["pull", "hf:user/moons@v9"], &["user/moons has no revision v9"]);
    hub.remove(ID, "model.safetensors");
    user.fails("404, file", &["pull", "hf:user/moons"], &["user/moons at main has no model.safetensors"]);
    User::new(&hub).push();
    user.same_bits();
    // Listed, and then not there.
    hub.fault("HEAD", "model.safetensors", 9, How::Status(404, ""));
    let other = User::new(&hub);
    other.fails("404, file of a listing", &["pull", "hf:user/moons"], &["has no file model.safetensors"]);
    hub.heal();
    other.same_bits();
    // Another library's model, whose weights are left where they are.
    hub.put(ID, "config.json", br#"{"architectures": ["Other"]}"#);
    let late = User::new(&hub);
    late.fails("another library's model", &["pull", "hf:user/moons"], &["is no model of this library"]);
    let repository = late.home.path().join("hub").join("models--user--moons/snapshots");
    let commit = hub.commit(ID, "main").unwrap();
    assert!(repository.join(&commit).join("config.json").exists());
    assert!(!repository.join(&commit).join("model.safetensors").exists());
}

#[test]
fn who_may_not_is_told_what_to_do() {
    let hub = TestHub::start();
    let user = published(&hub);
    let anybody = User { token: None, ..User::new(&hub) };
    let push = ["push", path(RUN.path()), ID];
    anybody.fails("no token", &push, &["to push takes a token", "HF_TOKEN"]);
    let wrong = User { token: Some("hf_wrong"), ..User::new(&hub) };
    for args in [&["pull", "hf:user/moons"][..], &push] {
        wrong.fails("401", args, &["refuses the token", "HF_TOKEN", "settings/tokens"]);
    }
    let reader = User { token: Some(READER), ..User::new(&hub) };
    reader.fails("403", &push, &["has no right", "HF_TOKEN"]);
    hub.fault(
        "GET",
        "/api/models/user/moons",
        9,
        How::Status(403, r#"{"error": "Access to model is restricted"}"#),
    );
    reader.fails("403, gated", &["pull", "hf:user/moons"], &["Access to model is restricted"]);
    hub.heal();
    user.same_bits();
    reader.same_bits();
}

#[test]
fn a_hub_that_is_not_well() {
    let hub = TestHub::start();
    let user = published(&hub);
    let pull = ["pull", "hf:user/moons"];
    hub.fault("GET", "/api/models", 99, How::Status(503, "<html>Service Unavailable</html>"));
    user.fails("503", &pull, &["out of order (503", "try again later"]);
    hub.heal();
    hub.fault("GET", "/api/models", 99, How::With(429, "retry-after", "77"));
    user.fails("429", &pull, &["takes no more requests for now", "in 77 seconds"]);
    hub.heal();
    hub.fault("GET", "/api/models", 1, How::Status(503, "once"));
    user.ok(&pull);
    hub.fault("GET", "/api/models", 99, How::Status(200, "<html>a hotel's wifi</html>"));
    user.fails("another's page", &pull, &["does not answer as a hub does", "HF_ENDPOINT"]);
    hub.heal();
    hub.fault("GET", "/api/models", 99, How::Silent);
    User::new(&hub).fails("silence", &pull, &["has been silent for 25 seconds"]);
    hub.heal();
    let mut command = user.command(&["pull", "hf:user/other"]);
    let refused = command.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    println!("refused | pull | {}", sentence(&pull, &refused));
    let mut command = user.command(&pull);
    let refused = sentence(&pull, &command.env("HF_ENDPOINT", "huggingface.co").output().unwrap());
    assert!(refused.contains("HF_ENDPOINT=huggingface.co is no http(s) address"), "{refused}");
    user.same_bits();
}

#[test]
fn nothing_wrong_is_ever_loaded() {
    let hub = TestHub::start();
    published(&hub);
    let pull = ["pull", "hf:user/moons"];
    let faults = [
        ("503 with a body", How::Status(503, "<html>Service Unavailable</html>")),
        ("404 with a body", How::Status(404, "Not Found")),
        ("a short body", How::Half),
        ("a broken connection", How::Broken),
        ("a flipped bit", How::Flipped),
    ];
    for (what, how) in faults {
        // Once: nobody notices but the log.
        let user = User::new(&hub);
        hub.fault("GET", "resolve", 1, how.clone());
        let output = user.command(&pull).output().unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        user.same_bits();
        hub.heal();
        // Always: an error, nothing wrong in the cache, and the next call does it.
        let user = User::new(&hub);
        hub.fault("GET", "resolve", 99, how);
        user.fails(what, &pull, &["did not arrive whole in 3 attempts", "try again later"]);
        assert!(
            user.blobs().iter().all(|b| b.extension().is_some_and(|e| e == "incomplete")),
            "{:?}",
            user.blobs()
        );
        hub.heal();
        user.same_bits();
    }
    // A cache that somebody else has poisoned, or that a disk has.
    let user = User::new(&hub);
    user.ok(&pull);
    for name in ["config.json", "model.safetensors", "recipe.toml"] {
        let blob = user.blob(name);
        let good = std::fs::read(&blob).unwrap();
        for bad in [&b"<html>503</html>"[..], &good[..good.len() / 2], b""] {
            std::fs::write(&blob, bad).unwrap();
            let mut offline = user.command(&["eval", "hf:user/moons"]);
            let refused = sentence(&["eval"], &offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
            assert!(refused.contains(&format!("{name} of user/moons in the cache is damaged")), "{refused}");
            println!("a poisoned cache, offline | eval | {refused}");
            user.same_bits();
            assert_eq!(std::fs::read(&blob).unwrap(), good);
        }
        std::fs::remove_file(&blob).unwrap();
        user.same_bits();
    }
    // An index of shards that leaves the folder.
    hub.put(ID, "model.safetensors.index.json", br#"{"weight_map": {"w": "../../../secret"}}"#);
    user.fails(
        "a path that leaves the folder",
        &pull,
        &["is no index of shards", "secret` is no shard's name"],
    );
    // Pushing the model takes it away, as it would be loaded in place of the one file.
    User::new(&hub).push();
    assert!(!hub.files(ID, "main").contains(&"model.safetensors.index.json".to_owned()));
    user.same_bits();
}

#[test]
fn dead_storage_is_given_up_within_a_minute() {
    let hub = TestHub::start();
    let pull = ["pull", "hf:user/moons"];
    let push = ["push", path(RUN.path()), ID];
    for (what, storage) in [("dead storage", Storage::Refusing), ("silent storage", Storage::Silent)] {
        hub.storage(storage);
        User::new(&hub).fails(what, &push, &["storage", "try again later"]);
        assert_eq!(hub.files(ID, "main"), [".gitattributes"], "nothing half-written is to be seen");
    }
    hub.heal();
    let user = published(&hub);
    for (what, storage) in [("dead storage", Storage::Refusing), ("silent storage", Storage::Silent)] {
        hub.storage(storage);
        user.fails(what, &pull, &["storage", "try again later"]);
    }
    hub.heal();
    user.same_bits();
}

#[test]
fn a_push_that_fails_leaves_nothing_behind() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let push = ["push", path(RUN.path()), ID];
    let cases: [(&str, How, &[&str]); 6] = [
        (
            "409",
            How::Status(409, r#"{"error": "another commit is under way"}"#),
            &["is being changed by someone else", "nothing was published"],
        ),
        (
            "412",
            How::Status(412, ""),
            &["has changed while this was prepared", "try again; nothing was published"],
        ),
        ("429", How::Status(429, ""), &["takes no more requests for now: try again later"]),
        ("503", How::Status(503, "<html>"), &["out of order (503", "nothing was published"]),
        ("418", How::Status(418, ""), &["refuses what was asked of user/moons (418"]),
        ("413", How::Status(413, ""), &["a file too large for a commit"]),
    ];
    for (what, how, says) in cases {
        hub.fault("POST", "/commit/", 99, how);
        user.fails(what, &push, says);
        assert_eq!(hub.files(ID, "main"), [".gitattributes"], "{what}");
        hub.heal();
    }
    hub.fault(
        "POST",
        "/api/repos/create",
        99,
        How::Status(403, r#"{"error": "no rights under this namespace"}"#),
    );
    user.fails("403, another's name", &push, &["no rights under this namespace"]);
    hub.heal();
    for (what, path) in
        [("503 before the upload", "/preupload/"), ("503 of the storage's token", "/objects/batch")]
    {
        hub.fault("POST", path, 99, How::Status(503, "x"));
        user.fails(what, &push, &["out of order (503"]);
        hub.heal();
    }
    assert_eq!(hub.commits(ID), 1);
    // Carried out, and the answer is lost: the client asks again, and the hub then says that the parent is another.
    hub.fault("POST", "/commit/", 1, How::Lost(503));
    user.push();
    assert_eq!(hub.commits(ID), 2, "once");
    User::new(&hub).same_bits();
    // Somebody else's commit, between the look and the push.
    let before = hub.log().len();
    hub.remove(ID, "recipe.toml");
    hub.fault("POST", "/commit/", 1, How::Slow(Duration::from_secs(2)));
    let late = user.spawn(&push);
    while !hub.log()[before..].iter().any(|line| line.contains("/commit/")) {
        std::thread::sleep(Duration::from_millis(20));
    }
    hub.put(ID, "notes.md", b"mine");
    let refused = sentence(&push, &late.wait_with_output().unwrap());
    assert!(refused.contains("has changed while this was prepared"), "{refused}");
    user.push();
    assert!(hub.files(ID, "main").contains(&"notes.md".to_owned()), "the other's file is kept");
    User::new(&hub).same_bits();
}

#[test]
fn pushes_at_once_are_one() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    // Each has seen the empty branch before any of them commits.
    hub.fault("POST", "/preupload/", 3, How::Slow(Duration::from_secs(1)));
    let children: Vec<Child> = (0..3).map(|_| user.spawn(&["push", path(RUN.path()), ID])).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(hub.commits(ID), 2, "one of them commits, the others find it done");
    assert!(hub.log().iter().any(|line| line.ends_with(" 412")), "{:#?}", hub.log());
    User::new(&hub).same_bits();
}

#[test]
fn a_killed_pull_or_push_is_made_good_by_the_next() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let kill = |mut child: Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    // While the storage takes the files, and while the commit is made.
    hub.slow_storage(Some(Duration::from_secs(5)));
    let child = user.spawn(&["push", path(RUN.path()), ID]);
    hub.wait_for("GET xet-write-token");
    std::thread::sleep(Duration::from_millis(500));
    kill(child);
    hub.heal();
    assert_eq!(hub.files(ID, "main"), [".gitattributes"]);
    hub.fault("POST", "/commit/", 1, How::Silent);
    let child = user.spawn(&["push", path(RUN.path()), ID]);
    hub.wait_for("POST /commit/");
    kill(child);
    assert_eq!(hub.files(ID, "main"), [".gitattributes"]);
    assert_eq!(user.push()["uploaded"], PUSHED.len());
    assert_eq!(hub.commits(ID), 2);

    // With half of a small file here, and while the storage sends a large one.
    hub.fault("GET", "resolve", 1, How::Stalled);
    let reader = User::new(&hub);
    let child = reader.spawn(&["pull", "hf:user/moons"]);
    let half = || reader.blobs().iter().any(|b| b.metadata().is_ok_and(|m| m.len() > 0));
    while !half() {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(child);
    hub.slow_storage(Some(Duration::from_secs(5)));
    let child = reader.spawn(&["pull", "hf:user/moons"]);
    hub.wait_for("GET xet-read-token");
    std::thread::sleep(Duration::from_millis(500));
    kill(child);
    hub.heal();
    let mut offline = reader.command(&["eval", "hf:user/moons"]);
    let nothing = sentence(&["eval"], &offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert!(nothing.contains("is not in the cache"), "half a pull is none: {nothing}");
    // What a program leaves that is killed while it writes.
    for blob in reader.blobs() {
        std::fs::write(blob.with_extension("incomplete"), vec![7; 1 << 20]).unwrap();
    }
    reader.same_bits();
}

#[test]
fn two_pulls_at_once_share_one_cache() {
    let hub = TestHub::start();
    let user = published(&hub);
    hub.slow_storage(Some(Duration::from_millis(500)));
    let children: Vec<Child> = (0..3).map(|_| user.spawn(&["pull", "hf:user/moons", "--json"])).collect();
    let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    hub.heal();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), text(&outputs[0].stdout));
    }
    assert!(
        outputs.iter().any(|o| text(&o.stderr).contains("waiting for it")),
        "{}",
        text(&outputs[0].stderr)
    );
    let fetched = hub.log().iter().filter(|line| line.contains("xet-read-token")).count();
    let large = FILES.iter().filter(|f| f.ends_with(".png") || f.ends_with(".safetensors")).count();
    assert_eq!(fetched, large, "each file came once");
    user.same_bits();
}

#[test]
fn shards_replace_one_file_and_one_file_replaces_shards() {
    let hub = TestHub::start();
    let user = published(&hub);
    let sharded = tempfile::tempdir().unwrap();
    let model = Model::load(RUN.path(), &Device::Cpu).unwrap();
    model.save(sharded.path(), &SaveOptions { max_shard_size: 100, ..SaveOptions::default() }).unwrap();
    std::fs::copy(RUN.path().join("recipe.toml"), sharded.path().join("recipe.toml")).unwrap();
    user.ok(&["push", path(sharded.path()), ID]);
    let files = hub.files(ID, "main");
    assert!(files.contains(&"model.safetensors.index.json".to_owned()), "{files:?}");
    assert!(files.iter().any(|f| f.starts_with("model-00002-of-")), "{files:?}");
    assert!(!files.contains(&"model.safetensors".to_owned()), "{files:?}");
    User::new(&hub).same_bits();
    user.push();
    assert_eq!(hub.files(ID, "main"), [&[".gitattributes"], &PUSHED[..]].concat());
    User::new(&hub).same_bits();
}

#[test]
fn variables_are_those_of_the_python_library() {
    let hub = TestHub::start();
    let user = User { token: None, ..User::new(&hub) };
    let push = ["push", path(RUN.path()), ID, "--private"];
    let with = |args: &[&str], name: &str, value: &str| user.command(args).env(name, value).output().unwrap();
    // A token from the file that a login writes, with the line's end that editors leave.
    std::fs::write(user.home.path().join("token"), format!("{WRITER}\n")).unwrap();
    user.ok(&push);
    let hidden = with(&["pull", ID], "HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
    assert!(sentence(&push, &hidden).contains("does not exist or is private"));
    let odd = sentence(&push, &with(&["pull", ID], "HF_TOKEN", "hf\u{e9}"));
    assert!(odd.contains("has a character that no token has"), "{odd}");
    let other = user.home.path().join("elsewhere");
    let pulled = text(&with(&["pull", ID], "HF_HUB_CACHE", path(&other)).stdout);
    assert!(Path::new(pulled.trim()).starts_with(&other), "{pulled}");
    assert!(!user.home.path().join("hub").exists());
    // Empty ones say nothing.
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
        assert!(with(&["pull", ID], name, "").status.success(), "{name}");
    }
    let file = user.home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = sentence(&push, &with(&["pull", ID], "HF_HUB_CACHE", path(&file.join("cache"))));
    assert!(refused.contains("cannot be used") && refused.contains("HF_HUB_CACHE"), "{refused}");
    println!("a cache that cannot be written | pull | {refused}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_transfer() {
    let hub = TestHub::start();
    let user = published(&hub);
    hub.fault("GET", "/api/models", 1, How::Silent);
    let child = user.spawn(&["pull", ID]);
    hub.wait_for("GET /api/models");
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(begin.elapsed() < Duration::from_secs(5));
    user.same_bits();
}

#[test]
fn the_library_reads_models_and_data_sets() {
    let hub = TestHub::start();
    let user = published(&hub);
    let ours = |offline| {
        Hub::new(Settings {
            endpoint: hub.endpoint().to_owned(),
            cache: user.home.path().join("hub"),
            token: None,
            offline,
            patience: Duration::from_secs(5),
        })
        .unwrap()
    };
    let x = Tensor::new(&[[0.5f32, -0.25]], &Device::Cpu).unwrap();
    let log_prob = |model: &Model| model.log_prob(&x, None).unwrap().to_vec1::<f32>().unwrap();
    let local = flows::hub::from_pretrained(path(RUN.path()), Revision::default(), &Device::Cpu).unwrap();
    let model = Repository::model(ID).unwrap();
    let snapshot = ours(false).pull(&model, &Revision::default(), &[]).unwrap();
    assert_eq!(log_prob(&Model::load(&snapshot.folder, &Device::Cpu).unwrap()), log_prob(&local));
    assert!(!snapshot.folder.join("summary.json").exists(), "what nobody asked for stays away");
    let error = |source: &str, revision: &str| {
        let revision = Revision::new(revision).unwrap();
        flows::hub::from_pretrained(source, revision, &Device::Cpu).err().unwrap().to_string()
    };
    assert!(error(path(RUN.path()), "v1").contains("has no revision v1"));
    assert!(error("no folder", "main").contains("neither a folder nor a repository"));

    // A branch with slashes, files in folders, none of them listed; twice at one commit, and once more by force.
    let (id, branch) = ("datasets/user/set", "refs/convert/parquet");
    hub.data_set(id, branch, &[("a/0000.parquet", b"train"), ("b/0000.parquet", b"test")]);
    let (set, revision) = (Repository::dataset("user/set").unwrap(), Revision::new(branch).unwrap());
    let names = ["a/0000.parquet", "b/0000.parquet"];
    assert!(ours(true).files(&set, &revision, &names).unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
    assert_eq!(ours(false).cached(&set, &revision, &names).unwrap(), None);
    let snapshot = ours(false).files(&set, &revision, &names).unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join(names[1])).unwrap(), b"test");
    assert_eq!(ours(true).cached(&set, &revision, &names).unwrap(), Some(snapshot.clone()));
    std::fs::write(snapshot.folder.join(names[0]).canonicalize().unwrap(), "wrong").unwrap();
    let damaged = ours(true).cached(&set, &revision, &names).unwrap_err().to_string();
    assert!(damaged.contains("a/0000.parquet of user/set in the cache is damaged"), "{damaged}");
    assert_eq!(ours(false).files(&set, &revision, &names).unwrap(), snapshot);
    assert_eq!(std::fs::read(snapshot.folder.join(names[0])).unwrap(), b"train");
    let missing = ours(false).files(&set, &revision, &["c"]).unwrap_err().to_string();
    assert!(missing.contains("user/set at refs/convert/parquet has no file c"), "{missing}");
}
