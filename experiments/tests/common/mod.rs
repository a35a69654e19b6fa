//! The binary `flow` from outside, for tests of several files.

use serde_json::Value;
use std::process::{Command, Output};

/// What a command does. Two settings of whoever runs the tests are kept from it.
pub fn flow(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(args).env_remove("FLOW_DATA").env_remove("RUST_LOG").output().expect("the binary runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that succeeds.
pub fn ok(args: &[&str]) -> String {
    let output = flow(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The object on the last line of standard output.
pub fn json(args: &[&str]) -> Value {
    let stdout = ok(args);
    serde_json::from_str(stdout.lines().last().expect("a line")).unwrap_or_else(|e| panic!("{e} in {stdout}"))
}

/// The one sentence of a command that fails with exit code 1, the last thing that it says.
pub fn error(args: &[&str]) -> String {
    let output = flow(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
    let stderr = text(&output.stderr);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "nothing comes after the error: {stderr}");
    errors[0].to_owned()
}
