//! `generate`: a prompt in, picture files out.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tch::Device;
use tch_flux::Error;
use tch_flux::image::Image;
use tch_flux::ops::{Numerics, Quantize, cpu, cuda};
use tch_flux::pipeline::{Edit, LoraFile, Parts, Pipeline, Progress, Request, Role, Settings, Weights};
use tch_flux::recipe::{Begun, Means, Recipe};

use super::again;
use super::bars::Bars;
use super::control::{self, ControlArgs};
use super::memory::{Fitted, MemoryArgs};
use super::output;
use super::pictured::{self, PicturedArgs};
use super::pictures;
use super::prompts;
use super::redux::{self, ReduxArgs};
use super::walk::Walk;
use super::{
    KindArg, ModelArgs, NumericsArg, QuantizeArg, Saying, access, human_bytes, kind_name, parse_device,
    print_json,
};

#[derive(Args)]
pub(super) struct Generate {
    /// What to draw; `-` reads it from standard input.
    #[arg(value_name = "PROMPT")]
    positional: Option<String>,
    /// What to draw, as PROMPT; may be given several times.
    #[arg(long, conflicts_with = "positional")]
    prompt: Vec<String>,
    /// A file with a prompt on each line, in UTF-8, or in UTF-16 with a byte order mark; `-` is standard input. Blank lines
    /// and those that begin with `#` are passed over; `\#` begins a prompt with `#`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["positional", "prompt"])]
    prompt_file: Option<PathBuf>,
    /// What T5 reads in place of the prompt, which CLIP alone reads then.
    #[arg(long, value_name = "PROMPT")]
    prompt_2: Option<String>,
    /// Read the prompts to the letter. Otherwise a prompt in which a group has a number is read by ComfyUI's rules:
    /// (word:1.3) weighs more, (word:0.7) less, (word) 1.1, and a parenthesis after a backslash is text. `--literal=false` is
    /// for a picture of `--from-image` that was drawn to the letter.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    literal: Option<bool>,
    /// A picture of ours, to be drawn again; other flags change what it says.
    #[arg(long, value_name = "FILE")]
    from_image: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    redux: ReduxArgs,
    /// Pixels, a multiple of 16. [default: what the model was trained for]
    #[arg(long)]
    width: Option<i64>,
    /// Pixels, a multiple of 16. [default: what the model was trained for]
    #[arg(long)]
    height: Option<i64>,
    #[command(flatten)]
    walk: Walk,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Guidance strength of distilled models. [default: 2.5]
    #[arg(long)]
    guidance: Option<f64>,
    /// What the picture shall not show; takes twice the time.
    #[arg(long, value_name = "PROMPT")]
    negative_prompt: Option<String>,
    /// How far the picture is led away from the negative prompt; 1 is not at all. [default: 4 with a negative prompt]
    #[arg(long, value_name = "SCALE")]
    true_cfg_scale: Option<f64>,
    /// The noise. [default: another one each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Pictures of each prompt; their seeds count on.
    #[arg(short = 'n', long)]
    num_images: Option<usize>,
    /// The kind of numbers to compute in. [default: the weights']
    #[arg(long)]
    kind: Option<KindArg>,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// Tokens that T5 reads. [default: schnell 256, dev 512]
    #[arg(long)]
    max_sequence_length: Option<usize>,
    /// Where to write, as PNG, JPEG or WebP (.png, .jpg, .jpeg, .webp); {seed} and {index} are filled in.
    /// [default: {seed}-{index}.png]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The quality of a JPEG or WebP, from 0 to 100, as `output_compression` is for the server. [default: 100]
    #[arg(long, visible_alias = "output-compression", value_name = "QUALITY", value_parser = clap::value_parser!(u8).range(..=100))]
    output_quality: Option<u8>,
    /// All pictures on one sheet, too: a row for each prompt, or as square as can be for one.
    #[arg(long, value_name = "FILE", value_parser = output::parse_picture)]
    grid: Option<PathBuf>,
    /// Write so many small pictures on the way, beside each picture and in its format: NAME.step-N.png.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    previews: usize,
    /// Draw bf16 noise as torch up to 2.11 did, for pictures that were published with it.
    #[arg(long)]
    legacy_noise: bool,
    /// Read the files instead of mapping them.
    #[arg(long)]
    no_mmap: bool,
    /// Keep fp8 and GGUF weights in memory as they are on the disk; each layer's become numbers as it runs.
    #[arg(long)]
    keep_quantized: bool,
    /// The official bits, or speed with no larger an error. [default: fast]
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    /// Numbers of fewer bits for the weights of the transformer's blocks: int8 on the CPU, fp8 on CUDA. [default: none]
    #[arg(long, value_enum)]
    quantize: Option<QuantizeArg>,
    /// A LoRA, and its strength where it is not 1; may be given several times.
    #[arg(long, value_name = "FILE[:STRENGTH]", value_parser = parse_lora)]
    lora: Vec<LoraFile>,
    /// Draw with a LoRA even where some of its keys cannot be placed; they are listed.
    #[arg(long, requires = "lora")]
    allow_partial_lora: bool,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    pictured: PicturedArgs,
    /// Decode the picture in tiles of so many pixels a side, for memory's sake; neighbours share a quarter.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i64).range(64..))]
    vae_tile: Option<i64>,
    /// Keep T5 and CLIP in memory while the transformer runs.
    #[arg(long)]
    keep_text_encoders: bool,
    /// Say what would be drawn, and draw nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one line of JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

/// What an edit begins with: the pictures, and how their files are named.
pub(super) struct Begin {
    pub(super) edit: Arc<Edit>,
    pub(super) begun: Begun,
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

/// One file that was written.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    prompt: String,
    seed: u64,
    width: i64,
    height: i64,
    steps: Option<usize>,
    guidance: Option<f64>,
    warnings: Vec<String>,
}

impl Generate {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.run_from(None)
    }

    /// The recipe of `--from-image`.
    pub(super) fn recipe(&self) -> anyhow::Result<Option<Recipe>> {
        self.from_image.as_deref().map(again::read).transpose()
    }

    /// What the model and its transformer are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        self.model.names()
    }

    /// Draws from text, or from what an edit begins with.
    pub(super) fn run_from(self, begin: Option<Begin>) -> anyhow::Result<ExitCode> {
        let quality = self.quality()?;
        let recipe = self.recipe()?;
        if let (Some(Recipe { edit: Some(_), .. }), None) = (&recipe, &begin) {
            let text = "that picture was begun with another one: repeat it with `tch-flux edit --from-image`";
            return Err(Error::Request(text.into()).into());
        }
        let bars = !self.quiet && !self.json && std::io::stderr().is_terminal();
        let saying = Saying { bars, warnings: !self.quiet };
        let mut parts = self.redux.parts(self.model.parts(saying)?, saying)?;
        let mut request = self.request(&parts, recipe.as_ref())?;
        if request.sampler.is_some() && request.schedule.is_some() {
            // Nothing is left for it to say, whatever it asks for.
            parts.scheduler = None;
        }
        if let Some(Begin { edit, .. }) = &begin {
            request.edit = Some(edit.clone());
        }
        let seen = self.redux.seen(recipe.as_ref().and_then(|recipe| recipe.redux.clone()))?;
        request.redux = seen.as_ref().map(redux::read).transpose()?.map(Arc::new);
        let kind = match (self.kind, &recipe) {
            (Some(kind), _) => Some(kind.into()),
            (None, Some(recipe)) => parse_kind(&recipe.means.kind)?,
            (None, None) => None,
        };
        let (numerics, quantize) = recipe.as_ref().map_or((Numerics::Fast, Quantize::None), |recipe| {
            (recipe.means.numerics, recipe.means.quantize)
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
            vae_tile: self.vae_tile.or_else(|| recipe.as_ref()?.means.vae_tile),
        };
        let mut pipeline = Pipeline::open(parts.clone(), settings)?;
        let before = recipe.as_ref().map(|recipe| recipe.means.loras.clone()).unwrap_or_default();
        let loras = if self.lora.is_empty() { before } else { self.lora.clone() };
        let mut notes = pipeline.set_loras(&loras)?;
        let before = recipe.as_ref().map(|recipe| recipe.controls.clone()).unwrap_or_default();
        let followed = self.control.followed(before)?;
        request.controls = control::put_on(&mut pipeline, &followed)?;
        let before = recipe.as_ref().map(|recipe| recipe.pictured.clone()).unwrap_or_default();
        let liked = self.pictured.liked(before)?;
        request.pictured = pictured::put_on(&mut pipeline, &liked)?;
        if let Some(edit) = request.edit.clone() {
            let own = recipe.as_ref().map(|recipe| (recipe.request.width, recipe.request.height));
            let padded = begin.as_ref().is_some_and(|begin| begin.begun.pad.is_some());
            let most = if padded { i64::MAX } else { 2 * default_size(&parts.autoencoder).pow(2) };
            let role = pipeline.role(&edit)?;
            let only = begin.iter().flat_map(|begin| &begin.only);
            if let Some((flag, other)) = only.into_iter().find(|(_, only)| *only != role) {
                let text =
                    format!("{flag} is for a picture as {other:?}, and this model takes it as {role:?}");
                return Err(Error::Request(text).into());
            }
            let like = own.unwrap_or_else(|| size_like(&edit, role, most));
            request.width = self.width.unwrap_or(like.0);
            request.height = self.height.unwrap_or(like.1);
        }
        request.check()?;
        notes.extend(pipeline.lacking().map(|lacking| {
            let (lacking, kind) = (kind_name(lacking), kind_name(pipeline.kind()));
            format!("{:?} does not compute in {lacking}: {kind} is taken", self.device)
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
        let means = Means { loras, ..Means::of(&pipeline, &parts) };
        let model = means.model.clone();
        let outputs = self.outputs(&request)?;
        if let Some(grid) = self.grid.as_ref().filter(|grid| outputs.contains(grid)) {
            let text =
                format!("{}: the sheet of --grid needs another name than the pictures", grid.display());
            return Err(Error::Request(text).into());
        }
        if let (Some(picture), Some(recipe)) = (&self.from_image, &recipe) {
            notes.extend(again::changed(picture, recipe, &means));
        }
        if self.dry_run {
            notes.extend(request.prompt_warnings());
            let plan = json!({
                "request": request, "model": model, "kind": kind_name(pipeline.kind()), "files": outputs,
                "device": format!("{:?}", self.device).to_lowercase(), "weights": weights.iter().map(as_json).collect::<Vec<_>>(),
                "loras": means.loras, "controls": followed, "pictured": liked, "redux": seen, "notes": notes,
                "numerics": settings.numerics, "quantize": settings.quantize, "memory": fitted,
            });
            print_json(&plan)?;
            return Ok(ExitCode::SUCCESS);
        }

        if !self.json && !self.quiet {
            weights.iter().for_each(|weights| eprintln!("{}", describe(weights)));
            fitted.iter().flat_map(Fitted::lines).for_each(|line| eprintln!("{line}"));
        }
        if !self.quiet {
            notes.iter().for_each(|note| eprintln!("warning: {note}"));
        }
        let started = Instant::now();
        let mut bars = Bars::new(bars);
        let mut unwritten = None;
        let generated = pipeline.generate(&request, &mut |progress| {
            if let Progress::Preview { image, step, picture } = &progress {
                let written = picture.write(preview_file(&outputs[*image], *step), quality, &BTreeMap::new());
                if let Err(error) = written {
                    unwritten = Some(error);
                    return ControlFlow::Break(());
                }
            }
            bars.show(progress)
        });
        bars.clear();
        if let Some(error) = unwritten {
            return Err(error.into());
        }
        let generated = generated?;
        let mut written = Vec::new();
        for (picture, file) in generated.iter().zip(outputs) {
            let mut recipe = Recipe::new(&means, picture);
            if let Some(begin) = &begin {
                recipe.edit = Some(begin.begun.clone());
            }
            recipe.redux.clone_from(&seen);
            (recipe.controls, recipe.pictured) = (followed.clone(), liked.clone());
            recipe.inputs = pictures::seen();
            picture.image.write(&file, quality, &recipe.texts()?)?;
            written.push(Written {
                file,
                prompt: picture.request.prompts.join("\n"),
                seed: picture.request.seed,
                width: picture.request.width,
                height: picture.request.height,
                steps: picture.request.steps,
                guidance: picture.request.guidance,
                warnings: picture.warnings.clone(),
            });
        }
        if let Some(grid) = &self.grid {
            let pictures: Vec<_> = generated.iter().map(|picture| &picture.image).collect();
            let columns = match request.prompts.len() {
                1 => (pictures.len() as f64).sqrt().ceil() as usize,
                _ => request.num_images,
            };
            Image::grid(&pictures, columns)?.write(grid, quality, &BTreeMap::new())?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let cache = match request.cache {
            Some(_) => Some(self.walk.cache_report(&mut pipeline, &request, &generated, seconds)?),
            None => None,
        };
        fitted.iter_mut().for_each(Fitted::measure);
        if self.json {
            let kind = kind_name(pipeline.kind());
            let weights: Vec<_> = weights.iter().map(as_json).collect();
            print_json(&json!({
                "images": written, "model": model, "kind": kind, "seconds": seconds, "weights": weights,
                "loras": means.loras, "controls": followed, "pictured": liked, "notes": notes,
                "numerics": settings.numerics, "quantize": settings.quantize, "cache": cache, "memory": fitted,
            }))?;
        } else if !self.quiet {
            for Written { file, seed, warnings, .. } in &written {
                warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
                println!("{} (seed {seed})", file.display());
            }
            if let Some(cache) = &cache {
                println!("{cache}");
            }
            fitted.iter().filter_map(Fitted::verdict).for_each(|line| println!("{line}"));
            println!(
                "{} in {seconds:.1} s with {model}, {}",
                count(written.len()),
                kind_name(pipeline.kind())
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn request(&self, parts: &Parts, recipe: Option<&Recipe>) -> anyhow::Result<Request> {
        let size = default_size(&parts.autoencoder);
        let mut request = match recipe {
            Some(recipe) => recipe.request.clone(),
            None => Request { prompts: Vec::new(), seed: random_seed(), ..Request::new("", size, size) },
        };
        if let Some(prompt) = &self.positional {
            request.prompts = prompts::given(std::slice::from_ref(prompt))?;
        } else if !self.prompt.is_empty() {
            request.prompts = prompts::given(&self.prompt)?;
        } else if let Some(file) = &self.prompt_file {
            request.prompts = prompts::from_file(file)?;
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
        request.prompt_2 = self.prompt_2.clone().or(request.prompt_2);
        request.negative_prompt = self.negative_prompt.clone().or(request.negative_prompt);
        // diffusers' documentation of true guidance takes 4.
        let scale = request.negative_prompt.as_ref().map(|_| 4.0);
        request.true_cfg_scale = self.true_cfg_scale.or(request.true_cfg_scale).or(scale);
        request.seed = self.seed.unwrap_or(request.seed);
        request.num_images = self.num_images.unwrap_or(request.num_images);
        request.max_sequence_length = self.max_sequence_length.or(request.max_sequence_length);
        request.legacy_noise |= self.legacy_noise;
        request.previews = self.previews;
        Ok(request)
    }

    /// The names of the pictures, with places for what tells them apart.
    fn pattern(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| PathBuf::from("{seed}-{index}.png"))
    }

    /// The quality to write with. The names must be of formats that are written.
    fn quality(&self) -> Result<u8, Error> {
        let pattern = self.pattern();
        output::format(&pattern)?;
        output::quality(
            self.output_quality,
            [Some(&pattern), self.grid.as_ref()].into_iter().flatten().map(PathBuf::as_path),
        )
    }

    /// A name for each picture, all of them different.
    fn outputs(&self, request: &Request) -> anyhow::Result<Vec<PathBuf>> {
        let pattern = self.pattern();
        let text = pattern.to_string_lossy();
        let images = request.prompts.len() * request.num_images;
        let pattern = if images > 1 && !text.contains("{index}") {
            let stem = pattern.file_stem().unwrap_or_default().to_string_lossy();
            let ending = pattern.extension().unwrap_or_default().to_string_lossy();
            pattern.with_file_name(format!("{stem}-{{index}}.{ending}")).to_string_lossy().into_owned()
        } else {
            text.into_owned()
        };
        let seed = |i: usize| {
            let (seed, variation) = request.seeds(i % request.num_images);
            variation.map_or(seed, |variation| variation.seed).to_string()
        };
        Ok((0..images)
            .map(|i| pattern.replace("{seed}", &seed(i)).replace("{index}", &i.to_string()).into())
            .collect())
    }
}

/// Beside a picture's file.
fn preview_file(picture: &Path, step: usize) -> PathBuf {
    let ending = picture.extension().unwrap_or_default().to_string_lossy();
    picture.with_extension(format!("step-{step}.{ending}"))
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

/// A seed of 32 bits, which are all that the generator uses.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & 0xffff_ffff
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
