//! What loading promises: where the numbers lie, which kind they have, how long they live, and that a model is filled
//! whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::nn::{Adam, AdamW, Optimizer, OptimizerConfig, VarStore};
use tch::{Device, Kind, Reduction, Tensor};
use tch_flux::checkpoint::lora::Terms;
use tch_flux::checkpoint::{Access, Checkpoint, LoadOptions};
use tch_flux::layers::{EmbedNd, SelfAttention, SingleStreamBlock};
use tch_flux::lora::{Change, Term, Update};
use tch_flux::models::Model;
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::models::flux1::{Flux1, Flux1Input, Flux1Options, Flux1Params};
use tch_flux::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use tch_flux::nn::{init, is_placeholder};
use tch_flux::{Error, FileProblem};

use crate::support::{Stored, f32s, stored, stored_all, temp, tiny, variables, write_file};

const BOTH: [Access; 2] = [Access::Map, Access::Read];

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

/// A file of a small FLUX.1 with random weights.
fn tiny_file(params: &Flux1Params, kind: Kind) -> (tempfile::TempDir, PathBuf) {
    let (folder, path) = temp("flux1-tiny.safetensors");
    write_file(&path, &stored_all(&filled(params, 1).1, kind));
    (folder, path)
}

/// A small FLUX.1 with random weights.
fn filled(params: &Flux1Params, seed: u64) -> (Flux1, VarStore) {
    let vs = VarStore::new(Device::Cpu);
    let model = Flux1::new(vs.root(), params).unwrap();
    init(&vs, seed).unwrap();
    (model, vs)
}

/// A small FLUX.1 that waits for its weights.
fn unfilled(params: &Flux1Params) -> (Flux1, VarStore) {
    let vs = VarStore::new(Device::Cpu);
    (Flux1::new(vs.root(), params).unwrap(), vs)
}

/// Inputs that fit [`tiny`]: two pictures of 2×3 patches and 5 tokens.
struct Batch {
    img: Tensor,
    img_ids: Tensor,
    txt: Tensor,
    txt_ids: Tensor,
    timesteps: Tensor,
    y: Tensor,
    guidance: Tensor,
}

impl Batch {
    fn new(p: &Flux1Params) -> Self {
        let wave = |size: &[i64]| {
            let n: i64 = size.iter().product();
            (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.7).sin().view(size)
        };
        Self {
            img: wave(&[2, 6, p.in_channels]),
            img_ids: Tensor::arange(36, (Kind::Float, Device::Cpu)).view([2, 6, 3]).fmod(3),
            txt: wave(&[2, 5, p.context_in_dim]),
            txt_ids: Tensor::zeros([2, 5, 3], (Kind::Float, Device::Cpu)),
            timesteps: Tensor::from_slice(&[0.9f32, 0.4]),
            y: wave(&[2, p.vec_in_dim]),
            guidance: Tensor::from_slice(&[2.5f32, 4.0]),
        }
    }

    fn input(&self) -> Flux1Input<'_> {
        Flux1Input {
            img: &self.img,
            img_ids: &self.img_ids,
            txt: &self.txt,
            txt_ids: &self.txt_ids,
            timesteps: &self.timesteps,
            y: &self.y,
            guidance: Some(&self.guidance),
        }
    }

    fn run(&self, model: &Flux1) -> Tensor {
        model.forward(&self.input(), Flux1Options::default()).unwrap()
    }
}

// Where the numbers lie and how long.

#[test]
fn mapped_and_read_weights_are_equal() {
    let params = tiny();
    for kind in [Kind::Float, Kind::BFloat16] {
        let (_folder, path) = tiny_file(&params, kind);
        let [mapped, read] = BOTH.map(|access| {
            let (_, vs) = unfilled(&params);
            let loaded = Checkpoint::open(&path, access).unwrap().load(&vs, LoadOptions::default()).unwrap();
            assert_eq!((loaded.tensors, loaded.kind), (vs.len(), kind));
            (vs, loaded)
        });
        assert_eq!((mapped.1.borrowed, read.1.borrowed), (mapped.1.tensors, 0));
        assert_eq!(mapped.1.bytes, read.1.bytes);
        for ((name, a), b) in variables(&mapped.0).iter().zip(variables(&read.0).values()) {
            assert!(a.equal(b), "{name}");
            assert_eq!((a.kind(), b.kind()), (kind, kind));
        }
    }
}

#[test]
fn what_is_loaded_is_what_was_written() {
    let params = tiny();
    let (model, vs) = filled(&params, 1);
    let (_folder, path) = temp("flux1-tiny.safetensors");
    write_file(&path, &stored_all(&vs, Kind::Float));
    let (again, other) = unfilled(&params);
    Checkpoint::open(&path, Access::Map).unwrap().load(&other, LoadOptions::default()).unwrap();
    for ((name, a), b) in variables(&vs).iter().zip(variables(&other).values()) {
        assert!(a.equal(b), "{name}");
    }
    let batch = Batch::new(&params);
    assert!(batch.run(&model).equal(&batch.run(&again)));
}

#[test]
fn borrowed_weights_outlive_the_store_the_checkpoint_and_the_name_of_the_file() {
    let (folder, path) = temp("w.safetensors");
    let expected: Vec<f32> = (0..4096).map(|i| i as f32).collect();
    write_file(&path, &[f32s("img_in.bias", &[4096], &expected)]);
    let (alone, kept) = {
        let vs = VarStore::new(Device::Cpu);
        let _ = tch_flux::nn::declare(&(vs.root() / "img_in"), "bias", &[4096]);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        assert_eq!(checkpoint.load(&vs, LoadOptions::default()).unwrap().borrowed, 1);
        (checkpoint.tensor("img_in.bias").unwrap(), variables(&vs)["img_in.bias"].shallow_clone())
    };
    if cfg!(unix) {
        std::fs::remove_file(&path).unwrap();
        drop(folder);
    }
    assert_eq!(values(&kept), expected);
    drop(kept);
    assert_eq!(values(&alone.narrow(0, 4000, 96)), expected[4000..]);
}

#[test]
fn writing_to_a_borrowed_weight_leaves_the_file_as_it_is() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let before = std::fs::read(&path).unwrap();
    let (_, vs) = unfilled(&params);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
    assert_eq!(loaded.borrowed, loaded.tensors);
    tch::no_grad(|| {
        for mut tensor in variables(&vs).into_values() {
            let _ = tensor.fill_(7.0);
            assert!(values(&tensor).iter().all(|v| *v == 7.0));
        }
    });
    drop((vs, checkpoint));
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn the_store_is_filled_in_place_so_that_layers_and_clones_see_the_weights() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let (_model, vs) = unfilled(&params);
    let clones: Vec<Tensor> = variables(&vs).values().map(Tensor::shallow_clone).collect();
    Checkpoint::open(&path, Access::Map).unwrap().load(&vs, LoadOptions::default()).unwrap();
    for (clone, (name, variable)) in clones.iter().zip(variables(&vs)) {
        assert_eq!(clone.data_ptr(), variable.data_ptr(), "{name}");
    }
}

#[test]
fn a_store_can_be_filled_again_from_another_file() {
    let params = tiny();
    let (model, vs) = unfilled(&params);
    let batch = Batch::new(&params);
    let runs = [1, 2].map(|seed| {
        let (_folder, path) = temp("flux1-tiny.safetensors");
        write_file(&path, &stored_all(&filled(&params, seed).1, Kind::Float));
        Checkpoint::open(&path, Access::Read).unwrap().load(&vs, LoadOptions::default()).unwrap();
        (batch.run(&model), batch.run(&filled(&params, seed).0))
    });
    for (loaded, made) in &runs {
        assert!(loaded.equal(made));
    }
    assert!(!runs[0].0.equal(&runs[1].0));
}

// Kinds.

#[test]
fn bf16_weights_become_f32_on_request_without_a_change_of_value() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::BFloat16);
    for access in BOTH {
        let checkpoint = Checkpoint::open(&path, access).unwrap();
        let (_, vs) = unfilled(&params);
        let loaded =
            checkpoint.load(&vs, LoadOptions { kind: Some(Kind::Float), ..Default::default() }).unwrap();
        assert_eq!((loaded.kind, loaded.borrowed), (Kind::Float, 0));
        assert_eq!(loaded.bytes, 2 * checkpoint.bytes());
        for (name, tensor) in variables(&vs) {
            assert_eq!(tensor.kind(), Kind::Float);
            assert!(tensor.equal(&checkpoint.tensor(&name).unwrap().to_kind(Kind::Float)), "{name}");
        }
    }
}

#[test]
fn f32_weights_become_bf16_on_request_rounded_to_the_nearest() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let (_, rounded) = filled(&params, 1);
    for access in BOTH {
        let checkpoint = Checkpoint::open(&path, access).unwrap();
        let (_, vs) = unfilled(&params);
        let loaded =
            checkpoint.load(&vs, LoadOptions { kind: Some(Kind::BFloat16), ..Default::default() }).unwrap();
        assert_eq!((loaded.kind, loaded.borrowed), (Kind::BFloat16, 0));
        assert_eq!(2 * loaded.bytes, checkpoint.bytes());
        for ((name, a), b) in variables(&vs).iter().zip(variables(&rounded).values()) {
            assert_eq!(a.kind(), Kind::BFloat16);
            assert!(a.equal(&b.to_kind(Kind::BFloat16)), "{name}");
        }
    }
}

/// A file of two kinds: all in bf16 but the vectors.
fn mixed(params: &Flux1Params) -> (tempfile::TempDir, PathBuf, usize) {
    let (folder, path) = temp("flux1-tiny.safetensors");
    let (_, vs) = filled(params, 1);
    let kind = |tensor: &Tensor| if tensor.dim() == 1 { Kind::Float } else { Kind::BFloat16 };
    let tensors: Vec<Stored> = variables(&vs).iter().map(|(n, t)| stored(n, t, kind(t))).collect();
    write_file(&path, &tensors);
    (folder, path, tensors.iter().filter(|(_, dtype, ..)| dtype == "F32").count())
}

#[test]
fn a_file_of_several_kinds_is_refused_with_how_to_mend_it() {
    let params = tiny();
    let (_folder, path, vectors) = mixed(&params);
    let (_, vs) = unfilled(&params);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    assert_eq!(checkpoint.main_kind(), Some(Kind::BFloat16));
    let Err(Error::Mismatch(mismatch)) = checkpoint.load(&vs, LoadOptions::default()) else { panic!() };
    assert_eq!(mismatch.of_another_kind.len(), vectors);
    assert!(mismatch.to_string().contains("ask for one kind"), "{mismatch}");
    assert!(variables(&vs).values().all(is_placeholder));
}

#[test]
fn a_file_of_several_kinds_loads_into_the_one_that_was_asked_for() {
    let params = tiny();
    let (_folder, path, vectors) = mixed(&params);
    for kind in [Kind::Float, Kind::BFloat16] {
        let (_, vs) = unfilled(&params);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        let loaded = checkpoint.load(&vs, LoadOptions { kind: Some(kind), ..Default::default() }).unwrap();
        let borrowed = if kind == Kind::Float { vectors } else { loaded.tensors - vectors };
        assert_eq!((loaded.tensors, loaded.borrowed), (vs.len(), borrowed));
        assert!(variables(&vs).values().all(|t| t.kind() == kind));
    }
}

// Whole or not at all.

/// Whether the error says that every parameter of the store waits for its values.
fn assert_unfilled<T: std::fmt::Debug>(result: tch_flux::Result<T>, vs: &VarStore) {
    match result {
        Err(Error::Unfilled { count, example }) => {
            assert_eq!(count, vs.len());
            assert!(vs.variables().contains_key(&example), "{example}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn flux1_before_loading_is_refused_with_the_count_of_its_parameters() {
    let params = tiny();
    let (model, vs) = unfilled(&params);
    assert_unfilled(model.forward(&Batch::new(&params).input(), Flux1Options::default()), &vs);
}

#[test]
fn the_autoencoder_before_loading_is_refused_with_the_count_of_its_parameters() {
    let (model, vs) = autoencoder();
    let options = (Kind::Float, Device::Cpu);
    assert_unfilled(model.encode(&Tensor::zeros([1, 3, 16, 16], options)), &vs);
    assert_unfilled(model.decode(&Tensor::zeros([1, 4, 8, 8], options)), &vs);
}

#[test]
fn the_text_encoders_before_loading_are_refused_with_the_count_of_their_parameters() {
    let tokens = Tensor::from_slice(&[1i64, 2, 3]).unsqueeze(0);
    let vs = VarStore::new(Device::Cpu);
    assert_unfilled(T5Encoder::new(vs.root(), &t5_config()).unwrap().forward(&tokens), &vs);
    let vs = VarStore::new(Device::Cpu);
    assert_unfilled(ClipText::new(vs.root(), &clip_config()).unwrap().forward(&tokens), &vs);
}

#[test]
fn a_model_that_is_filled_in_part_is_refused_with_the_count_of_the_rest() {
    let params = tiny();
    let (model, vs) = unfilled(&params);
    let mut weight = variables(&vs)["img_in.weight"].shallow_clone();
    weight.set_data(&Tensor::zeros(weight.size(), (Kind::Float, Device::Cpu)));
    match model.forward(&Batch::new(&params).input(), Flux1Options::default()) {
        Err(Error::Unfilled { count, .. }) => assert_eq!(count, vs.len() - 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_load_that_is_refused_fills_nothing() {
    let params = tiny();
    let (_, vs) = filled(&params, 1);
    let whole = stored_all(&vs, Kind::Float);
    let damages: [fn(&mut Vec<Stored>); 4] = [
        |tensors| drop(tensors.pop()),
        |tensors| tensors.push(f32s("zz", &[1], &[0.0])),
        |tensors| tensors.last_mut().unwrap().2.insert(0, 1),
        |tensors| {
            let (_, dtype, _, bytes) = tensors.last_mut().unwrap();
            *dtype = "I32".into();
            assert!(bytes.len().is_multiple_of(4));
        },
    ];
    for damage in damages {
        let mut tensors = whole.clone();
        damage(&mut tensors);
        let (_folder, path) = temp("flux1-tiny.safetensors");
        write_file(&path, &tensors);
        let (model, vs) = unfilled(&params);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        assert!(matches!(checkpoint.load(&vs, LoadOptions::default()), Err(Error::Mismatch(_))));
        assert!(variables(&vs).values().all(is_placeholder));
        assert_unfilled(model.forward(&Batch::new(&params).input(), Flux1Options::default()), &vs);
    }
}

#[test]
fn every_parameter_of_every_model_is_a_placeholder_until_init_gives_it_finite_values() {
    let stores = [
        unfilled(&tiny()).1,
        autoencoder().1,
        {
            let vs = VarStore::new(Device::Cpu);
            T5Encoder::new(vs.root(), &t5_config()).unwrap();
            vs
        },
        {
            let vs = VarStore::new(Device::Cpu);
            ClipText::new(vs.root(), &clip_config()).unwrap();
            vs
        },
    ];
    for vs in stores {
        for (name, tensor) in variables(&vs) {
            assert!(is_placeholder(&tensor), "{name} {:?}", tensor.size());
        }
        init(&vs, 3).unwrap();
        for (name, tensor) in variables(&vs) {
            assert!(!is_placeholder(&tensor), "{name}");
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_values_and_another_gives_others() {
    let params = tiny();
    let [a, b, c] = [5, 5, 6].map(|seed| filled(&params, seed).1);
    for (name, tensor) in variables(&a) {
        assert!(tensor.equal(&variables(&b)[&name]), "{name}");
        assert!(name.ends_with("scale") || !tensor.equal(&variables(&c)[&name]), "{name}");
    }
}

// Sizes from the header, shards, other names.

#[test]
fn other_depths_are_read_from_the_header() {
    for (depth, depth_single_blocks) in [(1, 1), (3, 2), (2, 0), (0, 2), (8, 12)] {
        let params = Flux1Params { depth, depth_single_blocks, axes_dim: [4, 14, 14], ..tiny() };
        let (_folder, path) = tiny_file(&params, Kind::Float);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        let read = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!(read, params);
        let (model, vs) = unfilled(&read);
        checkpoint.load(&vs, LoadOptions::default()).unwrap();
        assert_eq!(Batch::new(&params).run(&model).size(), [2, 6, params.out_channels]);
    }
}

#[test]
fn guidance_is_read_from_the_header() {
    for guidance_embed in [true, false] {
        let params = Flux1Params { guidance_embed, axes_dim: [4, 14, 14], ..tiny() };
        let (_folder, path) = tiny_file(&params, Kind::Float);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        let read = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!(read, params);
        assert_eq!(read.variant(), if guidance_embed { "dev" } else { "schnell" });
        assert!(checkpoint.family().to_string().contains(read.variant()));
    }
}

#[test]
fn qkv_without_a_bias_is_read_from_the_header() {
    let params = Flux1Params { qkv_bias: false, axes_dim: [4, 14, 14], ..tiny() };
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    assert_eq!(Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap(), params);
}

#[test]
fn a_header_without_a_size_names_the_tensor_that_is_missing() {
    let (_folder, path) = tiny_file(&tiny(), Kind::Float);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    for missing in
        ["img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight"]
    {
        let read = Flux1Params::from_shapes(|name| checkpoint.shape(name).filter(|_| name != missing));
        assert!(matches!(read, Err(Error::MissingTensor { name }) if name == missing), "{missing}");
    }
}

/// The tensors spread over `count` shards, with an index.
fn write_shards(folder: &Path, tensors: &[Stored], count: usize) -> PathBuf {
    let shard = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    let mut map = serde_json::Map::new();
    for i in 0..count {
        let mine: Vec<Stored> = tensors.iter().skip(i).step_by(count).cloned().collect();
        map.extend(mine.iter().map(|(name, ..)| (name.clone(), shard(i).into())));
        write_file(&folder.join(shard(i)), &mine);
    }
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    path
}

#[test]
fn shards_load_the_same_as_the_single_file() {
    let params = tiny();
    let (_, vs) = filled(&params, 1);
    let tensors = stored_all(&vs, Kind::BFloat16);
    let (_folder, single) = temp("flux1-tiny.safetensors");
    write_file(&single, &tensors);
    let folder = tempfile::tempdir().unwrap();
    let index = write_shards(folder.path(), &tensors, 3);
    for access in BOTH {
        let [a, b, c] = [single.as_path(), &index, folder.path()].map(|path| {
            let (_, vs) = unfilled(&params);
            let checkpoint = Checkpoint::open(path, access).unwrap();
            let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
            assert_eq!(loaded.borrowed, if access == Access::Map { loaded.tensors } else { 0 });
            (variables(&vs), checkpoint.files().len(), checkpoint.bytes(), checkpoint.parameters())
        });
        assert_eq!((a.1, b.1, c.1), (1, 3, 3));
        assert_eq!((a.2, a.3), (b.2, b.3));
        for (name, tensor) in &a.0 {
            assert!(tensor.equal(&b.0[name]) && tensor.equal(&c.0[name]), "{name}");
        }
    }
}

/// Loads what a path names into a small FLUX.1 and gives its variables, how many files were read, and what is said of it.
fn loaded_from(path: &Path) -> (BTreeMap<String, Tensor>, usize, Vec<String>) {
    let (_, vs) = unfilled(&tiny());
    let checkpoint = Checkpoint::open(path, Access::Map).unwrap();
    checkpoint.load(&vs, LoadOptions::default()).unwrap();
    (variables(&vs), checkpoint.files().len(), checkpoint.warnings().to_vec())
}

fn assert_same(found: &BTreeMap<String, Tensor>, vs: &VarStore) {
    for (name, tensor) in variables(vs) {
        assert!(found[&name].equal(&tensor.to_kind(found[&name].kind())), "{name}");
    }
}

/// What macOS keeps beside a file on other file systems: no weights, whatever its name ends in.
const SIDECAR: &[u8] = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00";

#[test]
fn shards_of_a_variant_load_under_every_spelling_of_their_index() {
    let (_, vs) = filled(&tiny(), 1);
    let tensors = stored_all(&vs, Kind::BFloat16);
    for (shard, index) in [
        // diffusers and transformers today, and as they wrote it before.
        (
            "diffusion_pytorch_model.fp16-0000{}-of-00002",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        (
            "diffusion_pytorch_model.fp16-0000{}-of-00002",
            "diffusion_pytorch_model.fp16.safetensors.index.json",
        ),
        (
            "diffusion_pytorch_model-0000{}-of-00002.fp16",
            "diffusion_pytorch_model.safetensors.fp16.index.json",
        ),
        ("model.fp8-0000{}-of-00002", "model.safetensors.index.fp8.json"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut map = serde_json::Map::new();
        for i in 0..2 {
            let name = format!("{}.safetensors", shard.replace("{}", &(i + 1).to_string()));
            let mine: Vec<Stored> = tensors.iter().skip(i).step_by(2).cloned().collect();
            map.extend(mine.iter().map(|(tensor, ..)| (tensor.clone(), name.clone().into())));
            write_file(&folder.path().join(&name), &mine);
            std::fs::write(folder.path().join(format!("._{name}")), SIDECAR).unwrap();
        }
        let by_index = folder.path().join(index);
        let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(&by_index, text).unwrap();
        std::fs::write(folder.path().join(format!("._{index}")), SIDECAR).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let second = format!("{}.safetensors", shard.replace("{}", "2"));
        for path in [folder.path().to_path_buf(), by_index, folder.path().join(&second)] {
            let (found, files, warnings) = loaded_from(&path);
            assert_same(&found, &vs);
            assert_eq!(files, 2, "{}", path.display());
            if path.ends_with(&second) {
                assert!(
                    warnings[0].contains("one of 2 shards") && warnings[0].contains(&second),
                    "{warnings:?}"
                );
            } else {
                assert!(warnings.is_empty(), "{warnings:?}");
            }
        }
    }
}

#[test]
fn shards_without_an_index_load_by_their_numbers_and_one_of_them_brings_the_others() {
    let (_, vs) = filled(&tiny(), 1);
    let folder = tempfile::tempdir().unwrap();
    let index = write_shards(folder.path(), &stored_all(&vs, Kind::BFloat16), 3);
    std::fs::remove_file(index).unwrap();
    let first = folder.path().join("model-00001-of-00003.safetensors");
    std::fs::write(folder.path().join("._model-00001-of-00003.safetensors"), SIDECAR).unwrap();
    // Of another model, which does not concern these.
    write_file(&folder.path().join("other-00001-of-00002.safetensors"), &[f32s("a", &[1], &[1.0])]);
    for (path, said) in [(folder.path(), "3 shards without an index"), (&first, "one of 3 shards")] {
        let (found, files, warnings) = loaded_from(path);
        assert_same(&found, &vs);
        assert_eq!(files, 3);
        assert!(warnings.len() == 1 && warnings[0].contains(said), "{warnings:?}");
    }
    // One that is missing is named, by the folder and by another shard.
    std::fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    for path in [folder.path(), &first] {
        let error = Checkpoint::open(path, Access::Map).unwrap_err();
        assert!(matches!(&error, Error::File { problem: FileProblem::Shards { .. }, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("one of 3 shards") && text.contains("the numbers 2 are missing"), "{text}");
    }
    // And one that is there twice.
    for name in ["model-00002-of-00003.safetensors", "model-2-of-3.safetensors"] {
        write_file(&folder.path().join(name), &[f32s(name, &[1], &[1.0])]);
    }
    let text = Checkpoint::open(&first, Access::Map).unwrap_err().to_string();
    assert!(text.contains("both are shard 2 of 3"), "{text}");
}

#[test]
fn a_sidecar_that_is_named_is_said_to_be_one() {
    let (_folder, path) = temp("._model.safetensors");
    std::fs::write(&path, SIDECAR).unwrap();
    let text = Checkpoint::open(&path, Access::Map).unwrap_err().to_string();
    assert!(text.contains("macOS"), "{text}");
}

/// Terms for a linear layer, for some rows of another, and for a norm.
fn terms() -> Terms {
    let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu)) * 0.25;
    let term =
        |change, rows| Term { update: Update { change, scale: 0.5, magnitude: None }, rows, strength: 1.0 };
    let low_rank = Change::LowRank { down: ones(&[2, 64]), up: ones(&[64, 2]), bias: None };
    let mut terms = Terms::default();
    let (proj, qkv) = ("double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv");
    terms.linears.insert(proj.into(), vec![term(low_rank, None)]);
    terms.linears.insert(qkv.into(), vec![term(Change::Full(ones(&[64, 64])), Some(64..128))]);
    let scale = "single_blocks.0.norm.query_norm.scale";
    terms.parameters.insert(scale.into(), vec![term(Change::Full(ones(&[32])), None)]);
    terms
}

#[test]
fn a_lora_on_a_model_at_a_sub_path_does_what_it_does_at_the_root() {
    let params = tiny();
    let (at_root, root) = filled(&params, 1);
    let (_folder, path) = temp("flux1-tiny.safetensors");
    write_file(&path, &stored_all(&root, Kind::Float));
    let vs = VarStore::new(Device::Cpu);
    let below = Flux1::new(vs.root() / "inner" / "model", &params).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().prefixed("inner.model.");
    checkpoint.load(&vs, LoadOptions::default()).unwrap();
    assert_eq!((at_root.linears().root(), below.linears().root()), ("", "inner.model."));
    let batch = Batch::new(&params);
    let _no_grad = tch::no_grad_guard();
    let bare = below.forward(&batch.input(), Flux1Options::default()).unwrap();
    assert!(bare.equal(&at_root.forward(&batch.input(), Flux1Options::default()).unwrap()));

    terms().put_on(&root, at_root.linears()).unwrap();
    terms().put_on(&vs, below.linears()).unwrap();
    let changed = below.forward(&batch.input(), Flux1Options::default()).unwrap();
    assert!(!changed.equal(&bare));
    assert!(changed.equal(&at_root.forward(&batch.input(), Flux1Options::default()).unwrap()));
    // Without terms it is as it was loaded.
    Terms::default().put_on(&vs, below.linears()).unwrap();
    assert!(below.forward(&batch.input(), Flux1Options::default()).unwrap().equal(&bare));
}

#[test]
fn terms_without_a_layer_of_their_shape_are_errors_and_change_nothing() {
    let params = tiny();
    let (_, other) = filled(&params, 2);
    for sub_path in [false, true] {
        let vs = VarStore::new(Device::Cpu);
        let root = if sub_path { vs.root() / "model" } else { vs.root() };
        let model = Flux1::new(root, &params).unwrap();
        init(&vs, 1).unwrap();
        let batch = Batch::new(&params);
        let _no_grad = tch::no_grad_guard();
        terms().put_on(&vs, model.linears()).unwrap();
        let before = model.forward(&batch.input(), Flux1Options::default()).unwrap();
        let refused = |change: &dyn Fn(&mut Terms), store: &VarStore| {
            let mut wrong = terms();
            change(&mut wrong);
            let error = wrong.put_on(store, model.linears()).unwrap_err();
            let Error::Lora(unplaced) = &error else { panic!("{error}") };
            assert!(error.to_string().contains("none was applied"), "{error}");
            assert!(
                model.forward(&batch.input(), Flux1Options::default()).unwrap().equal(&before),
                "the terms from before stay"
            );
            *unplaced.clone()
        };
        let renamed = |from: &'static str, to: &'static str| {
            move |terms: &mut Terms| {
                let list = terms.linears.remove(from).unwrap();
                terms.linears.insert(to.into(), list);
            }
        };
        let proj = "double_blocks.0.img_attn.proj";
        let absent = refused(&renamed(proj, "double_blocks.7.img_attn.proj"), &vs).absent;
        assert_eq!(absent[0].0, "double_blocks.7.img_attn.proj");
        assert!(absent[0].1.starts_with(model.linears().root()), "{absent:?}");
        // A name with the path in it is no official name.
        assert_eq!(refused(&renamed(proj, "model.double_blocks.0.img_attn.proj"), &vs).absent.len(), 1);
        assert_eq!(refused(&renamed(proj, "double_blocks.0.img_mlp.0"), &vs).misshapen.len(), 1);
        let norm = |terms: &mut Terms| {
            let list = terms.parameters.pop_first().unwrap().1;
            terms.parameters.insert("single_blocks.9.norm.query_norm.scale".into(), list);
        };
        assert_eq!(refused(&norm, &vs).absent.len(), 1);
        let rows = |terms: &mut Terms| {
            terms.linears.get_mut("double_blocks.0.img_attn.qkv").unwrap()[0].rows = Some(150..214);
        };
        assert_eq!(refused(&rows, &vs).misshapen.len(), 1);
        // The store of another model has the parameters under other names.
        if sub_path {
            assert_eq!(refused(&|_| {}, &other).absent.len(), 1);
        }
    }
}

fn t5_config() -> T5Config {
    T5Config {
        vocab_size: 40,
        d_model: 16,
        d_kv: 4,
        d_ff: 24,
        num_layers: 2,
        num_heads: 3,
        ..T5Config::xxl()
    }
}

#[test]
fn t5_loads_its_embedding_under_either_name_or_both() {
    const SHARED: &str = "shared.weight";
    const TOKENS: &str = "encoder.embed_tokens.weight";
    let vs = VarStore::new(Device::Cpu);
    let made = T5Encoder::new(vs.root(), &t5_config()).unwrap();
    init(&vs, 2).unwrap();
    let tokens = Tensor::from_slice(&[3i64, 1, 39, 0, 7]).unsqueeze(0);
    let expected = made.forward(&tokens).unwrap();
    for names in [&[SHARED][..], &[TOKENS], &[SHARED, TOKENS]] {
        let mut tensors = stored_all(&vs, Kind::Float);
        let embedding = tensors.iter().position(|(name, ..)| name == SHARED).unwrap();
        let embedding = tensors.remove(embedding);
        tensors.extend(names.iter().map(|name| {
            Stored::from((name.to_string(), embedding.1.clone(), embedding.2.clone(), embedding.3.clone()))
        }));
        let (_folder, path) = temp("t5.safetensors");
        write_file(&path, &tensors);
        let vs = VarStore::new(Device::Cpu);
        let model = T5Encoder::new(vs.root(), &t5_config()).unwrap();
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().alias(TOKENS, SHARED);
        checkpoint.load(&vs, LoadOptions::default()).unwrap();
        assert!(model.forward(&tokens).unwrap().equal(&expected), "{names:?}");
    }
}

fn clip_config() -> ClipConfig {
    ClipConfig {
        vocab_size: 40,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        eos_token_id: 39,
        ..ClipConfig::large()
    }
}

#[test]
fn clip_loads_with_and_without_its_prefix() {
    let vs = VarStore::new(Device::Cpu);
    let made = ClipText::new(vs.root(), &clip_config()).unwrap();
    init(&vs, 2).unwrap();
    let tokens = Tensor::from_slice(&[38i64, 1, 5, 39, 39]).unsqueeze(0);
    let expected = made.forward(&tokens).unwrap();
    for prefix in ["text_model.", ""] {
        let mut tensors = stored_all(&vs, Kind::Float);
        for (name, ..) in &mut tensors {
            *name = format!("{prefix}{}", name.strip_prefix("text_model.").unwrap());
        }
        let (_folder, path) = temp("clip.safetensors");
        write_file(&path, &tensors);
        let vs = VarStore::new(Device::Cpu);
        let model = ClipText::new(vs.root(), &clip_config()).unwrap();
        let mut checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        assert!(checkpoint.family().to_string().contains("CLIP"));
        if prefix.is_empty() {
            checkpoint = checkpoint.prefixed("text_model.");
        }
        checkpoint.load(&vs, LoadOptions::default()).unwrap();
        let out = model.forward(&tokens).unwrap();
        assert!(out.last_hidden_state.equal(&expected.last_hidden_state));
        assert!(out.pooler_output.equal(&expected.pooler_output));
    }
}

// What the official constructors and calls refuse.

fn autoencoder() -> (AutoEncoder, VarStore) {
    let vs = VarStore::new(Device::Cpu);
    let params = AutoEncoderParams {
        ch: 32,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 4,
        ..AutoEncoderParams::flux1()
    };
    (AutoEncoder::new(vs.root(), &params).unwrap(), vs)
}

fn config_text<T: std::fmt::Debug>(result: tch_flux::Result<T>) -> String {
    match result {
        Err(Error::Config(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn heads_that_do_not_divide_the_hidden_size_are_refused() {
    for num_heads in [3, 0, -2, 128] {
        let vs = VarStore::new(Device::Cpu);
        let text = config_text(Flux1::new(vs.root(), &Flux1Params { num_heads, ..tiny() }));
        assert!(text.contains("must be divisible by num_heads"), "{text}");
        assert!(vs.is_empty());
        config_text(SelfAttention::new(vs.root(), 64, num_heads, true));
        config_text(SingleStreamBlock::new(vs.root(), 64, num_heads, 4.0));
    }
    let vs = VarStore::new(Device::Cpu);
    config_text(ClipText::new(vs.root(), &ClipConfig { num_attention_heads: 5, ..clip_config() }));
}

#[test]
fn axes_that_do_not_sum_to_the_head_width_are_refused() {
    for axes_dim in [[8, 12, 14], [0, 16, 16], [9, 11, 12], [16, 32, -16]] {
        let vs = VarStore::new(Device::Cpu);
        let text = config_text(Flux1::new(vs.root(), &Flux1Params { axes_dim, ..tiny() }));
        assert!(text.contains(&format!("{axes_dim:?}")), "{text}");
    }
    assert!(config_text(EmbedNd::new(32, 10_000, &[16, 56, 56])).contains("expected positional dim 32"));
}

#[test]
fn senseless_sizes_are_refused() {
    for params in [
        Flux1Params { hidden_size: -64, num_heads: 2, ..tiny() },
        Flux1Params { hidden_size: 0, ..tiny() },
        Flux1Params { in_channels: -1, ..tiny() },
        Flux1Params { mlp_ratio: f64::NAN, ..tiny() },
        Flux1Params { mlp_ratio: -1.0, ..tiny() },
    ] {
        let vs = VarStore::new(Device::Cpu);
        config_text(Flux1::new(vs.root(), &params));
    }
}

#[test]
fn channels_that_the_norms_cannot_group_are_refused() {
    for (ch, ch_mult) in [(31, vec![1]), (32, vec![]), (32, vec![0]), (48, vec![1, 2])] {
        let vs = VarStore::new(Device::Cpu);
        let params = AutoEncoderParams { ch, ch_mult, ..AutoEncoderParams::flux1() };
        config_text(AutoEncoder::new(vs.root(), &params));
    }
}

#[test]
fn a_t5_that_is_not_gated_and_an_unknown_activation_are_refused() {
    let vs = VarStore::new(Device::Cpu);
    let config = T5Config { feed_forward_proj: "relu".into(), ..t5_config() };
    assert!(config_text(T5Encoder::new(vs.root(), &config)).contains("relu"));
    let config = ClipConfig { hidden_act: "tanh".into(), ..clip_config() };
    assert!(config_text(ClipText::new(vs.root(), &config)).contains("tanh"));
}

#[test]
fn pictures_and_texts_that_are_not_3_dimensional_are_refused() {
    let (model, _vs) = filled(&tiny(), 1);
    let batch = Batch::new(&tiny());
    for (what, flat) in [("img", batch.img.get(0)), ("txt", batch.txt.get(0))] {
        for bad in [flat.shallow_clone(), flat.unsqueeze(0).unsqueeze(0), flat.sum(Kind::Float)] {
            let mut input = batch.input();
            if what == "img" {
                input.img = &bad
            } else {
                input.txt = &bad
            }
            match model.forward(&input, Flux1Options::default()) {
                Err(Error::Shape { what: named, expected, found }) => {
                    assert_eq!((named, &expected[..], found), (what, "3-dimensional", bad.size()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_distilled_model_without_guidance_is_refused_and_schnell_does_not_ask() {
    let batch = Batch::new(&tiny());
    let without = Flux1Input { guidance: None, ..batch.input() };
    let (model, _vs) = filled(&tiny(), 1);
    assert!(matches!(model.forward(&without, Flux1Options::default()), Err(Error::MissingGuidance)));
    let (model, _vs) = filled(&Flux1Params { guidance_embed: false, ..tiny() }, 1);
    let out = model.forward(&without, Flux1Options::default()).unwrap();
    assert!(out.equal(&batch.run(&model)), "schnell reads no guidance");
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let (model, _vs) = filled(&tiny(), 1);
    let batch = Batch::new(&tiny());
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let cases: [(&str, &[&[i64]]); 7] = [
        ("img", &[&[2, 6, 15]]),
        ("img_ids", &[&[2, 6, 2], &[2, 5, 3], &[1, 6, 3], &[6, 3], &[2, 6, 3, 1]]),
        ("txt", &[&[2, 5, 41], &[1, 5, 40]]),
        ("txt_ids", &[&[2, 5, 2], &[2, 6, 3], &[1, 5, 3], &[5, 3]]),
        ("timesteps", &[&[1], &[2, 1], &[]]),
        ("y", &[&[2, 23], &[1, 24], &[24]]),
        ("guidance", &[&[1], &[2, 1], &[]]),
    ];
    for (what, sizes) in cases {
        for size in sizes {
            let bad = zeros(size);
            let mut input = batch.input();
            match what {
                "img" => input.img = &bad,
                "img_ids" => input.img_ids = &bad,
                "txt" => input.txt = &bad,
                "txt_ids" => input.txt_ids = &bad,
                "timesteps" => input.timesteps = &bad,
                "y" => input.y = &bad,
                _ => input.guidance = Some(&bad),
            }
            match model.forward(&input, Flux1Options::default()) {
                Err(Error::Shape { what: named, found, .. }) => {
                    assert_eq!((named, &found[..]), (what, *size))
                }
                other => panic!("{what} {size:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn pictures_and_latents_of_a_wrong_shape_are_refused() {
    let (model, vs) = autoencoder();
    init(&vs, 1).unwrap();
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    for size in [&[3, 16, 16][..], &[1, 4, 16, 16], &[1, 3, 0, 16]] {
        assert!(matches!(model.encode(&zeros(size)), Err(Error::Shape { what: "x", .. })));
    }
    for size in [&[4, 8, 8][..], &[1, 3, 8, 8], &[1, 4, 8, 0]] {
        assert!(matches!(model.decode(&zeros(size)), Err(Error::Shape { what: "z", .. })));
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let (vs, other) = (VarStore::new(Device::Cpu), VarStore::new(Device::Cpu));
    let t5 = T5Encoder::new(vs.root(), &t5_config()).unwrap();
    let clip = ClipText::new(other.root(), &clip_config()).unwrap();
    init(&vs, 1).unwrap();
    init(&other, 1).unwrap();
    for token in [40i64, -1, i64::MAX] {
        let tokens = Tensor::from_slice(&[1, token]).unsqueeze(0);
        assert!(matches!(t5.forward(&tokens), Err(Error::Request(_))));
        assert!(matches!(clip.forward(&tokens), Err(Error::Request(_))));
    }
    for size in [&[5i64][..], &[1, 0], &[1, 78], &[1, 1, 1]] {
        let tokens = Tensor::zeros(size, (Kind::Int64, Device::Cpu));
        assert!(matches!(clip.forward(&tokens), Err(Error::Shape { .. })), "{size:?}");
        assert!(size == [1, 78] || matches!(t5.forward(&tokens), Err(Error::Shape { .. })), "{size:?}");
    }
}

// Gradients.

#[test]
fn a_frozen_model_tracks_no_gradients() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let (model, mut vs) = unfilled(&params);
    Checkpoint::open(&path, Access::Map).unwrap().load(&vs, LoadOptions::default()).unwrap();
    let batch = Batch::new(&params);
    assert!(batch.run(&model).requires_grad(), "a loaded model can be trained");
    vs.freeze();
    assert!(!batch.run(&model).requires_grad());
    assert!(variables(&vs).values().all(|tensor| !tensor.requires_grad()));
}

/// Fits one batch in ten steps; every variable must get a gradient in the first.
fn assert_learns(model: &Flux1, vs: &VarStore, mut optimizer: Optimizer) {
    let batch = Batch::new(model.params());
    let target = (&batch.img * 3.0).cos();
    let mut losses = Vec::new();
    for step in 0..10 {
        let loss = batch.run(model).mse_loss(&target, Reduction::Mean);
        losses.push(f64::try_from(&loss).unwrap());
        optimizer.zero_grad();
        loss.backward();
        if step == 0 {
            assert_eq!(vs.trainable_variables().len(), vs.len());
            for (name, tensor) in variables(vs) {
                let grad = tensor.grad();
                assert!(grad.defined(), "{name} has no gradient");
                assert_eq!(grad.size(), tensor.size(), "{name}");
                assert!(bool::try_from(grad.isfinite().all()).unwrap(), "{name}");
                assert!(f64::try_from(grad.abs().max()).unwrap() > 0.0, "{name} has a gradient of zeros");
            }
        }
        optimizer.step();
    }
    assert!(losses.iter().all(|loss| loss.is_finite()));
    assert!(losses[9] < 0.8 * losses[0], "{losses:?}");
}

#[test]
fn a_model_from_random_values_learns_and_every_parameter_has_a_gradient() {
    let (model, vs) = filled(&tiny(), 7);
    let optimizer = AdamW::default().build(&vs, 1e-3).unwrap();
    assert_learns(&model, &vs, optimizer);
}

#[test]
fn a_model_from_a_mapped_file_learns_without_a_change_to_the_file() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let before = std::fs::read(&path).unwrap();
    let (model, vs) = unfilled(&params);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    assert_eq!(checkpoint.load(&vs, LoadOptions::default()).unwrap().borrowed, vs.len());
    let optimizer = Adam::default().build(&vs, 1e-3).unwrap();
    assert_learns(&model, &vs, optimizer);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn an_optimizer_that_was_built_before_loading_trains_the_loaded_weights() {
    let params = tiny();
    let (_folder, path) = tiny_file(&params, Kind::Float);
    let (model, vs) = unfilled(&params);
    let optimizer = AdamW::default().build(&vs, 1e-3).unwrap();
    Checkpoint::open(&path, Access::Read).unwrap().load(&vs, LoadOptions::default()).unwrap();
    assert_learns(&model, &vs, optimizer);
}
