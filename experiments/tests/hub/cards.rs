//! Which model card a push sends: one made anew with the repository's address, unless the folder's was written by hand.

use super::{FILES, ID, RUN, User, path, text};
use crate::server::TestHub;
use std::path::Path;

/// How the last line of a card of ours begins.
const MARK: &str = "<!-- Made by flow";

#[test]
fn a_push_refreshes_a_card_of_ours_and_sends_a_persons_as_it_is() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let run = tempfile::tempdir().unwrap();
    for file in FILES.into_iter().filter(|file| *file != "README.md") {
        std::fs::copy(RUN.path().join(file), run.path().join(file)).unwrap();
    }
    let card = run.path().join("README.md");
    user.ok(&["card", path(run.path())]);
    let made = std::fs::read_to_string(&card).unwrap();
    let without_mark = made[..made.find(MARK).unwrap()].to_owned();
    // As it was before a licence was given: the card is older than what the folder says.
    std::fs::write(run.path().join("license.txt"), "apache-2.0\n").unwrap();
    let by_hand = std::fs::read_to_string(RUN.path().join("README.md")).unwrap();
    for (what, text, refreshed) in [
        ("ours", made.clone(), true),
        ("ours, changed", made.replacen("## Use", "## How to use it", 1), false),
        ("ours, with a line at its end", format!("{made}\nMine.\n"), false),
        ("ours without its mark, from before the licence", without_mark.clone(), true),
        ("a person's", by_hand, false),
        ("empty", String::new(), false),
    ] {
        std::fs::write(&card, &text).unwrap();
        let sent = sent(&user, run.path());
        let fresh = sent.contains("license: \"apache-2.0\"") && sent.contains(&format!("hf:{ID}"));
        assert_eq!((fresh, sent == text), (refreshed, !refreshed), "{what}: {sent}");
        assert_eq!(std::fs::read_to_string(&card).unwrap(), text, "{what}: the folder's card is changed");
    }
    // An earlier version's, which left no mark, of the same folder.
    std::fs::remove_file(run.path().join("license.txt")).unwrap();
    let earlier = without_mark
        .replace("\nlibrary_name", "\nlicense: \"mit\"\nlibrary_name")
        .replace("Licence: not given.", "Licence: MIT OR Apache-2.0.");
    assert!(earlier.contains("mit") && earlier.contains("MIT OR"), "{earlier}");
    std::fs::write(&card, &earlier).unwrap();
    assert!(!sent(&user, run.path()).contains("\"mit\""));

    // What was written by hand stays here, too, and is said to.
    for (args, code) in [(vec!["card"], Some(1)), (vec!["card", "--license", "mit"], Some(1))] {
        std::fs::write(&card, "# Mine\n").unwrap();
        let output = user.command(&[&args[..], &[path(run.path())]].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), code, "{args:?}: {said}");
        assert!(
            said.contains("README.md was written or changed by hand") && said.contains("move it away"),
            "{said}"
        );
        assert_eq!(std::fs::read_to_string(&card).unwrap(), "# Mine\n", "{args:?}");
        assert!(!run.path().join("license.txt").exists(), "nothing is half done");
    }
}

/// An imported checkpoint is another's work: its card gives no licence, and neither does what is pushed.
#[test]
fn no_licence_is_claimed_for_an_imported_checkpoint() {
    let hub = TestHub::start();
    let user = User::new(&hub);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("glow");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/glow_pytorch.pth");
    user.ok(&["import", file, "--from", "glow-pytorch", "--out", path(&out)]);
    for card in [std::fs::read_to_string(out.join("README.md")).unwrap(), sent(&user, &out)] {
        assert!(!card.contains("license") && card.contains("Licence: not given."), "{card}");
    }
    let output = user.command(&["push", path(&out), ID, "--dry-run"]).output().unwrap();
    assert!(text(&output.stderr).contains("flow card --license ID"), "{}", text(&output.stderr));
}

/// The card that a push of the folder brings to the hub.
fn sent(user: &User, run: &Path) -> String {
    user.ok(&["push", path(run), ID]);
    let pulled = user.json(&["pull", ID]);
    std::fs::read_to_string(Path::new(pulled["folder"].as_str().unwrap()).join("README.md")).unwrap()
}
