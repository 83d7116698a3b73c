//! Which setting is meant by a name that none has.

/// What other servers call a setting.
const SYNONYMS: [(&str, &str); 34] = [
    ("address", "host"),
    ("backlog", "queue"),
    ("base-url", "public-url"),
    ("bind", "host"),
    ("checkpoint", "model"),
    ("concurrency", "queue"),
    ("cors", "cors-origin"),
    ("cors-allow-origins", "cors-origin"),
    ("cors-origins", "cors-origin"),
    ("cpu-offload", "offload"),
    ("debug", "log-level"),
    ("dtype", "kind"),
    ("fp8", "quantize"),
    ("gpu", "device"),
    ("gpus", "device"),
    ("int8", "quantize"),
    ("ip", "host"),
    ("key", "api-key"),
    ("listen", "host"),
    ("log-format", "log-json"),
    ("low-vram", "offload"),
    ("lowvram", "offload"),
    ("max-queue", "queue"),
    ("max-queue-size", "queue"),
    ("p", "port"),
    ("precision", "kind"),
    ("queue-size", "queue"),
    ("served-model-name", "model-name"),
    ("shutdown-timeout", "grace"),
    ("timeout", "job-timeout"),
    ("token", "api-key"),
    ("vae", "autoencoder"),
    ("verbose", "log-level"),
    ("workers", "threads"),
];

/// The setting that is meant by a name that none has: by what other servers call it, by its letters, or since it is one of
/// its words.
pub(super) fn near(name: &str, settings: &[String]) -> Option<String> {
    let synonym = SYNONYMS.iter().find(|(other, _)| plain(other) == plain(name)).map(|(_, setting)| *setting);
    let by_letters = || {
        let same = settings.iter().map(String::as_str).find(|setting| plain(setting) == plain(name));
        let far = |setting: &&str| strsim::damerau_levenshtein(name, setting);
        let close = settings.iter().map(String::as_str).min_by_key(far);
        same.or(close.filter(|setting| far(setting) <= setting.len().max(name.len()) / 3))
    };
    let by_words =
        || settings.iter().map(String::as_str).find(|setting| setting.split('-').any(|word| word == name));
    synonym.or_else(by_letters).or_else(by_words).map(str::to_string)
}

/// Returns the words for a name that no setting has.
pub(super) fn is_no_setting(kind: &str, name: &str, settings: &[String]) -> String {
    format!(
        "there is no such {kind}{}",
        meant(near(&name.to_lowercase().replace('_', "-"), settings).as_deref())
    )
}

/// Returns the letters and digits of a name in lower case: names that differ in nothing else are one setting.
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Returns the name whose letters are most like those of a text, if they are like them at all.
pub(super) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (far, near) = names.map(|name| (strsim::damerau_levenshtein(text, name), name)).min()?;
    (far <= near.len().div_ceil(2)).then_some(near)
}

/// Returns `; is `x` meant?`, where there is something near.
pub(super) fn meant(near: Option<&str>) -> String {
    near.map_or(String::new(), |near| format!("; is `{near}` meant?"))
}
