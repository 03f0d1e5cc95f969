//! Values of the interface as JSON.

use serde_json::{Map, Value as Json, json};
use zbus::Variant;

use super::Dict;
use crate::text::printable;

/// Every property by its name; the types are those of the interface.
pub fn to_json(properties: &Dict) -> Json {
    Json::Object(
        properties.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect::<Map<_, _>>(),
    )
}

/// The same for people: texts have one line and do nothing to a terminal. Names of objects, for one, are chosen by whoever writes the
/// bucket.
pub fn to_legible_json(properties: &Dict) -> Json {
    legible(to_json(properties))
}

fn legible(value: Json) -> Json {
    match value {
        Json::String(text) => printable(&text, usize::MAX).into(),
        Json::Array(items) => items.into_iter().map(legible).collect(),
        Json::Object(fields) => {
            fields.into_iter().map(|(name, value)| (printable(&name, usize::MAX), legible(value))).collect()
        }
        other => other,
    }
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

    #[test]
    fn texts_do_nothing_to_a_terminal_and_make_no_lines() {
        let text = |text: &str| zbus::OwnedVariant::from(zbus::Str::from(text.to_owned()));
        let inner: std::collections::HashMap<String, String> =
            [("of \u{9b}2J".to_owned(), "a\rb\u{202e}".to_owned())].into();
        let properties = Dict::from([
            ("StatusText".to_owned(), text("of \u{1b}[2J\nstate        Serving\u{7f}")),
            ("LastError".to_owned(), zbus::OwnedVariant::try_from(Variant::from(inner)).unwrap()),
        ]);
        let expected = json!({"StatusText": "of  [2J state        Serving", "LastError": {"of  2J": "a b"}});
        assert_eq!(to_legible_json(&properties), expected);
        assert_ne!(to_json(&properties), expected, "what programs get is what was said");
    }
}
