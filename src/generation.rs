//! The parts put together: a request in, pictures out.
//!
//! prompt → tokens → text states → noise and positions → times → velocity steps → latents → pixels.
//!
//! `pipeline` composes what the other files do: `loader` opens and loads the parts that `parts` names, `models` owns what is
//! loaded, `text` and `conditions` encode what a request says, `batch` and `steps` walk from noise to latents, `autoencoder`
//! makes pixels of them; `memory` and `plan` say what that takes.

mod autoencoder;
mod batch;
mod batch_key;
mod conditions;
mod configs;
mod damage;
mod denoise;
mod drawing;
mod folder;
mod jobs;
mod loader;
mod loras;
mod memory;
mod model_index;
mod models;
mod opened;
pub mod params;
mod part_kind;
mod parts;
mod pipeline;
mod plan;
mod preview;
mod progress;
pub mod provenance;
mod request;
mod resident;
mod settings;
mod steps;
mod text;
mod times;
mod transformer;
mod variation;
mod weights;

pub use conditions::Conditions;
pub use conditions::control::Control;
pub use conditions::edit::{ControlPreprocess, Edit, Role};
pub use conditions::ip_adapter::IpAdapterImage;
pub use conditions::redux::{Redux, ReduxImage, ReduxMix};
pub use denoise::denoise;
pub use loras::LoraFile;
pub use memory::Memory;
pub use params::Request;
pub use part_kind::PartKind;
#[cfg(feature = "hub")]
pub(crate) use parts::{MODEL_INDEX, SCHEDULER};
pub use parts::{PartOverrides, Parts, PreviewBy};
pub use pipeline::Pipeline;
pub use plan::Plan;
pub use progress::{Generated, OnBatchProgress, OnProgress, Phase, Progress};
pub use settings::{Offload, Settings};
pub use variation::Variation;
pub use weights::Weights;
