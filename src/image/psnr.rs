//! How far two pictures lie apart.

use super::Image;

impl Image {
    /// The peak signal-to-noise ratio to another picture, in decibels. `None` where both are the same, or not of one size.
    pub fn psnr(&self, other: &Image) -> Option<f64> {
        let squares: u64 = self.differences(other)?.map(|difference| u64::from(difference).pow(2)).sum();
        let mean = squares as f64 / self.rgb.len() as f64;
        (squares > 0).then(|| 10.0 * (255.0 * 255.0 / mean).log10())
    }

    /// Of the values of two pictures of one size, the largest difference.
    pub fn largest_difference(&self, other: &Image) -> Option<u8> {
        self.differences(other)?.max()
    }

    fn differences<'a>(&'a self, other: &'a Image) -> Option<impl Iterator<Item = u8> + 'a> {
        let same = (self.width, self.height, self.rgb.len()) == (other.width, other.height, other.rgb.len());
        same.then(|| self.rgb.iter().zip(&other.rgb).map(|(a, b)| a.abs_diff(*b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_that_of_the_values() {
        let picture = |rgb: &[u8]| Image { width: 2, height: 1, rgb: rgb.to_vec() };
        let (a, b) = (picture(&[0, 10, 20, 30, 40, 50]), picture(&[0, 10, 20, 30, 40, 56]));
        assert_eq!((a.psnr(&a), a.largest_difference(&a)), (None, Some(0)));
        assert_eq!(a.largest_difference(&b), Some(6));
        // Six squared, of six values.
        assert!((a.psnr(&b).unwrap() - 10.0 * (255.0f64 * 255.0 / 6.0).log10()).abs() < 1e-9);
        assert_eq!(a.psnr(&Image { width: 1, height: 2, ..b.clone() }), None);
    }
}
