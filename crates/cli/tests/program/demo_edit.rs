//! What the small model was taught to edit comes out as the rule says, and the rule can tell right from wrong.
//!
//! `fixtures/tiny-kontext` and `fixtures/tiny-fill` hold the transformers that `scripts/train_tiny_edits.py` trained; the
//! other parts are the small model's.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use crate::support::judge::{COLOURS, SHAPES, SIZE, Wanted, all, ideal, is_right, nearest_colour};
use tch_flux::generation::{Edit, PartOverrides, Parts, Pipeline, Request, Role, Settings};
use tch_flux::image::{Image, Mask};
use tch_flux::numerics::Numerics;

/// A picture, what it is to become, and what is said for that.
struct Change {
    before: Image,
    was: Wanted,
    wanted: Wanted,
    prompt: String,
}

/// A picture with a hole of `mask`, and what it shows where it is whole.
struct Hole {
    whole: Image,
    mask: Mask,
    wanted: Wanted,
}

impl Change {
    /// The same for the same number: a stride through all combinations and places, shapes and backgrounds in turn.
    fn new(i: usize) -> Self {
        let was = all()[(i * 103 + 29) % all().len()];
        let others: Vec<usize> =
            (0..COLOURS.len()).filter(|&c| c != was.colour && c != was.background).collect();
        let new = others[(i / 2 * 5 + 1) % others.len()];
        let (what, wanted) = match i % 2 {
            0 => (SHAPES[was.shape], Wanted { colour: new, ..was }),
            _ => ("background", Wanted { background: new, ..was }),
        };
        let before = placed(was, i);
        Self { before, was, wanted, prompt: format!("make the {what} {}", COLOURS[new].0) }
    }

    fn is_right(&self, after: &Image) -> bool {
        is_right(after, self.wanted)
            && overlap(&self.before, self.was.colour, after, self.wanted.colour) >= 0.85
    }
}

impl Hole {
    fn new(i: usize) -> Self {
        let wanted = all()[(i * 107 + 5) % all().len()];
        let whole = placed(wanted, i + 3);
        let (width, height) = (20 + i * 7 % 17, 20 + i * 11 % 17);
        let (left, top) = (20 + i * 13 % 25 - width / 2, 20 + i * 5 % 25 - height / 2);
        let inside = |k: usize| {
            (left..left + width).contains(&(k % SIZE)) && (top..top + height).contains(&(k / SIZE))
        };
        let chosen = (0..SIZE * SIZE).map(|k| if inside(k) { 255 } else { 0 }).collect();
        Self { whole, mask: Mask { width: SIZE as u32, height: SIZE as u32, chosen }, wanted }
    }

    /// The picture without what the hole hides.
    fn before(&self) -> Image {
        self.with([128; 3])
    }

    /// The picture with the hole in one colour.
    fn with(&self, colour: [u8; 3]) -> Image {
        let mut image = self.whole.clone();
        for (pixel, _) in image.rgb.chunks_exact_mut(3).zip(&self.mask.chosen).filter(|(_, m)| **m > 0) {
            pixel.copy_from_slice(&colour);
        }
        image
    }

    fn is_right(&self, after: &Image) -> bool {
        is_right(after, self.wanted) && kept(&self.whole, after, &self.mask)
    }
}

fn placed(wanted: Wanted, i: usize) -> Image {
    ideal(wanted, 27.0 + (i * 7 % 11) as f32, 27.0 + (i * 4 % 11) as f32, 16.0 + (i * 3 % 5) as f32)
}

fn colours(image: &Image) -> impl Iterator<Item = usize> {
    image.rgb.chunks_exact(3).map(nearest_colour)
}

/// Of the pixels that have their colour before or after, the share of those that have it before and after.
fn overlap(before: &Image, colour_before: usize, after: &Image, colour_after: usize) -> f64 {
    let (mut both, mut either) = (0, 0);
    for (before, after) in colours(before).zip(colours(after)) {
        let (before, after) = (before == colour_before, after == colour_after);
        both += usize::from(before && after);
        either += usize::from(before || after);
    }
    both as f64 / either.max(1) as f64
}

/// Whether all but 3 % of the pixels outside of the hole are nearest to the same colour as before.
fn kept(before: &Image, after: &Image, hole: &Mask) -> bool {
    let outside = hole.chosen.iter().filter(|&&m| m == 0).count();
    let pairs = colours(before).zip(colours(after)).zip(&hole.chosen);
    pairs.filter(|((before, after), m)| **m == 0 && before != after).count() * 100 <= 3 * outside
}

fn fixture(path: &str) -> PathBuf {
    crate::support::root().join("fixtures").join(path)
}

fn pipeline(transformer: &str) -> Pipeline {
    let own = PartOverrides { transformer: Some(fixture(transformer)), ..PartOverrides::default() };
    let settings = Settings { keep_text_encoders: true, numerics: Numerics::Fast, ..Settings::default() };
    Pipeline::open(Parts::find_rest(own, fixture("tiny")).unwrap(), settings).unwrap()
}

fn draw(pipeline: &mut Pipeline, prompt: String, edit: Edit, seed: u64) -> Image {
    let request = Request { edit: Some(Arc::new(edit)), ..Request::new(prompt, 64, 64).seed(seed) };
    pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().remove(0).image
}

fn reference(image: &Image) -> Edit {
    Edit { role: Some(Role::Reference), keep_size: true, ..Edit::new(vec![image.clone()]) }
}

/// At least 90 of 100 are right, or the test says which are not.
fn judge(drawn: impl Iterator<Item = (String, bool)>) {
    let drawn: Vec<_> = drawn.collect();
    let wrong: Vec<_> = drawn.iter().filter(|(_, right)| !right).map(|(what, _)| what).collect();
    let right = drawn.len() - wrong.len();
    println!("{right} of {} right; wrong: {wrong:#?}", drawn.len());
    assert!(right * 100 >= 90 * drawn.len(), "{right} of {} right; wrong: {wrong:#?}", drawn.len());
}

#[test]
fn kontext_changes_the_colour_that_it_is_told_to() {
    let mut pipeline = pipeline("tiny-kontext/flux1-kontext.safetensors");
    judge((0..60).map(|i| {
        let change = Change::new(i);
        let seed = 7000 + i as u64;
        let after = draw(&mut pipeline, change.prompt.clone(), reference(&change.before), seed);
        (format!("{}: {} (seed {seed})", change.was.prompt(), change.prompt), change.is_right(&after))
    }));
}

#[test]
fn fill_completes_the_picture_and_keeps_what_is_there() {
    let mut pipeline = pipeline("tiny-fill/flux1-fill.safetensors");
    judge((0..60).map(|i| {
        let hole = Hole::new(i);
        let seed = 8000 + i as u64;
        let edit = Edit { mask: Some(hole.mask.clone()), ..Edit::new(vec![hole.before()]) };
        let after = draw(&mut pipeline, hole.wanted.prompt(), edit, seed);
        (format!("{} (number {i}, seed {seed})", hole.wanted.prompt()), hole.is_right(&after))
    }));
}

#[test]
fn the_binary_edits_as_the_library_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (change, hole) = (Change::new(0), Hole::new(0));
    let (kontext, fill) = ("tiny-kontext/flux1-kontext.safetensors", "tiny-fill/flux1-fill.safetensors");
    change.before.write_png(path("before.png"), &Default::default()).unwrap();
    hole.before().write_png(path("hole.png"), &Default::default()).unwrap();
    let grey = hole.mask.chosen.iter().flat_map(|&m| [m; 3]).collect();
    Image { rgb: grey, ..hole.whole }.write_png(path("mask.png"), &Default::default()).unwrap();

    let run = |transformer: &str, prompt: &str, flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tch-flux"))
            .args(["edit", prompt, "--seed", "7000", "--force", "-o", &path("after.png")])
            .args(["--model", fixture("tiny").to_str().unwrap()])
            .args(["--transformer", fixture(transformer).to_str().unwrap()])
            .args(flags)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Image::read_png(path("after.png")).unwrap().0
    };
    // That it is a reference follows from the file's name, that it is to be filled from the input channels.
    let by_binary = run(kontext, &change.prompt, &["--image", &path("before.png"), "--keep-size"]);
    let by_library = draw(&mut pipeline(kontext), change.prompt, reference(&change.before), 7000);
    assert!(by_binary == by_library);
    let flags = ["--image", &path("hole.png"), "--mask", &path("mask.png")];
    let by_binary = run(fill, &hole.wanted.prompt(), &flags);
    let edit = Edit {
        mask: Some(hole.mask.clone()),
        ..Edit::new(vec![Image::read_png(path("hole.png")).unwrap().0])
    };
    assert!(by_binary == draw(&mut pipeline(fill), hole.wanted.prompt(), edit, 7000));
}

#[test]
fn the_rule_of_changes_accepts_the_ideal_and_refuses_all_else() {
    for i in 0..60 {
        let change = Change::new(i);
        assert!(change.is_right(&placed(change.wanted, i)), "{}", change.prompt);
        assert!(!change.is_right(&change.before), "nothing was changed: {}", change.prompt);
        assert!(!change.is_right(&placed(change.wanted, i + 1)), "it moved: {}", change.prompt);
        let other = Wanted { shape: (change.wanted.shape + 1) % SHAPES.len(), ..change.wanted };
        assert!(!change.is_right(&placed(other, i)), "another shape: {}", change.prompt);
        let Wanted { colour, background, .. } = change.wanted;
        let swapped = match change.was.colour == colour {
            true => Wanted { colour: background, ..change.was },
            false => Wanted { background: colour, ..change.was },
        };
        assert!(!change.is_right(&placed(swapped, i)), "the other part was changed: {}", change.prompt);
    }
}

#[test]
fn the_rule_of_holes_accepts_the_ideal_and_refuses_all_else() {
    for i in 0..60 {
        let hole = Hole::new(i);
        assert!(hole.is_right(&hole.whole), "number {i}");
        let third = (0..).find(|&c| c != hole.wanted.colour && c != hole.wanted.background).unwrap();
        assert!(!hole.is_right(&hole.with(COLOURS[third].1)), "the hole is still there: number {i}");
        let mut spoilt = hole.whole.clone();
        spoilt.rgb[..64 * 3 * 3].copy_from_slice(&COLOURS[hole.wanted.colour].1.repeat(64 * 3));
        assert!(!hole.is_right(&spoilt), "what was there was not kept: number {i}");
        assert!(!kept(&hole.whole, &spoilt, &hole.mask), "number {i}");
    }
}
