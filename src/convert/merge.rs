//! LoRAs merged into weights while these are written, some rows at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::Conversion;
use crate::checkpoint::lora::{Component, Lora, Terms};
use crate::checkpoint::{Access, Checkpoint, Family, stream};
use crate::error::{Error, FileProblem, Result};
use crate::lora::{Change, Term, merged, merged_bias};

/// Numbers that are merged at a time. Some copies of them are held in f32.
const MERGED: usize = 2 << 20;
/// So many numbers, or rows, are whole blocks of any format.
const ROWS: usize = 256;

/// What of the official parameters a written tensor is, in order.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    model: Component,
    pieces: Vec<(String, Range<usize>)>,
    /// The shape that it has once it is merged: a control LoRA widens `img_in`.
    pub(super) shape: Vec<i64>,
}

/// Models under their official names, with what is to be merged into them.
pub(super) struct Merges(BTreeMap<Component, Merge>);

struct Merge {
    official: Checkpoint,
    places: stream::Places,
    terms: Terms,
}

impl Merges {
    /// Places the LoRAs of a conversion; `None` where there are none. What was left out is noted.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        conversion: &Conversion,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        if conversion.merges.is_empty() {
            return Ok(None);
        }
        let open = |(path, strength): &(_, f64)| Ok((Lora::open(path, Access::Read)?, *strength));
        let loras = conversion.merges.iter().map(open).collect::<Result<Vec<_>>>()?;
        let columns = loras.iter().filter_map(|(lora, _)| lora.img_in_columns()).max().unwrap_or(0);
        let mut merges = BTreeMap::new();
        for contained in checkpoint.contained() {
            let model = match contained.family {
                Family::Transformer { .. } => Component::Transformer,
                Family::Clip => Component::Clip,
                Family::T5 { .. } => Component::T5,
                _ => continue,
            };
            let own = checkpoint.clone().under(&contained.prefix).part("", &contained.family);
            let official = own.widened("img_in.weight", columns);
            let places = official.places();
            merges.insert(model, Merge { official, places, terms: Terms::default() });
        }
        for (lora, strength) in &loras {
            let shape = |model: Component, name: &str| merges.get(&model)?.official.shape(name);
            let placed = lora.place(&shape, *strength, conversion.allow_partial_lora)?;
            let left_out = placed.skipped.lines();
            notes.extend(left_out.iter().map(|line| format!("{}: left out: {line}", lora.path.display())));
            let models = [Component::Transformer, Component::Clip, Component::T5];
            for (model, terms) in models.into_iter().zip([placed.transformer, placed.clip, placed.t5]) {
                let Some(merge) = merges.get_mut(&model) else { continue };
                for (name, terms) in terms.linears {
                    merge.terms.linears.entry(name).or_default().extend(terms);
                }
                for (name, terms) in terms.parameters {
                    merge.terms.parameters.entry(name).or_default().extend(terms);
                }
            }
        }
        merges.values().try_for_each(Merge::check_biases)?;
        Ok(Some(Self(merges)))
    }

    /// What a tensor of an output is made of; `None` where nothing is merged into it.
    pub(super) fn pieces(&self, output: &Checkpoint, name: &str) -> Result<Option<Pieces>> {
        for (model, merge) in &self.0 {
            let Some(pieces) = output.found_in(name, &merge.places) else { continue };
            if !pieces.iter().any(|(name, _)| merge.changes(name)) {
                return Ok(None);
            }
            let mut shape = output.shape(name).unwrap_or_default();
            let mut pieces = pieces;
            if let [(official, run)] = &mut pieces[..]
                && let Some(widened) = merge.official.shape(official).filter(|s| s.last() > shape.last())
                && widened.len() == 2
                && widened[0] == shape[0]
            {
                *run = 0..widened.iter().product::<i64>() as usize;
                shape = widened;
            }
            return Ok(Some(Pieces { model: *model, pieces, shape }));
        }
        Ok(None)
    }

    /// The merged numbers in f32, some at a time.
    pub(super) fn numbers(&self, pieces: &Pieces, out: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let Some(merge) = self.0.get(&pieces.model) else { return Ok(()) };
        pieces.pieces.iter().try_for_each(|(name, run)| merge.numbers(name, run, out))
    }
}

impl Merge {
    /// The terms that change a parameter of this name, and whether it is the bias of a linear layer.
    fn terms(&self, name: &str) -> Option<(&[Term], bool)> {
        if let Some(terms) = self.terms.parameters.get(name) {
            return Some((terms, false));
        }
        let (module, bias) = match name.strip_suffix(".bias") {
            Some(module) => (module, true),
            None => (name.strip_suffix(".weight")?, false),
        };
        Some((self.terms.linears.get(module)?, bias))
    }

    fn changes(&self, name: &str) -> bool {
        let of_bias = |term: &Term| {
            matches!(term.update.change, Change::Bias(_) | Change::LowRank { bias: Some(_), .. })
        };
        let of_weight = |term: &Term| !matches!(term.update.change, Change::Bias(_));
        self.terms(name).is_some_and(|(terms, bias)| {
            terms.iter().any(|term| if bias { of_bias(term) } else { of_weight(term) })
        })
    }

    /// That each layer whose bias is changed has one.
    fn check_biases(&self) -> Result<()> {
        let lacks = |module: &&String| {
            let bias = format!("{module}.bias");
            self.official.shape(&bias).is_none() && self.changes(&bias)
        };
        let Some(module) = self.terms.linears.keys().find(lacks) else { return Ok(()) };
        let path = self.official.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
        let reason = "has no bias, but a LoRA that is to be merged changes it".into();
        Err(Error::file(path)(FileProblem::Tensor { name: module.clone(), reason }))
    }

    /// A run of whole rows of a parameter.
    fn numbers(
        &self,
        name: &str,
        run: &Range<usize>,
        out: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let shape = self.official.shape(name).unwrap_or_default();
        let row = shape.iter().skip(1).product::<i64>().max(1) as usize;
        let rows = run.start / row..run.end / row;
        let (terms, bias) = self.terms(name).unwrap_or((&[], false));
        let in_blocks = row.is_multiple_of(ROWS) || !self.official.is_coded(name);
        let by_rows = shape.len() == 2 && in_blocks && terms.iter().all(Term::is_by_rows);
        let whole = shape.first().copied().unwrap_or(1) as usize;
        if !by_rows || bias {
            let all = self.official.tensor_as(name, Kind::Float)?;
            let all = match bias {
                true => merged_bias(Some(&all), whole as i64, terms)?.unwrap_or(all),
                false => merged(&all, terms)?,
            };
            if shape.is_empty() {
                return out(&all);
            }
            return out(&all.f_narrow(0, rows.start as i64, rows.len() as i64)?);
        }
        let each = (MERGED / row / ROWS * ROWS).max(ROWS);
        for begin in rows.clone().step_by(each) {
            let these = begin..(begin + each).min(rows.end);
            let numbers = self.official.rows(name, these.clone(), Kind::Float)?;
            let range = these.start as i64..these.end as i64;
            let of_these = terms.iter().map(|term| term.of_rows(&range)).collect::<Result<Vec<_>>>()?;
            let of_these: Vec<Term> = of_these.into_iter().flatten().collect();
            out(&merged(&numbers, &of_these)?)?;
        }
        Ok(())
    }
}
