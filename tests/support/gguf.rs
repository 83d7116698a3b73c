//! GGUF files written by hand, so that they may also be wrong.

/// Numbers of types of metadata.
pub const U8: u32 = 0;
pub const I8: u32 = 1;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
pub const I64: u32 = 11;

/// Numbers of types of tensors.
pub const F32: u32 = 0;
pub const Q4_0: u32 = 2;
pub const Q4_K: u32 = 12;
pub const F64: u32 = 28;

/// A length and that many bytes.
pub fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A key with its type and the bytes of its value.
pub fn key(name: impl AsRef<[u8]>, value_type: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&text(name)[..], &value_type.to_le_bytes(), value.as_ref()].concat()
}

/// The bytes of an array that says that it has `count` values.
pub fn array(value_type: u32, count: u64, values: impl AsRef<[u8]>) -> Vec<u8> {
    [&value_type.to_le_bytes()[..], &count.to_le_bytes(), values.as_ref()].concat()
}

/// A tensor with its axes in the order of the file, the first being that of a row.
pub fn tensor(name: impl AsRef<[u8]>, dims: &[u64], tensor_type: u32, offset: u64) -> Vec<u8> {
    let count = dims.len() as u32;
    let dims = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    [
        text(name),
        count.to_le_bytes().to_vec(),
        dims,
        tensor_type.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

/// What stands before the keys.
pub fn start(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}

/// The header of these keys and tensors, without what fills up to the alignment.
pub fn header(keys: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    [start(3, tensors.len() as u64, keys.len() as u64), keys.concat(), tensors.concat()].concat()
}

/// A file of these keys and tensors and `len` bytes of data, aligned to 32.
pub fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], len: usize) -> Vec<u8> {
    let mut bytes = header(keys, tensors);
    bytes.resize(bytes.len().next_multiple_of(32) + len, 0);
    bytes
}
