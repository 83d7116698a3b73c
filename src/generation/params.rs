//! The table of parameters. A row is a field of [`Request`] with its bounds, its flag, its field over HTTP and its words: the
//! program's flags and help, the server's fields and `/openapi.json`, what a picture's file says, and which pictures are
//! computed together are made from it.

mod composed;
mod kind;
mod rules;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Control, Edit, IpAdapterImage, Redux, Variation};
use crate::error::ParameterProblem;
use crate::models::flux1::StepCache;
use crate::sampling::{Sampler, Schedule};
use composed::COMPOSED;
use values::ParameterValue;

pub use kind::{Kind, MAX_IMAGES, as_integer, nearest_side, parse_size};
pub use rules::{Given, RULES, Rule};
pub use values::{EditSettings, Values};

/// The most characters of a value that an error repeats.
const QUOTED_CHARS: usize = 60;
/// The most characters of a prompt over HTTP.
const SERVED_TEXT: u64 = 32_000;

/// What a parameter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What is drawn.
    Prompt,
    /// How noise becomes a picture.
    Sampling,
    /// The pictures that an edit begins with. No other request has these parameters.
    Picture,
    /// Pictures that a drawing shall look like.
    Redux,
    /// Pictures that ControlNets follow.
    ControlNet,
    /// Pictures that IP-Adapters take as prompts.
    IpAdapter,
    /// What comes back.
    Output,
}

impl Group {
    /// Returns the heading above the group's parameters.
    pub fn title(self) -> &'static str {
        match self {
            Self::Prompt => "Prompt",
            Self::Sampling => "Sampling",
            Self::Picture => "Picture",
            Self::Redux => "Redux",
            Self::ControlNet => "ControlNet",
            Self::IpAdapter => "IP-Adapter",
            Self::Output => "Output",
        }
    }
}

/// A parameter as a flag of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its name, with its dashes.
    pub name: &'static str,
    /// A letter that is as good.
    pub short: Option<char>,
    /// Another name, likewise.
    pub alias: Option<&'static str>,
    /// What stands for the value in the help; the name in capitals where it is `None`.
    pub value_name: Option<&'static str>,
    /// Whether the short help has it.
    pub is_common: bool,
}

/// A parameter as a field of requests over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// A lower upper bound than the parameter's own: what a server lets one request ask for.
    pub at_most: Option<u64>,
}

/// A parameter of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// What identifies it: for most, the name of the field of [`Request`], and the key in a picture's file.
    pub key: &'static str,
    /// The kind of its values.
    pub kind: Kind,
    /// What it is about.
    pub group: Group,
    /// What holds where it is absent, in words.
    pub default: Option<&'static str>,
    /// The flag, if it is one.
    pub flag: Option<Flag>,
    /// The field, if it is one.
    pub field: Option<Field>,
    about: &'static str,
    advice: Option<&'static str>,
}

impl Parameter {
    /// Of a kind and a group, without any name yet.
    pub const fn new(kind: Kind, group: Group) -> Self {
        Self { key: "", kind, group, default: None, flag: None, field: None, about: "", advice: None }
    }

    /// Sets the key and the description.
    pub const fn named(mut self, key: &'static str, about: &'static str) -> Self {
        (self.key, self.about) = (key, about);
        self
    }

    /// Sets what holds where it is absent.
    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// Sets what is added to the error about a wrong value.
    pub const fn advice(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }

    /// Makes it a flag.
    pub const fn flag(mut self, name: &'static str) -> Self {
        self.flag = Some(Flag { name, short: None, alias: None, value_name: None, is_common: false });
        self
    }

    /// Makes it a flag that the short help has, with a letter that is as good and another name, where there are such.
    pub const fn common_flag(
        mut self,
        name: &'static str,
        short: Option<char>,
        alias: Option<&'static str>,
    ) -> Self {
        self.flag = Some(Flag { name, short, alias, value_name: None, is_common: true });
        self
    }

    /// Sets what stands for the value in the help.
    pub const fn value_name(mut self, value_name: &'static str) -> Self {
        if let Some(flag) = &mut self.flag {
            flag.value_name = Some(value_name);
        }
        self
    }

    /// Makes it a field.
    pub const fn field(mut self, name: &'static str) -> Self {
        self.field = Some(Field { name, at_most: None });
        self
    }

    /// Sets a lower upper bound for the field.
    pub const fn served_up_to(mut self, bound: u64) -> Self {
        if let Some(field) = &mut self.field {
            field.at_most = Some(bound);
        }
        self
    }

    /// Returns what it is, in a sentence or two.
    pub fn about(&self) -> &'static str {
        self.about.trim()
    }

    /// Returns the kind of the field's values.
    pub fn served(&self) -> Kind {
        match self.field.and_then(|field| field.at_most) {
            Some(bound) => self.kind.at_most(bound),
            None => self.kind,
        }
    }

    /// Checks that a value is of a kind, the parameter's own or the field's.
    ///
    /// # Errors
    /// A problem that says what is expected, what came, and what is near.
    pub fn check(&self, kind: Kind, value: &Value) -> Result<(), ParameterProblem> {
        if kind.accepts(value) {
            return Ok(());
        }
        let mut text = format!(" must be {}, not {}", kind.description(), quote(value));
        for more in [kind.nearest(value), self.advice.map(str::to_string)].into_iter().flatten() {
            text = format!("{text}; {more}");
        }
        Err(ParameterProblem::of_value(self.key, text))
    }
}

/// Quotes a value in an error.
fn quote(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Returns all parameters.
pub fn parameters() -> impl Iterator<Item = &'static Parameter> {
    Request::ROWS.iter().chain(&COMPOSED)
}

/// Returns the parameter with a key.
pub fn parameter(key: &str) -> Option<&'static Parameter> {
    parameters().find(|parameter| parameter.key == key)
}

/// Whether two requests have what lets their pictures be computed together, by the rule of a field.
macro_rules! is_shared {
    ($one:expr, $other:expr, $field:ident, each) => {
        true
    };
    ($one:expr, $other:expr, $field:ident, same) => {
        $one.$field == $other.$field
    };
    ($one:expr, $other:expr, $field:ident, by($key:path)) => {
        $key($one) == $key($other)
    };
}

/// Defines [`Request`], and the rows of the table. Of a field, it takes the description, attributes of serde in brackets, the
/// name, the type, the default, the rule of batches and, for all but those that several parameters make up, the parameter.
///
/// The rule of batches says what pictures must have in common to be computed together: `same`, nothing (`each`), or what
/// `by(FUNCTION)` returns of a request.
macro_rules! request {
    (
        $(#[$meta:meta])*
        pub struct Request {
            $(
                $(#[doc = $doc:literal])+
                $([$($attribute:tt)+])?
                $field:ident: $type:ty = $default:expr, $rule:ident $(($key:path))? $(, $parameter:expr)?;
            )+
        }
    ) => {
        $(#[$meta])*
        pub struct Request {
            $( $(#[doc = $doc])+ $(#[$($attribute)+])? pub $field: $type, )+
        }

        /// The descriptions of the fields.
        #[allow(non_upper_case_globals, dead_code)]
        mod about {
            $( pub(super) const $field: &str = concat!($($doc),+); )+
        }

        impl Request {
            const ROWS: &'static [Parameter] =
                &[$($( $parameter.named(stringify!($field), about::$field), )?)+];

            /// A request of which nothing is said.
            pub(super) fn blank() -> Self {
                Self { $( $field: $default, )+ }
            }

            /// Sets the parameter with a key to a value of its kind.
            fn set(&mut self, key: &str, value: &Value) {
                match key {
                    $($(
                        stringify!($field) => {
                            const _: Parameter = $parameter;
                            if let Some(value) = ParameterValue::from_value(value) {
                                self.$field = value;
                            }
                        }
                    )?)+
                    _ => {}
                }
            }

            /// Returns the value of each parameter that is a field of its own; null where it is absent.
            fn row_values(&self) -> Vec<(&'static Parameter, Value)> {
                let values = [$($( { const _: Parameter = $parameter; self.$field.to_value() }, )?)+];
                Self::ROWS.iter().zip(values).collect()
            }

            /// Whether the pictures of two requests may be computed together.
            pub(super) fn shares_batch_with(&self, other: &Self) -> bool {
                $( is_shared!(self, other, $field, $rule $(($key))?) )&&+
            }
        }
    };
}

request! {
    /// What is to be drawn. What is `None` is taken from the model's variant.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct Request {
        /// One picture, or `num_images` of them, for each.
        prompts: Vec<String> = Vec::new(), each;

        /// What T5 reads in place of the prompt, which CLIP alone reads then.
        [serde(default, skip_serializing_if = "Option::is_none")]
        prompt_2: Option<String> = None, each,
            Parameter::new(Kind::TEXT, Group::Prompt)
                .flag("--prompt-2").value_name("PROMPT").field("prompt_2").served_up_to(SERVED_TEXT);

        /// Whether prompts are read to the letter. Otherwise a prompt in which a group has a number is read by ComfyUI's rules:
        /// `(word:1.3)` weighs more, `(word:0.7)` less, `(word)` 1.1, and a parenthesis after a backslash is text.
        [serde(default, skip_serializing_if = "std::ops::Not::not")]
        literal: bool = false, each,
            Parameter::new(Kind::Boolean, Group::Prompt)
                .default("over HTTP true, else false").flag("--literal").field("literal");

        /// Pixels, a multiple of 16.
        width: i64 = 1024, same,
            Parameter::new(Kind::Side, Group::Sampling)
                .default("what the model was trained for").common_flag("--width", None, None);

        /// Pixels, a multiple of 16.
        height: i64 = 1024, same,
            Parameter::new(Kind::Side, Group::Sampling)
                .default("what the model was trained for").common_flag("--height", None, None);

        /// Steps from noise to picture.
        steps: Option<usize> = None, same,
            Parameter::new(Kind::Integer { min: 1, max: 1000 }, Group::Sampling)
                .default("schnell 4, dev 50").common_flag("--steps", None, Some("--num-steps"))
                .field("num_inference_steps").served_up_to(100);

        /// How a step is made.
        [serde(default = "euler")]
        sampler: Option<Sampler> = None, same,
            Parameter::new(Kind::Choice(Sampler::CHOICES), Group::Sampling)
                .default("what the model's folder says, else euler").flag("--sampler").field("sampler");

        /// At which times; `None` takes what the model's folder says, else the variant's: linear for schnell, shifted for the
        /// others.
        [serde(default, skip_serializing_if = "Option::is_none")]
        schedule: Option<Schedule> = None, same;

        /// Steps that are not computed whole: `first-block[:THRESHOLD]`, `tea-cache[:THRESHOLD]` or
        /// `taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]`. How many calls of the model were skipped is said.
        [serde(default, skip_serializing_if = "Option::is_none")]
        cache: Option<StepCache> = None, same,
            Parameter::new(Kind::Cache, Group::Sampling)
                .default("none").flag("--cache").field("cache");

        /// Guidance strength of models that are distilled for it. Others ignore it.
        guidance: Option<f64> = None, each,
            Parameter::new(Kind::Number { min: 0.0, max: 100.0 }, Group::Sampling)
                .default("the model's own, else 2.5").common_flag("--guidance", None, None).field("guidance_scale")
                .served_up_to(30);

        /// What the picture shall not show. It needs true guidance, and twice the time.
        [serde(default, skip_serializing_if = "Option::is_none")]
        negative_prompt: Option<String> = None, each,
            Parameter::new(Kind::TEXT, Group::Prompt)
                .common_flag("--negative-prompt", None, None).value_name("PROMPT")
                .field("negative_prompt").served_up_to(SERVED_TEXT);

        /// How far each velocity is led away from the negative prompt's: true classifier-free guidance. At 1 or less there is
        /// none.
        [serde(default, skip_serializing_if = "Option::is_none")]
        true_cfg_scale: Option<f64> = None, by(Request::scale),
            Parameter::new(Kind::Number { min: 0.0, max: 100.0 }, Group::Sampling)
                .default("over HTTP none, else 4 with a negative prompt")
                .flag("--true-cfg-scale").value_name("SCALE").field("true_cfg_scale").served_up_to(30);

        /// Whether each velocity of true guidance keeps the length that the prompt's own has, patch by patch, so that a large
        /// scale burns no colours; as diffusers' `cfg_normalization`.
        [serde(default, skip_serializing_if = "std::ops::Not::not")]
        cfg_normalization: bool = false, same,
            Parameter::new(Kind::Boolean, Group::Sampling)
                .default("false").flag("--cfg-normalization").field("cfg_normalization");

        /// The pictures that it begins with.
        [serde(skip)]
        edit: Option<Arc<Edit>> = None, by(Request::edit_key);
        /// The pictures that it shall look like.
        [serde(skip)]
        redux: Option<Arc<Redux>> = None, by(Request::redux_key);
        /// The pictures that ControlNets follow; each adds to what the others say.
        [serde(skip)]
        controls: Vec<Control> = Vec::new(), by(Request::control_key);
        /// Pictures that it shall be like, each brought in by an IP-Adapter.
        [serde(skip)]
        pictured: Vec<IpAdapterImage> = Vec::new(), by(Request::ip_adapter_key);

        /// The noise of the first picture; the following ones count on from it.
        seed: u64 = 0, each,
            Parameter::new(Kind::Integer { min: 0, max: u64::MAX }, Group::Sampling)
                .default("another one each time, which is said").advice("left out, it is another one each time")
                .common_flag("--seed", None, None).field("seed");

        /// Leads each picture's noise a part of the way towards another one's.
        [serde(default, skip_serializing_if = "Option::is_none")]
        variation: Option<Variation> = None, each;

        /// Pictures of each prompt; their seeds count on.
        num_images: usize = 1, each,
            Parameter::new(Kind::Integer { min: 1, max: 1_000_000 }, Group::Sampling)
                .default("1").common_flag("--num-images", Some('n'), None).field("n").served_up_to(10);

        /// Tokens that T5 reads, padding included.
        max_sequence_length: Option<usize> = None, same,
            Parameter::new(Kind::Integer { min: 2, max: 512 }, Group::Sampling)
                .default("the model's own: schnell 256, dev 512")
                .flag("--max-sequence-length").field("max_sequence_length");

        /// Draws bf16 noise as torch up to 2.11 did, for pictures that were published with it.
        [serde(default)]
        legacy_noise: bool = false, each,
            Parameter::new(Kind::Boolean, Group::Sampling)
                .default("false").flag("--legacy-noise").field("legacy_noise");

        /// Small pictures on the way, evenly spaced over the steps of each picture. They change no bit of it. A program writes
        /// them beside each picture and in its format; a server sends them in a stream.
        [serde(skip)]
        previews: usize = 0, each,
            Parameter::new(Kind::Integer { min: 0, max: 1000 }, Group::Output)
                .default("0").flag("--previews").value_name("COUNT").field("partial_images").served_up_to(3);
    }
}

/// The sampler of pictures whose files name none.
fn euler() -> Option<Sampler> {
    Some(Sampler::Euler)
}
