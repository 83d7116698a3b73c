//! The models: each has the names and shapes of its official `state_dict`, and knows no file.

pub mod autoencoder;
pub mod flux1;
pub mod text;
pub mod vision;
