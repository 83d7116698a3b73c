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

/// The sums are those of OpenCV 5.0.0, `cv2.Canny(picture, 50, 200).tobytes()`.
#[test]
fn edges_are_those_of_opencv_bit_for_bit() {
    let sizes: [Size; 6] = [(40, 30), (97, 61), (128, 128), (3, 5), (1, 7), (64, 1)];
    let rings = |x: i64, y: i64, c: i64, _: &[u8]| ((x - 40).pow(2) + (y - 30).pow(2)) / (16 + 9 * c);
    let noisy = |_: i64, _: i64, _: i64, own: &[u8]| i64::from(own[0]);
    type Draw<'a> = &'a dyn Fn(i64, i64, i64, &[u8]) -> i64;
    let pictures: [(Draw, [u64; 6]); 2] = [
        (
            &noisy,
            [
                0xac7e_e76d_e798_56b1,
                0xb192_bfdf_13e2_1690,
                0xd33d_0b2c_e4d9_7a55,
                0xe255_0dd1_6f87_e559,
                0x3de3_784d_7ffb_b788,
                0x90f2_c58b_e9d4_674e,
            ],
        ),
        (
            &rings,
            [
                0x74b4_429a_2fdd_70e5,
                0x3590_f24f_8e53_80ef,
                0x3eb4_2d49_cf0f_e488,
                0x2eb0_9ce4_c432_0587,
                0x778b_1a14_b687_6aa7,
                0xb9b2_3f3a_46fd_0825,
            ],
        ),
    ];
    for (draw, sums) in pictures {
        for ((width, height), sum) in sizes.into_iter().zip(sums) {
            let own = noise(3 * (width * height) as usize);
            let at = |i: usize| {
                let (pixel, channel) = (i as i64 / 3, i as i64 % 3);
                draw(pixel % i64::from(width), pixel / i64::from(width), channel, &own[i..]) as u8
            };
            let edges = Image { width, height, rgb: (0..own.len()).map(at).collect() }.canny(50, 200);
            let grey: Vec<u8> = edges.rgb.iter().step_by(3).copied().collect();
            assert_eq!(fnv1a(&grey), sum, "{width}x{height}");
        }
    }
}

/// The same of blocks of 8 × 8 pixels under a small pattern: long edges, and weak ones that hang on strong ones.
#[test]
fn edges_of_blocks_are_those_of_opencv() {
    for ((width, height), sum, count) in [
        ((40u32, 30u32), 0xa445_3514_8dbf_a21b, 206),
        ((97, 61), 0x2a5f_1a47_7b89_98ef, 1240),
        ((128, 128), 0x4257_33e3_d67a_1faf, 3354),
        ((64, 1), 0x691b_b274_fd62_1ecc, 5),
    ] {
        let cells = noise(3 * (width * height) as usize);
        let (w, mut rgb) = (width as usize, Vec::new());
        for i in 0..3 * w * height as usize {
            let (x, y, c) = (i / 3 % w, i / 3 / w, i % 3);
            rgb.push(cells[((y / 8) * w + x / 8) * 3 + c] / 2 + ((x * 3 + y * 5) % 17) as u8);
        }
        let edges = Image { width, height, rgb }.canny(50, 200);
        let grey: Vec<u8> = edges.rgb.iter().step_by(3).copied().collect();
        assert_eq!(grey.iter().filter(|edge| **edge > 0).count(), count, "{width}x{height}");
        assert_eq!(fnv1a(&grey), sum, "{width}x{height}");
    }
}

/// The sums are those of Pillow 13.0.0, `Image.frombytes("RGB" or "L", …).resize(…, Image.LANCZOS).tobytes()`.
#[test]
fn resizing_matches_pillow_lanczos_byte_for_byte() {
    let cases: [(Size, Size, u64, u64); 9] = [
        ((40, 30), (64, 48), 0xc5bb_26cc_7d73_ed23, 0xdf40_e162_879b_961c),
        ((64, 48), (16, 16), 0xf6e5_428c_2526_93e6, 0x9617_9728_1817_5c30),
        ((50, 70), (50, 32), 0xbae4_f5bd_6079_6102, 0x662f_bedf_19e3_cbe4),
        ((33, 47), (64, 64), 0xa1b4_53ae_9ded_3af3, 0xb792_d0c1_7dbb_064e),
        ((100, 20), (31, 77), 0x2e40_b055_08f8_6fa4, 0xc61a_8147_408e_bb25),
        // The height first, but for the third: there no more than twice as many rows go as columns.
        ((33, 80), (59, 59), 0x52b0_6419_33cb_9eee, 0x64d6_8f42_7cb0_3b40),
        ((61, 150), (59, 40), 0xd270_1647_5ed4_2f53, 0xcea7_9324_d60d_8180),
        ((40, 90), (30, 70), 0x2153_ec62_d4dd_b10f, 0xc2cc_baf0_63a7_6cb9),
        ((40, 90), (30, 69), 0x7477_3f37_5bd0_25b2, 0xcb56_fd11_633b_1cce),
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

/// The sums are those of Pillow 13.0.0, `Image.frombytes("RGB", …).resize(…, Image.BICUBIC).tobytes()`.
#[test]
fn resizing_matches_pillow_bicubic_byte_for_byte() {
    let cases: [(Size, Size, u64); 10] = [
        ((40, 30), (64, 48), 0x2905_aba1_d806_10f3),
        ((64, 48), (16, 16), 0x8172_3410_362a_ec5d),
        ((50, 70), (50, 32), 0x248a_8bd1_622e_2f7c),
        ((33, 47), (64, 64), 0x1414_0f51_dc4b_1a26),
        ((100, 20), (31, 77), 0xd339_af00_adb3_401d),
        ((301, 207), (97, 130), 0xd09d_ac26_7277_fda8),
        ((33, 80), (59, 59), 0x7671_9fa3_9179_c687),
        ((61, 150), (59, 40), 0x80f6_ee7d_fd9f_9f13),
        ((40, 90), (30, 70), 0x11e4_2b45_44a6_b95a),
        ((40, 90), (30, 69), 0xe2e1_b865_919b_85fe),
    ];
    for ((width, height), (to_width, to_height), sum) in cases {
        let rgb = noise(3 * (width * height) as usize);
        let image = Image { width, height, rgb }.resize_bicubic(to_width, to_height);
        assert_eq!((image.width, image.height), (to_width, to_height));
        assert_eq!(fnv1a(&image.rgb), sum, "{width}x{height} to {to_width}x{to_height}");
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
