//! The index of a model in shards: which file beside it holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::file::read_index;
use super::safetensors::{Header, printable, shorten, unique};
use crate::error::{Error, FileProblem};

/// No file system has longer names.
const MAX_FILE_NAME: usize = 255;

/// An index: `….safetensors.index.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Index {
    /// The shard of each tensor, as the name of a file in the index's folder.
    #[serde(deserialize_with = "unique")]
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads the JSON text of an index.
    ///
    /// # Errors
    /// [`FileProblem::Index`]: no JSON, no `weight_map` of strings, a name that stands twice, or a shard that is no plain
    /// name: none may lead out of the folder.
    pub fn parse(text: &str) -> Result<Self, FileProblem> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let index: Self = serde_json::from_str(text).map_err(|e| problem(printable(&e)))?;
        if let Some(bad) = index.weight_map.values().find(|shard| !is_plain_name(shard)) {
            return Err(problem(format!("\"{}\" is no plain name of a file beside it", shorten(bad))));
        }
        Ok(index)
    }

    /// Reads an index from its file.
    pub(crate) fn read(path: &Path) -> crate::Result<Self> {
        Self::parse(&read_index(path)?).map_err(Error::file(path))
    }

    /// The shards, sorted, each once.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// That every shard holds those tensors that the index says, and no others.
    pub(super) fn check(&self, headers: &BTreeMap<&str, &Header>) -> Result<(), FileProblem> {
        for (shard, header) in headers {
            for name in header.entries.keys() {
                let place = self.weight_map.get(name);
                if place.is_some_and(|place| place == shard) {
                    continue;
                }
                let name = shorten(name);
                return Err(problem(match place {
                    Some(place) => format!("{name} is in {shard} too, not only in {place}"),
                    None => format!("it does not name {name}, which is in {shard}"),
                }));
            }
        }
        let lacks = |(name, shard): &(&String, &String)| {
            !headers.get(shard.as_str()).is_some_and(|header| header.entries.contains_key(*name))
        };
        match self.weight_map.iter().find(lacks) {
            Some((name, shard)) => Err(problem(format!("{} is not in {shard}", shorten(name)))),
            None => Ok(()),
        }
    }
}

fn problem(reason: String) -> FileProblem {
    FileProblem::Index { reason }
}

/// A name that cannot lead out of a folder.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = components.next();
    matches!(first, Some(Component::Normal(_)))
        && components.next().is_none()
        && name.len() <= MAX_FILE_NAME
        && !name.contains(|c: char| c.is_control() || matches!(c, '/' | '\\' | ':'))
}
