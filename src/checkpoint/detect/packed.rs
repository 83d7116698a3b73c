//! Forms of quantised weights that are not read, as data: how each is told, and how the names of the model within are found.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::checkpoint::safetensors::Entry;
use crate::quant::Encoding;
use Tell::{Ends, EndsAll, Inside, Packed32};

/// A form in which weights cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Packing {
    /// What packs weights so: `quanto`.
    pub name: &'static str,
    /// What would work.
    pub instead: &'static str,
}

/// What one of the tensors shows.
enum Tell {
    /// Its name ends so.
    Ends(&'static str),
    /// There are names with each of these ends.
    EndsAll(&'static [&'static str]),
    /// Its name holds this.
    Inside(&'static str),
    /// Weights of 32-bit words, with `scales` beside them.
    Packed32,
}

struct Form {
    packing: Packing,
    tells: &'static [Tell],
}

const UNPACKED: &str =
    "take the bf16, fp8 or GGUF file of the same model, or one that bitsandbytes has quantised";

const fn form(name: &'static str, tells: &'static [Tell]) -> Form {
    Form { packing: Packing { name, instead: UNPACKED }, tells }
}

/// The first that fits is the answer.
static FORMS: &[Form] = &[
    Form {
        packing: Packing {
            name: "peft, with LoRA layers around it (base_layer)",
            instead: "merge them before saving (merge_and_unload), or save the model and the LoRA each for itself (unload, \
                      save_lora_adapter)",
        },
        tells: &[Inside(".base_layer.")],
    },
    form(
        "SVDQuant (nunchaku)",
        &[Ends(".smooth_factor"), Ends(".wscales"), EndsAll(&[".qweight", ".smooth"])],
    ),
    form("nunchaku (AWQ, W4A16)", &[Ends(".wzeros"), EndsAll(&[".qweight", ".scaled_zeros"])]),
    form("GPTQ", &[EndsAll(&[".qweight", ".g_idx"])]),
    form("AWQ", &[EndsAll(&[".qweight", ".qzeros"])]),
    form("GPTQ, AWQ or alike (qweight)", &[Ends(".qweight")]),
    form("quanto", &[Ends(".weight._data"), Ends(".weight._data._data"), Ends(".weight._scale")]),
    form("HQQ", &[Ends(".W_q")]),
    form("MLX (mflux)", &[Packed32]),
    form("compressed-tensors", &[Ends(".weight_packed")]),
    form(
        "torchao",
        &[
            Ends("weight_qdata"),
            Ends(".weight:qdata"),
            Ends(".weight:tensor_impl:int_data"),
            Ends(".weight.tensor_impl.int_data"),
            Ends(".weight.tensor_impl.float8_data"),
            Ends(".weight.tensor_impl.packed_weight"),
        ],
    ),
    form("NVIDIA's ModelOpt", &[Ends("weight_quantizer._amax"), Ends("weight_quantizer._scale")]),
    form("AQLM", &[EndsAll(&[".codebooks", ".codes"])]),
    form("SDNQ", &[EndsAll(&[".weight", ".scale", ".zero_point"]), EndsAll(&[".svd_up", ".svd_down"])]),
];

/// How the names of packed weights become those of the model within.
const RENAMED: [(&str, &str); 10] = [
    ("._data._data", ""),
    ("._data", ""),
    (".qweight", ".weight"),
    (".W_q", ".weight"),
    (".weight_packed", ".weight"),
    ("._weight_qdata", ".weight"),
    (".weight_qdata", ".weight"),
    (".weight:qdata", ".weight"),
    (":tensor_impl:int_data", ""),
    (".tensor_impl.int_data", ""),
];

/// In which of the forms these tensors are.
pub(crate) fn find<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Option<&'static Packing> {
    let ends = |end: &str| entries.clone().any(|entry| entry.name.ends_with(end));
    let shows = |tell: &Tell| match tell {
        Ends(end) => ends(end),
        EndsAll(all) => all.iter().all(|end| ends(end)),
        Inside(text) => entries.clone().any(|entry| entry.name.contains(text)),
        Packed32 => {
            let words = |e: &&Entry| e.encoding == Encoding::Plain(Dtype::U32) && e.name.ends_with(".weight");
            ends(".scales") && entries.clone().any(|entry| words(&entry))
        }
    };
    FORMS.iter().find(|form| form.tells.iter().any(shows)).map(|form| &form.packing)
}

/// The names that the model within would have.
pub(super) fn unpacked<'a>(names: &BTreeMap<&'a str, &'a [i64]>) -> BTreeMap<String, &'a [i64]> {
    let rename = |name: &str| {
        let packed = RENAMED.iter().find_map(|(end, plain)| Some((name.strip_suffix(end)?, plain)));
        packed.map_or_else(|| name.replace(".base_layer.", "."), |(stem, plain)| format!("{stem}{plain}"))
    };
    names.iter().map(|(name, shape)| (rename(name), *shape)).collect()
}
