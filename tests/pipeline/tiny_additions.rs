//! What was trained to be added to the small model does what it is for, as the rule says: the shape lies where the control
//! picture has it, and what is drawn is what Redux is shown.
//!
//! `fixtures/tiny-additions` holds what `scripts/train_tiny_additions.py` trained.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::support::judge::{COLOURS, SIZE, Wanted, all, distance, ideal, is_right, nearest_colour};
use tch_flux::generation::{
    Control, ControlPreprocess, Edit, LoraFile, PartOverrides, Parts, Pipeline, Redux, Request, Settings,
};
use tch_flux::image::Image;
use tch_flux::numerics::Numerics;

/// So many drawings of each addition.
const COUNT: usize = 30;

/// A picture that is shown, and what is to be drawn after it.
struct Case {
    shown: Wanted,
    wanted: Wanted,
    place: (f32, f32, f32),
    seed: u64,
}

impl Case {
    /// The same for the same number: a stride through all combinations and places.
    fn new(i: usize) -> Self {
        let shown = all()[(i * 101 + 41) % all().len()];
        let colour = (shown.colour + 1 + i % 6) % COLOURS.len();
        let others: Vec<usize> = (0..COLOURS.len()).filter(|&c| c != colour).collect();
        let wanted = Wanted { colour, background: others[(i * 3 + 2) % others.len()], ..shown };
        let place = (27.0 + (i * 7 % 11) as f32, 27.0 + (i * 4 % 11) as f32, 16.0 + (i * 3 % 5) as f32);
        Self { shown, wanted, place, seed: 9000 + i as u64 }
    }

    fn picture(&self, of: Wanted) -> Image {
        let (x, y, r) = self.place;
        ideal(of, x, y, r)
    }

    /// As `scripts/tiny_language.py` has it: the nearest is white, and shapes have round edges.
    fn relief(&self) -> Image {
        let (x, y, r) = self.place;
        let near = |i: usize| {
            let (dx, dy) = ((i % SIZE) as f32 + 0.5 - x, (i / SIZE) as f32 + 0.5 - y);
            let distance = distance(self.shown.shape, dx, dy, r);
            let inside = (-distance / (0.5 * r)).clamp(0.0, 1.0);
            (0.5 - distance).clamp(0.0, 1.0) * (0.35 + 0.65 * inside.sqrt())
        };
        let rgb = (0..SIZE * SIZE).flat_map(|i| [(255.0 * near(i)).round() as u8; 3]).collect();
        Image { width: SIZE as u32, height: SIZE as u32, rgb }
    }

    /// Draws what the prompt says.
    fn prompted(&self) -> Request {
        Request::new(self.wanted.prompt(), 64, 64).seed(self.seed)
    }

    /// Draws what no prompt says.
    fn silent(&self) -> Request {
        Request::new("", 64, 64).seed(self.seed)
    }

    /// Whether the prompt's shape and colours are there, at the place of the shape that was shown.
    fn follows(&self, drawn: &Image) -> bool {
        let ideal = self.picture(self.wanted);
        let (mut both, mut either) = (0, 0);
        for (a, b) in ideal.rgb.chunks_exact(3).zip(drawn.rgb.chunks_exact(3)) {
            let (a, b) = (nearest_colour(a) == self.wanted.colour, nearest_colour(b) == self.wanted.colour);
            both += usize::from(a && b);
            either += usize::from(a || b);
        }
        is_right(drawn, self.wanted) && both * 100 >= 85 * either
    }

    /// Whether the shape and the colours that were shown are there.
    fn resembles(&self, drawn: &Image) -> bool {
        is_right(drawn, self.shown)
    }
}

fn fixture(path: &str) -> PathBuf {
    crate::support::root().join("fixtures").join(path)
}

fn addition(path: &str) -> PathBuf {
    fixture("tiny-additions").join(path)
}

fn pipeline(own: PartOverrides) -> Pipeline {
    let settings = Settings { keep_text_encoders: true, numerics: Numerics::Fast, ..Settings::default() };
    Pipeline::open(Parts::find_rest(own, fixture("tiny")).unwrap(), settings).unwrap()
}

fn with_lora(path: &str) -> Pipeline {
    let mut pipeline = pipeline(PartOverrides::default());
    pipeline.set_loras(&[LoraFile { path: addition(path), strength: 1.0 }]).unwrap();
    pipeline
}

/// How many of the drawings are right; those that are not are printed.
fn count(pipeline: &mut Pipeline, of: fn(&Case) -> Request, right: fn(&Case, &Image) -> bool) -> usize {
    let wrong: Vec<_> = (0..COUNT)
        .map(Case::new)
        .filter(|case| {
            let drawn = pipeline.generate(&of(case), &mut |_| ControlFlow::Continue(())).unwrap();
            !right(case, &drawn[0].image)
        })
        .map(|case| {
            format!("{} shown, {} wanted (seed {})", case.shown.prompt(), case.wanted.prompt(), case.seed)
        })
        .collect();
    println!("{} of {COUNT} right; wrong: {wrong:#?}", COUNT - wrong.len());
    COUNT - wrong.len()
}

#[test]
fn without_an_addition_nothing_is_followed_and_nothing_resembled() {
    let mut pipeline = pipeline(PartOverrides::default());
    // The noise alone says the place, and now and then it says the right one.
    let followed = count(&mut pipeline, Case::prompted, Case::follows);
    assert!(followed <= 6, "{followed} of {COUNT}");
    assert_eq!(count(&mut pipeline, Case::silent, Case::resembles), 0);
}

#[test]
fn the_canny_lora_follows_edges() {
    let edges = |case: &Case| {
        let edit = Edit { follow: ControlPreprocess::Canny, ..Edit::new(vec![case.picture(case.shown)]) };
        case.prompted().edit(edit)
    };
    let right = count(&mut with_lora("flux1-canny-lora.safetensors"), edges, Case::follows);
    assert!(right >= 20, "{right} of {COUNT}");
}

#[test]
fn the_depth_lora_follows_depths() {
    let depths = |case: &Case| case.prompted().edit(Edit::new(vec![case.relief()]));
    let right = count(&mut with_lora("flux1-depth-lora.safetensors"), depths, Case::follows);
    assert!(right >= 21, "{right} of {COUNT}");
}

#[test]
fn the_controlnet_follows_edges() {
    let edges = |case: &Case| {
        let control = Control::new(case.picture(case.shown));
        case.prompted().control(Control { canny: true, ..control })
    };
    let mut pipeline = pipeline(PartOverrides::default());
    pipeline.set_controlnets(&[addition("controlnet-canny")]).unwrap();
    let right = count(&mut pipeline, edges, Case::follows);
    assert!(right >= 24, "{right} of {COUNT}");
}

#[test]
fn redux_draws_what_it_is_shown() {
    let own = PartOverrides { redux: Some(addition("redux")), ..PartOverrides::default() };
    let shown = |case: &Case| {
        // As short as it was trained with: the picture has 16 tokens.
        let request = Request { max_sequence_length: Some(12), ..case.silent() };
        request.redux(Redux::new(vec![case.picture(case.shown)]))
    };
    let right = count(&mut pipeline(own), shown, Case::resembles);
    assert!(right >= 5, "{right} of {COUNT}");
}
