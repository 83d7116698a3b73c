//! Numbers of bytes as people read and write them.

/// `1.5 GB`, in powers of ten as file managers count.
pub(super) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}

/// Bytes as Hugging Face writes them: a number alone, in powers of ten (`5GB`, `500MB`), or of two (`2GiB`).
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 9] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let upper = text.trim().to_uppercase();
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((upper.strip_suffix(name)?.trim_end(), *unit)))
        .unwrap_or((&upper, 1));
    let bytes = number.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n * unit as f64);
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(bytes as u64),
        _ => Err("expected a size such as 5GB, 500MB or 2GiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_read_as_hugging_face_writes_them() {
        let good = [
            ("5GB", 5_000_000_000),
            ("500MB", 500_000_000),
            ("2GiB", 2 << 30),
            ("1.5 kb", 1500),
            ("12345", 12345),
            ("7B", 7),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "five", "1e30TB", "NaN", "inf"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
