//! Whether the settings of a server can take effect.

use std::path::Path;

use anyhow::Context;
use tch_flux::Error;

use super::checks;
use super::config::Serve;

impl Serve {
    /// Refuses what could never take effect.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_each()?;
        self.key()?;
        // A default that another setting leaves no room for is not what its user asked for.
        let limits = self.limits.check().into_iter().filter(|(name, _)| self.sources.has(name));
        for (name, checked) in limits {
            self.checked(name, checked)?;
        }
        Ok(())
    }

    /// Returns the key that clients must send, from its flag or its file.
    pub(super) fn key(&self) -> anyhow::Result<Option<String>> {
        let (name, key) = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => ("api-key", key.clone()),
            (None, Some(path)) => {
                ("api-key-file", read_key(path).with_context(|| self.sources.name("api-key-file"))?)
            }
            (None, None) => return Ok(None),
        };
        self.checked(name, checks::key(&key))?;
        Ok(Some(key))
    }
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    // Some editors begin a file with a mark that is no part of its text.
    let text = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes));
    let text = text.map_err(|_| {
        Error::Request(format!("{}: it is no text in UTF-8, as which a key is to be saved", path.display()))
    })?;
    Ok(text.trim().to_string())
}
