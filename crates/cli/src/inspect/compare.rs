//! `inspect --compare`: how two files differ.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tch::{Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint};

use crate::output::print_json;

/// What differs between two files.
#[derive(Debug, Default, Serialize)]
struct Difference {
    /// Whether the names were compared after both were brought to the official ones.
    official_names: bool,
    /// Tensors of both.
    tensors: usize,
    /// Names that one of them alone has.
    only_in_first: Vec<String>,
    only_in_second: Vec<String>,
    shapes: Vec<Changed<Vec<i64>>>,
    kinds: Vec<Changed<String>>,
    /// Where asked for: tensors of one shape whose numbers differ, the largest difference first.
    values: Option<Vec<Value>>,
}

#[derive(Debug, Serialize)]
struct Changed<T> {
    name: String,
    first: T,
    second: T,
}

/// How far the numbers of a tensor are apart.
#[derive(Debug, Serialize)]
struct Value {
    name: String,
    /// The largest difference; `None` where one side is no number.
    largest: Option<f64>,
    /// The largest number of the first file, to judge it by.
    of: f64,
}

pub(super) fn run(first: &Path, second: &Path, values: bool, json: bool) -> anyhow::Result<ExitCode> {
    let open = |path| Checkpoint::open(path, Access::Read);
    let (mut a, mut b) = (open(first)?, open(second)?);
    // The same model in two layouts: the names say nothing, the rest does.
    let official_names = a.family() != b.family() && a.family().name() == b.family().name();
    if official_names {
        (a, b) = (a.official(), b.official());
    }
    let difference = compare(&a, &b, official_names, values)?;
    let same = difference.is_nothing();
    if json {
        print_json(&difference)?;
    } else {
        difference.print(first, second);
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(a: &Checkpoint, b: &Checkpoint, official_names: bool, values: bool) -> anyhow::Result<Difference> {
    let names = |checkpoint: &Checkpoint| checkpoint.names().map(str::to_string).collect::<BTreeSet<_>>();
    let (in_a, in_b) = (names(a), names(b));
    let mut difference = Difference {
        official_names,
        only_in_first: in_a.difference(&in_b).cloned().collect(),
        only_in_second: in_b.difference(&in_a).cloned().collect(),
        values: values.then(Vec::new),
        ..Difference::default()
    };
    for name in in_a.intersection(&in_b) {
        difference.tensors += 1;
        let (first, second) = (a.shape(name).unwrap_or_default(), b.shape(name).unwrap_or_default());
        let same_shape = first == second;
        if !same_shape {
            difference.shapes.push(Changed { name: name.clone(), first, second });
        }
        let stored = |c: &Checkpoint| c.stored_as(name).unwrap_or_default();
        if stored(a) != stored(b) {
            difference.kinds.push(Changed { name: name.clone(), first: stored(a), second: stored(b) });
        }
        if let Some(values) = difference.values.as_mut().filter(|_| same_shape) {
            let (first, second) = (a.tensor_as(name, Kind::Double)?, b.tensor_as(name, Kind::Double)?);
            values.extend(apart(name, &first, &second)?);
        }
    }
    if let Some(values) = &mut difference.values {
        let size = |value: &Value| value.largest.unwrap_or(f64::INFINITY);
        values.sort_by(|x, y| size(y).total_cmp(&size(x)));
    }
    Ok(difference)
}

/// Returns how far two tensors of one shape are apart, if they are. NaN in the same place is no difference.
fn apart(name: &str, first: &Tensor, second: &Tensor) -> anyhow::Result<Option<Value>> {
    if first.numel() == 0 {
        return Ok(None);
    }
    let both_nan = first.f_isnan()?.f_logical_and(&second.f_isnan()?)?;
    let differ = first.f_ne_tensor(second)?.f_logical_and(&both_nan.f_logical_not()?)?;
    if !bool::try_from(differ.f_any()?)? {
        return Ok(None);
    }
    let largest = f64::try_from((first - second).f_abs()?.f_masked_fill(&both_nan, 0.0)?.f_max()?)?;
    let of = f64::try_from(first.f_abs()?.f_nan_to_num(0.0, None, None)?.f_max()?)?;
    Ok(Some(Value { name: name.to_string(), largest: largest.is_finite().then_some(largest), of }))
}

impl Difference {
    fn is_nothing(&self) -> bool {
        let Self { only_in_first, only_in_second, shapes, kinds, values, .. } = self;
        let same = values.as_ref().is_none_or(Vec::is_empty);
        same && only_in_first.is_empty() && only_in_second.is_empty() && shapes.is_empty() && kinds.is_empty()
    }

    fn print(&self, first: &Path, second: &Path) {
        if self.official_names {
            println!("two layouts of one model: compared under the official names");
        }
        let list = |what: String, names: Vec<String>| {
            if !names.is_empty() {
                println!("{what} ({}):", names.len());
                names.iter().for_each(|name| println!("  {name}"));
            }
        };
        list(format!("only in {}", first.display()), self.only_in_first.clone());
        list(format!("only in {}", second.display()), self.only_in_second.clone());
        let shapes = self.shapes.iter().map(|c| format!("{} {:?} and {:?}", c.name, c.first, c.second));
        list("other shapes".into(), shapes.collect());
        let kinds = self.kinds.iter().map(|c| format!("{} {} and {}", c.name, c.first, c.second));
        list("other kinds".into(), kinds.collect());
        let value = |v: &Value| match v.largest {
            Some(largest) => format!("{} by up to {largest:e} of {:e}", v.name, v.of),
            None => format!("{} by numbers that are none (NaN or infinity)", v.name),
        };
        let values = self.values.as_ref().map(|values| values.iter().map(value).collect());
        list("other values".into(), values.unwrap_or_default());
        match (self.is_nothing(), &self.values) {
            (false, _) => {}
            (true, Some(_)) => println!("{} tensors, all of them the same", self.tensors),
            (true, None) => {
                println!(
                    "{} tensors of the same names, shapes and kinds; --values compares the numbers",
                    self.tensors
                );
            }
        }
    }
}
