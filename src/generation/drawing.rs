//! The pictures of requests, each with what it is drawn from.

use tch::Tensor;

use super::conditions::edit_inputs::InitLatents;
use super::conditions::ip_adapter::ImagePrompts;
use super::text::Text;
use super::{Conditions, Request};

/// A picture on its way.
pub(super) struct Drawing<'a> {
    /// Whose it is: a place among the requests.
    pub(super) job: usize,
    /// Which of that request's pictures.
    pub(super) image: usize,
    /// Of how many.
    pub(super) images: usize,
    /// What draws it alone.
    pub(super) request: Request,
    pub(super) text: &'a Text,
    pub(super) conditioning: &'a Conditioning,
}

/// What the pictures of a request are drawn from beside its prompts.
#[derive(Default)]
pub(super) struct Conditioning {
    pub(super) init: Option<InitLatents>,
    pub(super) conditions: Conditions,
    /// What ControlNets follow, in the order of [`Request::controls`].
    pub(super) controls: Vec<Tensor>,
    /// What the transformer attends to beside the text.
    pub(super) image_prompts: ImagePrompts,
}

/// Every picture of the requests of these places, with the request that draws it alone.
pub(super) fn drawings<'a>(
    requests: &[Request],
    texts: &'a [Vec<Text>],
    conditioning: &'a [Conditioning],
    jobs: impl IntoIterator<Item = usize>,
) -> Vec<Drawing<'a>> {
    let mut drawings = Vec::new();
    for job in jobs {
        let (request, conditioning) = (&requests[job], &conditioning[job]);
        let images = request.prompts.len() * request.num_images;
        for (prompt, text) in request.prompts.iter().zip(&texts[job]) {
            for i in 0..request.num_images {
                let (seed, variation) = request.seeds(i);
                let prompts = vec![prompt.clone()];
                let alone = Request { prompts, num_images: 1, seed, variation, ..request.clone() };
                let image = drawings.iter().filter(|drawing: &&Drawing| drawing.job == job).count();
                drawings.push(Drawing { job, image, images, request: alone, text, conditioning });
            }
        }
    }
    drawings
}
