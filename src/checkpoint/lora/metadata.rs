//! What peft and diffusers say about a LoRA outside its tensors: the alphas.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::names::without_prefixes;
use super::target::Component;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::safetensors::printable;
use crate::error::{Error, FileProblem, Result};

/// The settings of a file, for each model; none where neither its header nor a file beside it has any.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<Component, Adapter>);

/// `LoraConfig`, `LoHaConfig` or `LoKrConfig`, as far as the scale depends on it.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Adapter {
    #[serde(alias = "lora_alpha")]
    alpha: Option<f64>,
    r: Option<i64>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    rank_pattern: Option<BTreeMap<String, i64>>,
    use_rslora: Option<bool>,
}

impl Settings {
    /// Reads `lora_adapter_metadata` from the header, as diffusers writes it, or else the `adapter_config.json` that
    /// peft writes beside `adapter_model.safetensors`.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.files().first().map(|p| p.to_path_buf()).unwrap_or_default();
        let header = checkpoint.headers().into_iter().find_map(|h| h.metadata.get("lora_adapter_metadata"));
        if let Some(text) = header {
            return Self::from_header(text).map_err(|reason| {
                Error::file(&path)(FileProblem::Settings {
                    reason: format!("lora_adapter_metadata: {reason}"),
                })
            });
        }
        let beside = path.with_file_name("adapter_config.json");
        if path.file_name().is_some_and(|name| name == "adapter_model.safetensors") && beside.is_file() {
            return Self::from_file(&beside);
        }
        Ok(Self::default())
    }

    /// One object with the settings of all models, `transformer.lora_alpha` …, or of the transformer alone without the
    /// prefix.
    fn from_header(text: &str) -> std::result::Result<Self, String> {
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|e| printable(&e))?;
        let mut settings = BTreeMap::new();
        for (model, prefix) in [
            (Component::Transformer, "transformer."),
            (Component::Clip, "text_encoder."),
            (Component::T5, "text_encoder_2."),
        ] {
            let own = all.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone())));
            let own: Map<String, Value> = own.collect();
            if !own.is_empty() {
                settings.insert(model, Adapter::new(Value::Object(own))?);
            }
        }
        if settings.is_empty() {
            settings.insert(Component::Transformer, Adapter::new(Value::Object(all))?);
        }
        Ok(Self(settings))
    }

    fn from_file(path: &Path) -> Result<Self> {
        let text = crate::checkpoint::file::read_index(path)?;
        let problem = |reason| Error::file(path)(FileProblem::Settings { reason });
        let value = serde_json::from_str(&text).map_err(|e| problem(printable(&e)))?;
        let adapter = Adapter::new(value).map_err(problem)?;
        Ok(Self(
            [Component::Transformer, Component::Clip, Component::T5].map(|m| (m, adapter.clone())).into(),
        ))
    }

    /// The scale of a module without an alpha of its own: 1 where nothing is said. `rank` is what its matrices show.
    pub fn scale(&self, model: Component, module: &str, rank: Option<i64>) -> f64 {
        let Some(adapter) = self.0.get(&model) else { return 1.0 };
        let alpha = pattern(&adapter.alpha_pattern, module).or(adapter.alpha);
        let rank = rank.or_else(|| pattern(&adapter.rank_pattern, module)).or(adapter.r);
        match (alpha, rank) {
            (Some(alpha), Some(rank)) if adapter.use_rslora == Some(true) => alpha / (rank as f64).sqrt(),
            (Some(alpha), Some(rank)) => alpha / rank as f64,
            _ => 1.0,
        }
    }
}

impl Adapter {
    fn new(value: Value) -> std::result::Result<Self, String> {
        let adapter: Self = serde_json::from_value(value).map_err(|e| printable(&e))?;
        let alphas = adapter.alpha.iter().chain(adapter.alpha_pattern.iter().flat_map(BTreeMap::values));
        let ranks = adapter.r.iter().chain(adapter.rank_pattern.iter().flat_map(BTreeMap::values));
        if alphas.into_iter().any(|a| !a.is_finite()) || ranks.into_iter().any(|r| *r <= 0) {
            return Err("an alpha of it is no finite number, or a rank of it is not above 0".into());
        }
        let names = adapter.alpha_pattern.iter().flat_map(BTreeMap::keys);
        let names = names.chain(adapter.rank_pattern.iter().flat_map(BTreeMap::keys));
        for name in names {
            if name.trim_start_matches('^').contains(['^', '$', '*', '+', '?', '(', '[', '{', '|', '\\']) {
                return Err(format!("the pattern {name:?} is a regular expression, not a module's name"));
            }
        }
        Ok(adapter)
    }
}

/// The value of the pattern that names the module, or with a `^` before it, names it whole.
fn pattern<T: Copy>(patterns: &Option<BTreeMap<String, T>>, module: &str) -> Option<T> {
    let whole = without_prefixes(module);
    patterns.iter().flatten().find_map(|(name, value)| {
        let fits = match name.strip_prefix('^') {
            Some(name) => name == whole,
            None => {
                whole.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        };
        fits.then_some(*value)
    })
}
