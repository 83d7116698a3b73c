//! What a file is that is no PNG, JPEG or WebP, by its contents: whoever gets a web page in place of a picture is told so.

use super::decode_error::DecodeError;
use super::exif::Tiff;

const CONVERT: &str = "make a PNG, JPEG or WebP of it";
const DRAWING: &str = "draw it as a PNG, JPEG or WebP first";
const CUT: &str = "its download or copy was cut short";
const FRAME: &str = "take one picture out of it as a PNG, JPEG or WebP";
const UNPACK: &str = "take the picture out of it, as a PNG, JPEG or WebP";
const DOWNLOAD: &str =
    "a download that went wrong may leave it in a picture's place; a PNG, JPEG or WebP is wanted";
const NO_PICTURE: &str = "a picture is wanted: a PNG, JPEG or WebP";

/// The first bytes of formats, each with its place: what it is, and what would help.
#[rustfmt::skip]
const SIGNATURES: &[(usize, &[u8], &str, &str)] = &[
    (0, b"GIF8", "a GIF", CONVERT),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000", CONVERT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 codestream", CONVERT),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", CONVERT),
    (0, b"\xff\x0a", "a JPEG XL codestream", CONVERT),
    (0, b"II\xbc", "a JPEG XR", CONVERT),
    (0, b"\x8bJNG\r\n", "a JNG", CONVERT),
    (0, b"\x8aMNG\r\n", "an MNG", CONVERT),
    (0, b"II+\0", "a BigTIFF", CONVERT),
    (0, b"MM\0+", "a BigTIFF", CONVERT),
    (0, b"FUJIFILMCCD-RAW", "a raw photo of a Fujifilm camera (RAF)", CONVERT),
    (0, b"IIU\0", "a raw photo of a Panasonic camera (RW2)", CONVERT),
    (0, b"IIRO", "a raw photo of an Olympus camera (ORF)", CONVERT),
    (0, b"IIRS", "a raw photo of an Olympus camera (ORF)", CONVERT),
    (0, b"MMOR", "a raw photo of an Olympus camera (ORF)", CONVERT),
    (0, b"II\x1a\0\0\0HEAPCCDR", "a raw photo of a Canon camera (CRW)", CONVERT),
    (0, b"\0MRM", "a raw photo of a Minolta camera (MRW)", CONVERT),
    (0, b"FOVb", "a raw photo of a Sigma camera (X3F)", CONVERT),
    (0, b"8BPS\0\x02", "a large Photoshop document (PSB)", CONVERT),
    (0, b"8BPS", "a Photoshop document (PSD)", CONVERT),
    (0, b"gimp xcf", "a GIMP document (XCF)", CONVERT),
    (0, b"qoif", "a QOI", CONVERT),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR", CONVERT),
    (0, b"#?RADIANCE", "a Radiance HDR", CONVERT),
    (0, b"#?RGBE", "a Radiance HDR", CONVERT),
    (0, b"\xabKTX 11\xbb", "a KTX texture", CONVERT),
    (0, b"\xabKTX 20\xbb", "a KTX2 texture", CONVERT),
    (0, b"DDS ", "a DDS texture", CONVERT),
    (0, b"FLIF", "a FLIF", CONVERT),
    (0, b"BPG\xfb", "a BPG", CONVERT),
    (0, b"AT&TFORM", "a DjVu", CONVERT),
    (0, b"icns", "a macOS icon (ICNS)", CONVERT),
    (0, b"farbfeld", "a farbfeld", CONVERT),
    (0, b"SIMPLE  =", "a FITS", CONVERT),
    (0, b"\x01\xda", "an SGI picture", CONVERT),
    (0, b"\x0a\x05\x01\x08", "a PCX", CONVERT),
    (128, b"DICM", "a DICOM", CONVERT),
    (0, b"\xd7\xcd\xc6\x9a", "a WMF", DRAWING),
    (40, b" EMF", "an EMF", DRAWING),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS (PostScript)", DRAWING),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska video", FRAME),
    (0, b"FLV\x01", "a Flash video", FRAME),
    (0, b"OggS", "an Ogg file of sound or video", FRAME),
    (0, b"\0\0\x01\xba", "an MPEG video", FRAME),
    (0, b"\0\0\x01\xb3", "an MPEG video", FRAME),
    (0, b"ID3", "an MP3", NO_PICTURE),
    (0, b"fLaC", "a FLAC", NO_PICTURE),
    (0, b"MThd", "a MIDI file", NO_PICTURE),
    (0, b"PK\x03\x04", "a ZIP archive, as office documents, Krita's pictures and PyTorch's weights are too", UNPACK),
    (0, b"PK\x05\x06", "an empty ZIP archive", UNPACK),
    (0, b"\x1f\x8b", "compressed with gzip, as an .svgz is too", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"GGUF", "a GGUF file of weights", NO_PICTURE),
    (0, b"\x93NUMPY", "a NumPy array", NO_PICTURE),
    (0, b"\x89HDF\r\n", "an HDF5 file", NO_PICTURE),
    (0, b"\x80\x02}", "a pickle", NO_PICTURE),
    (0, b"\x80\x04\x95", "a pickle", NO_PICTURE),
    (0, b"SQLite format 3\0", "an SQLite database", NO_PICTURE),
    (0, b"bplist00", "a property list of macOS", NO_PICTURE),
    (0, b"\x7fELF", "a program", NO_PICTURE),
    (0, b"MZ\x90\0", "a program", NO_PICTURE),
    (0, b"\0\x05\x16\x07", "what macOS keeps beside a file (AppleDouble, ._…)", "name the picture itself, without ._ before its name"),
    (0, b"\x89PNG", "a PNG that was damaged by a transfer as text", "fetch it again, as a binary file"),
    (0, b"\xef\xbf\xbdPNG", "a PNG that was damaged by a transfer as text", "fetch it again, as a binary file"),
    (0, b"\xc2\x89PNG", "a PNG that was damaged by a transfer as text", "fetch it again, as a binary file"),
    (0, b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\0\x10JFIF", "a JPEG that was damaged by a transfer as text", "fetch it again, as a binary file"),
    (0, b"\xc3\xbf\xc3\x98\xc3\xbf", "a JPEG that was damaged by a transfer as text", "fetch it again, as a binary file"),
];

/// Brands of files in boxes (`ftyp`).
const BRANDS: &[(&[u8; 4], &str, &str)] = &[
    (b"avif", "an AVIF", CONVERT),
    (b"avis", "an AVIF sequence", FRAME),
    (b"heic", "a HEIC", CONVERT),
    (b"heix", "a HEIC", CONVERT),
    (b"heim", "a HEIC", CONVERT),
    (b"heis", "a HEIC", CONVERT),
    (b"hevc", "a HEIC sequence", FRAME),
    (b"hevx", "a HEIC sequence", FRAME),
    (b"hevm", "a HEIC sequence", FRAME),
    (b"hevs", "a HEIC sequence", FRAME),
    (b"vvic", "a VVC picture in HEIF", CONVERT),
    (b"jpeg", "a JPEG in HEIF", CONVERT),
    (b"j2ki", "a JPEG 2000 in HEIF", CONVERT),
    (b"jp2 ", "a JPEG 2000", CONVERT),
    (b"jxl ", "a JPEG XL", CONVERT),
    (b"mif1", "a HEIF", CONVERT),
    (b"mif2", "a HEIF", CONVERT),
    (b"miaf", "a HEIF", CONVERT),
    (b"msf1", "a HEIF sequence", FRAME),
    (b"crx ", "a raw photo of a Canon camera (CR3)", CONVERT),
    (b"qt  ", "a QuickTime video (MOV)", FRAME),
    (b"M4A ", "an M4A of sound", NO_PICTURE),
];

/// Says what a file is that is no PNG, JPEG or WebP, and what would help: [`DecodeError::OtherFormat`], or
/// [`DecodeError::Unknown`] with its first bytes.
pub fn describe(file: &[u8]) -> DecodeError {
    let is = |kind: &str, advice| DecodeError::OtherFormat { kind: kind.into(), advice };
    if file.is_empty() {
        return is("empty", "the picture was not saved, or its download failed");
    }
    if file.iter().all(|byte| *byte == 0) {
        return is("nothing but zeros", CUT);
    }
    let tiff =
        Tiff::new(file).filter(|_| matches!(file, [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..]));
    if matches!(file, [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..]) {
        return is(&of_tiff(file, tiff), CONVERT);
    }
    if let Some(kind) = of_beginning(file) {
        return is(kind, CUT);
    }
    if let Some((kind, advice)) = of_boxes(file) {
        return is(&kind, advice);
    }
    let here =
        |(at, bytes, ..): &&(usize, &[u8], &str, &str)| file.get(*at..).is_some_and(|f| f.starts_with(bytes));
    if let Some((_, _, kind, advice)) = SIGNATURES.iter().find(here) {
        return is(kind, advice);
    }
    if let Some((kind, advice)) = of_binary(file).or_else(|| of_text(file)) {
        return is(&kind, advice);
    }
    let start: Vec<_> = file.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    DecodeError::Unknown { start: start.join(" ") }
}

/// Raw photos are TIFFs that name a camera.
fn of_tiff(file: &[u8], tiff: Option<Tiff>) -> String {
    if file.get(8..10) == Some(b"CR") {
        return "a raw photo of a Canon camera (CR2)".into();
    }
    match tiff {
        Some(tiff) if tiff.is_dng() => "a raw photo (DNG)".into(),
        Some(tiff) => match tiff.make() {
            Some(make) if make.to_lowercase().starts_with("nikon") => {
                "a TIFF, or a raw photo of a Nikon camera (NEF)".into()
            }
            Some(make) => format!("a TIFF, or a raw photo of a camera ({make})"),
            None => "a TIFF".into(),
        },
        None => "a TIFF".into(),
    }
}

/// HEIF and its relatives, and videos: the brand says which, and where it is a general one, those that it goes with.
fn of_boxes(file: &[u8]) -> Option<(String, &'static str)> {
    let kind = file.get(4..8)?;
    if matches!(kind, b"moov" | b"mdat" | b"wide" | b"pnot") {
        return Some(("a QuickTime video (MOV)".into(), FRAME));
    }
    if kind != b"ftyp" {
        return None;
    }
    let len = u32::from_be_bytes(*file.first_chunk()?) as usize;
    let brand: &[u8; 4] = file.get(8..)?.first_chunk()?;
    let others = file.get(16..len.min(file.len())).unwrap_or_default().as_chunks::<4>().0;
    let row = |brand: &[u8; 4]| BRANDS.iter().find(|(name, ..)| *name == brand);
    let special = |brand: &&[u8; 4]| !matches!(*brand, b"mif1" | b"mif2" | b"miaf" | b"msf1");
    let found = match brand {
        b"mif1" | b"mif2" | b"miaf" | b"msf1" => {
            others.iter().filter(special).find_map(row).or_else(|| row(brand))
        }
        _ => row(brand),
    };
    let name = String::from_utf8_lossy(brand);
    Some(match found {
        Some((_, kind, advice)) => ((*kind).into(), advice),
        None => {
            (format!("an MP4 video, or another file of this family (its brand is {:?})", name.trim()), FRAME)
        }
    })
}

/// A file that ends within the signature of a picture.
fn of_beginning(file: &[u8]) -> Option<&'static str> {
    const BEGINNINGS: [(&[u8], usize, &str); 3] = [
        (b"\x89PNG\r\n\x1a\n", 8, "the beginning of a PNG"),
        (b"\xff\xd8\xff", 3, "the beginning of a JPEG"),
        (b"RIFF", 12, "the beginning of a WebP or another RIFF file"),
    ];
    let cut = |(start, len, _): &&(&[u8], usize, &str)| {
        file.len() < *len && (start.starts_with(file) || file.starts_with(start))
    };
    BEGINNINGS.iter().find(cut).map(|(.., kind)| *kind)
}

/// Formats whose first bytes alone would say too little.
fn of_binary(file: &[u8]) -> Option<(String, &'static str)> {
    let is = |kind: &str, advice| Some((kind.to_string(), advice));
    match file {
        [b'B', b'M', rest @ ..]
            if rest.iter().take(24).any(|byte| *byte < b' ' && !byte.is_ascii_whitespace()) =>
        {
            is("a BMP", CONVERT)
        }
        [0, 0, 1, 0, count, 0, ..] if *count > 0 => is("an icon (ICO)", CONVERT),
        [0, 0, 2, 0, count, 0, ..] if *count > 0 => is("a mouse pointer (CUR)", CONVERT),
        [b'P', kind @ b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => {
            let name = ["a PBM", "a PGM", "a PPM", "a PBM", "a PGM", "a PPM", "a PAM"];
            is(name[usize::from(kind - b'1')], CONVERT)
        }
        [b'P', b'F' | b'f', b'\n', ..] => is("a PFM", CONVERT),
        [b'R', b'I', b'F', b'F', _, _, _, _, kind @ ..] => match kind {
            [b'W', b'A', b'V', b'E', ..] => is("a WAV of sound", NO_PICTURE),
            [b'A', b'V', b'I', b' ', ..] => is("an AVI video", FRAME),
            _ => is("a RIFF file of another kind than WebP", NO_PICTURE),
        },
        [a, b, c, d, e, f, 0, 0, b'{', ..] if [a, b, c, d, e, f].iter().any(|byte| **byte > 0) => {
            is("a safetensors file of weights", NO_PICTURE)
        }
        _ if file.ends_with(b"TRUEVISION-XFILE.\0") => is("a TGA", CONVERT),
        // Without its signature, which came later: no colour map, and a number of bits that there is.
        [_, 0, 2 | 3 | 10 | 11, 0, 0, 0, 0, 0, _, _, _, _, _, _, _, _, 8 | 16 | 24 | 32, _, ..] => {
            is("a TGA", CONVERT)
        }
        // Packets of 188 bytes.
        [0x47, rest @ ..] if rest.get(187) == Some(&0x47) => is("an MPEG video (transport stream)", FRAME),
        // The picture may follow as bytes that are no text.
        [b'-', b'-', rest @ ..] if contains(rest, b"Content-Disposition: form-data") => {
            is("the body of a form (multipart/form-data)", UNPACK)
        }
        _ => None,
    }
}

/// Whether the beginning of a file has these bytes in it.
fn contains(file: &[u8], bytes: &[u8]) -> bool {
    file[..file.len().min(1024)].windows(bytes.len()).any(|window| window.eq_ignore_ascii_case(bytes))
}

/// Texts: of the first of them, since it may be long.
fn of_text(file: &[u8]) -> Option<(String, &'static str)> {
    let start = &file[..file.len().min(1 << 16)];
    // A PDF may have something before it.
    if contains(start, b"%PDF-") {
        return Some(("a PDF".into(), DRAWING));
    }
    let text = as_text(start)?;
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    if text.is_empty() {
        return Some(("blank text".into(), NO_PICTURE));
    }
    let lower = text.get(..text.len().min(4096)).unwrap_or(text).to_ascii_lowercase();
    let begins = |with: &[&str]| with.iter().any(|with| lower.starts_with(with));
    let base64 = [("ivborw0kggo", "a PNG"), ("/9j/", "a JPEG"), ("uklgr", "a WebP")];
    let (kind, advice): (&str, _) = if begins(&["%!ps"]) {
        (if lower.contains("epsf") { "an EPS (PostScript)" } else { "a PostScript document" }, DRAWING)
    } else if begins(&["version https://git-lfs", "version https://hawser"]) {
        ("a pointer of Git LFS in the picture's place", "fetch the picture itself, with `git lfs pull`")
    } else if lower.starts_with('<') {
        return Some(of_markup(text));
    } else if begins(&["http/1.", "http/2"]) {
        ("an answer of a web server with its headers", DOWNLOAD)
    } else if begins(&["http://", "https://", "[internetshortcut]"]) {
        ("an address as text, not the picture there", "fetch the picture, and name its file")
    } else if begins(&["{", "["]) {
        ("JSON", DOWNLOAD)
    } else if begins(&["data:image"]) {
        ("a data: URL as text", "decode its base64 into a file")
    } else if let Some((_, name)) = base64.iter().find(|(start, _)| lower.starts_with(start)) {
        return Some((format!("{name} in base64, as text"), "decode it into a file"));
    } else if begins(&["/* xpm */"]) {
        ("an XPM", CONVERT)
    } else if begins(&["#define"]) && lower.contains("_width") {
        ("an XBM", CONVERT)
    } else {
        ("text", NO_PICTURE)
    };
    Some((kind.into(), advice))
}

/// As text, if it is some: UTF-8, or UTF-16 with a byte order mark or of markup.
fn as_text(start: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        Some(String::from_utf16_lossy(&units))
    };
    let text = match start {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [b'<', 0, ..] => wide(start, u16::from_le_bytes),
        [0, b'<', ..] => wide(start, u16::from_be_bytes),
        // A character may be cut in two at the end.
        _ => match std::str::from_utf8(start) {
            Ok(text) => Some(text.into()),
            Err(problem) if problem.error_len().is_none() => {
                std::str::from_utf8(&start[..problem.valid_up_to()]).ok().map(str::to_string)
            }
            // Latin-1, as old web pages have it.
            Err(_) => Some(start.iter().map(|byte| char::from(*byte)).collect()),
        },
    }?;
    let odd = |c: &char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{c}');
    (!text.chars().any(|c| odd(&c) || c == '\u{fffd}')).then_some(text)
}

/// SVG, HTML, or another XML, by its first element.
fn of_markup(text: &str) -> (String, &'static str) {
    const HTML: [&str; 24] = [
        "html", "head", "body", "title", "meta", "script", "style", "link", "div", "p", "h1", "center",
        "table", "a", "b", "br", "font", "form", "h2", "h3", "iframe", "img", "pre", "span",
    ];
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let lower = rest.get(..rest.len().min(64)).unwrap_or(rest).to_ascii_lowercase();
        // What stands before the first element, and where it ends.
        let end = match &lower {
            _ if lower.starts_with("<!--") => "-->",
            _ if lower.starts_with("<?") => "?>",
            _ if lower.starts_with("<!doctype html") => return ("an HTML page".into(), DOWNLOAD),
            _ if lower.starts_with("<!doctype svg") => return ("an SVG".into(), DRAWING),
            // Its own declarations may be within.
            _ if lower.starts_with("<!doctype") => match rest.find(['[', '>']) {
                Some(at) if rest[at..].starts_with('[') => "]>",
                _ => ">",
            },
            _ => break,
        };
        match rest.find(end) {
            Some(at) => rest = &rest[at + end.len()..],
            None => return ("XML, or a part of it".into(), DOWNLOAD),
        }
    }
    let name = rest.strip_prefix('<').unwrap_or_default();
    let name = name.split(|c: char| c.is_whitespace() || matches!(c, '>' | '/')).next().unwrap_or_default();
    let short: String = name.chars().take(40).collect();
    let local = name.rsplit(':').next().unwrap_or(name).to_ascii_lowercase();
    match local.as_str() {
        "svg" => ("an SVG".into(), DRAWING),
        local if HTML.contains(&local) => ("an HTML page".into(), DOWNLOAD),
        _ if name.starts_with(char::is_alphabetic) => (format!("XML (<{short}>)"), DOWNLOAD),
        _ => ("text".into(), NO_PICTURE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in boxes of these brands.
    fn boxes(brands: &[&[u8; 4]]) -> Vec<u8> {
        let (first, others) = brands.split_first().unwrap();
        let len = 16 + 4 * others.len() as u32;
        let others: Vec<u8> = others.iter().flat_map(|brand| **brand).collect();
        [&len.to_be_bytes()[..], b"ftyp", *first, &[0; 4], &others, b"\0\0\0\x08mdat"].concat()
    }

    fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(unit).collect()
    }

    #[test]
    fn heif_and_its_relatives_have_their_right_names() {
        let cases: [(&[&[u8; 4]], &str); 17] = [
            (&[b"avif", b"mif1", b"miaf"], "an AVIF"),
            (&[b"avis", b"msf1"], "an AVIF sequence"),
            (&[b"heic", b"mif1"], "a HEIC"),
            (&[b"heix"], "a HEIC"),
            (&[b"heim"], "a HEIC"),
            (&[b"heis"], "a HEIC"),
            (&[b"hevc", b"msf1"], "a HEIC sequence"),
            (&[b"hevx"], "a HEIC sequence"),
            (&[b"mif1"], "a HEIF"),
            (&[b"mif1", b"heic"], "a HEIC"),
            (&[b"mif1", b"miaf", b"avif"], "an AVIF"),
            (&[b"msf1"], "a HEIF sequence"),
            (&[b"msf1", b"hevc"], "a HEIC sequence"),
            (&[b"miaf"], "a HEIF"),
            (&[b"crx ", b"isom"], "a raw photo of a Canon camera (CR3)"),
            (&[b"qt  "], "a QuickTime video (MOV)"),
            (&[b"isom", b"mp42"], "an MP4 video, or another file of this family (its brand is \"isom\")"),
        ];
        for (brands, name) in cases {
            let DecodeError::OtherFormat { kind, .. } = describe(&boxes(brands)) else { panic!("{name}") };
            assert_eq!(kind, name);
        }
    }

    #[test]
    fn files_are_named_by_what_they_hold() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
        let after = |before: &str| format!("{before}{svg}").into_bytes();
        let comment = after(&format!("<!-- {} -->", "x > y ".repeat(2000)));
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (after(""), "an SVG"),
            (after("\u{feff} \r\n"), "an SVG"),
            (after("<?xml version='1.0'?>\n<!-- made > by -->\n"), "an SVG"),
            (after("<!DOCTYPE svg PUBLIC \"a\" \"b\">"), "an SVG"),
            (after("<!DOCTYPE x [ <!ENTITY a \"b>\"> ]>"), "an SVG"),
            (comment, "an SVG"),
            (utf16(svg, u16::to_le_bytes), "an SVG"),
            (utf16(svg, u16::to_be_bytes), "an SVG"),
            (b"<?xml?><!-- \xe4 --><svg:svg/>".to_vec(), "an SVG"),
            (b"\n<!doctype HTML>".to_vec(), "an HTML page"),
            (b"<!-- a --><HTML lang=en>".to_vec(), "an HTML page"),
            (b"<?xml?><!DOCTYPE html PUBLIC \"a\"><html>".to_vec(), "an HTML page"),
            (b"<h1>Not Found</h1>".to_vec(), "an HTML page"),
            (b"<!DOCTYPE html><body><svg/>".to_vec(), "an HTML page"),
            (b"<?xml?><Error><Code>AccessDenied".to_vec(), "XML (<Error>)"),
            (b"%PDF-1.7".to_vec(), "a PDF"),
            (b"\r\n%PDF-1.7".to_vec(), "a PDF"),
            (b"%!PS-Adobe-3.0".to_vec(), "a PostScript document"),
            (b"%!PS-Adobe-3.0 EPSF-3.0".to_vec(), "an EPS (PostScript)"),
            (b"\0\0\0\x0cjP  \r\n\x87\n".to_vec(), "a JPEG 2000"),
            (b"\xff\x4f\xff\x51".to_vec(), "a JPEG 2000 codestream"),
            (b"\xff\x0a".to_vec(), "a JPEG XL codestream"),
            (b"\0\0\0\x0cJXL \r\n\x87\n".to_vec(), "a JPEG XL"),
            (b"II\xbc\x01".to_vec(), "a JPEG XR"),
            (b"GIF89a".to_vec(), "a GIF"),
            (b"BM\x36\0\0\0".to_vec(), "a BMP"),
            (b"BMW is a car".to_vec(), "text"),
            (b"II*\0\x08\0\0\0".to_vec(), "a TIFF"),
            (b"MM\0*\0\0\0\x08".to_vec(), "a TIFF"),
            (b"II+\0".to_vec(), "a BigTIFF"),
            (b"II*\0\x10\0\0\0CR\x02\0".to_vec(), "a raw photo of a Canon camera (CR2)"),
            (b"II*\0\x08\0\0\0\x01\0\x12\xc6\x01\0\x04\0\0\0\x01\x04\0\0".to_vec(), "a raw photo (DNG)"),
            (b"\0\0\x01\0\x01\0".to_vec(), "an icon (ICO)"),
            (b"8BPS\0\x01".to_vec(), "a Photoshop document (PSD)"),
            (b"qoif".to_vec(), "a QOI"),
            (b"\x76\x2f\x31\x01".to_vec(), "an OpenEXR"),
            (b"#?RADIANCE\n".to_vec(), "a Radiance HDR"),
            (b"P6 1 1 255\n".to_vec(), "a PPM"),
            ([&[7; 40][..], b"TRUEVISION-XFILE.\0"].concat(), "a TGA"),
            (b"\x1a\x45\xdf\xa3".to_vec(), "a WebM or Matroska video"),
            (b"RIFF\0\0\0\0AVI ".to_vec(), "an AVI video"),
            (b"\x1f\x8b\x08".to_vec(), "compressed with gzip, as an .svgz is too"),
            (
                b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
                "a pointer of Git LFS in the picture's place",
            ),
            (b" {\"error\": 1}".to_vec(), "JSON"),
            (b"[InternetShortcut]\r\nURL=x".to_vec(), "an address as text, not the picture there"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec(), "an answer of a web server with its headers"),
            (
                b"--x\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\n\x89PNG".to_vec(),
                "the body of a form (multipart/form-data)",
            ),
            (b"<\0s\0v\0g\0>\0".to_vec(), "an SVG"),
            (b"<br>no".to_vec(), "an HTML page"),
            ([&[0x47][..], &[0; 187], &[0x47, 0]].concat(), "an MPEG video (transport stream)"),
            ([&[0, 0, 10][..], &[0; 9], &[7, 0, 7, 0, 24, 0x20, 1]].concat(), "a TGA"),
            (b"\xc2\x89PNG\r\n\x1a\n".to_vec(), "a PNG that was damaged by a transfer as text"),
            (b"hello".to_vec(), "text"),
            (Vec::new(), "empty"),
            (vec![0; 99], "nothing but zeros"),
            (b"\x14\0\0\0\0\0\0\0{\"a\":1}".to_vec(), "a safetensors file of weights"),
            (b"iVBORw0KGgoAAA".to_vec(), "a PNG in base64, as text"),
            (b"\x89PNG\n\x1a\n\0".to_vec(), "a PNG that was damaged by a transfer as text"),
            (b"\x89PNG\r".to_vec(), "the beginning of a PNG"),
            (b"\xff\xd8".to_vec(), "the beginning of a JPEG"),
        ];
        for (file, name) in cases {
            let DecodeError::OtherFormat { kind, advice } = describe(&file) else { panic!("{name}") };
            assert!(kind == name && !advice.is_empty(), "{name}: {kind}");
        }
        assert_eq!(describe(&[0, 1, 2, 3]), DecodeError::Unknown { start: "00 01 02 03".into() });
    }
}
