//! From the text of a recipe to its settings, each with its origin.
//!
//! A file is resolved in this order, later ones winning: the keys of the built-in recipe that it is `like`; the fields of
//! `model.preset`, for which `model = "name"` stands, too; the file's own keys, each of which replaces a whole field of the preset
//! (`preprocess = { .. }` has no remains of the preset's); `--set` on single keys. A model of vectors has the shape of the data.

use super::errors::{name_key, no_toml};
use super::keys::{leaves, parse_set, put};
use super::types::Recipe;
use crate::data::{Origin, known};
use crate::suggest::did_you_mean;
use crate::untrusted::{TEXT, read_regular};
use anyhow::{Context, Result, bail, ensure};
use flows::ModelConfig;
use flows::models::{
    ContextConfig, CouplingTransform, Dequantize, GlowConfig, MafConfig, NiceConfig, Preprocess, PriorConfig,
    RealNvpConfig, maf,
};
use flows::transforms::RationalQuadraticSpline;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

/// The recipes built into the binary: name and text.
pub const BUILTIN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// The text of the built-in recipe of this name, if there is one.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The models that `model.preset` names.
type Preset = (&'static str, fn() -> ModelConfig);
const PRESETS: &[Preset] = &[
    ("nice-mnist-paper", || ModelConfig::Nice(NiceConfig::mnist_paper())),
    ("nice-mnist-code", || ModelConfig::Nice(NiceConfig::mnist_code())),
    ("nice-cifar-paper", || ModelConfig::Nice(NiceConfig::cifar_paper())),
    ("nice-cifar-code", || ModelConfig::Nice(NiceConfig::cifar_code())),
    ("realnvp-cifar-paper", || ModelConfig::RealNvp(RealNvpConfig::cifar_paper())),
    ("realnvp-cifar-code", || ModelConfig::RealNvp(RealNvpConfig::cifar_code())),
    ("realnvp-mnist", || ModelConfig::RealNvp(RealNvpConfig::mnist())),
    ("glow-cifar-paper", || ModelConfig::Glow(GlowConfig::cifar_paper())),
    ("glow-cifar-code", || ModelConfig::Glow(GlowConfig::cifar_code())),
    ("glow-mnist", || ModelConfig::Glow(GlowConfig::mnist())),
    ("realnvp", || ModelConfig::Nice(vectors(CouplingTransform::Affine, 8))),
    ("nsf", || {
        let spline = RationalQuadraticSpline { bins: 8, bound: 5., ..Default::default() };
        ModelConfig::Nice(vectors(CouplingTransform::RationalQuadraticSpline(spline), 4))
    }),
    ("maf", || {
        ModelConfig::Maf(MafConfig {
            shape: vec![2],
            bits: 8,
            preprocess: Preprocess::None {},
            order: maf::Order::Reverse,
            layers: 8,
            hidden: vec![64, 64],
            transform: CouplingTransform::Affine,
            prior: PriorConfig::Gaussian {},
            dequantize: Dequantize::Uniform {},
            context: ContextConfig::None {},
        })
    }),
];

/// `n` couplings of vectors.
fn vectors(law: CouplingTransform, n: usize) -> NiceConfig {
    NiceConfig {
        shape: vec![2],
        preprocess: Preprocess::None {},
        hidden: vec![vec![64, 64]; n],
        law,
        init: 0.,
        prior: PriorConfig::Gaussian {},
        ..NiceConfig::mnist_paper()
    }
}

/// A recipe with the origin of each of its settings.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The recipe.
    pub recipe: Recipe,
    preset: Option<String>,
    /// The dotted keys that the file itself holds.
    own: BTreeSet<String>,
    /// The dotted keys of `--set` (and of the options that stand for one).
    set: BTreeSet<String>,
}

impl Resolved {
    /// Resolves the built-in recipe of this name, or the file where the argument ends in `.toml`.
    ///
    /// # Errors
    /// When there is no such recipe, the file is no TOML, a key is unknown or a value impossible: the message names it.
    pub fn load(name: &str, sets: &[String]) -> Result<Self> {
        if name.ends_with(".toml") {
            let read = read_regular(Path::new(name), TEXT).and_then(|bytes| Ok(String::from_utf8(bytes)?));
            let text = read
                .with_context(|| format!("cannot read the recipe {name}: give the path of a .toml file"))?;
            let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return Self::parse(&stem, &text, sets).with_context(|| format!("recipe {name}"));
        }
        let text = builtin(name).with_context(|| {
            format!(
                "there is no recipe `{name}`: `flow list` names them all, a path to one of your own ends in .toml{}",
                did_you_mean(name, BUILTIN.iter().map(|(known, _)| known))
            )
        })?;
        Self::parse(name, text, sets).with_context(|| format!("recipe {name}"))
    }

    /// Resolves the text of a recipe; `stem` is its name if it does not give one.
    ///
    /// # Errors
    /// As [`Resolved::load`].
    pub fn parse(stem: &str, text: &str, sets: &[String]) -> Result<Self> {
        Self::parse_all(stem, text, sets).map_err(|error| {
            // The message names a table where a value in it does not fit; the one setting without which all is well says more.
            let without = |i: &usize| {
                let others = sets.iter().enumerate().filter(|(j, _)| j != i).map(|(_, set)| set.clone());
                Self::parse_all(stem, text, &others.collect::<Vec<_>>()).is_ok()
            };
            let said = format!("{error:#}").contains("--set ");
            match (0..sets.len()).find(|i| !said && without(i)) {
                Some(i) => error.context(format!("--set {}", sets[i])),
                None => error,
            }
        })
    }

    fn parse_all(stem: &str, text: &str, sets: &[String]) -> Result<Self> {
        let mut table: Table = toml::from_str(text).map_err(|e| no_toml(text, &e))?;
        inherit(&mut table)?;
        let mut sets = sets.iter().map(|s| parse_set(s)).collect::<Result<Vec<_>>>()?;
        let named = |(key, value): &&mut (String, Value)| key == "model" && value.is_str();
        sets.iter_mut().filter(named).for_each(|(key, _)| *key = "model.preset".into());
        let (presets, sets): (Vec<_>, Vec<_>) = sets.into_iter().partition(|(k, _)| k == "model.preset");
        for (key, value) in presets {
            put(&mut table, &key, value, false)?;
        }
        let own = leaves(&table).map(|(key, _)| key).collect();
        let source = match table.remove("source") {
            Some(Value::Table(nested)) => nested,
            Some(_) => bail!("`source` is a table of keys and where their values come from"),
            None => Table::new(),
        };
        let preset = expand_preset(&mut table)?;
        let trains_on = set_name(&table);
        for (key, value) in &sets {
            ensure!(
                !key.starts_with("source."),
                "`source` says where the file's values come from: it cannot be set"
            );
            if OPTIONAL.contains(&key.as_str()) && value.as_str() == Some("none") {
                let (of, name) = key.split_once('.').expect("each has a table");
                table.get_mut(of).and_then(Value::as_table_mut).and_then(|inner| inner.remove(name));
                continue;
            }
            put(&mut table, key, value.clone(), false).with_context(|| format!("--set {key}"))?;
        }
        if set_name(&table) != trains_on {
            standardize_own(&mut table, &sets);
            // The paper's number is about other images now, and so are the recipe's numbers of examples: all are taken.
            table.remove("paper");
            for count in
                ["train", "test"].iter().filter(|c| !sets.iter().any(|(k, _)| *k == format!("data.{c}")))
            {
                table.get_mut("data").and_then(Value::as_table_mut).and_then(|data| data.remove(*count));
            }
        }
        table.entry("name").or_insert_with(|| Value::String(stem.into()));
        let keys: Vec<String> = leaves(&table).map(|(key, _)| key).collect();
        let read = serde_path_to_error::deserialize(Value::Table(table));
        let mut recipe: Recipe = read.map_err(|error| name_key(error, &keys))?;
        recipe.source.extend(leaves(&source).map(|(key, value)| match value {
            Value::String(text) => (key, text),
            value => (key, value.to_string()),
        }));
        recipe.validate()?;
        let resolved = Self { recipe, preset, own, set: sets.into_iter().map(|(k, _)| k).collect() };
        let known = resolved.settings()?;
        for key in resolved.recipe.source.keys() {
            let names = |k: &String| k == key || k.starts_with(&format!("{key}."));
            ensure!(
                known.iter().any(|(k, _, _)| names(k)) || OPTIONAL.contains(&key.as_str()),
                "`source` explains `{key}`, which is no setting of this recipe"
            );
        }
        Ok(resolved)
    }

    /// Each setting with its value and where that comes from.
    ///
    /// # Errors
    /// When the recipe cannot be written as TOML (a seed above 2^63).
    pub fn settings(&self) -> Result<Vec<(String, String, String)>> {
        let table = Table::try_from(&self.recipe).context("this recipe cannot be written as TOML")?;
        let settings = leaves(&table).filter(|(key, _)| key != "source" && !key.starts_with("source."));
        Ok(settings.map(|(key, value)| (key.clone(), value.to_string(), self.origin(&key))).collect())
    }

    fn origin(&self, key: &str) -> String {
        let within = |k: &str| key == k || key.starts_with(&format!("{k}."));
        if self.set.iter().any(|k| within(k)) {
            return "--set".into();
        }
        // A source given for a whole table (`"train" = ..`) covers the keys that the file sets in it, not its defaults.
        let about = |k: &str| within(k) && (k.contains('.') || self.own.contains(key));
        let longest = self.recipe.source.iter().filter(|(k, _)| about(k)).max_by_key(|(k, _)| k.len());
        let convention = CONVENTIONS.contains(&key);
        if let Some((k, source)) = longest
            && (k.contains('.') || !convention)
        {
            return source.clone();
        }
        match &self.preset {
            _ if convention => "ours: a convention".into(),
            _ if self.own.contains(key) => "this recipe".into(),
            Some(preset) if key.starts_with("model.") => format!("preset {preset}"),
            _ => "default".into(),
        }
    }
}

/// Settings that are not tuned, because they affect the cost of a run or how often it reports, but not its expected result.
const CONVENTIONS: &[&str] = &[
    "data.seed",
    "train.seed",
    "train.memory",
    "train.probe_every",
    "train.validate_every",
    "train.validate_images",
    "train.checkpoint_every",
    "train.log_every",
    "eval.batch",
    "eval.samples",
    "eval.temperature",
    "eval.codec_images",
];

/// Settings that may be absent: `--set KEY=none` removes one, and a source can say why it is.
const OPTIONAL: &[&str] = &[
    "data.train",
    "data.test",
    "data.size",
    "train.clip_norm",
    "train.ema",
    "train.lower",
    "train.patience",
    "train.epochs",
    "train.updates",
    "train.minutes",
    "train.validate_images",
    "train.init_from",
];

fn set_name(table: &Table) -> Option<Value> {
    table.get("data")?.get("set").cloned()
}

/// Changes the preprocessing `none` to `standardize` where the data are the user's own vectors, whose units are unknown, and
/// `--set` does not choose one.
fn standardize_own(table: &mut Table, sets: &[(String, Value)]) {
    let set = set_name(table);
    let own = set.as_ref().and_then(Value::as_str).and_then(known);
    let own = own.is_some_and(|set| matches!(set.origin, Origin::Own(..)));
    let said = sets.iter().any(|(key, _)| key.starts_with("model.preprocess"));
    let Some(Value::Table(preprocess)) = table.get_mut("model").and_then(|model| model.get_mut("preprocess"))
    else {
        return;
    };
    if own && !said && preprocess.get("kind").and_then(Value::as_str) == Some("none") {
        preprocess.insert("kind".into(), "standardize".into());
    }
}

/// Puts the keys of the built-in recipe that a file is `like` where it has none of its own, and a preset's name where a model is.
fn inherit(table: &mut Table) -> Result<()> {
    fn below(table: &mut Table, other: Table) {
        for (key, value) in other {
            match (table.get_mut(&key), value) {
                (Some(Value::Table(own)), Value::Table(value)) => below(own, value),
                (Some(_), _) => {}
                (None, value) => _ = table.insert(key, value),
            }
        }
    }
    if let Some(Value::String(name)) = table.get("model") {
        let preset = Table::from_iter([("preset".to_owned(), Value::String(name.clone()))]);
        table.insert("model".into(), Value::Table(preset));
    }
    let Some(like) = table.remove("like") else { return Ok(()) };
    let text = like.as_str().and_then(builtin);
    let text = text.with_context(|| format!("`like` = {like}: it is the name of a built-in recipe"))?;
    let mut other: Table = toml::from_str(text).map_err(|e| no_toml(text, &e))?;
    inherit(&mut other)?;
    below(table, other);
    Ok(())
}

/// Puts the preset's fields where the file has none of its own, and the data's shape where it is known.
fn expand_preset(table: &mut Table) -> Result<Option<String>> {
    let shape = set_name(table).and_then(|set| known(set.as_str()?)?.shape);
    let Some(Value::Table(model)) = table.get_mut("model") else { return Ok(None) };
    let Some(name) = model.remove("preset") else { return Ok(None) };
    let Some((name, config)) = PRESETS.iter().find(|(n, _)| name.as_str() == Some(n)) else {
        let all: Vec<_> = PRESETS.iter().map(|(n, _)| *n).collect();
        let close = did_you_mean(name.as_str().unwrap_or_default(), &all);
        bail!("`model.preset` = {name} is none of {}{close}", all.join(", "));
    };
    let mut config = config();
    if let (Some(shape), [_]) = (shape, config.shape()) {
        config.set_shape(shape)?;
    }
    for (key, value) in Table::try_from(config).context("a preset is written as TOML")? {
        model.entry(key).or_insert(value);
    }
    Ok(Some((*name).to_owned()))
}

impl Recipe {
    /// The settings, as `key=value`, in which this recipe differs from the built-in one of its name: empty where there is
    /// none of that name. All that changes a number counts, how long it trains and with which seed among it; how often a run
    /// writes does not, and neither does what is written for people.
    ///
    /// # Errors
    /// When a recipe cannot be written as TOML.
    pub fn changed(&self) -> Result<Vec<String>> {
        const APART: [&str; 5] = ["about", "name", "source", "train.log_every", "train.checkpoint_every"];
        let Some(text) = builtin(&self.name) else { return Ok(Vec::new()) };
        let counts =
            |key: &str| !APART.contains(&key) && !key.starts_with("source.") && !key.starts_with("paper.");
        let settings = |recipe: &Self| -> Result<BTreeMap<String, String>> {
            let table = Table::try_from(recipe).context("this recipe cannot be written as TOML")?;
            let counted = leaves(&table).filter(|(key, _)| counts(key));
            Ok(counted.map(|(key, value)| (key, value.to_string())).collect())
        };
        let own = settings(self)?;
        let differ = |sets: &[String]| -> Result<Vec<String>> {
            let other = settings(&Resolved::parse(&self.name, text, sets)?.recipe)?;
            let keys: BTreeSet<_> = own.keys().chain(other.keys()).collect();
            // Where a kind was changed (of the prior, of the schedule), that the settings of the former kind are gone says nothing more.
            let gone = |key: &str| {
                let kind = |of: &str| format!("{of}.kind");
                let changed =
                    |of: &str| own.contains_key(&kind(of)) && own.get(&kind(of)) != other.get(&kind(of));
                !own.contains_key(key)
                    && (changed(key) || key.rsplit_once('.').is_some_and(|(of, _)| changed(of)))
            };
            let differ =
                keys.into_iter().filter(|key| own.get(*key) != other.get(*key)).filter(|key| !gone(key));
            let as_set = |key: &String| {
                let none = if key.starts_with("train.lower.") { "train.lower" } else { key };
                own.get(key).map_or(format!("{none}=none"), |v| format!("{key}={v}"))
            };
            let mut all: Vec<String> = sets.iter().cloned().chain(differ.map(as_set)).collect();
            all.dedup();
            Ok(all)
        };
        // Another model is one change where a preset names it.
        let named = PRESETS.iter().map(|(name, _)| differ(&[format!("model={name}")])).filter_map(Result::ok);
        let plain = differ(&[])?;
        Ok(if plain.iter().filter(|key| key.contains("model.")).count() > 1 {
            named.fold(plain, |least, other| if other.len() < least.len() { other } else { least })
        } else {
            plain
        })
    }

    /// All that a result depends on, as text: what is written for people (`about`, `source`) left out.
    ///
    /// # Errors
    /// When the recipe cannot be written as TOML.
    pub fn fingerprint(&self) -> Result<String> {
        let bare = Self { about: String::new(), source: BTreeMap::new(), ..self.clone() };
        toml::to_string(&bare).context("this recipe cannot be written as TOML")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use flows::Model;
    use flows::models::Preprocess;

    fn with(name: &str, sets: &[&str]) -> Result<Resolved> {
        Resolved::load(name, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_recipe_resolves_and_the_small_ones_build() {
        for (name, text) in BUILTIN {
            let resolved = Resolved::parse(name, text, &[]).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert_eq!(resolved.recipe.name, *name);
            let small =
                name.ends_with("-small") || resolved.recipe.model.shape().len() == 1 || *name == "quickstart";
            if small {
                let model = Model::new(resolved.recipe.model.clone(), 0, DType::F32, &Device::Cpu).unwrap();
                assert!(model.params().count() < 20_000_000, "{name} is not small");
            }
        }
    }

    /// A recipe's numbers of examples are of its own data: of others all are taken, unless `--set` says how many.
    #[test]
    fn other_data_are_taken_whole() {
        let own = with("quickstart", &[]).unwrap().recipe.data;
        assert!(own.train.is_some() && own.test.is_some());
        let other = with("quickstart", &["data.set=folder"]).unwrap().recipe.data;
        assert_eq!((other.train, other.test), (None, None));
        // Vectors whose units are unknown are standardized, unless another preprocessing is asked for.
        for (sets, kind) in [
            (&["data.set=npy"][..], Preprocess::Standardize {}),
            (&["data.set=npy", "model.preprocess.kind=none"], Preprocess::None {}),
            (&["data.set=rings"], Preprocess::None {}),
        ] {
            assert_eq!(with("moons", sets).unwrap().recipe.model.preprocess(), kind, "{sets:?}");
        }
        let some = with("quickstart", &["data.set=folder", "data.train=30"]).unwrap().recipe.data;
        assert_eq!((some.train, some.test), (Some(30), None));
        let same = with("quickstart", &["data.set=faces"]).unwrap().recipe.data;
        assert_eq!((same.train, same.test), (own.train, own.test));
    }

    /// Numbers that no model can have, and keys that no recipe has, are refused by name.
    #[test]
    fn impossible_numbers_and_keys_are_named() {
        for (recipe, set, key) in [
            ("nice-mnist-small", "model.init=inf", "`init`"),
            ("nice-mnist-small", "model.init=-1.0", "`init`"),
            ("nice-mnist-small", "model.hidden=[[0]]", "`hidden`"),
            ("realnvp-cifar-small", "model.eps=-1.0", "`eps`"),
            ("realnvp-cifar-small", "model.eps=0.0", "`eps`"),
            ("realnvp-cifar-small", "model.momentum=5.0", "`momentum`"),
            ("realnvp-cifar-small", "model.momentum=nan", "`momentum`"),
            ("moons", "model.law={rational_quadratic_spline={bins=1}}", "`bins` = 1"),
            ("moons", "model.law={rational_quadratic_spline={bin=4}}", "expected one of `bins`"),
            ("moons", "model.law=rational_quadratic_spline", "{ name = {} }"),
            ("moons", "model.law={mixture_of_logistics={components=0}}", "`components`"),
            ("moons", "model.hidden=[[0]]", "`hidden`"),
            (
                "moons",
                "train.optimizer=adam",
                "a table with its `kind`, as in --set train.optimizer.kind=adam",
            ),
            ("moons", "train.lr=fast", "expected a number"),
            ("moons", "train.batch=-1", "expected a whole number"),
            ("glow-cifar", "model.bits=300", "a whole number from 0 to 255"),
            ("realnvp-cifar-small", "model.preprocess=logit", "expected a table"),
        ] {
            let error = format!("{:#}", with(recipe, &[set]).unwrap_err());
            assert!(error.contains(key) && !error.contains("spline.bin`"), "{set}: {error}");
        }
        let deep = format!("{}=1", vec!["a"; 40_000].join("."));
        let error = format!("{:#}", with("quickstart", &[&deep]).unwrap_err());
        assert!(error.contains("is no key") && error.len() < 300, "{error}");
    }

    #[test]
    fn an_optional_setting_is_left_out() {
        let of = |set: &str| with("glow-cifar-cpu", &[set]).unwrap().recipe.train;
        assert_eq!(of("train.ema=none").ema, None);
        let without = with("glow-cifar-cpu", &["train.clip_norm=none"]).unwrap().recipe;
        assert!(without.train.ema.is_some());
        assert_eq!(without.changed().unwrap(), ["train.clip_norm=none"]);
        let lr = format!("{:#}", with("moons", &["train.lr=none"]).unwrap_err());
        assert!(lr.contains("expected a number"), "{lr}");
    }

    /// A setting of a layer in a list has a key, by which it is explained, set and named in errors.
    #[test]
    fn layers_have_keys() {
        let width = "model.levels.1.layers.1.layers.2.net.width";
        let resolved =
            with("glow-spline", &[&format!("{width}=8"), "model.levels.0.layers.1.repeat=2"]).unwrap();
        let rows = resolved.settings().unwrap();
        let row =
            |key: &str| rows.iter().find(|row| row.0 == key).unwrap_or_else(|| panic!("{key}: {rows:?}"));
        assert_eq!((row(width).1.as_str(), row(width).2.as_str()), ("8", "--set"));
        assert_eq!(row("model.levels.0.layers.1.repeat").1, "2");
        assert_eq!(row("model.levels.2.layers.0").1, "\"squeeze\"");
        let named = with("glow-spline", &["model.levels.0.layers.1.layers.0.factor=2"]).unwrap().settings();
        assert!(
            named
                .unwrap()
                .iter()
                .any(|row| row.0 == "model.levels.0.layers.1.layers.0.factor" && row.1 == "2.0")
        );
        assert_eq!(row("model.levels.2.layers.1.layers.2.transform.bins").1, "8");
        for (set, said) in [
            ("model.levels.7.layers=[]", "`levels` has the items 0 to 2, not `7`"),
            ("model.levels.0.layers.0=squeze", "levels.0: layers.0: unknown variant `squeze`"),
            ("model.levels.0.layers.0=squeze", "did you mean `squeeze`"),
            ("model.levels.0.layers.1.layers.2.net.widht=8", "width`?"),
            (
                "model.levels.0.layers.1.repeet=2",
                "layers.1 (steps): unknown field `repeet`, expected `repeat` or `layers`",
            ),
            ("model.levels.0.layers.1.repeet=2", "did you mean `repeat`?"),
            // A name stands for a table.
            (
                "model.levels.0.layers.1.layers.0.factr=2",
                "layers.0 (actnorm): unknown field `factr`, expected `factor`",
            ),
            (
                "model.levels.0.layers.0.factor=2",
                "layers.0 (squeeze): unknown field `factor`, there are no fields",
            ),
            ("model.levels.0.layers.1.layers.2.transform=splines", "unknown variant `splines`"),
            (
                "model.levels.0.layers.1.layers.2.transform={kind='rational_quadratic_spline',bound=0.0}",
                "(coupling): `bound` = 0",
            ),
        ] {
            let error = format!("{:#}", with("glow-spline", &[set]).unwrap_err());
            assert!(error.contains(said), "{set}: {error}");
        }
    }

    /// A recipe's name becomes a folder's.
    #[test]
    fn names_are_names() {
        let long = "x".repeat(101);
        for name in ["../../x", "/tmp/x", "a/b", r"a\\b", ".", "..", "", " ", r"a\u001b[31m", &long] {
            let error = with("quickstart", &[&format!("name=\"{name}\"")]).unwrap_err();
            assert!(format!("{error:#}").contains("is no name"), "{name:?}: {error:#}");
        }
        for name in ["realnvp-cifar@paper", "mine_2.1", "Züge"] {
            assert!(with("quickstart", &[&format!("name={name:?}")]).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_papers_recipes_use_the_papers_models() {
        for name in ["nice-mnist", "nice-cifar", "realnvp-cifar", "glow-cifar"] {
            for kind in ["paper", "code"] {
                let resolved = with(&format!("{name}@{kind}"), &[]).unwrap();
                let (_, preset) = PRESETS.iter().find(|(p, _)| *p == format!("{name}-{kind}")).unwrap();
                assert_eq!(resolved.recipe.model, preset());
            }
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (name, _) in BUILTIN {
            let recipe = with(name, &[]).unwrap().recipe;
            let text = toml::to_string_pretty(&recipe).unwrap();
            let again = Resolved::parse("", &text, &[]).unwrap_or_else(|e| panic!("{name}: {e:#}")).recipe;
            assert_eq!(toml::to_string(&again).unwrap(), toml::to_string(&recipe).unwrap());
            assert_eq!(again.fingerprint().unwrap(), recipe.fingerprint().unwrap());
        }
    }

    #[test]
    fn a_field_of_the_file_replaces_the_presets_whole_and_set_changes_one_key() {
        let resolved = with("realnvp-cifar", &["model.preprocess.alpha=0.01"]).unwrap();
        assert!(matches!(resolved.recipe.model.preprocess(), Preprocess::Logit { alpha: 0.01, .. }));
        let zca = "model.preprocess={kind=\"symmetric\"}";
        let resolved = with("nice-cifar", &[zca]).unwrap();
        assert_eq!(resolved.recipe.model.preprocess(), Preprocess::Symmetric {});
        let same = with("moons", &[]).unwrap().recipe.fingerprint().unwrap();
        assert_ne!(with("moons", &["train.lr=1e-4"]).unwrap().recipe.fingerprint().unwrap(), same);
        assert_eq!(with("moons", &["about=other"]).unwrap().recipe.fingerprint().unwrap(), same);
    }

    #[test]
    fn what_changes_a_number_is_a_change_of_the_recipe() {
        let changed = |sets: &[&str]| with("nice-mnist-small", sets).unwrap().recipe.changed().unwrap();
        assert!(changed(&[]).is_empty());
        assert!(changed(&["about=other", "train.log_every=3", "train.checkpoint_every=3"]).is_empty());
        for set in ["train.updates=300", "train.epochs=2.5", "train.minutes=1.5", "train.seed=1"] {
            assert_eq!(changed(&[set]), [set]);
        }
    }

    /// `model` names a preset of vectors, in a file and with --set; its shape is that of the data, and it is one change of the recipe.
    #[test]
    fn a_model_has_a_name() {
        for name in ["maf", "nsf"] {
            for recipe in ["moons", "warped21", "vectors"] {
                let set = format!("model={name}");
                let named = with(recipe, &[&set]).unwrap().recipe;
                let own = with(recipe, &[]).unwrap().recipe;
                assert_eq!(named.model.shape(), own.model.shape());
                assert_eq!(named.model.preprocess(), own.model.preprocess());
                assert_ne!(named.model, own.model);
                assert_eq!(named.changed().unwrap()[0], set, "{recipe}");
            }
        }
        let wider = with("moons", &["model=maf", "model.hidden=[32]"]).unwrap().recipe;
        assert_eq!(wider.changed().unwrap(), ["model=maf", "model.hidden=[32]"]);
        let other =
            with("moons", &["train.schedule={kind='constant'}", "model.prior={kind='student_t',df=3.0}"]);
        let changed = other.unwrap().recipe.changed().unwrap();
        let prior = ["model.prior.df=3.0", "model.prior.kind=\"student_t\"", "model.prior.learned=false"];
        assert_eq!(changed, [&prior[..], &["train.schedule.kind=\"constant\""]].concat());
        let error = format!("{:#}", with("moons", &["model=mfa"]).unwrap_err());
        assert!(error.contains("maf"), "{error}");
        let text = "like = \"nothing\"\nabout = \"x\"";
        let error = format!("{:#}", Resolved::parse("x", text, &[]).unwrap_err());
        assert!(error.contains("`like`"), "{error}");
    }

    #[test]
    fn what_is_said_of_a_table_is_not_said_of_what_was_not_chosen() {
        let source = |name: &str, key: &str| {
            let rows = with(name, &[]).unwrap().settings().unwrap();
            rows.into_iter().find(|row| row.0 == key).unwrap_or_else(|| panic!("{name}: {key}")).2
        };
        assert_eq!(source("quickstart", "train.lr"), "ours: found on the validation images");
        for key in ["train.seed", "train.memory", "train.log_every", "train.validate_images", "data.seed"] {
            assert_eq!(source("quickstart", key), "ours: a convention", "{key}");
        }
        for key in ["train.l2", "train.init_images", "train.hflip"] {
            assert_eq!(source("quickstart", key), "default", "{key}");
        }
        assert!(source("nice-mnist", "train.validate_every").contains("once an epoch"), "it is explained");
        assert_eq!(source("moons", "train.lr"), "ours");
        assert_eq!(source("moons", "model.law"), "preset realnvp");
    }

    #[test]
    fn values_are_toml_and_bare_words_stand_for_themselves() {
        let parse = |text: &str| parse_set(text).unwrap();
        assert_eq!(parse("a.b = 5e-4"), ("a.b".into(), Value::Float(5e-4)));
        assert_eq!(parse("a=true"), ("a".into(), Value::Boolean(true)));
        assert_eq!(parse("a=mnist"), ("a".into(), Value::String("mnist".into())));
        assert_eq!(parse("a=\"x y\""), ("a".into(), Value::String("x y".into())));
        for wrong in ["a", "=1", "a.=1", "a=", "a=1\nb=2", "a=[1", "a=x y"] {
            assert!(parse_set(wrong).is_err(), "{wrong:?}");
        }
    }
}
