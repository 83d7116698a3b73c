//! What would help against an error of the library, by the program's flags.

use tch_flux::{Error, Hint};

/// The flags that would help against an error.
pub(super) fn flags(error: &Error) -> Vec<&'static str> {
    error.hints().into_iter().flat_map(flags_of).copied().collect()
}

/// The flags for a setting of the library.
fn flags_of(hint: Hint) -> &'static [&'static str] {
    match hint {
        Hint::Base => &["--base"],
        Hint::PartialLora => &["--allow-partial-lora"],
        Hint::Part("transformer") => &["--transformer"],
        Hint::Part("autoencoder") => &["--autoencoder"],
        Hint::Part("CLIP" | "CLIP text model") => &["--clip"],
        Hint::Part("T5" | "T5 encoder") => &["--t5"],
        Hint::Part("CLIP tokenizer") => &["--clip-tokenizer"],
        Hint::Part("T5 tokenizer") => &["--t5-tokenizer"],
        Hint::Part("depth model") => &["--depth-model"],
        Hint::Part("image encoder") => &["--image-encoder"],
        Hint::Part("Redux" | "Redux model") => &["--redux-model"],
        Hint::Part("CLIP vision model") => &["--ip-image-encoder"],
        Hint::Part("ControlNet") => &["--controlnet"],
        Hint::Part("IP-Adapter") => &["--ip-adapter"],
        Hint::Part("LoRA") => &["--lora"],
        Hint::Part("model") => &["--model"],
        Hint::Sampling => &["--sampler", "--schedule"],
        Hint::LargerLimit => &["--max-memory"],
        Hint::SmallerPicture => &["--width", "--height"],
        Hint::VaeTile => &["--vae-tile"],
        Hint::ReleaseTextEncoders => &["--keep-text-encoders"],
        Hint::QuantizedWeights => &["--quantize", "--keep-quantized"],
        _ => &[],
    }
}

/// The flag that names a part of a model, or a word for one that is not known.
pub(super) fn part_flag(part: &'static str) -> &'static str {
    flags_of(Hint::Part(part)).first().copied().unwrap_or("its flag")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_a_folder_may_lack_has_a_flag() {
        let parts = tch_flux::generation::Parts::look(std::path::Path::new(".")).unwrap();
        assert!(parts.len() >= 6, "{parts:?}");
        for (part, _) in parts {
            assert_ne!(part_flag(part.name()), "its flag", "{part}");
        }
    }
}
