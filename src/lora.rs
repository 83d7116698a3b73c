//! stub
use tch::Tensor;
#[derive(Debug)]
pub struct Term;
pub(crate) fn is_low_rank_only(_: &[Term]) -> bool {
    true
}
pub(crate) fn add_low_rank(_: &Tensor, y: Tensor, _: &[Term]) -> Tensor {
    y
}
pub(crate) fn merged(w: &Tensor, _: &[Term]) -> Tensor {
    w.shallow_clone()
}
