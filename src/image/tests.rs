use super::*;

/// Bytes of a linear congruence: a picture that needs no file.
fn noise(len: usize) -> Vec<u8> {
    let mut x: u32 = 12345;
    let mut next = || {
        x = x.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7fff_ffff;
        (x >> 16) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

type Size = (u32, u32);

/// The sums are those of Pillow 13.0.0, `Image.frombytes("RGB" or "L", …).resize(…, Image.LANCZOS).tobytes()`.
#[test]
fn resizing_matches_pillow_lanczos_byte_for_byte() {
    let cases: [(Size, Size, u64, u64); 5] = [
        ((40, 30), (64, 48), 0xc5bb_26cc_7d73_ed23, 0xdf40_e162_879b_961c),
        ((64, 48), (16, 16), 0xf6e5_428c_2526_93e6, 0x9617_9728_1817_5c30),
        ((50, 70), (50, 32), 0xbae4_f5bd_6079_6102, 0x662f_bedf_19e3_cbe4),
        ((33, 47), (64, 64), 0xa1b4_53ae_9ded_3af3, 0xb792_d0c1_7dbb_064e),
        ((100, 20), (31, 77), 0x2e40_b055_08f8_6fa4, 0xc61a_8147_408e_bb25),
    ];
    for ((width, height), (to_width, to_height), rgb, grey) in cases {
        let len = (width * height) as usize;
        let image = Image { width, height, rgb: noise(3 * len) }.resize(to_width, to_height);
        assert_eq!((image.width, image.height), (to_width, to_height));
        assert_eq!(fnv1a(&image.rgb), rgb, "{width}x{height} to {to_width}x{to_height}");
        let mask = Mask { width, height, chosen: noise(len) }.resize(to_width, to_height);
        assert_eq!(fnv1a(&mask.chosen), grey, "{width}x{height} to {to_width}x{to_height}, grey");
    }
}

#[test]
fn a_picture_becomes_numbers_and_a_mask_zeros_and_ones() {
    let image = Image { width: 2, height: 1, rgb: vec![0, 51, 255, 255, 0, 0] };
    let x = image.to_tensor().unwrap();
    assert_eq!(x.size(), [1, 3, 1, 2]);
    let values: Vec<f32> = Vec::try_from(x.reshape([-1])).unwrap();
    for (value, expected) in values.iter().zip([-1.0, 1.0, -0.6, -1.0, 1.0, -1.0]) {
        approx::assert_abs_diff_eq!(*value, expected, epsilon = 1e-6);
    }
    let mask = Mask { width: 4, height: 1, chosen: vec![0, 127, 128, 255] }.to_tensor().unwrap();
    assert_eq!(mask.size(), [1, 1, 1, 4]);
    assert_eq!(Vec::<f32>::try_from(mask.reshape([-1])).unwrap(), [0.0, 0.0, 1.0, 1.0]);
}
