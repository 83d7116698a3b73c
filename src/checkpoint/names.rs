//! Other layouts' names as data: what becomes of each of their tensors under the official name.

mod layouts;

use std::collections::BTreeMap;

pub use layouts::*;

use super::source::Source;
use Rename::{Concat, Pointwise, Reversed, Same, Shifted, Split, SwapHalves, Tensor as One, Transposed};

/// One rule. `{}` in a pattern stands for a number, and for the same number in the other pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rename {
    /// A module's `weight` and `bias`, unchanged: theirs, official.
    Same(&'static str, &'static str),
    /// One tensor, unchanged: theirs, official.
    Tensor(&'static str, &'static str),
    /// Modules whose rows are joined in this order: theirs, official.
    Concat(&'static [&'static str], &'static str),
    /// A module whose halves of rows change places: theirs, official.
    SwapHalves(&'static str, &'static str),
    /// As [`Rename::Same`], with the second number counted from the other end: theirs, official. The official
    /// autoencoder counts its decoder's levels from the largest pictures, diffusers from the smallest.
    Reversed(&'static str, &'static str),
    /// As [`Rename::Same`], with the first number so much lower: theirs, official. The original decoder of TAESD counts what
    /// clamps the latent, diffusers' does not.
    Shifted(&'static str, &'static str, usize),
    /// A linear layer `[out, in]` that officially is a 1×1 convolution `[out, in, 1, 1]`: theirs, official.
    Pointwise(&'static str, &'static str),
    /// One tensor whose rows are shared equally among these, in this order: theirs, official. OpenAI's CLIP keeps queries,
    /// keys and values in one.
    Split(&'static str, &'static [&'static str]),
    /// A matrix whose rows officially are columns: theirs, official.
    Transposed(&'static str, &'static str),
}

/// The rules of one layout.
#[derive(Debug, Clone, Copy)]
pub struct Renames(pub &'static [Rename]);

impl Renames {
    /// The same tensors under the official names. Names that no rule knows stay as they are.
    pub(super) fn apply(&self, mut from: BTreeMap<String, Source>) -> BTreeMap<String, Source> {
        let last = last_level(&from, "decoder.up_blocks.{}.*");
        let mut renamed = BTreeMap::new();
        for rule in self.0 {
            for kind in rule.kinds() {
                rule.take(kind, last, &mut from, &mut renamed);
            }
        }
        keep_rest(from, renamed)
    }

    /// Whether a name is one of this layout's.
    pub(crate) fn writes(&self, name: &str) -> bool {
        let fits = |rule: &Rename, theirs: &str| {
            rule.kinds().iter().any(|kind| numbers(&format!("{theirs}{kind}"), name).is_some())
        };
        self.0.iter().any(|rule| rule.patterns().0.iter().any(|theirs| fits(rule, theirs)))
    }

    /// The modules of this layout that an official one is, and whether the halves of its rows change places. The scale of
    /// a norm, officially a parameter, is found by its whole name.
    pub(crate) fn modules(&self, official: &str) -> Option<(Vec<String>, bool)> {
        self.0.iter().find_map(|rule| {
            let (theirs, pattern) = rule.patterns();
            let numbers = numbers(pattern, official)?;
            let names = theirs.iter().map(|theirs| fill(theirs, &numbers)).collect();
            Some((names, matches!(rule, SwapHalves(..))))
        })
    }

    /// The same tensors under this layout's names, from the official ones: [`Renames::apply`] the other way round.
    pub(super) fn undo(&self, mut from: BTreeMap<String, Source>) -> BTreeMap<String, Source> {
        let last = last_level(&from, "decoder.up.{}.*");
        let mut renamed = BTreeMap::new();
        for rule in self.0 {
            // The bias first: how its rows are shared, the weight's columns tell.
            for kind in rule.kinds().iter().rev() {
                rule.give(kind, last, &mut from, &mut renamed);
            }
        }
        keep_rest(from, renamed)
    }
}

/// What no rule knows keeps its name, unless a rule has placed another tensor there: both are then reported.
fn keep_rest(
    rest: BTreeMap<String, Source>,
    mut renamed: BTreeMap<String, Source>,
) -> BTreeMap<String, Source> {
    for (name, source) in rest {
        let name = if renamed.contains_key(&name) { format!("{name} (a second one)") } else { name };
        renamed.insert(name, source);
    }
    renamed
}

fn last_level(names: &BTreeMap<String, Source>, pattern: &str) -> usize {
    names.keys().filter_map(|n| numbers(pattern, n)?.first().copied()).max().unwrap_or(0)
}

impl Rename {
    /// Theirs, and the official one; of several official ones the first.
    pub(super) fn patterns(&self) -> (&[&'static str], &'static str) {
        match self {
            Same(a, b)
            | One(a, b)
            | SwapHalves(a, b)
            | Reversed(a, b)
            | Shifted(a, b, _)
            | Transposed(a, b)
            | Pointwise(a, b) => (std::slice::from_ref(a), b),
            Concat(parts, b) => (parts, b),
            Split(a, parts) => (std::slice::from_ref(a), parts[0]),
        }
    }

    fn kinds(&self) -> &'static [&'static str] {
        if matches!(self, One(..) | Split(..) | Transposed(..)) { &[""] } else { &[".weight", ".bias"] }
    }

    /// Moves what this rule knows from one map to the other, under the official name.
    fn take(
        &self,
        kind: &str,
        last: usize,
        from: &mut BTreeMap<String, Source>,
        to: &mut BTreeMap<String, Source>,
    ) {
        if let Split(theirs, official) = self {
            return split(theirs, official, from, to);
        }
        let (theirs, official) = self.patterns();
        let first = format!("{}{kind}", theirs[0]);
        let found: Vec<Vec<usize>> = from.keys().filter_map(|name| numbers(&first, name)).collect();
        for mut numbers in found {
            let names: Vec<String> = theirs.iter().map(|t| fill(&format!("{t}{kind}"), &numbers)).collect();
            let shapes: Option<Vec<&[i64]>> = names.iter().map(|n| Some(&from.get(n)?.shape[..])).collect();
            if !shapes.is_some_and(|shapes| can_be_joined(&shapes)) {
                continue;
            }
            let sources: Vec<Source> = names.iter().filter_map(|n| from.remove(n)).collect();
            let mut source = Source::joined(&sources);
            match self {
                Pointwise(..) if source.shape.len() == 2 => source.shape.extend([1, 1]),
                SwapHalves(..) => source = source.halves_swapped(),
                Transposed(..) => source = source.transposed(),
                Reversed(..) => numbers[0] = last.saturating_sub(numbers[0]),
                Shifted(_, _, by) => numbers[0] = numbers[0].saturating_sub(*by),
                _ => {}
            }
            to.insert(fill(&format!("{official}{kind}"), &numbers), source);
        }
    }

    /// Moves what this rule knows from one map to the other, under their names.
    fn give(
        &self,
        kind: &str,
        last: usize,
        from: &mut BTreeMap<String, Source>,
        to: &mut BTreeMap<String, Source>,
    ) {
        if let Split(theirs, official) = self {
            return join(theirs, official, from, to);
        }
        let (theirs, official) = self.patterns();
        let pattern = format!("{official}{kind}");
        let found: Vec<(Vec<usize>, String)> =
            from.keys().filter_map(|name| Some((numbers(&pattern, name)?, name.clone()))).collect();
        for (mut numbers, name) in found {
            let columns = || from.get(&fill(&format!("{official}.weight"), &numbers))?.shape.get(1).copied();
            let shares = match (self, from.get(&name)) {
                (Concat(parts, _), Some(source)) => shares(source, parts.len(), columns()),
                (_, Some(source)) => source.shape.first().map(|rows| vec![*rows as usize]).or(Some(vec![0])),
                _ => None,
            };
            let Some((shares, mut source)) = shares.zip(from.remove(&name)) else { continue };
            match self {
                Pointwise(..) if source.shape.ends_with(&[1, 1]) && source.shape.len() == 4 => {
                    source.shape.truncate(2);
                }
                SwapHalves(..) => source = source.halves_swapped(),
                Transposed(..) => source = source.transposed(),
                Reversed(..) => numbers[0] = last.saturating_sub(numbers[0]),
                Shifted(_, _, by) => numbers[0] = numbers[0].saturating_add(*by),
                _ => {}
            }
            let mut at = 0;
            for (share, theirs) in shares.iter().zip(theirs) {
                let part = if shares.len() == 1 { source.clone() } else { source.rows(at..at + share) };
                at += share;
                to.insert(fill(&format!("{theirs}{kind}"), &numbers), part);
            }
        }
    }
}

/// Shares the rows of every tensor with the name `whole` equally among those with the names `parts`, where there are as
/// many for each.
fn split(
    whole: &str,
    parts: &[&str],
    from: &mut BTreeMap<String, Source>,
    to: &mut BTreeMap<String, Source>,
) {
    let found: Vec<_> = from.keys().filter_map(|name| Some((name.clone(), numbers(whole, name)?))).collect();
    for (name, numbers) in found {
        let rows = |source: &Source| source.shape.first().map_or(0, |rows| *rows as usize);
        let Some(source) = from.get(&name).filter(|source| rows(source).is_multiple_of(parts.len())) else {
            continue;
        };
        let share = rows(source) / parts.len();
        for (i, part) in parts.iter().enumerate() {
            to.insert(fill(part, &numbers), source.rows(i * share..(i + 1) * share));
        }
        from.remove(&name);
    }
}

/// [`split`] the other way round, where all parts are there and can be joined.
fn join(whole: &str, parts: &[&str], from: &mut BTreeMap<String, Source>, to: &mut BTreeMap<String, Source>) {
    let found: Vec<_> = from.keys().filter_map(|name| numbers(parts[0], name)).collect();
    for numbers in found {
        let names: Vec<String> = parts.iter().map(|part| fill(part, &numbers)).collect();
        let sources: Option<Vec<Source>> = names.iter().map(|name| from.get(name).cloned()).collect();
        let Some(sources) = sources else { continue };
        if can_be_joined(&sources.iter().map(|source| &source.shape[..]).collect::<Vec<_>>()) {
            names.iter().for_each(|name| drop(from.remove(name)));
            to.insert(fill(whole, &numbers), Source::joined(&sources));
        }
    }
}

/// How many rows each of the joined modules has: q, k and v as many as the model is wide, and the MLP the rest. Three
/// parts are equal in any model.
fn shares(source: &Source, parts: usize, width: Option<i64>) -> Option<Vec<usize>> {
    let rows = *source.shape.first()?;
    if parts == 3 {
        return (rows % 3 == 0).then(|| vec![rows as usize / 3; 3]);
    }
    let width = width.filter(|width| (1..rows).contains(&(3 * width)))?;
    let mut shares = vec![width as usize; parts - 1];
    shares.push((rows - width * (parts as i64 - 1)) as usize);
    Some(shares)
}

/// Whether these are one tensor, or differ in the first axis alone and can be joined on it.
fn can_be_joined(shapes: &[&[i64]]) -> bool {
    let rows = shapes.iter().try_fold(0i64, |n, shape| n.checked_add(*shape.first()?));
    shapes.len() == 1 || rows.is_some() && shapes.iter().all(|shape| shape[1..] == shapes[0][1..])
}

/// The numbers of `name` where the pattern has `{}`, if it fits. A `*` at the end fits anything.
pub(super) fn numbers(pattern: &str, name: &str) -> Option<Vec<usize>> {
    let (mut pattern, mut name, mut found) = (pattern, name, Vec::new());
    while let Some((before, after)) = pattern.split_once("{}") {
        name = name.strip_prefix(before)?;
        let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        found.push(name[..digits].parse().ok().filter(|n| *n < usize::MAX)?);
        (pattern, name) = (after, &name[digits..]);
    }
    let fits = match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    fits.then_some(found)
}

/// The pattern with the numbers in place of `{}`.
pub(super) fn fill(pattern: &str, numbers: &[usize]) -> String {
    let mut pieces = pattern.split("{}");
    let mut filled = pieces.next().unwrap_or_default().to_string();
    for (i, piece) in pieces.enumerate() {
        if let Some(number) = numbers.get(i) {
            filled.push_str(&number.to_string());
        }
        filled.push_str(piece);
    }
    filled
}

#[cfg(test)]
mod tests;
