//! Values of the interface as JSON.

use serde_json::{Map, Value as Json, json};
use zbus::Variant;

use super::Dict;

/// Every property by its name; the types are those of the interface.
pub fn to_json(properties: &Dict) -> Json {
    Json::Object(
        properties.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect::<Map<_, _>>(),
    )
}

/// D-Bus value as JSON; the types are those of the interface (strings, unsigned numbers, booleans and containers of them).
fn value_to_json(value: &Variant<'_>) -> Json {
    match value {
        Variant::Bool(flag) => json!(flag),
        Variant::U32(number) => json!(number),
        Variant::U64(number) => json!(number),
        Variant::Str(text) => json!(text.as_str()),
        Variant::Variant(inner) => value_to_json(inner),
        Variant::Array(items) => Json::Array(items.iter().map(value_to_json).collect()),
        Variant::Dict(entries) => {
            let entry = |(key, value): (&Variant<'_>, &Variant<'_>)| match key {
                Variant::Str(name) => Some((name.as_str().to_owned(), value_to_json(value))),
                _ => None,
            };
            Json::Object(entries.iter().filter_map(entry).collect())
        }
        other => json!(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dbus_dictionary_becomes_a_json_object() {
        let inner: std::collections::HashMap<String, u64> = [("oss".to_owned(), 7)].into();
        let properties = Dict::from([
            ("State".to_owned(), zbus::OwnedVariant::from(zbus::Str::from("Serving"))),
            ("BySource".to_owned(), zbus::OwnedVariant::try_from(Variant::from(inner)).unwrap()),
        ]);
        assert_eq!(to_json(&properties), json!({"State": "Serving", "BySource": {"oss": 7}}));
    }
}
