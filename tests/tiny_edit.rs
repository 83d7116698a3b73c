//! What the small model was taught to edit comes out as the rule says, and the rule can tell right from wrong.
//!
//! `fixtures/tiny-kontext` holds the transformer that `scripts/train_tiny_edits.py` trained; the other parts are the small
//! model's.

mod judge;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use judge::{COLOURS, SHAPES, Wanted, all, ideal, is_right, nearest_colour};
use tch_flux::image::Image;
use tch_flux::ops::Numerics;
use tch_flux::pipeline::{Edit, OwnParts, Parts, Pipeline, Request, Role, Settings};

/// A picture, what it is to become, and what is said for that.
struct Change {
    before: Image,
    was: Wanted,
    wanted: Wanted,
    prompt: String,
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

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn pipeline(transformer: &str) -> Pipeline {
    let own = OwnParts { transformer: Some(fixture(transformer)), ..OwnParts::default() };
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
fn the_binary_edits_as_the_library_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let change = Change::new(0);
    let kontext = "tiny-kontext/flux1-kontext.safetensors";
    change.before.write_png(path("before.png"), &Default::default()).unwrap();
    // That it is a reference follows from the file's name.
    let output = Command::new(env!("CARGO_BIN_EXE_tch-flux"))
        .args(["edit", &change.prompt, "--image", &path("before.png"), "--keep-size", "--seed", "7000"])
        .args(["--model", fixture("tiny").to_str().unwrap()])
        .args(["--transformer", fixture(kontext).to_str().unwrap()])
        .args(["-o", &path("after.png")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let by_binary = Image::read_png(path("after.png")).unwrap().0;
    let by_library = draw(&mut pipeline(kontext), change.prompt, reference(&change.before), 7000);
    assert!(by_binary == by_library);
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
