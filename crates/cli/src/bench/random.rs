//! Weights to measure with.

use tch::nn::VarStore;
use tch::{Kind, Tensor};
use tch_flux::nn::Linears;

/// How many random numbers are drawn, and repeated throughout a model: a prime, so that no two rows of a matrix are equal.
const COUNT: i64 = 1_048_583;

/// Gives every parameter of the store numbers like a trained model's, in the store's kind: normal ones of the deviation
/// 1/√fan_in for weights and biases, 1 for the scales of norms, 0 for their biases. Then freezes the store. No memory is
/// used beside the weights.
pub(super) fn fill(vs: &mut VarStore) -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(0);
    let options = (vs.kind(), vs.device());
    let drawn = normal(&[COUNT], options.0, vs)?;
    let variables = vs.variables();
    for (name, variable) in &variables {
        let weight = name.strip_suffix("bias").and_then(|layer| variables.get(&format!("{layer}weight")));
        let size = variable.size();
        let mut value = Tensor::f_empty(&size, options)?;
        let _ = match (size.len(), weight.map(Tensor::size)) {
            // A vector without a matrix beside it scales or shifts a norm.
            (1, None) => value.f_fill_(1)?,
            (1, Some(weight)) if weight.len() == 1 => value.f_zero_()?,
            (_, weight) => {
                let fan_in: i64 = weight.unwrap_or(size)[1..].iter().product();
                let (flat, len) = (value.f_view([-1])?, value.numel() as i64);
                for from in (0..len).step_by(COUNT as usize) {
                    let count = COUNT.min(len - from);
                    flat.f_narrow(0, from, count)?.f_copy_(&drawn.f_narrow(0, 0, count)?)?;
                }
                value.f_mul_scalar_(1.0 / (fan_in as f64).sqrt())?
            }
        };
        variable.shallow_clone().f_set_data(&value)?;
    }
    vs.freeze();
    Ok(())
}

/// Normal numbers on the store's device.
pub(super) fn normal(size: &[i64], kind: Kind, vs: &VarStore) -> anyhow::Result<Tensor> {
    Ok(Tensor::f_randn(size, (Kind::Float, vs.device()))?.f_to_kind(kind)?)
}

/// What the weights take: a parameter that is kept as int8 or fp8 one byte a number, and a scale and a sum for each row.
pub(super) fn bytes(vs: &VarStore, linears: Option<&Linears>) -> u64 {
    let stored = |name: &str| linears.is_some_and(|linears| linears.is_stored(name));
    let size_in_bytes = |(name, variable): (&String, &Tensor)| match stored(name) {
        true => variable.numel() + 8 * variable.size()[0] as usize,
        false => variable.numel() * variable.kind().elt_size_in_bytes(),
    };
    vs.variables().iter().map(size_in_bytes).sum::<usize>() as u64
}
