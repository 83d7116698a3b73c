//! From files into a variable store: each tensor is borrowed where it can be, else decoded straight into its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::safetensors::Dtype;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::file::WeightFile;
use super::safetensors::{Entry, printable};
use super::source::{FourBitState, Part, Place, Source, Stored};
use super::staging::Staging;
use super::{Checkpoint, Contained, is_embedding, is_quantised};
use crate::error::{Error, FileProblem, Mismatch, Result};
use crate::family::ModelFamily;
use crate::nn::{Linears, WeightSource};
use crate::numerics;
use crate::quant::{self, Code, Encoding, Job, Piece, QuantState, Quantized, four_bit};

/// How a checkpoint is poured into a store.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// The kind of every parameter in memory. `None` keeps the file's, which must then be one kind throughout;
    /// quantised files become [`Checkpoint::main_kind`].
    pub kind: Option<Kind>,
    /// Leaves fp8 and GGUF weights of these linear layers as they are stored; they become numbers of `kind` each time
    /// the layer runs. What else is quantised becomes numbers now.
    pub keep_quantized: Option<&'a Linears>,
    /// Leaves the weights of these linear layers, where they belong to a block of the model, in the file: they become
    /// numbers of `kind` while their block runs.
    pub offload: Option<&'a Linears>,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes in memory, borrowed ones included.
    pub bytes: u64,
    /// How many of them lie in the mapped file.
    pub borrowed: usize,
    /// How many of them are kept quantised.
    pub quantized: usize,
    /// How many of them stay in the file.
    pub offloaded: usize,
    /// The bytes that were read and written to make numbers of the rest: what is borrowed or kept, is neither.
    pub moved: u64,
    /// The kind of all that is not kept quantised.
    pub kind: Kind,
}

/// A weight that stays in its file.
#[derive(Debug)]
struct InFile {
    checkpoint: Arc<Checkpoint>,
    name: String,
}

impl InFile {
    fn each(&self, f: impl Fn(&WeightFile, &Entry, &Part)) {
        let parts = self.checkpoint.tensors.get(&self.name).map_or(&[][..], |source| &source.parts);
        parts.iter().for_each(|part| f(&self.checkpoint.files[part.file], self.checkpoint.entry(part), part));
    }
}

impl WeightSource for InFile {
    fn load(&self, kind: Kind) -> Result<Tensor> {
        self.checkpoint.tensor_as(&self.name, kind)
    }

    fn prefetch(&self) {
        self.each(|file, entry, part| file.bring(entry, &part.elements, part.of));
    }

    fn evict(&self) {
        self.each(|file, entry, part| file.let_go(entry, &part.elements, part.of));
    }
}

/// A tensor to be filled with numbers of a kind.
struct Wanted<'a> {
    name: String,
    source: &'a Source,
    kind: Kind,
}

impl Checkpoint {
    /// One tensor on the CPU under the name that the model knows: in the kind of the file, and in f32 where it is
    /// quantised or joined from several kinds.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is none of that name, else as [`Checkpoint::load`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let source = self.source(name)?;
        let mut kinds = source.parts.iter().map(|part| {
            let entry = self.entry(part);
            entry.encoding.kind().filter(|_| !is_quantised(part, entry))
        });
        let first = kinds.next().flatten();
        let kind = first.filter(|_| kinds.all(|kind| kind == first)).unwrap_or(Kind::Float);
        self.one(name, source, kind)
    }

    /// One tensor on the CPU as numbers of this kind.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`]; [`Error::File`] where the stored numbers cannot become that kind.
    pub fn tensor_as(&self, name: &str, kind: Kind) -> Result<Tensor> {
        self.one(name, self.source(name)?, kind)
    }

    fn one(&self, name: &str, source: &Source, kind: Kind) -> Result<Tensor> {
        let mut tensors = self.fill(&[Wanted { name: name.to_string(), source, kind }])?;
        tensors.pop().ok_or_else(|| Error::Config(format!("{name} was not filled")))
    }

    pub(super) fn source(&self, name: &str) -> Result<&Source> {
        self.tensors.get(name).ok_or_else(|| {
            Error::Mismatch(Box::new(Mismatch { missing: vec![name.to_string()], ..self.no_mismatch() }))
        })
    }

    /// Fills every parameter of the store, on the store's device.
    ///
    /// Names and shapes must be the same, all of them: nothing is filled otherwise. On the CPU a parameter lies in the
    /// mapped file where the file is mapped and its kind is the one asked for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that differs, [`Error::File`] with [`FileProblem::Packed`], [`Error::Changed`],
    /// [`Error::Io`], [`Error::Tch`].
    pub fn load(&self, vs: &VarStore, options: LoadOptions) -> Result<Loaded> {
        let _no_grad = tch::no_grad_guard();
        self.check_readable()?;
        self.check_unchanged()?;
        let variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
        let quantised = self.is_quantised();
        let kind = options.kind.or_else(|| self.main_kind()).unwrap_or(Kind::Float);
        let mismatch = self.compare(&variables, options.kind.is_some() || quantised, kind);
        if !mismatch.is_empty() {
            return Err(Error::Mismatch(Box::new(mismatch)));
        }
        let mut loaded = Loaded {
            tensors: variables.len(),
            bytes: 0,
            borrowed: 0,
            quantized: 0,
            offloaded: 0,
            moved: 0,
            kind,
        };
        let (mut plain, mut kept) = (Vec::with_capacity(variables.len()), Vec::new());
        let mut away = Vec::new();
        for (name, variable) in variables {
            let source = self.source(&name)?;
            if let Some(linears) = options.offload.filter(|linears| linears.is_in_block(&name)) {
                loaded.offloaded += 1;
                away.push((linears, name, variable));
                continue;
            }
            if let Some(linears) = options.keep_quantized.filter(|linears| linears.contains(&name))
                && let Some(stored) = self.keep(&name, source, vs.device())?
            {
                loaded.bytes += stored.nbytes() as u64;
                loaded.quantized += 1;
                kept.push((linears, name, variable, stored));
                continue;
            }
            let kind = if is_integer(variable.kind()) { variable.kind() } else { kind };
            plain.push((variable, Wanted { name, source, kind }));
        }
        let (variables, wanted): (Vec<Tensor>, Vec<Wanted>) = plain.into_iter().unzip();
        let tensors = match vs.device() {
            Device::Cpu => self.fill(&wanted)?,
            device => self.fill_on(device, &wanted)?,
        };
        for (tensor, Wanted { source, .. }) in tensors.iter().zip(&wanted) {
            let bytes = (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
            loaded.bytes += bytes;
            if self.files.iter().any(|file| file.holds(tensor)) {
                loaded.borrowed += 1;
            } else {
                loaded.moved += bytes + source.parts.iter().map(|part| self.part_bytes(part)).sum::<u64>();
            }
        }
        // Only now, so that a file that fails half-way leaves the model as it was.
        for (mut variable, tensor) in variables.into_iter().zip(tensors) {
            variable.f_set_data(&tensor)?;
        }
        // The variable tells the kind to compute in, and has no values.
        let empty = |mut variable: Tensor| {
            let placeholder = Tensor::f_full([1], f64::NAN, (kind, vs.device()))?;
            variable.f_set_data(&placeholder.f_expand(variable.size(), false)?)
        };
        for (linears, name, variable, stored) in kept {
            empty(variable)?;
            linears.store(&name, stored);
        }
        let shared = Arc::new(self.clone());
        for (linears, name, variable) in away {
            empty(variable)?;
            let checkpoint = shared.clone();
            linears.offload(&name, Arc::new(InFile { checkpoint, name: name.clone() }));
        }
        Ok(loaded)
    }

    /// The numbers of tensors on the CPU: where they lie in the mapped file if they can stay there, else in memory of
    /// their own, decoded straight into their places, all of them at once on all cores.
    fn fill(&self, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
        let mut tensors: Vec<Option<Tensor>> = Vec::with_capacity(wanted.len());
        let (mut fresh, mut codes) = (Vec::new(), Vec::new());
        for (i, Wanted { name, source, kind }) in wanted.iter().enumerate() {
            let borrowed = self.as_it_is(source, *kind)?;
            if borrowed.is_none() {
                let out = numerics::empty(&source.filled_shape(), *kind)?;
                let each = source.parts.iter().map(|part| self.code(name, part));
                codes.push(each.collect::<Result<Vec<Code>>>()?);
                fresh.push((i, source, out));
            }
            tensors.push(borrowed);
        }
        let mut jobs = Vec::with_capacity(fresh.len());
        for ((_, source, out), codes) in fresh.iter().zip(&codes) {
            let part = |(part, code): (&Part, _)| {
                self.files[part.file].part(self.entry(part), code, part.of, part.elements.clone())
            };
            let parts = source.parts.iter().zip(codes).map(part).collect::<Result<_>>()?;
            jobs.push(Job { out, parts });
        }
        // SAFETY: the tensors were made above, and nobody else has them.
        unsafe { quant::decode_all(&jobs) }?;
        drop(jobs);
        for (i, source, out) in fresh {
            tensors[i] = Some(source.widened(out)?);
        }
        Ok(tensors.into_iter().flatten().collect())
    }

    /// The numbers of tensors on another device. On CUDA they go through two pinned buffers, of which one is filled
    /// while the other is copied.
    fn fill_on(&self, device: Device, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
        let mut staging = Staging::new(device);
        let mut tensors = Vec::with_capacity(wanted.len());
        for Wanted { name, source, kind } in wanted {
            if !device.is_cuda() || is_integer(*kind) {
                let mut on_cpu = self.fill(&[Wanted { name: name.clone(), source, kind: *kind }])?;
                tensors.extend(on_cpu.pop().map(|t| t.f_to_device(device)).transpose()?);
                continue;
            }
            let out = Tensor::f_empty(source.filled_shape(), (*kind, device))?;
            let flat = out.f_view([-1])?;
            let mut at = 0;
            for part in &source.parts {
                let code = self.code(name, part)?;
                let (file, entry) = (&self.files[part.file], self.entry(part));
                for run in staging.runs(&part.elements, *kind) {
                    let len = run.len() as i64;
                    let fill = |buffer: &Tensor| {
                        let parts = vec![file.part(entry, &code, part.of, run.clone())?];
                        // SAFETY: a buffer is filled only after its last copy has ended, and nobody else has it.
                        unsafe { quant::decode_all(&[Job { out: buffer, parts }]) }
                    };
                    staging.copy(&flat.f_narrow(0, at, len)?, fill)?;
                    at += len;
                }
            }
            tensors.push(source.widened(out)?);
        }
        staging.finish();
        Ok(tensors)
    }

    /// A tensor in the file's own kind, of one run of numbers: borrowed from the mapping or read.
    fn as_it_is(&self, source: &Source, kind: Kind) -> Result<Option<Tensor>> {
        let ([part], true) = (&source.parts[..], source.is_as_stored()) else { return Ok(None) };
        let entry = self.entry(part);
        if part.stored != Stored::Plain || entry.encoding.kind() != Some(kind) {
            return Ok(None);
        }
        self.files[part.file].tensor(entry, &part.elements, &source.shape, kind).map(Some)
    }

    /// The types in memory after loading as `kind`, with the bytes of each. `keep_quantized`: of the linear layers, fp8
    /// and GGUF weights stay as they are.
    pub fn types_in_memory(&self, kind: Kind, keep_quantized: bool) -> BTreeMap<String, u64> {
        let mut types = BTreeMap::new();
        for (name, source) in &self.tensors {
            let kept = keep_quantized && !is_embedding(name) && self.can_be_kept(source);
            if kept {
                for part in &source.parts {
                    *types.entry(self.type_of(part)).or_default() += self.part_bytes(part);
                }
                continue;
            }
            let whole = source.parts.first().filter(|part| part.stored == Stored::Plain);
            let (name, bytes) = match whole {
                Some(part) if self.entry(part).encoding.kind().is_some_and(is_integer) => {
                    (self.type_of(part), self.part_bytes(part))
                }
                _ => (kind_name(kind).to_string(), (source.numel() * kind.elt_size_in_bytes()) as u64),
            };
            *types.entry(name).or_default() += bytes;
        }
        types
    }

    /// Whether a matrix is fp8 or blocks throughout, so that its rows can be read alone.
    fn can_be_kept(&self, source: &Source) -> bool {
        let stays = |part: &Part| {
            let entry = self.entry(part);
            let unit = match entry.encoding {
                Encoding::Blocks(blocks) => blocks.elements(),
                Encoding::Plain(_) => 1,
            };
            matches!(part.stored, Stored::Plain | Stored::Scaled { .. })
                && is_quantised(part, entry)
                && part.elements.start.is_multiple_of(unit)
                && part.elements.end.is_multiple_of(unit)
        };
        source.shape.len() == 2 && source.is_as_stored() && source.parts.iter().all(stays)
    }

    /// A matrix as it is stored, where it can be kept so.
    fn keep(&self, name: &str, source: &Source, device: Device) -> Result<Option<Quantized>> {
        let &[rows, columns] = &source.shape[..] else { return Ok(None) };
        if !self.can_be_kept(source) {
            return Ok(None);
        }
        let piece = |part: &Part| {
            let entry = self.entry(part);
            let (elements, bytes) = match entry.encoding {
                Encoding::Blocks(blocks) => (blocks.elements(), blocks.bytes()),
                Encoding::Plain(_) => (1, 1),
            };
            let run = part.elements.start / elements * bytes..part.elements.end / elements * bytes;
            let stored = self.files[part.file].stored_bytes(entry, run)?.f_to_device(device)?;
            let code = Arc::new(self.code(name, part)?.of_run(&part.elements));
            Ok(Piece { bytes: stored, code, elements: part.elements.len() })
        };
        let pieces = source.parts.iter().map(piece).collect::<Result<_>>()?;
        Ok(Some(Quantized { pieces, shape: [rows, columns] }))
    }

    /// How the bytes of a part become numbers, with what its companions say.
    pub(super) fn code(&self, name: &str, part: &Part) -> Result<Code> {
        let entry = self.entry(part);
        let file = &self.files[part.file];
        let problem =
            |reason: String| Error::file(&file.path)(FileProblem::Tensor { name: name.to_string(), reason });
        match (&part.stored, entry.encoding) {
            (Stored::Plain, encoding) => {
                Code::of(encoding).ok_or_else(|| problem(format!("{encoding} are no numbers of a model")))
            }
            (Stored::Scaled { scale, row }, encoding) => {
                let kind = encoding.kind().unwrap_or(Kind::Float8e4m3fn);
                let scale = self.companion(scale)?;
                let row = if scale.len() == 1 { part.of } else { *row };
                Ok(Code::Scaled { kind, scale, row })
            }
            (Stored::Int8 { scb, row }, _) => Ok(Code::Int8 { scale: self.companion(scb)?, row: *row }),
            (Stored::FourBit { state, companions }, _) => self.four_bit(*state, companions, &problem),
        }
    }

    /// The recipe for bitsandbytes' four bits.
    fn four_bit(
        &self,
        state: FourBitState,
        companions: &BTreeMap<&str, Place>,
        problem: &dyn Fn(String) -> Error,
    ) -> Result<Code> {
        let bytes = |end: &str| {
            let place = companions.get(end).map(|(file, name)| (&self.files[*file], name));
            place.map(|(file, name)| file.bytes(&file.header.entries[name])).transpose()
        };
        let needed = |end: &str| {
            bytes(end)?.ok_or_else(|| problem(format!("is {state}, but its {} is missing", &end[1..])))
        };
        let (absmax, quant_map, note) = (needed(".absmax")?, needed(".quant_map")?, needed(state.note())?);
        let (nested_absmax, nested_quant_map) = (bytes(".nested_absmax")?, bytes(".nested_quant_map")?);
        let note = serde_json::from_slice(&note).map_err(|e| problem(printable(&e)))?;
        let companions = QuantState {
            absmax: &absmax,
            quant_map: &quant_map,
            nested_absmax: nested_absmax.as_deref(),
            nested_quant_map: nested_quant_map.as_deref(),
        };
        four_bit(companions, &note).map(|(code, _)| code).map_err(problem)
    }

    /// The numbers of a scale, in f32.
    fn companion(&self, (file, name): &Place) -> Result<Vec<f32>> {
        let file = &self.files[*file];
        let entry = &file.header.entries[name];
        let kind = entry.encoding.kind().unwrap_or(Kind::Float);
        let tensor = file.tensor(entry, &(0..entry.numel() as usize), &entry.shape, kind)?;
        Ok(Vec::try_from(tensor.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)?)
    }

    /// What differs between the parameters and the tensors. `casts`: whether another float kind is welcome.
    fn compare(&self, variables: &BTreeMap<String, Tensor>, casts: bool, kind: Kind) -> Mismatch {
        let mut mismatch = self.no_mismatch();
        for (name, variable) in variables {
            let Some(source) = self.tensors.get(name) else {
                mismatch.missing.push(name.clone());
                continue;
            };
            if source.shape != variable.size() {
                mismatch.misshapen.push((name.clone(), variable.size(), source.shape.clone()));
            }
            let of = |part: &Part| self.cannot_become(part, variable.kind(), casts, kind);
            if let Some(why) = source.parts.iter().find_map(of) {
                mismatch.of_another_kind.push((name.clone(), why));
            }
        }
        mismatch.lacks_only_ends =
            mismatch.missing.iter().all(|name| ModelFamily::is_outside_the_blocks(name));
        mismatch.unexpected = self.tensors.keys().filter(|n| !variables.contains_key(*n)).cloned().collect();
        if !mismatch.is_empty() {
            mismatch.looks_like = self.looks_like();
        }
        mismatch
    }

    /// Why a part cannot be loaded as `kind`: it is no number that libtorch computes with, or, where casts are not
    /// asked for, it is not the kind of the rest of the file.
    fn cannot_become(&self, part: &Part, variable: Kind, casts: bool, kind: Kind) -> Option<String> {
        let entry = self.entry(part);
        if is_quantised(part, entry) {
            return (entry.encoding.kind().is_none() && !matches!(entry.encoding, Encoding::Blocks(_)))
                .then(|| format!("is {}, which is not supported", entry.encoding));
        }
        match entry.encoding {
            Encoding::Plain(Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) if !is_integer(variable) => {
                let differs = !casts && entry.encoding.kind() != Some(kind);
                differs.then(|| {
                    format!("is {} in a file of {kind:?}: ask for one kind to cast to", entry.encoding)
                })
            }
            encoding if is_integer(variable) && encoding.kind() == Some(variable) => None,
            Encoding::Plain(Dtype::I8) => Some("is I8 without an .SCB to scale it by".into()),
            encoding => Some(format!("is {encoding}, and so no weight of this model")),
        }
    }

    /// What the tensors seem to be, and what stands before their names.
    fn looks_like(&self) -> String {
        let family = self.family().to_string();
        match &self.contained()[..] {
            [Contained { prefix, .. }] if !prefix.is_empty() => {
                format!("{family}; its names are behind \"{prefix}\"")
            }
            _ => family,
        }
    }

    fn no_mismatch(&self) -> Mismatch {
        Mismatch {
            files: self.files.iter().map(|f| f.path.clone()).collect(),
            looks_like: self.looks_like(),
            ..Mismatch::default()
        }
    }
}

/// As the formats spell it.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        Kind::Double => "F64",
        _ => "F32",
    }
}

pub(super) fn is_integer(kind: Kind) -> bool {
    matches!(kind, Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8 | Kind::Bool)
}
