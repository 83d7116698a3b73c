//! A LoRA against the models that it is for: what fits becomes terms, what does not is listed.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::Tensor;
use tch::nn::VarStore;

use super::{Component, Form, Holder, Lora, Part, Patch, Slot, Target};
use crate::error::{Error, Result, Unplaced};
use crate::lora::{Change, Factor, Term, Update, delta, grown_columns, merged};
use crate::nn::Linears;

/// The one layer whose inputs may be more than a LoRA knows of: those of a control picture or a mask come last.
pub(super) const IMG_IN: &str = "img_in";

/// The terms of a LoRA, for each model.
#[derive(Debug, Default)]
pub struct Placed {
    /// FLUX itself.
    pub transformer: Terms,
    /// The CLIP text model.
    pub clip: Terms,
    /// The T5 encoder.
    pub t5: Terms,
    /// What was left out, where that was allowed.
    pub skipped: Unplaced,
}

/// The terms of one model.
#[derive(Debug, Default)]
pub struct Terms {
    /// Those of linear layers, to run beside them, by the layer's official name: `double_blocks.0.img_attn.qkv`.
    pub linears: BTreeMap<String, Vec<Term>>,
    /// Those of other parameters, to be [`merged`](crate::lora::merged), by the parameter's official name:
    /// `double_blocks.0.img_attn.norm.query_norm.scale`.
    pub parameters: BTreeMap<String, Vec<Term>>,
}

impl Terms {
    /// Adds the terms of another LoRA.
    pub fn extend(&mut self, other: Self) {
        let both = [(&mut self.linears, other.linears), (&mut self.parameters, other.parameters)];
        for (mine, theirs) in both {
            theirs.into_iter().for_each(|(name, terms)| mine.entry(name).or_default().extend(terms));
        }
    }

    /// Puts these terms on a model in place of all that were on it before; without terms, it is as it was loaded. The
    /// weights of linear layers are never touched, however they are stored, and other parameters get their own values
    /// back, so nothing of a LoRA stays behind in any bit. The model may lie anywhere in the store.
    ///
    /// # Errors
    /// [`Error::Lora`] with all terms whose layer the model lacks, or whose layer has another shape; the terms from before
    /// then stay. [`Error::Tch`], and then no terms are on the model.
    pub fn put_on(&self, vs: &VarStore, linears: &Linears) -> Result<()> {
        let (root, variables) = (linears.root(), vs.variables());
        let mut unplaced = Unplaced::default();
        let mut weights = BTreeMap::new();
        for (module, terms) in &self.linears {
            let name = format!("{root}{module}.weight");
            let Some(size) = linears.size(&name) else {
                unplaced.absent.push((module.clone(), name));
                continue;
            };
            if let Some(term) = terms.iter().find(|term| !term.fits(&size)) {
                unplaced.misshapen.push((module.clone(), size, term.size()));
            }
            weights.insert(name, terms);
        }
        let mut parameters = Vec::new();
        for (parameter, terms) in &self.parameters {
            let name = format!("{root}{parameter}");
            match variables.get(&name) {
                Some(variable) => parameters.push((variable, terms)),
                None => unplaced.absent.push((parameter.clone(), name)),
            }
        }
        if !unplaced.is_empty() {
            return Err(Error::Lora(Box::new(unplaced)));
        }
        let values =
            || parameters.iter().map(|(v, terms)| Ok((v.shallow_clone(), merged(v, terms)?))).collect();
        linears.change(&weights, &values)
    }
}

impl Lora {
    /// The terms of this LoRA at a strength, on the CPU and in the kinds of the file.
    ///
    /// `shape` gives the shape of a model's parameter by its official name, `None` where the model has none of it or is
    /// not there. With `partial` what does not fit is left out and said in [`Placed::skipped`].
    ///
    /// A change of `img_in` that knows fewer inputs than the layer has changes the first of them.
    ///
    /// # Errors
    /// [`Error::Lora`] with all that does not fit, [`Error::Request`] for a strength that is no number, and as
    /// [`Checkpoint::tensor`](crate::checkpoint::Checkpoint::tensor).
    pub fn place(
        &self,
        shape: &dyn Fn(Component, &str) -> Option<Vec<i64>>,
        strength: f64,
        partial: bool,
    ) -> Result<Placed> {
        if !strength.is_finite() {
            return Err(Error::Request(format!("a LoRA's strength must be a number, not {strength}")));
        }
        let mut unplaced = Unplaced {
            path: self.path.clone(),
            unknown: self.unknown.clone(),
            twice: self.twice.clone(),
            ..Unplaced::default()
        };
        let mut fitting = Vec::new();
        for patch in self.patches() {
            match patch.fit(shape) {
                Ok(rows) => fitting.push((patch, rows)),
                Err(Misfit::Absent) => unplaced.absent.push((patch.name.clone(), patch.parameter())),
                Err(Misfit::Shape(wanted)) => {
                    unplaced.misshapen.push((patch.name.clone(), wanted, patch.shape.clone()));
                }
            }
        }
        // One of which a part fits the transformer was made for it, whatever else lies in the file. CLIP-L is that of Stable
        // Diffusion, too.
        let fits = |(patch, _): &(&Patch, _)| patch.group.target.model == Component::Transformer;
        if !fitting.iter().any(fits) {
            unplaced.made_for = self.made_for();
        }
        if !partial && !unplaced.is_empty() {
            return Err(Error::Lora(Box::new(unplaced)));
        }
        let mut placed = Placed { skipped: unplaced, ..Placed::default() };
        for (patch, Fit { rows, columns }) in fitting {
            if patch.is_off() {
                continue;
            }
            let term = Term { update: self.update(patch, columns)?, rows, strength };
            let target = &patch.group.target;
            let terms = match target.model {
                Component::Transformer => &mut placed.transformer,
                Component::Clip => &mut placed.clip,
                Component::T5 => &mut placed.t5,
            };
            let terms = match target.holder {
                Holder::Linear => terms.linears.entry(target.module.clone()),
                Holder::Norm | Holder::Other => terms.parameters.entry(patch.parameter()),
            };
            terms.or_default().push(term);
        }
        Ok(placed)
    }

    /// Reads a patch's matrices, with the official module's order of rows and number of columns.
    fn update(&self, patch: &Patch, columns: Option<i64>) -> Result<Update> {
        let parts = &patch.group.parts;
        let read = |part: Part| self.checkpoint.tensor(parts.get(&part).map_or("", String::as_str));
        let optional = |part: Part| parts.get(&part).map(|key| self.checkpoint.tensor(key)).transpose();
        let pair = |a, b| Ok::<_, Error>([read(a)?, read(b)?]);
        let factor = |whole, a, b| match parts.get(&Part::Lokr(whole)) {
            Some(key) => Ok::<_, Error>(Factor::Whole(self.checkpoint.tensor(key)?)),
            None => Ok(Factor::Product(pair(Part::Lokr(a), Part::Lokr(b))?)),
        };
        let change = match patch.form {
            Form::LowRank => Change::LowRank {
                down: read(Part::Down)?,
                up: read(Part::Up)?,
                bias: optional(Part::UpBias)?,
            },
            Form::Hadamard => Change::Hadamard {
                w1: pair(Part::Hada("w1_a"), Part::Hada("w1_b"))?,
                w2: pair(Part::Hada("w2_a"), Part::Hada("w2_b"))?,
            },
            Form::Kronecker => {
                Change::Kronecker { w1: factor("w1", "w1_a", "w1_b")?, w2: factor("w2", "w2_a", "w2_b")? }
            }
            Form::Full => Change::Full(read(Part::Diff)?),
            Form::Replace => Change::Replace(read(Part::Set)?),
            // A norm's bias is a parameter of its own, whose whole difference this is.
            Form::Bias if patch.group.target.holder != Holder::Linear => Change::Full(read(Part::DiffBias)?),
            Form::Bias => Change::Bias(read(Part::DiffBias)?),
        };
        let magnitude = if patch.form == Form::Bias { None } else { optional(Part::Magnitude)? };
        let mut update = Update { change, scale: patch.scale, magnitude };
        if patch.group.target.slot == Slot::Swapped {
            update = swapped(update)?;
        }
        match columns {
            Some(columns) => grown(update, columns),
            None => Ok(update),
        }
    }
}

impl Patch {
    /// Whether it changes nothing at any strength: its alpha is 0. With DoRA the lengths of the rows remain.
    fn is_off(&self) -> bool {
        self.scale == 0.0 && !self.group.parts.contains_key(&Part::Magnitude)
    }

    /// The official name of the parameter that it changes.
    fn parameter(&self) -> String {
        let target = &self.group.target;
        let name = match (target.holder, self.form) {
            (_, Form::Bias) => "bias",
            (Holder::Norm, _) => "scale",
            _ => "weight",
        };
        format!("{}.{name}", target.module)
    }

    /// Whether the model has what it changes, in the shape that it changes.
    fn fit(&self, shape: &dyn Fn(Component, &str) -> Option<Vec<i64>>) -> std::result::Result<Fit, Misfit> {
        let Target { model, module, slot, holder } = &self.group.target;
        if *holder != Holder::Linear {
            let size = shape(*model, &self.parameter()).ok_or(Misfit::Absent)?;
            return if size == self.shape { Ok(Fit::default()) } else { Err(Misfit::Shape(size)) };
        }
        let size = shape(*model, &format!("{module}.weight")).ok_or(Misfit::Absent)?;
        let [rows, columns] = size[..] else { return Err(Misfit::Shape(size)) };
        let range = match slot {
            Slot::Whole | Slot::Swapped => 0..rows,
            Slot::Q => 0..columns,
            Slot::K => columns..2 * columns,
            Slot::V => 2 * columns..3 * columns,
            Slot::Qkv => 0..3 * columns,
            Slot::Rest => 3 * columns..rows,
        };
        let len = range.end - range.start;
        let mut wanted = if self.form == Form::Bias { vec![len] } else { vec![len, columns] };
        let mut fit = Fit { rows: (len != rows).then_some(range.clone()), columns: None };
        // The lengths that DoRA was trained with are those of fewer columns, too.
        let dora = self.group.parts.contains_key(&Part::Magnitude);
        let grows = *model == Component::Transformer && module == IMG_IN && !dora;
        if let (true, &[_, known]) = (grows, &self.shape[..])
            && known < columns
        {
            wanted[1] = known;
            fit.columns = Some(columns);
        }
        if range.end > rows || wanted != self.shape {
            return Err(Misfit::Shape(wanted));
        }
        Ok(fit)
    }
}

/// Where a patch fits.
#[derive(Debug, Default)]
struct Fit {
    /// The rows, unless it is all of them.
    rows: Option<Range<i64>>,
    /// How many columns it has to grow to.
    columns: Option<i64>,
}

/// Why a patch fits nowhere.
enum Misfit {
    Absent,
    /// The shape that it would have to have.
    Shape(Vec<i64>),
}

/// The update of a module whose halves of rows officially stand the other way round.
fn swapped(Update { change, scale, magnitude }: Update) -> Result<Update> {
    let halves = |tensor: &Tensor| -> Result<Tensor> {
        let mut halves = tensor.f_chunk(2, 0)?;
        halves.reverse();
        Ok(Tensor::f_cat(&halves, 0)?)
    };
    let magnitude = match magnitude {
        // The lengths of rows; those of columns, `[1, in]`, do not depend on the order of the rows.
        Some(rows) if rows.size()[0] != 1 => Some(halves(&rows)?),
        other => other,
    };
    let change = match change {
        Change::LowRank { down, up, bias } => {
            Change::LowRank { down, up: halves(&up)?, bias: bias.as_ref().map(halves).transpose()? }
        }
        Change::Hadamard { w1: [w1_a, w1_b], w2: [w2_a, w2_b] } => {
            Change::Hadamard { w1: [halves(&w1_a)?, w1_b], w2: [halves(&w2_a)?, w2_b] }
        }
        // With its rows in another order it is no Kronecker product.
        Change::Kronecker { .. } => Change::Full(halves(&unscaled(change)?)?),
        Change::Full(delta) => Change::Full(halves(&delta)?),
        Change::Bias(bias) => Change::Bias(halves(&bias)?),
        Change::Replace(values) => Change::Replace(halves(&values)?),
    };
    Ok(Update { change, scale, magnitude })
}

/// The update with columns of zeros after its own.
fn grown(Update { change, scale, magnitude }: Update, columns: i64) -> Result<Update> {
    let grow = |tensor: &Tensor| grown_columns(tensor, columns);
    let change = match change {
        Change::LowRank { down, up, bias } => Change::LowRank { down: grow(&down)?, up, bias },
        Change::Hadamard { w1: [w1_a, w1_b], w2: [w2_a, w2_b] } => {
            Change::Hadamard { w1: [w1_a, grow(&w1_b)?], w2: [w2_a, grow(&w2_b)?] }
        }
        Change::Kronecker { .. } => Change::Full(grow(&unscaled(change)?)?),
        Change::Full(delta) => Change::Full(grow(&delta)?),
        other @ (Change::Bias(_) | Change::Replace(_)) => other,
    };
    Ok(Update { change, scale, magnitude })
}

/// The whole matrix of a change, without its scale.
fn unscaled(change: Change) -> Result<Tensor> {
    delta(&Update { change, scale: 1.0, magnitude: None })
}
