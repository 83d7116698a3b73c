//! Many pictures on one sheet.

use super::Image;
use crate::error::{Error, Result};

/// Between pictures, in pixels.
const GAP: u32 = 4;

impl Image {
    /// The width and height in pixels of what [`Image::grid`] makes of so many pictures, the largest of which has the size
    /// `largest`.
    ///
    /// # Errors
    /// As [`Image::grid`].
    pub fn grid_size(count: usize, columns: usize, largest: (u32, u32)) -> Result<(u32, u32)> {
        if columns == 0 {
            return Err(Error::Request("a sheet has at least one column".into()));
        }
        let columns = columns.min(count).max(1);
        let side = |count: usize, pixels: u32| {
            let count = u64::try_from(count.max(1)).ok()?;
            let all = count.checked_mul(u64::from(pixels) + u64::from(GAP))? - u64::from(GAP);
            u32::try_from(all).ok().filter(|&all| all <= i32::MAX as u32)
        };
        let sheet = side(columns, largest.0).zip(side(count.div_ceil(columns), largest.1));
        let has_bytes =
            |&(width, height): &(u32, u32)| (width as usize).checked_mul(height as usize)?.checked_mul(3);
        let sheet = sheet.filter(|sheet| has_bytes(sheet).is_some());
        sheet.ok_or_else(|| Error::Request(format!("{count} pictures are too many for one sheet")))
    }

    /// The pictures in rows of `columns`, from the left above, on white; each in a place as large as the largest of them.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no picture or no column, or the sheet is larger than a PNG can be.
    pub fn grid(pictures: &[&Image], columns: usize) -> Result<Image> {
        let sides = (
            pictures.iter().map(|picture| picture.width).max(),
            pictures.iter().map(|picture| picture.height).max(),
        );
        let (Some(width), Some(height)) = sides else {
            return Err(Error::Request("no picture for a sheet".into()));
        };
        let (all_width, all_height) = Self::grid_size(pictures.len(), columns, (width, height))?;
        let columns = columns.min(pictures.len());
        let mut rgb = vec![255; all_width as usize * all_height as usize * 3];
        for (i, picture) in pictures.iter().enumerate() {
            let (left, top) = (i % columns * (width + GAP) as usize, i / columns * (height + GAP) as usize);
            let row = 3 * picture.width as usize;
            for (y, line) in picture.rgb.chunks_exact(row.max(1)).enumerate() {
                let start = 3 * ((top + y) * all_width as usize + left);
                if let Some(place) = rgb.get_mut(start..start + row) {
                    place.copy_from_slice(line);
                }
            }
        }
        Ok(Image { width: all_width, height: all_height, rgb })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_in_rows_with_white_between() {
        let plain =
            |width, height, value| Image { width, height, rgb: vec![value; (3 * width * height) as usize] };
        let (a, b, c) = (plain(2, 3, 10), plain(2, 3, 20), plain(1, 2, 30));
        let sheet = Image::grid(&[&a, &b, &c], 2).unwrap();
        assert_eq!((sheet.width, sheet.height), (8, 10));
        let at = |x: usize, y: usize| sheet.rgb[3 * (y * 8 + x)];
        assert_eq!([at(0, 0), at(1, 2), at(2, 0), at(6, 0), at(7, 2)], [10, 10, 255, 20, 20]);
        assert_eq!([at(0, 7), at(1, 7), at(0, 8), at(0, 9), at(6, 7)], [30, 255, 30, 255, 255]);
        assert!(Image::grid(&[], 2).is_err());
        assert!(Image::grid(&[&a], 0).is_err());
        assert_eq!(Image::grid(&[&a], 5).unwrap(), a);
    }
}
