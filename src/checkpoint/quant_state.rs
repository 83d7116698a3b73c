//! Tensors that belong to other tensors: scales, lookup tables and notes of quantised files. Each must have its tensor,
//! and each tensor that needs one must have it: a scale that is ignored gives a white picture and no error.

use std::collections::{BTreeMap, BTreeSet};

use ::safetensors::Dtype;
use serde::Deserialize;

use super::file::WeightFile;
use super::safetensors::{Entry, printable, shorten};
use super::source::{FourBitState, Place, Source, Stored};
use crate::error::{Error, FileProblem, Result};
use crate::quant::Encoding;

/// The names of a scale of fp8 weights, ComfyUI's older and newer one.
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];
/// Scales of activations, for products in fp8. The products here are not, so these change nothing.
const INPUT_SCALES: [&str; 2] = [".scale_input", ".input_scale"];
/// The marker of a file whose fp8 weights all have a scale.
const MARKER: &str = "scaled_fp8";
/// Tables that are looked up in: ComfyUI scales linear layers alone.
const EMBEDDINGS: [&str; 4] =
    ["shared.weight", "embed_tokens.weight", "embedding.weight", "relative_attention_bias.weight"];
/// What ComfyUI notes of a quantised layer.
const NOTE: &str = ".comfy_quant";
/// Companions of bitsandbytes' four bits, after the weight's own name.
const FOUR_BIT: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// Whether a name is that of a table that is looked up in.
pub(crate) fn is_embedding(name: &str) -> bool {
    EMBEDDINGS.iter().any(|end| name.ends_with(end))
}

type Tensors = BTreeMap<String, Source>;

/// Takes the companions out of the tensors and ties each to its own.
///
/// # Errors
/// [`Error::File`] names the tensor whose companion is missing, unused, or makes no sense.
pub(super) fn tie(files: &[WeightFile], tensors: &mut Tensors) -> Result<()> {
    let mut tying = Tying { files, tensors };
    tying.notes()?;
    tying.four_bits()?;
    tying.eight_bits()?;
    tying.fp8()
}

struct Tying<'a> {
    files: &'a [WeightFile],
    tensors: &'a mut Tensors,
}

impl Tying<'_> {
    fn ending(&self, end: &str) -> Vec<String> {
        self.tensors.keys().filter(|name| name.ends_with(end)).cloned().collect()
    }

    fn place(&self, name: &str) -> Option<(usize, &Entry)> {
        let part = self.tensors.get(name)?.parts.first()?;
        Some((part.file, self.files[part.file].header.entries.get(&part.entry)?))
    }

    fn problem(&self, name: &str, reason: impl Into<String>) -> Error {
        let file = self.place(name).map_or(0, |(file, _)| file);
        Error::file(&self.files[file].path)(FileProblem::Tensor {
            name: shorten(name),
            reason: reason.into(),
        })
    }

    fn encoding(&self, name: &str) -> Option<Encoding> {
        Some(self.place(name)?.1.encoding)
    }

    fn is_fp8(&self, name: &str) -> bool {
        matches!(self.encoding(name), Some(Encoding::Plain(Dtype::F8_E4M3 | Dtype::F8_E5M2)))
    }

    /// The file and the name of a companion, which is then no tensor of the model any more.
    fn take(&mut self, name: &str) -> Option<Place> {
        let part = self.tensors.remove(name)?.parts.into_iter().next()?;
        Some((part.file, part.entry))
    }

    /// The JSON in a small tensor of bytes.
    fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let (file, entry) = self.place(name).ok_or_else(|| self.problem(name, "is missing"))?;
        if entry.encoding != Encoding::Plain(Dtype::U8) || entry.end - entry.begin > 1 << 16 {
            return Err(self.problem(name, "should be a short JSON text, as bytes"));
        }
        let bytes = self.files[file].bytes(entry)?;
        serde_json::from_slice(&bytes).map_err(|e| self.problem(name, printable(&e)))
    }

    /// bitsandbytes' nf4 and fp4: the numbers are packed, and the shape stands in a note.
    fn four_bits(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct State {
            shape: Vec<i64>,
        }
        for state in [FourBitState::Nf4, FourBitState::Fp4] {
            let end = state.note();
            for note in self.ending(end) {
                let weight = note[..note.len() - end.len()].to_string();
                let Some((file, entry)) = self.place(&weight) else {
                    return Err(self.problem(&note, format!("there is no {}", shorten(&weight))));
                };
                let (packed, entry) = (entry.end - entry.begin, entry.name.clone());
                let State { shape } = self.json(&note)?;
                let count = shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d).filter(|_| d >= 0));
                if shape.len() > 8 || count.is_none_or(|count| count as u64 > 2 * packed) {
                    let reason =
                        format!("the shape {shape:?} does not fit {packed} bytes of four-bit numbers");
                    return Err(self.problem(&note, reason));
                }
                let ends = FOUR_BIT.into_iter().chain([end]);
                let taken = |end| Some((end, self.take(&format!("{weight}{end}"))?));
                let companions = ends.filter_map(taken).collect();
                let source = Source::whole(file, &entry, Stored::FourBit { state, companions }, shape);
                self.tensors.insert(weight, source);
            }
        }
        for end in FOUR_BIT {
            if let Some(lost) = self.ending(end).first() {
                let reason = "belongs to a four-bit tensor, but nothing says which kind (….quant_state.bitsandbytes__nf4 is missing)";
                return Err(self.problem(lost, reason));
            }
        }
        Ok(())
    }

    /// bitsandbytes' `LLM.int8`: a scale for each row.
    fn eight_bits(&mut self) -> Result<()> {
        for scb in self.ending(".SCB") {
            let layer = scb[..scb.len() - 4].to_string();
            let weight = format!("{layer}.weight");
            let (rows, row) = match self.tensors.get(&weight).map(|source| &source.shape[..]) {
                Some(&[rows, row]) if self.encoding(&weight) == Some(Encoding::Plain(Dtype::I8)) => {
                    (rows, row)
                }
                _ => {
                    return Err(
                        self.problem(&scb, format!("there is no 8-bit matrix {} to scale", shorten(&weight)))
                    );
                }
            };
            let fits = self.place(&scb).is_some_and(|(_, entry)| {
                entry.encoding == Encoding::Plain(Dtype::F32) && entry.numel() == rows as u64
            });
            if !fits {
                return Err(
                    self.problem(&scb, format!("should hold {rows} numbers in F32, one for each row"))
                );
            }
            let format = format!("{layer}.weight_format");
            if let Some((file, entry)) = self.place(&format) {
                // Older versions stored the numbers in the order of a GPU's own.
                if self.files[file].bytes(entry)?.iter().any(|&byte| byte != 0) {
                    return Err(self.problem(&format, "says that the numbers are not stored row by row"));
                }
                self.take(&format);
            }
            let Some(scb) = self.take(&scb) else { continue };
            self.tie_to(&weight, Stored::Int8 { scb, row: row as usize });
        }
        Ok(())
    }

    /// ComfyUI's notes, layer by layer or in the header: what they say must be known here.
    fn notes(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Note {
            format: String,
        }
        #[derive(Deserialize)]
        struct Notes {
            layers: BTreeMap<String, Note>,
        }
        if let Some(second) = self.ending(".weight_scale_2").first() {
            return Err(
                self.problem(second, "this is nvfp4, which is not supported: take the bf16 or the fp8 file")
            );
        }
        let mut formats = Vec::new();
        for name in self.ending(NOTE) {
            let Note { format } = self.json(&name)?;
            self.take(&name);
            formats.push((name[..name.len() - NOTE.len()].to_string(), format));
        }
        for file in self.files {
            let Some(text) = file.header.metadata.get("_quantization_metadata") else { continue };
            let notes: Notes = serde_json::from_str(text).map_err(|e| {
                let reason = format!("_quantization_metadata: {}", printable(&e));
                Error::file(&file.path)(FileProblem::HeaderNotJson { reason })
            })?;
            formats.extend(notes.layers.into_iter().map(|(layer, note)| (layer, note.format)));
        }
        for (layer, format) in formats {
            let weight = format!("{layer}.weight");
            let wanted = match format.as_str() {
                "float8_e4m3fn" => Dtype::F8_E4M3,
                "float8_e5m2" => Dtype::F8_E5M2,
                other => {
                    let reason = format!(
                        "is quantised as {:?}, which is not supported: take the bf16, fp8 or GGUF file",
                        shorten(other)
                    );
                    return Err(self.problem(&weight, reason));
                }
            };
            match self.encoding(&weight) {
                Some(found) if found == Encoding::Plain(wanted) => {}
                Some(found) => {
                    return Err(self.problem(
                        &weight,
                        format!("should be {format} by the file's own note, but is {found}"),
                    ));
                }
                None => {
                    return Err(
                        self.problem(&weight, format!("is missing, though a note says that it is {format}"))
                    );
                }
            }
            if !SCALES.iter().any(|end| self.tensors.contains_key(&format!("{layer}{end}"))) {
                return Err(
                    self.problem(&weight, "should have a scale by the file's own note, but it is missing")
                );
            }
        }
        Ok(())
    }

    fn fp8(&mut self) -> Result<()> {
        // Several models in one file are quantised each in its own way.
        let mut scaled_models = BTreeSet::new();
        for marker in self.ending(MARKER) {
            let prefix = &marker[..marker.len() - MARKER.len()];
            if prefix.is_empty() || prefix.ends_with('.') {
                scaled_models.insert(prefix.to_string());
                self.take(&marker);
            }
        }
        for end in SCALES {
            for scale in self.ending(end) {
                let weight = format!("{}.weight", &scale[..scale.len() - end.len()]);
                if !self.is_fp8(&weight) {
                    let mut reason =
                        format!("is a scale of {}, but that is no fp8 tensor of this file", shorten(&weight));
                    if self.encoding(&weight) == Some(Encoding::Plain(Dtype::I8)) {
                        reason = format!(
                            "is a scale of {}, which is int8 as ComfyUI's int8_tensorwise and others have it; that is \
                             not supported: take the bf16, fp8 or GGUF file",
                            shorten(&weight)
                        );
                    }
                    return Err(self.problem(&scale, reason));
                }
                let shape = self.tensors[&weight].shape.clone();
                let rows = shape.first().copied().unwrap_or(1) as u64;
                let row = shape.iter().skip(1).product::<i64>() as usize;
                let fits = self.place(&scale).is_some_and(|(_, entry)| {
                    let one_a_row = entry.numel() == rows
                        && entry.shape.first() == shape.first()
                        && entry.shape.iter().skip(1).all(|&d| d == 1);
                    matches!(entry.encoding, Encoding::Plain(Dtype::F32 | Dtype::BF16 | Dtype::F16))
                        && (entry.numel() == 1 || one_a_row)
                });
                if !fits {
                    let mut reason = format!("should be one number, or one for each of the {rows} rows");
                    // Powers of two, one for each 32 numbers.
                    if matches!(self.encoding(&scale), Some(Encoding::Plain(Dtype::U8 | Dtype::F8_E8M0))) {
                        reason.push_str(
                            "; this is mxfp8, which is not supported: take the bf16 or the fp8 file",
                        );
                    }
                    return Err(self.problem(&scale, reason));
                }
                if self.tensors[&weight].parts[0].stored != Stored::Plain {
                    return Err(self.problem(&scale, "is a second scale of the same tensor"));
                }
                let prefix = self.model_of(&weight);
                scaled_models.insert(prefix);
                let Some(scale) = self.take(&scale) else { continue };
                self.tie_to(&weight, Stored::Scaled { scale, row });
            }
        }
        for end in INPUT_SCALES {
            for scale in self.ending(end) {
                let weight = format!("{}.weight", &scale[..scale.len() - end.len()]);
                if !self.is_fp8(&weight) {
                    let reason = format!(
                        "is a scale for {}, but that is no fp8 tensor of this file",
                        shorten(&weight)
                    );
                    return Err(self.problem(&scale, reason));
                }
                self.take(&scale);
            }
        }
        let unscaled = self.tensors.iter().find(|(name, source)| {
            source.shape.len() == 2
                && !is_embedding(name)
                && self.is_fp8(name)
                && source.parts[0].stored == Stored::Plain
                && scaled_models.iter().any(|prefix| name.starts_with(prefix.as_str()))
        });
        match unscaled {
            Some((name, _)) => {
                let reason = "is fp8 in a file whose fp8 tensors are scaled, but its scale is missing";
                Err(self.problem(name, reason))
            }
            None => Ok(()),
        }
    }

    /// The prefix of the model that a tensor of ComfyUI's all-in-one file belongs to.
    fn model_of(&self, name: &str) -> String {
        let models =
            ["model.diffusion_model.", "diffusion_model.", "vae.", "first_stage_model.", "text_encoders."];
        let Some(prefix) = models.iter().find(|prefix| name.starts_with(**prefix)) else {
            return String::new();
        };
        if *prefix != "text_encoders." {
            return prefix.to_string();
        }
        let encoder = name[prefix.len()..].split('.').next().unwrap_or_default();
        format!("{prefix}{encoder}.")
    }

    fn tie_to(&mut self, weight: &str, stored: Stored) {
        if let Some(part) = self.tensors.get_mut(weight).and_then(|source| source.parts.first_mut()) {
            part.stored = stored;
        }
    }
}
