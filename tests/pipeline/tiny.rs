//! The small trained model draws what it is told, and the rule that says so can tell right from wrong.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::support::judge::{COLOURS, SHAPES, Wanted, all, ideal, is_right};
use tch_flux::generation::{Parts, Pipeline, Request, Settings};
use tch_flux::numerics::Numerics;

fn model() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

#[test]
fn the_rule_accepts_every_ideal_picture() {
    for (i, wanted) in all().into_iter().enumerate() {
        let (x, y, r) = (27.0 + (i % 11) as f32, 27.0 + (i % 7) as f32, 16.0 + (i % 5) as f32);
        assert!(is_right(&ideal(wanted, x, y, r), wanted), "{}", wanted.prompt());
    }
}

#[test]
fn the_rule_refuses_another_shape_and_other_colours() {
    for wanted in all() {
        let picture = ideal(wanted, 32.0, 32.0, 18.0);
        let next = |i: usize, n: usize| (i + 1) % n;
        let shape = Wanted { shape: next(wanted.shape, SHAPES.len()), ..wanted };
        let colour = Wanted { colour: next(wanted.colour, COLOURS.len()), ..wanted };
        let background = Wanted { background: next(wanted.background, COLOURS.len()), ..wanted };
        let swapped = Wanted { colour: wanted.background, background: wanted.colour, ..wanted };
        for other in [shape, colour, background, swapped] {
            assert!(!is_right(&picture, other), "{} taken for {}", wanted.prompt(), other.prompt());
        }
    }
}

#[test]
fn the_rule_refuses_damaged_pictures() {
    let wanted = Wanted { shape: 0, colour: 0, background: 2 };
    let whole = ideal(wanted, 32.0, 32.0, 18.0);
    let row = |y: usize| y * crate::support::judge::SIZE * 3..(y + 1) * crate::support::judge::SIZE * 3;

    let mut half = whole.clone();
    let blank = whole.rgb[row(0)].to_vec();
    (32..64).for_each(|y| half.rgb[row(y)].copy_from_slice(&blank));
    assert!(!is_right(&half, wanted), "half of the shape is missing");

    let mut empty = whole.clone();
    (0..64).for_each(|y| empty.rgb[row(y)].copy_from_slice(&blank));
    assert!(!is_right(&empty, wanted), "there is no shape");

    let mut spotted = whole.clone();
    for i in (0..64 * 64).step_by(13) {
        spotted.rgb[3 * i..3 * i + 3].copy_from_slice(&COLOURS[3].1);
    }
    assert!(!is_right(&spotted, wanted), "it is full of spots");

    let mut framed = whole.clone();
    framed.rgb[row(0)].chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&COLOURS[7].1));
    framed.rgb[row(63)].chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&COLOURS[7].1));
    assert!(!is_right(&framed, wanted), "its frame has another colour");

    let mut grey = whole;
    grey.rgb.iter_mut().for_each(|byte| *byte = 128);
    assert!(!is_right(&grey, wanted), "it is grey");
}

#[test]
fn draws_at_least_95_percent_of_sampled_prompts_right() {
    let settings = Settings { keep_text_encoders: true, numerics: Numerics::Fast, ..Settings::default() };
    let mut pipeline = Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap();
    // A fixed stride through all 280 combinations, with a seed each that training did not know.
    let all = all();
    let sample: Vec<Wanted> = (0..120).map(|i| all[(i * 103 + 17) % all.len()]).collect();
    let mut wrong = Vec::new();
    for (i, &wanted) in sample.iter().enumerate() {
        let request = Request::new(wanted.prompt(), 64, 64).seed(5000 + i as u64);
        let drawn = pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        if !is_right(&drawn[0].image, wanted) {
            wrong.push(format!("{} (seed {})", wanted.prompt(), 5000 + i));
        }
    }
    let right = sample.len() - wrong.len();
    println!("{right} of {} right; wrong: {wrong:#?}", sample.len());
    assert!(right * 100 >= 95 * sample.len(), "{right} of {} right; wrong: {wrong:#?}", sample.len());
}
