//! Settings by dotted keys: `train.lr`, `model.levels.0.layers.1.repeat`.

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

/// `key=value` with a value in TOML; a bare word is a string, because a shell removes quotes.
pub(super) fn parse_set(text: &str) -> Result<(String, Value)> {
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("--set {text}: write key=value, as in --set train.lr=5e-4"))?;
    let (key, value) = (key.trim(), value.trim());
    let start = |text: &str| text.chars().take(60).collect::<String>();
    ensure!(
        !key.is_empty() && key.split('.').all(|part| !part.is_empty()) && key.split('.').count() <= 16,
        "--set {}: `{}` is no key, write for example train.lr",
        start(text),
        start(key)
    );
    let parsed = match toml::from_str::<Table>(&format!("value = {value}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value").expect("it is the one key"),
        _ if !value.is_empty() && value.chars().all(|c| c.is_alphanumeric() || "_-./@".contains(c)) => {
            Value::String(value.into())
        }
        _ => {
            bail!("--set {text}: `{value}` is no TOML value (a number, true, \"text\", [1, 2], {{ a = 1 }})")
        }
    };
    Ok((key.into(), parsed))
}

/// Inserts a value at a dotted key, with the tables that contain it; `listed` says that the table is within an item of a list.
pub(super) fn put(table: &mut Table, key: &str, value: Value, listed: bool) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.into(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inside = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            put_within(inside, first, rest, value, listed)
        }
    }
}

/// Inserts a value at a dotted key of what the key `of` holds: a table, or a list of tables, whose items are counted from 0.
fn put_within(inside: &mut Value, of: &str, key: &str, value: Value, listed: bool) -> Result<()> {
    match inside {
        Value::Table(inner) => put(inner, key, value, listed),
        // The items of lists are layers, where a name stands for a table: `actnorm` for { kind = "actnorm" }.
        Value::String(kind) if listed => {
            let mut named = Table::from_iter([("kind".to_owned(), Value::String(std::mem::take(kind)))]);
            put(&mut named, key, value, listed)?;
            *inside = Value::Table(named);
            Ok(())
        }
        Value::Array(items) if has_tables(items) => {
            let (number, rest) = key.split_once('.').map_or((key, None), |(n, rest)| (n, Some(rest)));
            let n = items.len();
            let item = number.parse::<usize>().ok().and_then(|i| items.get_mut(i));
            let item =
                item.with_context(|| format!("`{of}` has the items 0 to {}, not `{number}`", n - 1))?;
            match rest {
                Some(rest) => put_within(item, number, rest, value, true),
                None => {
                    *item = value;
                    Ok(())
                }
            }
        }
        _ => bail!("there is no `{key}` in `{of}`, which is {inside}"),
    }
}

/// Whether a list is one of tables, whose items have keys of their own.
fn has_tables(items: &[Value]) -> bool {
    items.iter().any(Value::is_table)
}

/// The values of a table and of the tables and lists of tables in it, each with its dotted key.
pub(super) fn leaves(table: &Table) -> impl Iterator<Item = (String, Value)> {
    table.iter().flat_map(|(key, value)| leaves_of(key.clone(), value))
}

fn leaves_of(key: String, value: &Value) -> Vec<(String, Value)> {
    let within = |name: &dyn std::fmt::Display, value| leaves_of(format!("{key}.{name}"), value);
    match value {
        Value::Table(inner) => inner.iter().flat_map(|(name, value)| within(name, value)).collect(),
        Value::Array(items) if has_tables(items) => {
            items.iter().enumerate().flat_map(|(i, value)| within(&i, value)).collect()
        }
        _ => vec![(key, value.clone())],
    }
}
