//! The names of pictures' files.

use std::path::{Path, PathBuf};

use tch_flux::Error;
use tch_flux::generation::Request;

use super::image_format;

/// The names of pictures' files, by a pattern in which `{seed}`, `{variation_seed}` and `{index}` are filled in.
pub(super) struct FileNames {
    pattern: String,
}

impl FileNames {
    /// Takes the pattern of `--output`, or one of the seeds. Several pictures get an index, whether the pattern has one or
    /// not.
    pub(super) fn new(output: Option<&Path>, request: &Request) -> Result<Self, Error> {
        let pattern = match output {
            Some(path) => path.to_str().map(str::to_string).ok_or_else(|| {
                Error::Request(format!("{}: names of pictures are written in UTF-8", path.display()))
            })?,
            None if request.variation.is_some() => "{seed}-{variation_seed}-{index}.png".into(),
            None => "{seed}-{index}.png".into(),
        };
        image_format::format(Path::new(&pattern))?;
        let images = request.prompts.len() * request.num_images;
        if images > 1 && !pattern.contains("{index}") {
            let (stem, ending) = pattern.split_at(pattern.rfind('.').unwrap_or(pattern.len()));
            return Ok(Self { pattern: format!("{stem}-{{index}}{ending}") });
        }
        Ok(Self { pattern })
    }

    /// Returns a name for each picture. Where names have an index it begins with the first from which on none of them, and
    /// none of their previews, is taken; with `force` at 0.
    pub(super) fn assign(
        &self,
        request: &Request,
        previews: &[usize],
        force: bool,
        is_taken: &dyn Fn(&Path) -> bool,
    ) -> Vec<PathBuf> {
        let images = request.prompts.len() * request.num_images;
        let all = |start: usize| -> Vec<PathBuf> {
            (0..images).map(|image| self.name(request, image, start + image)).collect()
        };
        let mut names = all(0);
        if force || !self.pattern.contains("{index}") {
            return names;
        }
        let free =
            |name: &PathBuf| !is_taken(name) && !previews.iter().any(|&step| is_taken(&preview(name, step)));
        let mut start = 0;
        while let Some(taken) = names.iter().rposition(|name| !free(name)) {
            start += taken + 1;
            names = all(start);
        }
        names
    }

    fn name(&self, request: &Request, image: usize, index: usize) -> PathBuf {
        let (seed, variation) = request.seeds(image % request.num_images.max(1));
        let variation = variation.map(|variation| variation.seed).unwrap_or(seed);
        let name = self.pattern.replace("{seed}", &seed.to_string());
        name.replace("{variation_seed}", &variation.to_string()).replace("{index}", &index.to_string()).into()
    }
}

/// Returns the name of a picture's preview, in the same folder and format.
pub(super) fn preview(picture: &Path, step: usize) -> PathBuf {
    let ending = picture.extension().unwrap_or_default().to_string_lossy();
    picture.with_extension(format!("step-{step}.{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(output: Option<&str>, request: &Request, taken: &[&str]) -> Vec<String> {
        let names = FileNames::new(output.map(Path::new), request).unwrap();
        let names = names.assign(request, &[2], false, &|path| taken.contains(&path.to_str().unwrap()));
        names.into_iter().map(|name| name.to_str().unwrap().to_string()).collect()
    }

    #[test]
    fn several_pictures_count_and_count_on() {
        let single = Request::new("x", 64, 64).seed(7);
        let three = single.clone().num_images(3);
        assert_eq!(names(None, &single, &[]), ["7-0.png"]);
        assert_eq!(names(None, &single, &["7-0.png", "7-1.png"]), ["7-2.png"]);
        assert_eq!(names(Some("a.png"), &single, &["a.png"]), ["a.png"], "a name without an index stays");
        assert_eq!(names(Some("d.x/a.PNG"), &three, &[]), ["d.x/a-0.PNG", "d.x/a-1.PNG", "d.x/a-2.PNG"]);
        assert_eq!(names(Some("a.png"), &three, &["a-1.png"]), ["a-2.png", "a-3.png", "a-4.png"]);
        assert_eq!(
            names(Some("a.png"), &single.clone().num_images(2), &["a-1.step-2.png"]),
            ["a-2.png", "a-3.png"]
        );
        assert_eq!(names(Some("{index}.png"), &three, &["5.png"]), ["0.png", "1.png", "2.png"]);
        assert_eq!(names(Some("{seed}.png"), &three, &[]), ["7-0.png", "8-1.png", "9-2.png"]);
        let forced =
            FileNames::new(Some(Path::new("a.png")), &three).unwrap().assign(&three, &[], true, &|_| true);
        assert_eq!(forced[0], Path::new("a-0.png"));
        assert!(FileNames::new(Some(Path::new("a.gif")), &single).is_err());
        assert!(FileNames::new(Some(Path::new("")), &single).is_err());
    }

    #[test]
    fn names_of_variations_say_both_seeds() {
        let varied = Request::new("x", 64, 64).seed(7).variation(90, 0.2).num_images(2);
        assert_eq!(names(None, &varied, &[]), ["7-90-0.png", "7-91-1.png"]);
        assert_eq!(names(Some("{seed}.png"), &varied, &[]), ["7-0.png", "7-1.png"]);
    }
}
