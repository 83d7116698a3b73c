//! JPEG: sequential and progressive, 8 bits a channel, with the levels of libjpeg-turbo to the bit. The crates that decode
//! JPEGs in Rust smooth chroma where libjpeg repeats it, so narrow pictures come out with other colours than PyTorch's users
//! have; what is damaged or incomplete is refused here, and not filled up with grey.

mod block;
mod color;
mod entropy;
mod standard;
mod upsample;

use block::Idct;
use entropy::{Bits, Huffman, Scan};

use super::{Decoded, Metadata, Size};
use crate::image::{DecodeError, Format};

/// Samples in a row of a block, and in a block.
const SIDE: usize = 8;
const BLOCK: usize = SIDE * SIDE;

/// The most scans: ten or so are usual, and each goes through the whole picture, however few bytes it has.
const MOST_SCANS: usize = 100;

/// The places of a block's coefficients in the order in which a file has them.
const ZIGZAG: [u8; BLOCK] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One channel as the file has it, which may be smaller than the picture.
struct Component {
    id: u8,
    /// Sampling factors: how many blocks of it an MCU has, across and down.
    across: usize,
    down: usize,
    /// The place of its quantisation table.
    table: usize,
    /// The table itself, as it was when the first scan of the component began.
    quantization: Option<Box<[u16; BLOCK]>>,
    /// Its samples that are the picture's.
    width: usize,
    height: usize,
    /// Its blocks in whole MCUs, across and down.
    blocks: (usize, usize),
    /// The coefficients of all blocks, of a progressive picture.
    coefficients: Vec<i16>,
    /// The samples of all blocks, rows from the top.
    samples: Vec<u8>,
    /// Whether a scan held it.
    scanned: bool,
}

impl Component {
    /// The samples in a row of blocks.
    fn stride(&self) -> usize {
        self.blocks.0 * SIDE
    }

    /// Turns coefficients of the block at a place into samples.
    fn put(&mut self, (x, y): (usize, usize), coefficients: &[i16; BLOCK], idct: &mut Idct) {
        let Some(quantization) = &self.quantization else { return };
        let (stride, pixels) = (self.stride(), idct.samples(coefficients, quantization));
        for (row, pixels) in pixels.chunks_exact(SIDE).enumerate() {
            let at = (y * SIDE + row) * stride + x * SIDE;
            self.samples[at..at + SIDE].copy_from_slice(pixels);
        }
    }
}

/// The header of the picture.
struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    /// MCUs, across and down.
    mcus: (usize, usize),
    /// The largest sampling factors of all components.
    most: (usize, usize),
    components: Vec<Component>,
}

/// What the segments before and between the scans say.
struct Tables {
    quantization: [Option<Box<[u16; BLOCK]>>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    /// MCUs between restart markers; 0 where there are none.
    restart: usize,
    jfif: bool,
    /// The transform that an Adobe segment names.
    adobe: Option<u8>,
    metadata: Metadata,
}

impl Default for Tables {
    /// Without any, but for the Huffman tables that JPEG proposes: the frames of a webcam or of a video in Motion JPEG
    /// leave them out, and libjpeg-turbo has them, too.
    fn default() -> Self {
        let [dc, ac] = [standard::DC, standard::AC]
            .map(|tables| tables.map(|(counts, symbols)| Huffman::new(&counts, symbols)))
            .map(|[luma, chroma]| [luma, chroma, None, None]);
        Self {
            quantization: Default::default(),
            dc,
            ac,
            restart: 0,
            jfif: false,
            adobe: None,
            metadata: Metadata::default(),
        }
    }
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

fn damaged(reason: impl Into<String>) -> DecodeError {
    DecodeError::Damaged { format: Format::Jpeg, reason: reason.into() }
}

fn unsupported(what: &'static str) -> DecodeError {
    DecodeError::Unsupported { format: Format::Jpeg, what }
}

/// The file's bytes, of which some were read.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next marker, with what stands before it left out; `None` at the end of the file.
    fn marker(&mut self) -> Option<u8> {
        loop {
            let rest = self.file.get(self.at..)?;
            let start = rest.iter().position(|byte| *byte == 0xff)?;
            let code = rest[start..].iter().position(|byte| *byte != 0xff)?;
            self.at += start + code + 1;
            match rest[start + code] {
                // A byte of the data that came before, or a restart that came too late to matter.
                0 | 0xd0..=0xd7 | 0x01 => {}
                marker => return Some(marker),
            }
        }
    }

    /// The segment of a marker.
    fn segment(&mut self) -> Result<&'a [u8]> {
        let cut = || damaged("it ends within its headers");
        let len = self.file.get(self.at..self.at + 2).ok_or_else(cut)?;
        let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
        let segment = self.file.get(self.at + 2..self.at + len.max(2)).ok_or_else(cut)?;
        self.at += len.max(2);
        Ok(segment)
    }
}

/// Reads a JPEG; `admit` says of its size whether it may be decoded.
pub(super) fn decode(file: &[u8], admit: &mut dyn FnMut(Size) -> Result<()>) -> Result<Decoded> {
    let mut reader = Reader { file, at: 2 };
    let (mut tables, mut frame, mut scans) = (Tables::default(), None::<Frame>, 0);
    loop {
        let marker = reader.marker().ok_or_else(|| damaged("it ends before its last marker"))?;
        match marker {
            0xd9 => break,
            0xd8 => return Err(damaged("a second picture begins within it")),
            0xda => {
                scans += 1;
                if scans > MOST_SCANS {
                    return Err(damaged(format!("it has more than {MOST_SCANS} scans")));
                }
                let frame = frame.as_mut().ok_or_else(|| damaged("its data begin before its size"))?;
                let scan = Scan::new(reader.segment()?, frame, &tables)?;
                let mut bits = Bits::new(file, reader.at);
                entropy::read(&scan, frame, &tables, &mut bits)?;
                reader.at = bits.end();
            }
            0xc0..=0xc2 => {
                let segment = reader.segment()?;
                if frame.is_some() {
                    return Err(damaged("it has two sizes"));
                }
                frame = Some(Frame::new(segment, marker == 0xc2, admit)?);
            }
            0xc4 => tables.huffman(reader.segment()?)?,
            0xdb => tables.quantization(reader.segment()?)?,
            0xdd => match reader.segment()? {
                [high, low, ..] => tables.restart = usize::from(u16::from_be_bytes([*high, *low])),
                _ => return Err(damaged("its restart interval is cut short")),
            },
            0xe0..=0xef => tables.application(marker, reader.segment()?),
            0xc3 => return Err(unsupported("lossless coding")),
            0xc9 | 0xca => return Err(unsupported("arithmetic coding")),
            0xf7 => return Err(unsupported("JPEG-LS")),
            0xc5..=0xc7 | 0xcb | 0xcd..=0xcf | 0xde => {
                return Err(unsupported("hierarchical or lossless coding"));
            }
            0xdc => return Err(unsupported("a height that follows its data")),
            _ => drop(reader.segment()?),
        }
    }
    let frame = frame.ok_or_else(|| damaged("it has no picture"))?;
    if let Some(missing) = frame.components.iter().find(|one| !one.scanned) {
        return Err(damaged(format!("channel {} has no data", missing.id)));
    }
    let (width, height) = (frame.width as u32, frame.height as u32);
    let (channels, samples) = color::convert(frame.finished(), tables.jfif, tables.adobe)?;
    Ok(Decoded { width, height, channels, samples, texts: Default::default() }.with(tables.metadata))
}

impl Frame {
    fn new(segment: &[u8], progressive: bool, admit: &mut dyn FnMut(Size) -> Result<()>) -> Result<Self> {
        let [precision, h1, h0, w1, w0, count, rest @ ..] = segment else {
            return Err(damaged("its header is cut short"));
        };
        let (height, width) = (u16::from_be_bytes([*h1, *h0]), u16::from_be_bytes([*w1, *w0]));
        match precision {
            8 => {}
            12 => return Err(unsupported("12 bits a channel")),
            _ => return Err(damaged(format!("{precision} bits a channel"))),
        }
        if height == 0 {
            return Err(unsupported("a height that follows its data"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported("a number of channels other than 1, 3 or 4"));
        }
        let specs: Vec<_> = rest.chunks_exact(3).take(usize::from(*count)).collect();
        if specs.len() < usize::from(*count) {
            return Err(damaged("its header is cut short"));
        }
        let factors = |spec: &&[u8]| (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
        let most = specs.iter().map(factors).fold((1, 1), |most, one| (most.0.max(one.0), most.1.max(one.1)));
        admit((u32::from(width), u32::from(height)))?;
        let (width, height) = (usize::from(width), usize::from(height));
        let mcus = (width.div_ceil(SIDE * most.0), height.div_ceil(SIDE * most.1));
        let mut components = Vec::with_capacity(specs.len());
        for spec in &specs {
            let ((across, down), table) = (factors(spec), usize::from(spec[2]));
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) || table > 3 {
                return Err(damaged("its header names sampling factors or tables that JPEG does not have"));
            }
            if most.0 % across != 0 || most.1 % down != 0 {
                return Err(unsupported("channels whose sizes are no whole fractions of the picture's"));
            }
            let blocks = (mcus.0 * across, mcus.1 * down);
            let coefficients = if progressive { vec![0; blocks.0 * blocks.1 * BLOCK] } else { Vec::new() };
            let samples = if progressive { Vec::new() } else { vec![0; blocks.0 * blocks.1 * BLOCK] };
            components.push(Component {
                id: spec[0],
                across,
                down,
                table,
                quantization: None,
                width: (width * across).div_ceil(most.0),
                height: (height * down).div_ceil(most.1),
                blocks,
                coefficients,
                samples,
                scanned: false,
            });
        }
        Ok(Self { width, height, progressive, mcus, most, components })
    }

    /// With the samples of all blocks; a progressive picture has them only now.
    fn finished(mut self) -> Self {
        let mut idct = Idct::default();
        for component in self.components.iter_mut().filter(|_| self.progressive) {
            let coefficients = std::mem::take(&mut component.coefficients);
            component.samples = vec![0; coefficients.len()];
            let across = component.blocks.0;
            for (i, block) in coefficients.as_chunks().0.iter().enumerate() {
                component.put((i % across, i / across), block, &mut idct);
            }
        }
        self
    }
}

impl Tables {
    fn quantization(&mut self, mut segment: &[u8]) -> Result<()> {
        while let [what, rest @ ..] = segment {
            let (wide, place) = (what >> 4 != 0, usize::from(what & 15));
            let len = if wide { 2 * BLOCK } else { BLOCK };
            let (Some(values), true) = (rest.get(..len), place < 4) else {
                return Err(damaged("a quantisation table is cut short"));
            };
            let mut table = Box::new([0; BLOCK]);
            for (i, place) in ZIGZAG.iter().enumerate() {
                table[usize::from(*place)] = match wide {
                    true => u16::from_be_bytes([values[2 * i], values[2 * i + 1]]),
                    false => u16::from(values[i]),
                };
            }
            self.quantization[place] = Some(table);
            segment = &rest[len..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Result<()> {
        while let [what, rest @ ..] = segment {
            let (class, place) = (what >> 4, usize::from(what & 15));
            let (Some((counts, values)), true) = (rest.split_first_chunk::<16>(), class < 2 && place < 4)
            else {
                return Err(damaged("a Huffman table is cut short"));
            };
            let len: usize = counts.iter().map(|count| usize::from(*count)).sum();
            let symbols = values.get(..len).ok_or_else(|| damaged("a Huffman table is cut short"))?;
            let table = Huffman::new(counts, symbols).ok_or_else(|| damaged("a Huffman table is none"))?;
            let tables = if class == 0 { &mut self.dc } else { &mut self.ac };
            tables[place] = Some(table);
            segment = &values[len..];
        }
        Ok(())
    }

    fn application(&mut self, marker: u8, segment: &[u8]) {
        match marker {
            0xe0 if segment.starts_with(b"JFIF\0") => self.jfif = true,
            0xe1 => {
                if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
                    // One that is too long for a segment goes on in the next.
                    self.metadata.exif.get_or_insert_default().extend_from_slice(exif);
                } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.metadata.xmp = Some(xmp.to_vec());
                }
            }
            0xee if segment.starts_with(b"Adobe") => self.adobe = segment.get(11).copied().or(self.adobe),
            _ => {}
        }
    }
}
