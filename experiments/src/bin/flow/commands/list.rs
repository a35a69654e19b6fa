//! `flow list`: the built-in recipes.

use super::print;
use anyhow::{Context, Result};
use clap::Args;
use experiments::recipe::{BUILTIN, Recipe, Resolved};
use serde_json::json;

/// `list`.
#[derive(Args)]
pub struct ListArgs {
    /// Print the recipes as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Prints the recipes.
///
/// # Errors
/// When one of them is damaged.
pub fn run(args: &ListArgs) -> Result<()> {
    let width = BUILTIN.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let (mut objects, mut lines) = (vec![], vec![]);
    for (name, text) in BUILTIN {
        let Recipe { name, about, data, paper, .. } =
            Resolved::parse(name, text, &[]).with_context(|| format!("recipe {name}"))?.recipe;
        let paper = paper.map(|p| p.bits_per_dim);
        objects.push(json!({ "recipe": name, "about": about, "data": data.set, "paper": paper }));
        let paper = paper.map_or_else(String::new, |paper| format!(" [paper: {paper} bits/dim]"));
        lines.push(format!("{name:width$}  {about}{paper}"));
    }
    print(args.json, json!({ "recipes": objects }), lines.join("\n"))
}
