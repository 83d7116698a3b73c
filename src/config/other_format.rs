//! What a file is that is neither safetensors nor GGUF, by its first bytes.

/// A zip may hold anything; most under a weight file's name are PyTorch's.
const ZIP: &str =
    "a zip file, perhaps a pickle of PyTorch, which can run code when it is read; convert it to safetensors";
const PICKLE: &str = "a pickle of Python, which can run code when it is read; convert it to safetensors";
const WEB_PAGE: &str = "a web page: the download needs a login or another address";
const PICTURE: &str = "a picture, and no weights";
const ARCHIVE: &str = "a packed archive: unpack it first";
const OLD_GGML: &str = "a file of ggml before GGUF: fetch the model's GGUF or safetensors file";
const TENSOR_RT: &str = "an engine of TensorRT, which runs on one kind of GPU alone: fetch the safetensors file that it was made from";

/// Where the bytes stand, which they are, and what the file then is.
static FORMATS: &[(usize, &[u8], &str)] = &[
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, of Keras or TensorFlow: fetch the model's safetensors file"),
    (0, b"\x93NUMPY", "an array of NumPy: fetch the model's safetensors file"),
    (0, b"SQLite format 3\0", "a database, as Draw Things keeps models: fetch the model's safetensors file"),
    (4, b"TFL3", "a model of TensorFlow Lite: fetch the model's safetensors file"),
    (0, b"ftrt", TENSOR_RT),
    (0, b"ptrt", TENSOR_RT),
    (0, b"\x1f\x8b", ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", ARCHIVE),
    (0, b"\xfd7zXZ\0", ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (0, b"Rar!\x1a\x07", ARCHIVE),
    (0, b"lmgg", OLD_GGML),
    (0, b"tjgg", OLD_GGML),
    (0, b"fmgg", OLD_GGML),
    (0, b"algg", OLD_GGML),
    (0, b"\x89PNG\r\n\x1a\n", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"GIF8", PICTURE),
    (8, b"WEBP", PICTURE),
    (0, b"%PDF-", "a PDF, and no weights"),
    (
        0,
        b"\x00\x05\x16\x07",
        "a sidecar, in which macOS keeps the attributes of another file: name that one, without `._`",
    ),
];

/// Beginnings of texts, in small letters.
static TEXTS: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "a git-LFS pointer: the file itself was not fetched; run `git lfs pull`"),
    (b"<!doctype html", WEB_PAGE),
    (b"<html", WEB_PAGE),
    (b"<?xml", "an answer in XML: the download failed, or needs a login or another address"),
    (b"{", "a JSON text, perhaps a config.json: name the weights beside it"),
];

/// What a file is that begins so. A header of safetensors begins with `{` after its length, which may itself look like
/// another format's mark.
pub(crate) fn find(start: &[u8]) -> Option<&'static str> {
    let length = start.get(..8)?;
    let is_text = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n'));
    if start.get(8) == Some(&b'{') && !is_text(length) {
        return None;
    }
    if let Some((.., kind)) =
        FORMATS.iter().find(|(at, mark, _)| start[*at.min(&start.len())..].starts_with(mark))
    {
        return Some(kind);
    }
    match start {
        // Protocols of pickle have numbers.
        [0x80, 2..=5, ..] => return Some(PICKLE),
        // The version of the format, and who wrote it.
        [0x08, 3..=20, 0x12, _, name, ..] if name.is_ascii_alphabetic() => {
            return Some("a model of ONNX: fetch the safetensors file that it was made from");
        }
        _ => {}
    }
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let known = TEXTS.iter().find(|(begin, _)| text.starts_with(begin)).map(|(_, kind)| *kind);
    // No header is so long that its length would be letters.
    known.or(is_text(length).then_some("a text, perhaps what a failed download answered, and no weights"))
}
