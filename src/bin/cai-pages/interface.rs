//! The D-Bus interface, from its introspection: comments there are what the code says of each member.

use anyhow::{Context as _, bail};
use clap_mangen::roff::{Roff, bold, italic, roman};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Headings, by the element's name, in the order of the page.
const KINDS: [(&str, &str); 3] = [("property", "PROPERTIES"), ("method", "METHODS"), ("signal", "SIGNALS")];

#[derive(Default)]
struct Member {
    kind: String,
    name: String,
    /// Of a property.
    signature: String,
    /// Direction, type, name.
    arguments: Vec<(String, String, String)>,
    text: String,
}

/// Sections of a manual page.
pub fn roff(xml: &str) -> anyhow::Result<String> {
    let members = members(xml)?;
    let mut roff = Roff::new();
    for (kind, heading) in KINDS {
        roff.control("SH", [heading]);
        for member in members.iter().filter(|member| member.kind == kind) {
            if member.text.is_empty() {
                bail!("{} {} has no comment", member.kind, member.name);
            }
            roff.control("TP", []);
            roff.text([bold(member.name.as_str()), roman(" "), italic(signature(member))]);
            roff.text([roman(member.text.as_str())]);
        }
    }
    Ok(roff.render())
}

/// `a{sv}`; `(s path) -> (t files, t missing_bytes)`.
fn signature(member: &Member) -> String {
    let list = |direction: &str| {
        let one = member.arguments.iter().filter(|(of, ..)| of == direction);
        one.map(|(_, kind, name)| format!("{kind} {name}")).collect::<Vec<_>>().join(", ")
    };
    match member.kind.as_str() {
        "property" => member.signature.clone(),
        "method" => format!("({}) -> ({})", list("in"), list("out")),
        _ => format!("({})", list("")),
    }
}

fn members(xml: &str) -> anyhow::Result<Vec<Member>> {
    let mut reader = Reader::from_str(xml);
    let (mut members, mut comment) = (Vec::<Member>::new(), String::new());
    loop {
        match reader.read_event()? {
            Event::Eof => return Ok(members),
            Event::Comment(text) => {
                comment = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            Event::Start(element) | Event::Empty(element) => {
                let kind = element.name().as_ref().to_owned();
                if kind == "arg" {
                    let argument = (
                        attribute(&element, "direction")?,
                        attribute(&element, "type")?,
                        attribute(&element, "name")?,
                    );
                    members.last_mut().context("an argument of nothing")?.arguments.push(argument);
                } else if KINDS.iter().any(|(known, _)| *known == kind) {
                    let (name, signature) = (attribute(&element, "name")?, attribute(&element, "type")?);
                    let text = std::mem::take(&mut comment);
                    members.push(Member { kind, name, signature, text, ..Member::default() });
                }
            }
            _ => {}
        }
    }
}

/// Empty where the element does not have it.
fn attribute(element: &BytesStart, name: &str) -> anyhow::Result<String> {
    let found = element.try_get_attribute(name)?;
    Ok(found.map(|found| found.value.into_owned()).unwrap_or_default())
}
