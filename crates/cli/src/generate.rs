//! `generate`: a prompt in, picture files out.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tch::Device;
use tch_flux::Error;
use tch_flux::generation::provenance::{EditRecord, ModelRecord, Provenance};
use tch_flux::generation::{Edit, LoraFile, Pipeline, Progress, Request, Role, Settings, Weights};
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::ops::{cpu, cuda};

use super::again;
use super::control::{self, ControlArgs};
use super::edit;
use super::errors::Unfinished;
use super::formats;
use super::interrupt::Interrupt;
use super::memory::{Fitted, MemoryArgs};
use super::names::{self, Names};
use super::output::{self, Input, Target};
use super::pictured::{self, PicturedArgs};
use super::plan::Plan;
use super::progress::Bars;
use super::prompts::Given;
use super::redux::{self, ReduxArgs};
use super::walk::Walk;
use super::writer::{self, Saving, Sources, Writer, undrawn_lines};
use super::{
    KindArg, ModelArgs, NumericsArg, QuantizeArg, Saying, ThreadsArg, access, device_name, human_bytes,
    kind_name, parse_device, parse_seed, print_json,
};

#[derive(Args)]
pub(super) struct Generate {
    /// What to draw; `-` reads it from standard input, here and in place of any other prompt.
    #[arg(value_name = "PROMPT")]
    positional: Option<String>,
    /// What to draw, as PROMPT; may be given several times.
    #[arg(long, conflicts_with = "positional", help_heading = "Prompt", hide_short_help = true)]
    prompt: Vec<String>,
    /// A file with a prompt on each line; `-` is standard input.
    ///
    /// In UTF-8, or in UTF-16 with a byte order mark. Blank lines and those that begin with `#` are passed over; `\#` begins a
    /// prompt with `#`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["positional", "prompt"], help_heading = "Prompt")]
    prompt_file: Option<PathBuf>,
    /// What T5 reads in place of the prompt, which CLIP alone reads then.
    #[arg(long, value_name = "PROMPT", help_heading = "Prompt", hide_short_help = true)]
    prompt_2: Option<String>,
    /// Read the prompts to the letter. Otherwise a prompt in which a group has a number is read by ComfyUI's rules:
    /// (word:1.3) weighs more, (word:0.7) less, (word) 1.1, and a parenthesis after a backslash is text. `--literal=false` is
    /// for a picture of `--from-image` that was drawn to the letter.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Prompt", hide_short_help = true)]
    literal: Option<bool>,
    /// A picture of ours, to be drawn again; other flags change what it says.
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    from_image: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Model")]
    model: ModelArgs,
    #[command(flatten, next_help_heading = "Redux")]
    redux: ReduxArgs,
    /// Pixels, a multiple of 16. [default: what the model was trained for]
    #[arg(long, help_heading = "Sampling")]
    width: Option<i64>,
    /// Pixels, a multiple of 16. [default: what the model was trained for]
    #[arg(long, help_heading = "Sampling")]
    height: Option<i64>,
    #[command(flatten, next_help_heading = "Sampling")]
    walk: Walk,
    #[command(flatten, next_help_heading = "Memory and speed")]
    memory: MemoryArgs,
    /// Guidance strength of distilled models. [default: 2.5]
    #[arg(long, help_heading = "Sampling")]
    guidance: Option<f64>,
    /// What the picture shall not show; takes twice the time.
    #[arg(long, value_name = "PROMPT", help_heading = "Prompt")]
    negative_prompt: Option<String>,
    /// How far the picture is led away from the negative prompt; 1 is not at all. [default: 4 with a negative prompt]
    #[arg(long, value_name = "SCALE", help_heading = "Sampling", hide_short_help = true)]
    true_cfg_scale: Option<f64>,
    /// The noise. [default: another one each time; it is printed]
    #[arg(long, value_parser = parse_seed, help_heading = "Sampling")]
    seed: Option<u64>,
    /// Pictures of each prompt; their seeds count on.
    #[arg(short = 'n', long, help_heading = "Sampling")]
    num_images: Option<usize>,
    /// The kind of numbers to compute in. [default: the weights']
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    kind: Option<KindArg>,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device, help_heading = "Memory and speed")]
    device: Device,
    /// Tokens that T5 reads. [default: schnell 256, dev 512]
    #[arg(long, help_heading = "Sampling", hide_short_help = true)]
    max_sequence_length: Option<usize>,
    /// Where to write, as PNG, JPEG or WebP by the name's ending; folders are made. [default: {seed}-{index}.png]
    ///
    /// {seed}, {variation_seed} and {index} are filled in; an index counts on from the first that is free. The endings are .png,
    /// .jpg, .jpeg and .webp.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Replace files that stand in the way.
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// The quality of a JPEG or WebP, from 0 to 100, as `output_compression` is for the server. [default: 100]
    #[arg(long, visible_alias = "output-compression", value_name = "QUALITY", value_parser = clap::value_parser!(u8).range(..=100), help_heading = "Output", hide_short_help = true)]
    output_quality: Option<u8>,
    /// All pictures on one sheet, too: a row for each prompt, or as square as can be for one.
    #[arg(long, value_name = "FILE", value_parser = formats::parse_picture, help_heading = "Output")]
    grid: Option<PathBuf>,
    /// Write so many small pictures on the way, beside each picture and in its format: NAME.step-N.png.
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = "Output", hide_short_help = true)]
    previews: usize,
    /// Draw bf16 noise as torch up to 2.11 did, for pictures that were published with it.
    #[arg(long, help_heading = "Sampling", hide_short_help = true)]
    legacy_noise: bool,
    #[command(flatten, next_help_heading = "Memory and speed")]
    threads: ThreadsArg,
    /// Read the files instead of mapping them.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    no_mmap: bool,
    /// Keep fp8 and GGUF weights in memory as they are on the disk; each layer's become numbers as it runs.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    keep_quantized: bool,
    /// The official bits, or speed with no larger an error. [default: fast]
    #[arg(long, value_enum, help_heading = "Memory and speed", hide_short_help = true)]
    numerics: Option<NumericsArg>,
    /// Numbers of fewer bits for the weights of the transformer's blocks: int8 on the CPU, fp8 on CUDA. [default: none]
    #[arg(long, value_enum, help_heading = "Memory and speed")]
    quantize: Option<QuantizeArg>,
    /// A LoRA, and its strength where it is not 1; may be given several times.
    #[arg(long, value_name = "FILE[:STRENGTH]", value_parser = parse_lora, help_heading = "Model")]
    lora: Vec<LoraFile>,
    /// Draw with a LoRA even where some of its keys cannot be placed; they are listed.
    #[arg(long, requires = "lora", help_heading = "Model", hide_short_help = true)]
    allow_partial_lora: bool,
    #[command(flatten, next_help_heading = "ControlNet")]
    control: ControlArgs,
    #[command(flatten, next_help_heading = "IP-Adapter")]
    pictured: PicturedArgs,
    /// Decode the picture in tiles of so many pixels a side, for memory's sake; neighbours share a quarter.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i64).range(64..), help_heading = "Memory and speed", hide_short_help = true)]
    vae_tile: Option<i64>,
    /// Keep T5 and CLIP in memory while the transformer runs.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    keep_text_encoders: bool,
    /// Check all of it and say what would be drawn, with what and where to; draw nothing.
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print one line of JSON instead of text, also where something is wrong.
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Print nothing but errors.
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// What an edit begins with: the names of pictures, which are read once it is known that the outputs can be written.
pub(super) struct Begin {
    pub(super) begun: EditRecord,
    /// Flags that were given, and what pictures they are for.
    pub(super) only: Vec<(&'static str, Role)>,
}

/// The size of what is drawn from pictures where nothing else is said: Kontext's own for the first reference; else as large
/// as the picture, or half of `most` pixels where it has more than that.
fn size_like(edit: &Edit, role: Role, most: i64) -> (i64, i64) {
    let Some(first) = edit.images.first() else { return (16, 16) };
    let (width, height) = match role {
        Role::Reference => edit.reference_size(first),
        _ => (first.width, first.height),
    };
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let most = most as f64;
    let factor = if width * height > most { (most / 2.0 / (width * height)).sqrt() } else { 1.0 };
    let nearest = |pixels: f64| ((pixels * factor / 16.0).round() as i64 * 16).max(16);
    (nearest(width), nearest(height))
}

/// No call draws more pictures: each has a name, and nobody waits for so many.
const MOST: usize = 1_000_000;

impl Generate {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.run_from(None)
    }

    /// The provenance of `--from-image`.
    pub(super) fn provenance(&self) -> anyhow::Result<Option<Provenance>> {
        self.from_image.as_deref().map(again::read).transpose()
    }

    /// Whether a picture is drawn again.
    pub(super) fn repeats(&self) -> bool {
        self.from_image.is_some()
    }

    /// What the model and its transformer are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        self.model.names()
    }

    /// Draws from text, or from what an edit begins with.
    pub(super) fn run_from(self, begin: Option<Begin>) -> anyhow::Result<ExitCode> {
        let quality = self.quality()?;
        let provenance = self.provenance()?;
        if let (Some(Provenance { edit: Some(_), .. }), None) = (&provenance, &begin) {
            let text = "that picture was begun with another one: repeat it with `tch-flux edit --from-image`";
            return Err(Error::Request(text.into()).into());
        }
        self.threads.set();
        let bars = !self.quiet && !self.json && std::io::stderr().is_terminal();
        let saying = Saying { bars, warnings: !self.quiet };
        let mut request = self.request(provenance.as_ref())?;
        let inputs = self.inputs(begin.as_ref(), provenance.as_ref());
        // Before anything is fetched or opened; previews are known, and checked, once the model is.
        self.targets(&request, &[], &inputs)?;
        let edit = begin.as_ref().map(|begin| edit::pictures(&begin.begun)).transpose()?;
        request.edit = edit.map(Arc::new);
        let mut parts = self.redux.parts(self.model.parts(saying)?, saying)?;
        if provenance.is_none() {
            let size = default_size(&parts.autoencoder);
            (request.width, request.height) = (self.width.unwrap_or(size), self.height.unwrap_or(size));
        }
        if request.sampler.is_some() && request.schedule.is_some() {
            // Nothing is left for it to say, whatever it asks for.
            parts.scheduler = None;
        }
        let seen = self.redux.seen(provenance.as_ref().and_then(|provenance| provenance.redux.clone()))?;
        request.redux = seen.as_ref().map(redux::read).transpose()?.map(Arc::new);
        let kind = match (self.kind, &provenance) {
            (Some(kind), _) => Some(kind.into()),
            (None, Some(provenance)) => parse_kind(&provenance.means.kind)?,
            (None, None) => None,
        };
        let (numerics, quantize) =
            provenance.as_ref().map_or((Numerics::Fast, Quantize::None), |provenance| {
                (provenance.means.numerics, provenance.means.quantize)
            });
        let settings = Settings {
            device: self.device,
            kind,
            numerics: self.numerics.map_or(numerics, Numerics::from),
            quantize: self.quantize.map_or(quantize, Quantize::from),
            access: access(self.no_mmap),
            keep_text_encoders: self.keep_text_encoders,
            keep_quantized: self.keep_quantized,
            offload: self.memory.offload(),
            allow_partial_lora: self.allow_partial_lora,
            vae_tile: self.vae_tile.or_else(|| provenance.as_ref()?.means.vae_tile),
        };
        let mut pipeline = Pipeline::open(parts.clone(), settings)?;
        let before = provenance.as_ref().map(|provenance| provenance.means.loras.clone()).unwrap_or_default();
        let loras = if self.lora.is_empty() { before } else { self.lora.clone() };
        let mut notes = pipeline.set_loras(&loras)?;
        let before = provenance.as_ref().map(|provenance| provenance.controls.clone()).unwrap_or_default();
        let followed = self.control.followed(before)?;
        request.controls = control::put_on(&mut pipeline, &followed)?;
        let before = provenance.as_ref().map(|provenance| provenance.pictured.clone()).unwrap_or_default();
        let liked = self.pictured.liked(before)?;
        request.pictured = pictured::put_on(&mut pipeline, &liked)?;
        let (mut remarks, mut strength) = (Vec::new(), None);
        if let Some(edit) = request.edit.clone() {
            let own =
                provenance.as_ref().map(|provenance| (provenance.request.width, provenance.request.height));
            let padded = begin.as_ref().is_some_and(|begin| begin.begun.pad.is_some());
            let most = if padded { i64::MAX } else { 2 * default_size(&parts.autoencoder).pow(2) };
            let role = pipeline.role(&edit)?;
            strength = (role == Role::Start).then_some(edit.strength);
            let only = begin.iter().flat_map(|begin| &begin.only);
            if let Some((flag, other)) = only.into_iter().find(|(_, only)| *only != role) {
                let text =
                    format!("{flag} is for --as {other}, and this model takes the picture --as {role}");
                return Err(Error::Request(text).into());
            }
            let like = own.unwrap_or_else(|| size_like(&edit, role, most));
            request.width = self.width.unwrap_or(like.0);
            request.height = self.height.unwrap_or(like.1);
            let files = begin.as_ref().map(|begin| &begin.begun.images[..]).unwrap_or_default();
            remarks = resized(&edit, role, files, (request.width, request.height));
        }
        request.check()?;
        self.check_sizes(&request)?;
        notes.extend(pipeline.lacking().map(|lacking| {
            let (lacking, kind) = (kind_name(lacking), kind_name(pipeline.kind()));
            format!("{} does not compute in {lacking}: {kind} is taken", device_name(self.device))
        }));
        if settings.numerics == Numerics::Fast
            && settings.device == Device::Cpu
            && pipeline.kind() == tch::Kind::BFloat16
            && !cpu::arithmetic().bf16_products
        {
            notes.push("this CPU has no products of bf16: these numbers are multiplied as f32".into());
        }
        cuda::set_cache(super::kernel_cache());
        if let Device::Cuda(index) = self.device
            && let Some(problem) = cuda::arithmetic(index).problem
        {
            notes.push(format!("libtorch's operations run in place of kernels of our own: {problem}"));
        }
        let request = pipeline.complete(&request);
        if self.guidance.is_some() && request.guidance.is_none() {
            notes.push("this model was not distilled for guidance: --guidance changes nothing".into());
        }
        if self.negative_prompt.is_some() && request.true_cfg_scale.is_some_and(|scale| scale <= 1.0) {
            notes.push("with a true guidance of 1 or less the negative prompt changes nothing".into());
        }
        let mut fitted = self.memory.fit(&mut pipeline, &request)?;
        let settings = *pipeline.settings();
        let weights = pipeline.weights()?;
        notes.extend(pipeline.warnings()?);
        let means = ModelRecord { loras, ..ModelRecord::of(&pipeline, &parts) };
        let model = means.model.clone();
        let previews = pipeline.preview_steps(&request)?;
        let (files, targets) = self.targets(&request, &previews, &inputs)?;
        if let (Some(picture), Some(provenance)) = (&self.from_image, &provenance) {
            notes.extend(again::changed(picture, provenance, &means));
        }
        if self.dry_run {
            // Otherwise each picture says its own.
            notes.extend(request.prompt_warnings());
        }
        let all_notes: Vec<&String> = remarks.iter().chain(&notes).collect();
        if self.dry_run && self.json {
            let plan = json!({
                "request": request, "model": model, "kind": kind_name(pipeline.kind()), "files": files,
                "device": device_name(self.device), "weights": weights.iter().map(as_json).collect::<Vec<_>>(),
                "loras": means.loras, "controls": followed, "pictured": liked, "redux": seen, "notes": all_notes,
                "numerics": settings.numerics, "quantize": settings.quantize, "memory": fitted, "grid": self.grid,
            });
            print_json(&plan)?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            let kind = kind_name(pipeline.kind());
            let numerics = if settings.numerics == Numerics::Fast { "fast" } else { "exact" };
            let quantized = match settings.quantize {
                Quantize::None => "",
                Quantize::Int8 => ", blocks in int8",
                Quantize::Fp8 => ", blocks in fp8",
            };
            let device = device_name(self.device);
            let plan = Plan {
                request: &request,
                model: &model,
                arithmetic: format!("{kind}{quantized}, {numerics} numerics, on {device}"),
                weights: &weights,
                loras: &means.loras,
                inputs: read_beside(&inputs),
                memory: pipeline.memory(&request)?,
                files: &files,
                previews: previews.len(),
                grid: self.grid.as_deref(),
                strength,
            };
            let mut lines = plan.lines();
            lines.extend(fitted.iter().flat_map(Fitted::lines).map(|line| format!("  {line}")));
            lines.extend(all_notes.iter().map(|note| format!("  note: {note}")));
            lines.iter().filter(|_| !self.quiet).for_each(|line| println!("{line}"));
            return Ok(ExitCode::SUCCESS);
        }

        if !self.json && !self.quiet {
            weights.iter().for_each(|weights| eprintln!("{}", describe(weights)));
            fitted.iter().flat_map(Fitted::lines).for_each(|line| eprintln!("{line}"));
            remarks.iter().for_each(|remark| eprintln!("note: {remark}"));
            notes.iter().for_each(|note| eprintln!("warning: {note}"));
        }
        output::make_folders(&targets)?;
        let interrupt = Interrupt::listen(!self.json && !self.quiet).context("signals")?;
        let started = Instant::now();
        let mut bars = Bars::new(bars);
        let sources = Sources {
            means: &means,
            begun: begin.as_ref().map(|begin| &begin.begun),
            seen: seen.as_ref(),
            followed: &followed,
            liked: &liked,
        };
        let saving = Saving { quality, force: self.force };
        let mut writer = Writer::new(sources, &request, files, saving);
        let mut unwritten = None;
        let drawn = pipeline.generate_until(&request, &interrupt.stop, &mut |progress| {
            bars.show(&progress);
            let written = match &progress {
                Progress::Preview { image, step, picture } => writer.write_preview(*image, *step, picture),
                Progress::Picture { image, picture, .. } => writer.write(*image, picture).map(|written| {
                    if !self.json && !self.quiet {
                        bars.above(|| {
                            written.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
                            println!("{}", written.line());
                        });
                    }
                }),
                _ => Ok(()),
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    unwritten = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        bars.clear();
        let stopped = interrupt.status();
        let drawn = match (unwritten, drawn) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) if stopped.is_some() => Ok(Vec::new()),
            (None, drawn) => drawn.map_err(anyhow::Error::from),
        };
        let drawn = match drawn {
            Ok(drawn) => drawn,
            Err(error) => {
                if !self.json {
                    undrawn_lines(&writer.undrawn()).iter().for_each(|line| eprintln!("{line}"));
                }
                let report = json!({ "images": writer.written(), "not_drawn": writer.undrawn() });
                return Err(Unfinished { error, report }.into());
            }
        };
        let mut grid = None;
        if let Some(file) = self.grid.as_ref().filter(|_| !drawn.is_empty()) {
            grid = Some(writer.write_grid(file, &request, &drawn)?);
        }
        let seconds = started.elapsed().as_secs_f64();
        let cache = match request.cache {
            Some(_) if stopped.is_none() => {
                Some(self.walk.cache_report(&mut pipeline, &request, &drawn, seconds)?)
            }
            _ => None,
        };
        fitted.iter_mut().for_each(Fitted::measure);
        let (written, undrawn) = (writer.written(), writer.undrawn());
        if self.json {
            let kind = kind_name(pipeline.kind());
            let weights: Vec<_> = weights.iter().map(as_json).collect();
            print_json(&json!({
                "images": written, "not_drawn": undrawn, "grid": grid, "model": model, "kind": kind,
                "seconds": seconds, "weights": weights, "loras": means.loras, "controls": followed,
                "pictured": liked, "notes": all_notes, "numerics": settings.numerics,
                "quantize": settings.quantize, "cache": cache, "memory": fitted,
            }))?;
        } else {
            undrawn_lines(&undrawn).iter().for_each(|line| eprintln!("{line}"));
            if !self.quiet {
                grid.iter().for_each(|grid| println!("{}", grid.display()));
                cache.iter().for_each(|cache| println!("{cache}"));
                fitted.iter().filter_map(Fitted::verdict).for_each(|line| println!("{line}"));
                let (pictures, kind) = (count(written.len()), kind_name(pipeline.kind()));
                println!("{pictures} in {seconds:.1} s with {model}, {kind}");
            }
        }
        Ok(stopped.unwrap_or(ExitCode::SUCCESS))
    }

    /// The names of the pictures, and all that is going to be written, which can be.
    fn targets(
        &self,
        request: &Request,
        previews: &[usize],
        inputs: &[Input],
    ) -> anyhow::Result<(Vec<PathBuf>, Vec<Target>)> {
        let taken = |path: &Path| path.symlink_metadata().is_ok();
        let names = Names::new(self.output.as_deref(), request)?;
        let files = names.of(request, previews, self.force, &taken);
        let target = |flag| move |path| Target { path, flag };
        let mut targets: Vec<Target> = files.iter().cloned().map(target("--output")).collect();
        targets.extend(self.grid.clone().map(target("--grid")));
        let previews = files.iter().flat_map(|file| previews.iter().map(|&step| names::preview(file, step)));
        targets.extend(previews.map(target("--previews")));
        output::check(&targets, inputs, self.force)?;
        Ok((files, targets))
    }

    /// All files that are read, as far as flags or the picture that is repeated name them.
    fn inputs(&self, begin: Option<&Begin>, provenance: Option<&Provenance>) -> Vec<Input> {
        let mut inputs = Vec::new();
        inputs.extend(self.from_image.iter().map(|path| Input::new("--from-image", path)));
        inputs.extend(self.prompt_file.iter().map(|path| Input::new("--prompt-file", path)));
        if let Some(Begin { begun, .. }) = begin {
            inputs.extend(begun.images.iter().map(|path| Input::new("--image", path)));
            inputs.extend(begun.mask.iter().map(|path| Input::new("--mask", path)));
        }
        inputs.extend(self.lora.iter().map(|lora| Input::new("--lora", &lora.path)));
        inputs.extend(self.model.inputs());
        inputs.extend(self.redux.inputs());
        inputs.extend(self.control.inputs());
        inputs.extend(self.pictured.inputs());
        if let Some(provenance) = provenance {
            let flag = "--from-image";
            inputs.extend(provenance.means.loras.iter().map(|lora| Input::new(flag, &lora.path)));
            inputs.extend(provenance.inputs.keys().map(|path| Input::new(flag, path)));
        }
        inputs
    }

    /// What is asked for. Where no flag and no picture says its size, that is left to the model.
    fn request(&self, provenance: Option<&Provenance>) -> anyhow::Result<Request> {
        let mut request = match provenance {
            Some(provenance) => provenance.request.clone(),
            None => {
                Request { prompts: Vec::new(), seed: Request::random_seed(), ..Request::new("", 1024, 1024) }
            }
        };
        let mut given = Given::default();
        if let Some(prompt) = &self.positional {
            request.prompts = given.read(std::slice::from_ref(prompt))?;
        } else if !self.prompt.is_empty() {
            request.prompts = given.read(&self.prompt)?;
        } else if let Some(file) = &self.prompt_file {
            request.prompts = given.file(file)?;
        }
        if request.prompts.is_empty() && self.redux.has_pictures() {
            request.prompts.push(String::new());
        }
        if request.prompts.is_empty() {
            let text = "nothing to draw: give a PROMPT, --prompt, --prompt-file or --from-image";
            return Err(Error::Request(text.into()).into());
        }
        request.width = self.width.unwrap_or(request.width);
        request.height = self.height.unwrap_or(request.height);
        self.walk.put_on(&mut request)?;
        request.literal = self.literal.unwrap_or(request.literal);
        request.guidance = self.guidance.or(request.guidance);
        request.prompt_2 = given.one(self.prompt_2.as_ref())?.or(request.prompt_2);
        request.negative_prompt = given.one(self.negative_prompt.as_ref())?.or(request.negative_prompt);
        // diffusers' documentation of true guidance takes 4.
        let scale = request.negative_prompt.as_ref().map(|_| 4.0);
        request.true_cfg_scale = self.true_cfg_scale.or(request.true_cfg_scale).or(scale);
        request.seed = self.seed.unwrap_or(request.seed);
        request.num_images = self.num_images.unwrap_or(request.num_images);
        if request.prompts.len().checked_mul(request.num_images).is_none_or(|images| images > MOST) {
            let text = format!("more than {MOST} pictures in one call: ask for fewer by --num-images");
            return Err(Error::Request(text).into());
        }
        request.max_sequence_length = self.max_sequence_length.or(request.max_sequence_length);
        request.legacy_noise |= self.legacy_noise;
        request.previews = self.previews;
        Ok(request)
    }

    /// Whether the pictures and the sheet have a place in the formats that their names say.
    fn check_sizes(&self, request: &Request) -> tch_flux::Result<()> {
        let side = |side: i64| u32::try_from(side).unwrap_or(u32::MAX);
        if let Some(file) = &self.output {
            formats::check_size(file, (side(request.width), side(request.height)))?;
        }
        match &self.grid {
            Some(file) => formats::check_size(file, writer::grid_size(request)?),
            None => Ok(()),
        }
    }

    /// The quality to write with, where any of the files is of a format that has one.
    fn quality(&self) -> Result<u8, Error> {
        let pattern = self.output.clone().unwrap_or_else(|| PathBuf::from("x.png"));
        let names = [Some(&pattern), self.grid.as_ref()];
        formats::quality(self.output_quality, names.into_iter().flatten().map(PathBuf::as_path))
    }
}

/// A line for each picture that is read in another size than it has.
fn resized(edit: &Edit, role: Role, files: &[PathBuf], (width, height): (i64, i64)) -> Vec<String> {
    let name =
        |i: usize| files.get(i).map_or_else(|| "the picture".into(), |file| file.display().to_string());
    let mut lines = Vec::new();
    for (i, image) in edit.images.iter().enumerate() {
        let own = (image.width, image.height);
        let (verb, size) = match role {
            Role::Reference => ("looked at", edit.reference_size(image)),
            _ => ("drawn", (width as u32, height as u32)),
        };
        if own != size {
            lines.push(format!("{} is {}x{}: it is {verb} at {}x{}", name(i), own.0, own.1, size.0, size.1));
        }
    }
    lines
}

/// What is read beside the model and its LoRAs, with the names of the flags.
fn read_beside(inputs: &[Input]) -> Vec<(&'static str, &Path)> {
    let beside = |input: &&Input| input.flag != "--lora" && !ModelArgs::FLAGS.contains(&input.flag);
    inputs
        .iter()
        .filter(beside)
        .map(|input| (input.flag.trim_start_matches('-'), input.path.as_path()))
        .collect()
}

/// `transformer: Q4_K 6.80 GB on the disk, Q4_K 6.80 GB in memory, computed in bf16`.
fn describe(weights: &Weights) -> String {
    let list = |types: &BTreeMap<String, u64>| {
        let mut types: Vec<_> = types.iter().collect();
        types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        types
            .iter()
            .map(|(name, bytes)| format!("{name} {}", human_bytes(**bytes)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Weights { part, on_disk, in_memory, arithmetic, from_base, .. } = weights;
    let (on_disk, in_memory, kind) = (list(on_disk), list(in_memory), kind_name(*arithmetic));
    let base = match &from_base[..] {
        [] => String::new(),
        names => format!("; from the base: {}", names.join(", ")),
    };
    format!("{part}: {on_disk} on the disk; {in_memory} in memory; computed in {kind}{base}")
}

fn as_json(weights: &Weights) -> serde_json::Value {
    let Weights { part, file, on_disk, in_memory, arithmetic, from_base, .. } = weights;
    json!({
        "part": part, "file": file, "on_disk": on_disk, "in_memory": in_memory,
        "arithmetic": kind_name(*arithmetic), "from_base": from_base,
    })
}

/// `FILE`, or `FILE:STRENGTH`. A colon may also be part of the file's name.
pub(super) fn parse_lora(text: &str) -> Result<LoraFile, String> {
    if let Some((path, strength)) = text.rsplit_once(':')
        && let Ok(strength) = strength.parse::<f64>()
        && !path.is_empty()
    {
        if !strength.is_finite() {
            return Err(format!("the strength {strength} is no finite number"));
        }
        return Ok(LoraFile { path: path.into(), strength });
    }
    Ok(LoraFile { path: text.into(), strength: 1.0 })
}

fn count(pictures: usize) -> String {
    if pictures == 1 { "1 picture".into() } else { format!("{pictures} pictures") }
}

fn parse_kind(name: &str) -> anyhow::Result<Option<tch::Kind>> {
    use clap::ValueEnum;
    let kind =
        KindArg::from_str(name, true).map_err(|_| Error::Request(format!("kind {name:?} is not known")))?;
    Ok(Some(kind.into()))
}

/// The side that the model was trained for: diffusers' `vae/config.json` says it, and FLUX.1's is 1024.
pub(super) fn default_size(autoencoder: &Path) -> i64 {
    let folder = autoencoder.parent().unwrap_or(Path::new(""));
    let config =
        [folder.join("vae/config.json"), folder.join("config.json"), autoencoder.join("config.json")];
    let size = config.iter().find_map(|path| {
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
        json.get("sample_size")?.as_i64()
    });
    size.unwrap_or(1024)
}
