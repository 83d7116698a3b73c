//! The fields of requests: those of the library's table of parameters, and those that only OpenAI's API has.

use tch_flux::ParameterProblem;
use tch_flux::generation::Role;
use tch_flux::generation::params::{Group, Kind, Parameter, parameters};
use tch_flux::image::Format;

const IGNORED: &str = "Accepted, and without effect.";

const FORMATS: [(&str, &str); 3] =
    [(Format::Png.name(), ""), (Format::Jpeg.name(), ""), (Format::Webp.name(), "")];

const RESPONSES: [(&str, &str); 2] = [("b64_json", ""), ("url", "")];

/// A field of the dialect alone.
const fn field(name: &'static str, kind: Kind, about: &'static str) -> Parameter {
    Parameter::new(kind, Group::Output).field(name).named(name, about)
}

const fn ignored(name: &'static str) -> Parameter {
    field(name, Kind::Any, IGNORED)
}

/// The fields of OpenAI's API that are no parameters of a drawing, or are said otherwise there.
const DIALECT: [Parameter; 15] = [
    Parameter::new(Kind::Text { min: 1, max: 32_000 }, Group::Prompt)
        .field("prompt")
        .named("prompts", "What to draw. Required."),
    field("model", Kind::Text { min: 0, max: 256 }, "A name of the served model; without one, it is meant."),
    field(
        "size",
        Kind::Size,
        "`auto`, the model's own, or `WxH` in pixels, multiples of 16 from 64 to 2048.",
    ),
    field(
        "response_format",
        Kind::Choice(&RESPONSES),
        "`b64_json` if absent, but `url` where `model` is `dall-e-2` or `dall-e-3`, unless it is a stream.",
    ),
    field(
        "output_format",
        Kind::Choice(&FORMATS),
        "`png` if absent. The file says how the picture was drawn.",
    ),
    field(
        "output_compression",
        Kind::Integer { min: 0, max: 100 },
        "The quality of a JPEG or WebP, 100 if absent; a PNG loses nothing.",
    ),
    field("stream", Kind::Boolean, "Whether the answer is a stream of events."),
    field("background", Kind::Any, "`transparent` is refused, all else ignored."),
    ignored("quality"),
    ignored("complexity"),
    ignored("moderation"),
    ignored("style"),
    ignored("user"),
    ignored("safety_identifier"),
    Parameter::new(Kind::Any, Group::Picture).field("input_fidelity").named("input_fidelity", IGNORED),
];

/// Returns the fields of edits, or of generations, each with its name.
pub(crate) fn fields(edits: bool) -> impl Iterator<Item = (&'static str, &'static Parameter)> {
    let named = |parameter: &'static Parameter| Some((parameter.field?.name, parameter));
    let has = move |parameter: &&Parameter| edits || parameter.group != Group::Picture;
    DIALECT.iter().chain(parameters()).filter(has).filter_map(named)
}

/// Returns the name of the field of the parameter with a key; the key itself where it is no field.
pub(crate) fn field_name(key: &str) -> &str {
    fields(true).find(|(_, parameter)| parameter.key == key).map_or(key, |(name, _)| name)
}

/// Returns the text of a problem, with the names of fields.
pub(crate) fn worded(problem: &ParameterProblem) -> String {
    problem.worded(|key| field_name(key).to_string())
}

/// Returns the roles that pictures may have, where a model leaves the choice.
pub(crate) fn free_roles() -> [&'static str; 2] {
    [Role::Init.name(), Role::Reference.name()]
}
