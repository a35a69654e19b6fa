//! `flow list`: the built-in recipes.

use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use experiments::recipe::{BUILTIN, Resolved};
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
    let recipes = BUILTIN
        .iter()
        .map(|(name, text)| {
            Ok(Resolved::parse(name, text, &[]).with_context(|| format!("recipe {name}"))?.recipe)
        })
        .collect::<Result<Vec<_>>>()?;
    if args.json {
        let all: Vec<_> = recipes
            .iter()
            .map(|r| {
                json!({
                    "recipe": r.name,
                    "about": r.about,
                    "data": r.data.set,
                    "paper": r.paper.as_ref().map(|p| p.bits_per_dim),
                })
            })
            .collect();
        output::line(json!({ "recipes": all }))?;
        return Ok(());
    }
    let width = recipes.iter().map(|r| r.name.len()).max().unwrap_or(0);
    for r in recipes {
        let paper = r.paper.map_or_else(String::new, |p| format!(" [paper: {} bits/dim]", p.bits_per_dim));
        output::line(format_args!("{:width$}  {}{paper}", r.name, r.about))?;
    }
    Ok(())
}
