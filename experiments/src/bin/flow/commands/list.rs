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
        let Recipe { name, about, data, model, paper, .. } =
            Resolved::parse(name, text, &[]).with_context(|| format!("recipe {name}"))?.recipe;
        let (bits, nats) = paper.map_or((None, None), |p| (Some(p.bits_per_dim), p.log_likelihood));
        objects.push(json!({
            "recipe": name, "about": about, "data": data.set, "paper": bits, "paper_log_likelihood": nats,
        }));
        // As the papers print it: of vectors the log-likelihood, whose bits have no meaning by themselves.
        let paper = match (bits, nats) {
            (_, Some(nats)) if model.preprocess().is_for_vectors() => {
                format!(" [paper: log-likelihood {nats} nats]")
            }
            (Some(bits), _) => format!(" [paper: {bits} bits/dim]"),
            (None, _) => String::new(),
        };
        lines.push(format!("{name:width$}  {about}{paper}"));
    }
    print(args.json, json!({ "recipes": objects }), lines.join("\n"))
}
