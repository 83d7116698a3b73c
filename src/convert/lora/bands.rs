//! Pairs of matrices of layers that are joined in one layout and split in the other.

use std::ops::Range;
use std::rc::Rc;

use safetensors::Dtype;
use tch::{Kind, Tensor};

use super::{Scaled, Writer, halves_swapped};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::Layout;
use crate::checkpoint::lora::{Part, Patch, Slot};
use crate::error::{Error, Result};

/// How much wider than FLUX.1 its MLP is: what stands behind q, k and v in `linear1`.
const MLP_RATIO: i64 = 4;

/// Rows of a joined layer with the pair that changes them.
#[derive(Debug, Clone)]
struct Band {
    /// Of the joined layer.
    rows: Range<i64>,
    down: String,
    up: String,
    bias: Option<String>,
    magnitude: Option<String>,
    /// Rows of the second matrix, its bias and the lengths.
    up_rows: Range<i64>,
    /// Columns of the second matrix, rows of the first.
    ranks: Range<i64>,
    scale: f64,
    alpha: Option<Dtype>,
}

impl Writer {
    /// The pairs of one module: one, or one for each part of it.
    pub(super) fn low_rank(&mut self, patches: &[&Patch]) -> Result<()> {
        let Some(first) = patches.first() else { return Ok(()) };
        let (names, swapped) = self.names(first)?;
        let whole = |patch: &Patch| matches!(patch.group.target.slot, Slot::Whole | Slot::Swapped);
        if let ([patch], [name]) = (patches, &names[..])
            && whole(patch)
        {
            let band = self.band(patch, 0..patch.shape[0], 0..patch.shape[0])?;
            return self.pair(name, vec![band], patch.shape[0], swapped);
        }
        let columns = first.shape[1];
        let mut bands = Vec::new();
        for patch in patches {
            bands.extend(self.bands(patch, columns)?);
        }
        bands.sort_by_key(|band| band.rows.start);
        let joined = first.group.target.module.ends_with("linear1");
        let rest = bands.iter().map(|band| band.rows.end).max().filter(|end| *end > 3 * columns);
        let rows = if joined { rest.unwrap_or((3 + MLP_RATIO) * columns) } else { 3 * columns };
        if let [name] = &names[..] {
            return self.pair(name, bands, rows, swapped);
        }
        let begins = (0..names.len() as i64).map(|i| i * columns);
        let ends = (1..names.len() as i64).map(|i| i * columns).chain([rows]);
        for (name, (begin, end)) in names.iter().zip(begins.zip(ends)) {
            let of_part = bands.iter().filter(|band| band.rows == (begin..end));
            let of_part: Vec<Band> =
                of_part.map(|band| Band { rows: 0..end - begin, ..band.clone() }).collect();
            if !of_part.is_empty() {
                self.pair(name, of_part, end - begin, false)?;
            }
        }
        Ok(())
    }

    /// A patch as one band of the joined layer for each part that it changes.
    fn bands(&self, patch: &Patch, columns: i64) -> Result<Vec<Band>> {
        let rows = patch.shape[0];
        let part = |i: i64| i * columns..(i + 1) * columns;
        let behind = |end: i64| 3 * columns..end;
        let all: Vec<Range<i64>> = match patch.group.target.slot {
            Slot::Q => vec![part(0)],
            Slot::K => vec![part(1)],
            Slot::V => vec![part(2)],
            Slot::Rest => vec![behind(3 * columns + rows)],
            Slot::Qkv => (0..3).map(part).collect(),
            Slot::Whole | Slot::Swapped if rows > 3 * columns => {
                (0..3).map(part).chain([behind(rows)]).collect()
            }
            Slot::Whole | Slot::Swapped => (0..3).map(part).collect(),
        };
        let first = all.first().map_or(0, |rows| rows.start);
        if all.last().map_or(0, |rows| rows.end) - first != rows || patch.shape[1] != columns {
            let reason = format!("its shape is {:?}, which does not fit the parts of the layer", patch.shape);
            return Err(self.problem(&patch.name, reason));
        }
        let whole = self.band(patch, 0..rows, 0..rows)?;
        if let [rows] = &all[..] {
            return Ok(vec![Band { rows: rows.clone(), ..whole }]);
        }
        let up = self.file.tensor(&whole.up)?;
        let shares: Vec<Range<i64>> = all.iter().map(|rows| rows.start - first..rows.end - first).collect();
        let ranks = blocks(&up, &shares)?;
        let mut bands = Vec::new();
        for ((rows, up_rows), ranks) in all.into_iter().zip(shares).zip(ranks) {
            bands.extend(ranks.map(|ranks| Band { rows, up_rows, ranks, ..whole.clone() }));
        }
        Ok(bands)
    }

    fn band(&self, patch: &Patch, rows: Range<i64>, up_rows: Range<i64>) -> Result<Band> {
        let key = |part| patch.group.parts.get(&part).cloned();
        let (Some(down), Some(up), Some(rank)) = (key(Part::Down), key(Part::Up), patch.rank) else {
            return Err(self.problem(&patch.name, "lacks one of its two matrices".into()));
        };
        let magnitude = key(Part::Magnitude);
        let by_columns = |key: &String| matches!(self.file.shape(key).as_deref(), Some([1, n]) if *n != 1);
        if magnitude.as_ref().is_some_and(by_columns) && self.layout == Layout::Diffusers {
            return Err(self.problem(&patch.name, "diffusers knows DoRA over rows alone".into()));
        }
        let alpha = key(Part::Alpha).and_then(|key| self.file.dtype(&key));
        let (bias, ranks, scale) = (key(Part::UpBias), 0..rank, patch.scale);
        Ok(Band { rows, down, up, bias, magnitude, up_rows, ranks, scale, alpha })
    }

    /// Writes bands as one pair.
    fn pair(&mut self, name: &str, bands: Vec<Band>, rows: i64, swapped: bool) -> Result<()> {
        let Some(first) = bands.first().cloned() else { return Ok(()) };
        let columns = self.file.shape(&first.down).and_then(|s| s.get(1).copied()).unwrap_or(0);
        let same = self.share_first_matrix(&bands)?;
        let len = |range: &Range<i64>| range.end - range.start;
        let rank = if same { len(&first.ranks) } else { bands.iter().map(|band| len(&band.ranks)).sum() };
        let (bands, file) = (Rc::new(bands), Rc::clone(&self.file));
        let scaled =
            Scaled { rank, scale: scale_of_all(&bands), alpha: bands.iter().find_map(|band| band.alpha) };
        self.modules.insert(name.to_string(), scaled);

        let down = (Rc::clone(&file), Rc::clone(&bands));
        let ending = self.ending(Part::Down);
        self.push(
            format!("{name}.{ending}"),
            self.dtype(&first.down),
            vec![rank, columns],
            Box::new(move || {
                let (file, bands) = &down;
                let bands = if same { &bands[..1] } else { &bands[..] };
                let rows = |band: &Band| narrowed(&file.tensor(&band.down)?, 0, &band.ranks);
                Ok(Tensor::f_cat(&bands.iter().map(rows).collect::<Result<Vec<_>>>()?, 0)?)
            }),
        );

        let up = (Rc::clone(&file), Rc::clone(&bands));
        let ending = self.ending(Part::Up);
        self.push(
            format!("{name}.{ending}"),
            self.dtype(&first.up),
            vec![rows, rank],
            Box::new(move || {
                let (file, bands) = &up;
                second_matrix(file, bands, same, [rows, rank]).and_then(|up| turned(up, swapped))
            }),
        );

        for (part, keys) in [
            (Part::UpBias, bands.iter().map(|band| band.bias.clone()).collect::<Vec<_>>()),
            (Part::Magnitude, bands.iter().map(|band| band.magnitude.clone()).collect()),
        ] {
            let Some(key) = keys.iter().flatten().next().cloned() else { continue };
            let all = bands.iter().map(|band| len(&band.rows)).sum::<i64>() == rows;
            if part == Part::Magnitude && (keys.contains(&None) || !all) {
                let reason = "DoRA of some parts of a joined layer cannot be said of the whole";
                return Err(self.problem(&key, reason.into()));
            }
            let dtype = self.dtype(&key);
            let of_columns = self.file.shape(&key).filter(|s| matches!(s[..], [1, n] if n != 1));
            let shape = match (&of_columns, part, self.layout) {
                (Some(shape), ..) => shape.clone(),
                (None, Part::Magnitude, Layout::Official | Layout::Comfy | Layout::Llama | Layout::XLabs) => {
                    vec![rows, 1]
                }
                _ => vec![rows],
            };
            let ending = self.ending(part);
            let (file, bands, of_columns) = (Rc::clone(&file), Rc::clone(&bands), of_columns.is_some());
            let made = shape.clone();
            self.push(
                format!("{name}.{ending}"),
                dtype,
                shape,
                Box::new(move || {
                    if of_columns {
                        return file.tensor(&key);
                    }
                    let out = Tensor::f_zeros([rows], (file.tensor(&key)?.kind(), tch::Device::Cpu))?;
                    for (band, key) in bands.iter().zip(&keys) {
                        let Some(key) = key else { continue };
                        let values = narrowed(&file.tensor(key)?.f_view([-1])?, 0, &band.up_rows)?;
                        narrowed(&out, 0, &band.rows)?.f_copy_(&values)?;
                    }
                    Ok(turned(out, swapped)?.f_view(&made[..])?)
                }),
            );
        }
        Ok(())
    }

    /// Whether all bands have the same first matrix at the same scale.
    fn share_first_matrix(&self, bands: &[Band]) -> Result<bool> {
        let [first, others @ ..] = bands else { return Ok(true) };
        let first_down = narrowed(&self.file.tensor(&first.down)?, 0, &first.ranks)?;
        for band in others {
            if band.scale != first.scale || band.down == first.down && band.ranks != first.ranks {
                return Ok(false);
            }
            if band.down != first.down {
                let down = narrowed(&self.file.tensor(&band.down)?, 0, &band.ranks)?;
                if down.kind() != first_down.kind() || down.size() != first_down.size() {
                    return Ok(false);
                }
                if !first_down.f_equal(&down)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// The second matrix: the bands below each other where they share the first one, else along the diagonal.
fn second_matrix(file: &Checkpoint, bands: &[Band], same: bool, [rows, rank]: [i64; 2]) -> Result<Tensor> {
    let Some(first) = bands.first() else { return Err(Error::Config("a pair of nothing".into())) };
    let out = Tensor::f_zeros([rows, rank], (file.tensor(&first.up)?.kind(), tch::Device::Cpu))?;
    let mut at = 0;
    for band in bands {
        let up = narrowed(&file.tensor(&band.up)?, 0, &band.up_rows)?;
        let up = narrowed(&up, 1, &band.ranks)?;
        // One scale stands for all.
        let scale = scale_of_all(bands);
        let up = match band.scale == scale {
            true => up,
            false => up.f_to_kind(Kind::Float)?.f_mul_scalar(band.scale / scale)?,
        };
        let len = band.ranks.end - band.ranks.start;
        narrowed(&narrowed(&out, 0, &band.rows)?, 1, &(at..at + len))?.f_copy_(&up)?;
        at += if same { 0 } else { len };
    }
    Ok(out)
}

/// The scale that stands for those of all bands: the first one that does not switch its band off.
fn scale_of_all(bands: &[Band]) -> f64 {
    bands.iter().map(|band| band.scale).find(|scale| *scale != 0.0).unwrap_or(0.0)
}

/// Which columns of a second matrix each of its shares of rows uses: all of them, or its own block where they stand along
/// the diagonal. `None` for one that is zeros, unless all are.
fn blocks(up: &Tensor, shares: &[Range<i64>]) -> Result<Vec<Option<Range<i64>>>> {
    let rank = up.size().get(1).copied().unwrap_or(0);
    let used = shares.iter().map(|rows| used_columns(&narrowed(up, 0, rows)?)).collect::<Result<Vec<_>>>()?;
    let there = used.iter().flatten().count();
    let fits = |blocks: i64, of: &[&Option<Range<i64>>]| {
        blocks > 1
            && rank % blocks == 0
            && (0..).zip(of).all(|(i, used)| {
                let block = i * rank / blocks..(i + 1) * rank / blocks;
                used.as_ref().is_none_or(|used| block.start <= used.start && used.end <= block.end)
            })
    };
    let block = |i: usize, n: usize| i as i64 * rank / n as i64..(i as i64 + 1) * rank / n as i64;
    if fits(shares.len() as i64, &used.iter().collect::<Vec<_>>()) {
        return Ok((0..shares.len()).map(|i| Some(block(i, shares.len()))).collect());
    }
    let of_those_there: Vec<_> = used.iter().filter(|used| used.is_some()).collect();
    if fits(there as i64, &of_those_there) {
        let mut i = 0;
        let next = |used: &Option<Range<i64>>| {
            used.as_ref()?;
            i += 1;
            Some(block(i - 1, there))
        };
        return Ok(used.iter().map(next).collect());
    }
    Ok(used.iter().map(|used| (used.is_some() || there == 0).then_some(0..rank)).collect())
}

/// From the first to the last column that is not all zeros.
fn used_columns(rows: &Tensor) -> Result<Option<Range<i64>>> {
    let used = rows.f_not_equal(0)?.f_any_dim(0, false)?;
    let used: Vec<bool> = Vec::try_from(used)?;
    let first = used.iter().position(|used| *used);
    let last = used.iter().rposition(|used| *used);
    Ok(first.zip(last).map(|(first, last)| first as i64..last as i64 + 1))
}

fn narrowed(tensor: &Tensor, axis: i64, range: &Range<i64>) -> Result<Tensor> {
    Ok(tensor.f_narrow(axis, range.start, range.end - range.start)?)
}

fn turned(tensor: Tensor, swapped: bool) -> Result<Tensor> {
    if swapped { halves_swapped(&tensor) } else { Ok(tensor) }
}
