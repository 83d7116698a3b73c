//! From bits to coefficients: Huffman codes, scans, restarts.

use super::block::Idct;
use super::{BLOCK, Frame, Result, SIDE, Tables, ZIGZAG, damaged};

/// Codes of up to so many bits are looked up at once.
const QUICK: u32 = 9;

/// A Huffman table.
pub(super) struct Huffman {
    /// Of each value of the next bits: how long the code is, and its symbol; 0 where it is longer.
    quick: [(u8, u8); 1 << QUICK],
    /// Of each length: the code after its last, at 16 bits, and what leads from a code to the place of its symbol.
    ends: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// With so many codes of each length from 1 bit on; `None` where there cannot be so many.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let (mut quick, mut ends) = ([(0, 0); 1 << QUICK], [(0, 0); 17]);
        let (mut code, mut place) = (0u32, 0usize);
        for (len, count) in (1u32..).zip(counts) {
            let first = place as i32 - code as i32;
            for _ in 0..*count {
                if len <= QUICK {
                    let start = (code << (QUICK - len)) as usize;
                    quick.get_mut(start..start + (1 << (QUICK - len)))?.fill((len as u8, symbols[place]));
                }
                (code, place) = (code + 1, place + 1);
            }
            if code > 1 << len {
                return None;
            }
            ends[len as usize] = (code << (16 - len), first);
            code <<= 1;
        }
        Some(Self { quick, ends, symbols: symbols.to_vec() })
    }

    fn read(&self, bits: &mut Bits) -> Result<u8> {
        let next = bits.peek16();
        let (len, symbol) = self.quick[(next >> (16 - QUICK)) as usize];
        if len > 0 {
            bits.skip(u32::from(len))?;
            return Ok(symbol);
        }
        for len in QUICK + 1..=16 {
            let (end, first) = self.ends[len as usize];
            if next < end {
                bits.skip(len)?;
                let place = (next >> (16 - len)) as i32 + first;
                return self
                    .symbols
                    .get(place as usize)
                    .copied()
                    .ok_or_else(|| damaged("its data are no codes of it"));
            }
        }
        Err(damaged("its data are no codes of it"))
    }
}

/// The bits of a scan, up to the marker after it.
pub(super) struct Bits<'a> {
    file: &'a [u8],
    /// The next byte that is in no bit yet.
    at: usize,
    /// Bits from the top.
    held: u64,
    len: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at, held: 0, len: 0 }
    }

    /// Where the marker after the scan is looked for.
    pub(super) fn end(&self) -> usize {
        self.at
    }

    fn fill(&mut self) {
        while self.len <= 56 {
            let byte = match self.file.get(self.at) {
                Some(0xff) if self.file.get(self.at + 1) == Some(&0) => {
                    self.at += 2;
                    0xff
                }
                None | Some(0xff) => return,
                Some(byte) => {
                    self.at += 1;
                    *byte
                }
            };
            self.held |= u64::from(byte) << (56 - self.len);
            self.len += 8;
        }
    }

    /// The next 16 bits; beyond the end there are zeros.
    fn peek16(&mut self) -> u32 {
        if self.len < 16 {
            self.fill();
        }
        (self.held >> 48) as u32
    }

    fn skip(&mut self, count: u32) -> Result<()> {
        if count > self.len {
            return Err(damaged("its data end too early"));
        }
        self.held <<= count;
        self.len -= count;
        Ok(())
    }

    /// A number of up to 16 bits.
    fn take(&mut self, count: u32) -> Result<i32> {
        if count == 0 {
            return Ok(0);
        }
        let value = self.peek16() >> (16 - count);
        self.skip(count)?;
        Ok(value as i32)
    }

    /// A number with a sign: the lower half of those of so many bits stands for negative ones.
    fn signed(&mut self, count: u32) -> Result<i32> {
        let value = self.take(count)?;
        Ok(if count > 0 && value < 1 << (count - 1) { value - (1 << count) + 1 } else { value })
    }

    /// Goes on behind a restart marker.
    fn restart(&mut self, number: usize) -> Result<()> {
        (self.held, self.len) = (0, 0);
        while self.file.get(self.at..self.at + 2) == Some(&[0xff, 0xff]) {
            self.at += 1;
        }
        match self.file.get(self.at..self.at + 2) {
            Some([0xff, marker]) if *marker == 0xd0 + (number % 8) as u8 => {
                self.at += 2;
                Ok(())
            }
            _ => Err(damaged("a restart marker is not where it has to be")),
        }
    }
}

/// The header of a scan.
pub(super) struct Scan {
    /// Of each component: its place, and those of its tables for the first coefficient and for the others.
    components: Vec<(usize, usize, usize)>,
    /// The coefficients of a progressive scan.
    first: usize,
    last: usize,
    /// The bit that they had before, and that they have now.
    high: u32,
    low: u32,
}

impl Scan {
    pub(super) fn new(segment: &[u8], frame: &mut Frame, tables: &Tables) -> Result<Self> {
        let wrong = || damaged("the header of a scan makes no sense");
        let (count, rest) = segment.split_first().ok_or_else(wrong)?;
        let count = usize::from(*count);
        let (Some(specs), Some([first, last, bits])) =
            (rest.get(..2 * count), rest.get(2 * count..2 * count + 3))
        else {
            return Err(wrong());
        };
        let mut components: Vec<(usize, usize, usize)> = Vec::new();
        for spec in specs.chunks_exact(2) {
            let place = frame.components.iter().position(|one| one.id == spec[0]).ok_or_else(wrong)?;
            let (dc, ac) = (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
            if dc > 3 || ac > 3 || components.iter().any(|(other, ..)| *other == place) {
                return Err(wrong());
            }
            let component = &mut frame.components[place];
            if component.quantization.is_none() {
                let table = tables.quantization[component.table].clone();
                component.quantization = Some(table.ok_or_else(|| damaged("it lacks a quantisation table"))?);
            }
            components.push((place, dc, ac));
        }
        let (first, last, high, low) = match frame.progressive {
            true => (usize::from(*first), usize::from(*last), u32::from(bits >> 4), u32::from(bits & 15)),
            false => (0, BLOCK - 1, 0, 0),
        };
        let progression = first <= last && last < BLOCK && low <= 13 && (high == 0 || high == low + 1);
        let alone = first == 0 || components.len() == 1;
        if components.is_empty() || !progression || !alone || (frame.progressive && first == 0 && last != 0) {
            return Err(wrong());
        }
        let blocks = |(place, ..): &(usize, usize, usize)| {
            let component = &frame.components[*place];
            component.across * component.down
        };
        if components.len() > 1 && components.iter().map(blocks).sum::<usize>() > 10 {
            return Err(wrong());
        }
        Ok(Self { components, first, last, high, low })
    }
}

/// What a scan carries from block to block.
#[derive(Default)]
struct State {
    /// The first coefficient of the block before, of each component of the scan.
    before: [i32; 4],
    /// Blocks that have no more coefficients.
    ended: u32,
}

/// Reads a scan into the frame's components.
pub(super) fn read(scan: &Scan, frame: &mut Frame, tables: &Tables, bits: &mut Bits) -> Result<()> {
    let (mut state, mut idct) = (State::default(), Idct::default());
    // A component that comes alone has no blocks but those that hold some of the picture.
    let alone = match scan.components[..] {
        [(place, ..)] => Some(&frame.components[place]),
        _ => None,
    };
    let mcus = alone.map_or(frame.mcus, |one| (one.width.div_ceil(SIDE), one.height.div_ceil(SIDE)));
    let alone = alone.is_some();
    for mcu in 0..mcus.0 * mcus.1 {
        if tables.restart > 0 && mcu > 0 && mcu % tables.restart == 0 {
            bits.restart(mcu / tables.restart - 1)?;
            state = State::default();
        }
        let (x, y) = (mcu % mcus.0, mcu / mcus.0);
        for (i, (place, dc, ac)) in scan.components.iter().enumerate() {
            let component = &mut frame.components[*place];
            let (across, down) = if alone { (1, 1) } else { (component.across, component.down) };
            for block in 0..across * down {
                let at = (x * across + block % across, y * down + block / across);
                let codes = Codes { dc: tables.dc[*dc].as_ref(), ac: tables.ac[*ac].as_ref() };
                if frame.progressive {
                    let start = (at.1 * component.blocks.0 + at.0) * BLOCK;
                    let coefficients = &mut component.coefficients[start..start + BLOCK];
                    progressive(scan, codes, coefficients, &mut state, i, bits)?;
                } else {
                    let coefficients = sequential(codes, &mut state.before[i], bits)?;
                    component.put(at, &coefficients, &mut idct);
                }
            }
        }
    }
    for (place, ..) in &scan.components {
        frame.components[*place].scanned = true;
    }
    Ok(())
}

/// The tables of a component.
#[derive(Clone, Copy)]
struct Codes<'a> {
    dc: Option<&'a Huffman>,
    ac: Option<&'a Huffman>,
}

impl<'a> Codes<'a> {
    fn dc(self) -> Result<&'a Huffman> {
        self.dc.ok_or_else(|| damaged("it lacks a Huffman table"))
    }

    fn ac(self) -> Result<&'a Huffman> {
        self.ac.ok_or_else(|| damaged("it lacks a Huffman table"))
    }
}

fn first_coefficient(codes: Codes, before: &mut i32, bits: &mut Bits) -> Result<i32> {
    let len = codes.dc()?.read(bits)?;
    if len > 15 {
        return Err(damaged("its data are no codes of it"));
    }
    *before = before.wrapping_add(bits.signed(u32::from(len))?);
    Ok(*before)
}

fn place(k: usize) -> Result<usize> {
    ZIGZAG
        .get(k)
        .map(|place| usize::from(*place))
        .ok_or_else(|| damaged("a block has more than 64 coefficients"))
}

fn sequential(codes: Codes, before: &mut i32, bits: &mut Bits) -> Result<[i16; BLOCK]> {
    let mut block = [0; BLOCK];
    block[0] = first_coefficient(codes, before, bits)? as i16;
    let (table, mut k) = (codes.ac()?, 1);
    while k < BLOCK {
        let symbol = table.read(bits)?;
        let (zeros, len) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        match (zeros, len) {
            (15, 0) => k += 16,
            (_, 0) => break,
            _ => {
                k += zeros;
                block[place(k)?] = bits.signed(len)? as i16;
                k += 1;
            }
        }
    }
    Ok(block)
}

fn progressive(
    scan: &Scan,
    codes: Codes,
    block: &mut [i16],
    state: &mut State,
    component: usize,
    bits: &mut Bits,
) -> Result<()> {
    let low = scan.low;
    match (scan.first, scan.high) {
        (0, 0) => {
            block[0] = (first_coefficient(codes, &mut state.before[component], bits)? << low) as i16;
            Ok(())
        }
        (0, _) => {
            block[0] |= (bits.take(1)? << low) as i16;
            Ok(())
        }
        (_, 0) => begin(scan, codes.ac()?, block, state, bits),
        _ => refine(scan, codes.ac()?, block, state, bits),
    }
}

/// The first bits of coefficients.
fn begin(scan: &Scan, table: &Huffman, block: &mut [i16], state: &mut State, bits: &mut Bits) -> Result<()> {
    if state.ended > 0 {
        state.ended -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        let symbol = table.read(bits)?;
        let (zeros, len) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        match (zeros, len) {
            (15, 0) => k += 16,
            (_, 0) => {
                state.ended = (1 << zeros) - 1 + bits.take(zeros as u32)? as u32;
                break;
            }
            _ => {
                k += zeros;
                block[place(k)?] = (bits.signed(len)? << scan.low) as i16;
                k += 1;
            }
        }
    }
    Ok(())
}

/// One more bit of those that are there, and those that begin with it.
fn refine(scan: &Scan, table: &Huffman, block: &mut [i16], state: &mut State, bits: &mut Bits) -> Result<()> {
    let one = 1i16 << scan.low;
    let correct = |coefficient: &mut i16, bits: &mut Bits| -> Result<()> {
        if bits.take(1)? == 1 && *coefficient & one == 0 {
            *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
        }
        Ok(())
    };
    let mut k = scan.first;
    if state.ended == 0 {
        while k <= scan.last {
            let symbol = table.read(bits)?;
            let (mut zeros, len) = (symbol >> 4, symbol & 15);
            let mut new = 0;
            match (zeros, len) {
                (15, 0) => {}
                (_, 0) => {
                    state.ended = (1 << zeros) + bits.take(u32::from(zeros))? as u32;
                    break;
                }
                (_, 1) => new = if bits.take(1)? == 1 { one } else { -one },
                _ => return Err(damaged("its data are no codes of it")),
            }
            // Zeros are counted; what is not zero is corrected on the way.
            while k <= scan.last {
                let coefficient = &mut block[place(k)?];
                if *coefficient != 0 {
                    correct(coefficient, bits)?;
                } else if zeros == 0 {
                    *coefficient = new;
                    k += 1;
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
        }
    }
    if state.ended > 0 {
        for k in k..=scan.last {
            let coefficient = &mut block[place(k)?];
            if *coefficient != 0 {
                correct(coefficient, bits)?;
            }
        }
        state.ended -= 1;
    }
    Ok(())
}
