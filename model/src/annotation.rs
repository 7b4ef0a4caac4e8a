//! The annotations by which a Service of Kubernetes asks for an engine and how it is balanced.
//!
//! ```text
//! weave.works/engine: kernel | relay
//! weave.works/balance: least | latency | maglev
//! ```
//!
//! The words are those of `weavectl service create`, letter by letter. One that is not understood is refused by
//! itself: what the other annotation asks for holds, and in its own place the node's choice, as if it were not there.
//! A Service that is served in another way is better than one that is not served.

use std::str::FromStr;

use crate::engine::{BadWord, Balance, Engine};

/// Names the engine.
const ENGINE: &str = "weave.works/engine";
/// Names the way to balance.
const BALANCE: &str = "weave.works/balance";

/// What annotations ask for, as far as they are understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotated {
    /// The engine; the node's choice when absent.
    pub engine: Option<Engine>,
    /// How to balance.
    pub balance: Option<Balance>,
    /// Those that are not understood.
    pub refused: Vec<BadAnnotation>,
}

/// The value of an annotation is none of the words that are possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {name} is passed over: {cause}")]
pub struct BadAnnotation {
    name: &'static str,
    cause: BadWord,
}

impl Annotated {
    /// Reads what a Service is annotated with; `value` has the value of an annotation by its name.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Self {
        let mut refused = Vec::new();
        Self {
            engine: word(&value, ENGINE, &mut refused),
            balance: word(&value, BALANCE, &mut refused),
            refused,
        }
    }
}

fn word<'a, T: FromStr<Err = BadWord>>(
    value: impl Fn(&str) -> Option<&'a str>,
    name: &'static str,
    refused: &mut Vec<BadAnnotation>,
) -> Option<T> {
    let parsed = value(name)?.parse();
    let refuse = |cause| refused.push(BadAnnotation { name, cause });
    parsed.map_err(refuse).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &'static str)]) -> Annotated {
        Annotated::read(|name| {
            let mut all = annotations.iter();
            all.find(|(one, _)| *one == name).map(|(_, value)| *value)
        })
    }

    #[test]
    fn each_word_asks_for_what_it_names() {
        let table = [
            (vec![], None, None),
            (
                vec![("weave.works/engine", "relay")],
                Some(Engine::Relay),
                None,
            ),
            (
                vec![("weave.works/engine", "kernel")],
                Some(Engine::Kernel),
                None,
            ),
            (
                vec![("weave.works/balance", "least")],
                None,
                Some(Balance::Least),
            ),
            (
                vec![("weave.works/balance", "latency")],
                None,
                Some(Balance::Latency),
            ),
            (
                vec![
                    ("weave.works/balance", "maglev"),
                    ("weave.works/engine", "relay"),
                ],
                Some(Engine::Relay),
                Some(Balance::Maglev),
            ),
            (
                vec![("weave.works/motor", "relay"), ("balance", "maglev")],
                None,
                None,
            ),
        ];
        for (annotations, engine, balance) in table {
            let expected = Annotated {
                engine,
                balance,
                refused: vec![],
            };
            assert_eq!(read(&annotations), expected, "{annotations:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_itself_and_says_what_is_possible() {
        let engines = "is not an engine: kernel or relay";
        let ways = "is not a way to balance: least, latency or maglev";
        for odd in ["", "Relay", " relay", "auto", "least"] {
            let said = read(&[
                ("weave.works/engine", odd),
                ("weave.works/balance", "maglev"),
            ]);
            assert_eq!(
                (said.engine, said.balance),
                (None, Some(Balance::Maglev)),
                "{odd:?}"
            );
            let [refused] = &said.refused[..] else {
                panic!("{said:?}");
            };
            let expected =
                format!("the annotation weave.works/engine is passed over: \"{odd}\" {engines}");
            assert_eq!(refused.to_string(), expected);
        }
        let said = read(&[
            ("weave.works/engine", "x"),
            ("weave.works/balance", "random"),
        ]);
        assert_eq!((said.engine, said.balance), (None, None));
        let refused: Vec<_> = said.refused.iter().map(ToString::to_string).collect();
        assert_eq!(
            refused,
            [
                format!("the annotation weave.works/engine is passed over: \"x\" {engines}"),
                format!("the annotation weave.works/balance is passed over: \"random\" {ways}"),
            ]
        );
    }
}
