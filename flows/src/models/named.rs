//! Settings that are a name with settings of its own: `prior = "gaussian"`, `prior = { kind = "student_t", df = 4 }`.
//!
//! For fields of enums that are tagged by `kind`, as `#[serde(with = "named")]`: the name alone stands for a table with
//! nothing but `kind`, and such a table is written as the name. And lists, whose errors name the item.

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::Value;
use std::marker::PhantomData;

pub(super) fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let table = serde_json::to_value(value).map_err(S::Error::custom)?;
    match table.as_object() {
        Some(only) if only.len() == 1 => only.get("kind").unwrap_or(&Value::Null).serialize(serializer),
        _ => value.serialize(serializer),
    }
}

pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(NameOrTable(PhantomData))
}

struct NameOrTable<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NameOrTable<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a name, or a table with `kind`")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<T, E> {
        let table = MapDeserializer::<_, serde::de::value::Error>::new(std::iter::once(("kind", name)));
        T::deserialize(table).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map_err(A::Error::custom)
    }
}

/// Reads the list of this key, whose errors say which of its items is wrong.
pub(super) fn list<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    d: D,
    key: &str,
) -> Result<Vec<T>, D::Error> {
    let item = |(i, value): (usize, Value)| {
        let kind = value.get("kind").and_then(Value::as_str);
        let kind = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
        serde_json::from_value(value).map_err(|e| D::Error::custom(format!("{key}.{i}{kind}: {e}")))
    };
    Vec::<Value>::deserialize(d)?.into_iter().enumerate().map(item).collect()
}
