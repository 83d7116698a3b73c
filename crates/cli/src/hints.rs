//! What would help against an error of the library, by the program's flags.

use tch_flux::{Error, Hint};

/// The flags that would help against an error, as the end of its message.
pub(super) fn hints(error: &Error) -> String {
    let flags: Vec<String> = error.hints().into_iter().filter_map(flag).collect();
    if flags.is_empty() { String::new() } else { format!("\n  see {}", flags.join(", ")) }
}

/// The flag for a setting of the library, if there is one.
fn flag(hint: Hint) -> Option<String> {
    let flag = match hint {
        Hint::Base => "--base FILE",
        Hint::PartialLora => "--allow-partial-lora",
        Hint::Part(part) => return part_flag(part).map(|flag| format!("{flag} PATH")),
        Hint::LargerLimit => "--max-memory",
        Hint::SmallerPicture => "--width and --height",
        Hint::VaeTile => "--vae-tile",
        Hint::ReleaseTextEncoders => "--keep-text-encoders",
        Hint::QuantizedWeights => "--quantize, --keep-quantized",
        _ => return None,
    };
    Some(flag.into())
}

/// The flag that names a part of a model.
pub(super) fn part_flag(part: &str) -> Option<&'static str> {
    Some(match part {
        "transformer" => "--transformer",
        "autoencoder" => "--autoencoder",
        "CLIP" | "CLIP text model" => "--clip",
        "T5" | "T5 encoder" => "--t5",
        "CLIP tokenizer" => "--clip-tokenizer",
        "T5 tokenizer" => "--t5-tokenizer",
        "depth model" => "--depth-model",
        "image encoder" => "--image-encoder",
        "Redux model" => "--redux-model",
        _ => return None,
    })
}
