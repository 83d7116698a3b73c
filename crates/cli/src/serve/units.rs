//! Sizes and times as people write them, in flags, variables and keys alike: with a unit, or as a plain number.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::bytes::parse_size;

/// The longest time: what is longer means for ever, and no clock of the system counts so far.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Bytes: a plain number, or one with a unit (`64MB`, `1GiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) usize);

/// A time: a plain number of seconds, or numbers with units (`500ms`, `30s`, `1h30m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

/// Pixels: a plain number, or one of millions (`32MP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pixels(pub(super) u64);

/// A number of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Count(pub(super) usize);

/// More of anything that is counted would only be a slip of the finger.
const MOST: usize = 1 << 20;

impl Count {
    pub(super) const NAME: &str = "COUNT";

    /// Refuses fewer than `least`, and what nobody can mean.
    pub(super) fn at_least(self, least: usize) -> Result<(), String> {
        let count = self.0;
        let possible = (least..=MOST).contains(&count);
        possible.then_some(()).ok_or_else(|| format!("{count} is not from {least} to {MOST}"))
    }
}

impl Size {
    pub(super) const NAME: &str = "SIZE";

    /// Refuses less than `least` bytes.
    pub(super) fn at_least(self, least: usize) -> Result<(), String> {
        let size = self.0;
        (size >= least).then_some(()).ok_or_else(|| format!("{size} bytes: at least {least} are needed"))
    }

    /// Refuses more than another setting lets come: `most`, of the setting `other`, which bounds `what`.
    pub(super) fn within(self, most: Self, other: &str, what: &str) -> Result<(), String> {
        let (size, most, other) = (self.0, most.0, other.replace('_', "-"));
        let text = || format!("{size} bytes can never come: {what} may have {most}, which {other} says");
        (size <= most).then_some(()).ok_or_else(text)
    }
}

impl Time {
    pub(super) const NAME: &str = "TIME";

    /// Refuses less than so many milliseconds, of which any table asks for none or for one.
    pub(super) fn at_least(self, milliseconds: u64) -> Result<(), String> {
        let possible = self.0 >= Duration::from_millis(milliseconds);
        possible.then_some(()).ok_or_else(|| "no time at all: nothing could ever be in time".into())
    }
}

impl Pixels {
    pub(super) const NAME: &str = "PIXELS";

    /// Refuses fewer than `least`.
    pub(super) fn at_least(self, least: u64) -> Result<(), String> {
        let (pixels, side) = (self.0, least.isqrt());
        let text = || format!("{pixels} pixels: at least {least} are needed, a picture of {side} by {side}");
        (pixels >= least).then_some(()).ok_or_else(text)
    }
}

/// Writes a number in the largest unit that it is a whole number of, else in the smallest.
fn write_in(f: &mut fmt::Formatter, number: u64, units: &[(u64, &str)], smallest: &str) -> fmt::Result {
    match units.iter().find(|(unit, _)| number > 0 && number.is_multiple_of(*unit)) {
        Some((unit, name)) => write!(f, "{}{name}", number / unit),
        None => write!(f, "{number}{smallest}"),
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write_in(f, self.0 as u64, &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")], "")
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
        write_in(f, self.0.as_millis() as u64, &units, "ms")
    }
}

impl fmt::Display for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write_in(f, self.0, &[(1_000_000, "MP")], "")
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        whole(text).map(Self)
    }
}

/// A whole number of something.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| "expected a whole number such as 4".into())
}

/// A port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| "expected a port, a whole number from 0 to 65535".into())
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_short = text.trim().ends_with(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']);
        let size = parse_size(text).map_err(|expected| match text.trim() {
            short if is_short => format!("{expected}, {short}B (powers of ten) or {short}iB (powers of two)"),
            _ => format!("{expected}, or a number of bytes"),
        })?;
        let is_plain = text.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_plain && text.trim().parse::<f64>().is_ok_and(|bytes| bytes.fract() != 0.0) {
            return Err("expected a whole number of bytes, or a unit such as 1.5MB".into());
        }
        usize::try_from(size).map(Self).map_err(|_| "more bytes than this machine can count".into())
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a time such as 500ms, 30s, 5m or 1h, or a number of seconds".to_string();
        let text = text.trim().to_lowercase();
        let mut rest = text.as_str();
        let (mut seconds, mut parts) = (0.0, 0);
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let number: f64 = rest[..end].parse().map_err(|_| expected())?;
            rest = rest[end..].trim_start();
            let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
            let unit = match &rest[..end] {
                // A number alone is whole: `1m30` says nothing of its 30.
                "" if parts == 0 && rest.is_empty() => 1.0,
                "ms" | "msec" | "milliseconds" => 1e-3,
                "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
                "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
                "h" | "hour" | "hours" => 3600.0,
                "d" | "day" | "days" => 86400.0,
                _ => return Err(expected()),
            };
            seconds += number * unit;
            parts += 1;
            rest = rest[end..].trim_start();
        }
        if parts == 0 {
            return Err(expected());
        }
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= LONGEST);
        time.map(Self).ok_or_else(|| "longer than a hundred years".into())
    }
}

impl FromStr for Pixels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a number of pixels, or of millions of them such as 32MP".to_string();
        let upper = text.trim().to_uppercase();
        let (number, unit) = match upper.strip_suffix("MP") {
            Some(number) => (number.trim_end(), 1e6),
            None => (upper.as_str(), 1.0),
        };
        let pixels = number.parse::<f64>().map_err(|_| expected())? * unit;
        let is_whole = unit > 1.0 || pixels.fract() == 0.0;
        if is_whole && pixels >= 0.0 && pixels < u64::MAX as f64 {
            Ok(Self(pixels as u64))
        } else {
            Err(expected())
        }
    }
}

/// Plain numbers are written, and numbers and text are read.
macro_rules! in_files {
    ($name:ident, $written:ty, $number:expr, $expecting:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let number: fn(&Self) -> $written = $number;
                number(self).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl Visitor<'_> for Either {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$name, E> {
                        self.visit_string(number.to_string())
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$name, E> {
                        self.visit_string(number.to_string())
                    }
                    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<$name, E> {
                        self.visit_string(number.to_string())
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(|wrong: String| E::custom(format!("{text:?}: {wrong}")))
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    };
}

in_files!(Size, u64, |size| size.0 as u64, "a number of bytes, or text such as \"64MB\" or \"1GiB\"");
in_files!(Time, f64, |time| time.0.as_secs_f64(), "a number of seconds, or text such as \"30s\" or \"5m\"");
in_files!(Pixels, u64, |pixels| pixels.0, "a number of pixels, or text such as \"32MP\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_that_the_help_shows() {
        let good = [
            ("1 MiB", 1 << 20),
            ("1MiB", 1 << 20),
            ("64MB", 64_000_000),
            ("1GiB", 1 << 30),
            ("0.5 kib", 512),
            ("1048576", 1 << 20),
            ("1048576B", 1 << 20),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in
            ["", "MB", "-1", "-1MB", "0", "1e400", "NaN", "inf", "20000000000GiB", "1 parsec", "0x10", "1.5"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        let said = "64M".parse::<Size>().unwrap_err();
        assert!(said.contains("64MB") && said.contains("64MiB"), "{said}");
    }

    #[test]
    fn times_have_the_units_that_the_help_shows() {
        let good = [
            ("30", 30.0),
            ("1.5", 1.5),
            ("0", 0.0),
            ("500ms", 0.5),
            ("30s", 30.0),
            ("30 s", 30.0),
            ("5m", 300.0),
            ("5 min", 300.0),
            ("1H", 3600.0),
            ("1h30m", 5400.0),
            ("1h 30m 5s", 5405.0),
            ("2d", 172_800.0),
        ];
        for (text, seconds) in good {
            assert_eq!(text.parse(), Ok(Time(Duration::from_secs_f64(seconds))), "{text}");
        }
        for text in
            ["", "s", "-1", "-1s", "1m30", "30 5s", "1e3", "inf", "NaN", "1y", "5M5", "1..2s", "999999999h"]
        {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }

    #[test]
    fn pixels_may_be_counted_in_millions() {
        for (text, pixels) in [("32000000", 32_000_000), ("32MP", 32_000_000), ("0.5 mp", 500_000)] {
            assert_eq!(text.parse(), Ok(Pixels(pixels)), "{text}");
        }
        for text in ["", "MP", "-1", "1e30", "32M", "1.5"] {
            assert!(text.parse::<Pixels>().is_err(), "{text}");
        }
    }

    #[test]
    fn files_have_them_as_numbers_and_as_text() {
        #[derive(Deserialize, Serialize, PartialEq, Debug)]
        struct All {
            size: Size,
            time: Time,
            pixels: Pixels,
        }
        let expected =
            All { size: Size(1 << 20), time: Time(Duration::from_millis(1500)), pixels: Pixels(5) };
        for text in [
            "size = 1048576\ntime = 1.5\npixels = 5\n",
            "size = \"1MiB\"\ntime = \"1s500ms\"\npixels = \"5\"\n",
        ] {
            assert_eq!(toml::from_str::<All>(text).unwrap(), expected);
        }
        assert_eq!(toml::from_str::<All>(&toml::to_string(&expected).unwrap()).unwrap(), expected);
        let wrong = toml::from_str::<All>("size = \"much\"\ntime = 1\npixels = 1").unwrap_err().to_string();
        assert!(wrong.contains("much") && wrong.contains("5GB"), "{wrong}");
    }
}
