//! What other programs call a field: so that the error about an unknown one names the field that is meant.

use super::fields::{fields, nearest};
use super::problem::Problem;
use super::routes::EDITS;
use super::shape::shorten;

/// Other names of one field, or of several that may be meant.
struct Synonyms {
    fields: &'static [&'static str],
    /// As [`plain`] writes them.
    names: &'static [&'static str],
}

const fn of(fields: &'static [&'static str], names: &'static [&'static str]) -> Synonyms {
    Synonyms { fields, names }
}

/// From the web interface of AUTOMATIC1111, diffusers, ComfyUI, Replicate, fal, Together, InvokeAI, mflux and others.
#[rustfmt::skip]
const SYNONYMS: [Synonyms; 31] = [
    of(&["prompt"], &["text", "caption", "input", "inputs", "description", "positive", "positiveprompt", "textprompt", "clipl", "query", "instruction", "promptstrings"]),
    of(&["prompt_2"], &["t5", "t5xxl", "t5prompt", "promptt5", "secondprompt", "prompt3"]),
    of(&["negative_prompt"], &["negative", "negprompt", "neg", "uncond", "negativetext", "negativeprompt2", "unconditionalprompt"]),
    of(&["model"], &["modelid", "modelname", "modelpath", "checkpoint", "ckpt", "ckptname", "sdmodelcheckpoint", "basemodel", "engine", "engineid", "version", "deployment"]),
    of(&["n"], &["num", "numimages", "batchsize", "batch", "numimagesperprompt", "numoutputs", "count", "samples", "numsamples", "niter", "batchcount", "nimages", "numberofimages", "numberresults", "imagecount", "imagescount", "quantity", "numimage"]),
    of(&["size"], &["width", "height", "w", "h", "resolution", "imagesize", "aspectratio", "ratio", "dimensions", "dimension", "imgsize", "outputsize", "targetsize", "megapixels", "imagewidth", "imageheight"]),
    of(&["response_format"], &["responsetype", "returntype", "returnformat", "base64", "b64", "b64json", "returnbase64", "outputbase64", "asurl", "url", "syncmode", "returnurl"]),
    of(&["output_format", "response_format"], &["format", "outputtype"]),
    of(&["output_format"], &["imageformat", "fileformat", "filetype", "extension", "mimetype", "outputmimetype", "outputformattype"]),
    of(&["output_compression"], &["outputquality", "jpegquality", "imagequality", "webpquality", "compression", "compressionquality"]),
    of(&["partial_images"], &["preview", "previews", "partials", "numpartialimages", "numpreviews", "showprogressimages", "intermediateimages"]),
    of(&["seed"], &["randomseed", "noiseseed", "rngseed", "seeds", "generator", "manualseed"]),
    of(&["num_inference_steps"], &["steps", "step", "samplingsteps", "numsteps", "inferencesteps", "samplesteps", "infersteps", "numsamplingsteps", "iterations", "ddimsteps", "stepcount", "numinferencestep", "nsteps"]),
    of(&["guidance_scale"], &["guidance", "guidancestrength", "distilledguidance", "distilledguidancescale", "distilledcfg", "distilledcfgscale", "embeddedguidance", "embeddedguidancescale", "fluxguidance", "guidanceembed", "guidanceembedscale"]),
    of(&["guidance_scale", "true_cfg_scale"], &["cfg", "cfgscale", "scale", "classifierfreeguidance", "classifierfreeguidancescale", "unconditionalguidancescale"]),
    of(&["true_cfg_scale"], &["truecfg", "trueguidance", "trueguidancescale", "realcfg", "realcfgscale", "realguidance", "cfgnormalized"]),
    of(&["sampler", "schedule"], &["scheduler", "schedulername", "schedulertype", "noisescheduler", "noiseschedule", "scheduletype"]),
    of(&["sampler"], &["samplername", "samplerindex", "samplertype", "samplingmethod", "samplemethod", "samplingalgorithm", "solver", "solvertype"]),
    of(&["shift"], &["mu", "baseshift", "maxshift", "flowshift", "timeshift", "timestepshift", "schedulershift", "shiftterminal"]),
    of(&["sigmas"], &["sigma", "timesteps", "customtimesteps", "customsigmas", "denoisingsigmas"]),
    of(&["cache"], &["teacache", "fbcache", "firstblockcache", "taylorseer", "cacheconfig", "cachethreshold", "cachetype"]),
    of(&["max_sequence_length"], &["maxtokens", "maxlength", "maxseqlen", "maxsequencelen", "t5maxlength", "t5length", "tokenizermaxlength", "maxprompttokens"]),
    of(&["variation_seed"], &["subseed", "variantseed", "variationnoiseseed"]),
    of(&["variation_strength"], &["subseedstrength", "variantstrength", "variationamount", "variations"]),
    of(&["strength"], &["denoise", "denoising", "denoisingstrength", "imagestrength", "promptstrength", "img2imgstrength", "image2imagestrength", "editstrength", "initimagestrength", "denoisestrength", "noiselevel"]),
    of(&["image"], &["file", "files", "img", "imgs", "picture", "pictures", "photo", "photos", "pic", "upload", "initimage", "initimg", "inputimage", "inputimg", "imageinput", "imageurl", "imageurls", "sourceimage", "srcimage", "imagefile", "imagefiles", "imagedata", "imageprompt", "imagepath", "imagebase64", "imageb64", "base64image", "referenceimage", "referenceimages", "refimage", "imagereference", "reference", "baseimage", "original", "originalimage", "attachment", "kontextimage", "contextimage"]),
    of(&["mask"], &["maskimage", "maskimg", "maskurl", "inpaintmask", "inpaintingmask", "imagemask", "maskfile", "maskbase64"]),
    of(&["control_image"], &["controlnetimage", "controlimageurl", "conditionimage", "conditioningimage", "controlimg", "controlinput", "poseimage", "depthimage", "cannyimage", "hintimage"]),
    of(&["controlnet_conditioning_scale"], &["controlnetstrength", "controlstrength", "controlnetscale", "controlscale", "controlnetweight", "controlweight", "conditioningscale", "conditioningstrength"]),
    of(&["ip_adapter_scale"], &["ipadapterstrength", "ipadapterweight", "ipadapterscales", "ipscale", "imagepromptscale"]),
    of(&["ip_adapter_image"], &["ipimage", "ipadapterimages", "ipadapterimageurl", "styleimage", "faceimage"]),
];

/// What is chosen when the server starts and not with a request.
const OF_THE_SERVER: [(&[&str], &str); 3] = [
    (
        &["lora", "loras", "lorascale", "loraweights", "lorapath", "loraurl", "lorastrength", "extralora"],
        "--lora",
    ),
    (&["vae", "vaepath", "sdvae", "autoencoder"], "--autoencoder"),
    (&["quantize", "quantization", "dtype", "torchdtype", "precision"], "--quantize or --kind"),
];

/// The error about a field that there is none of, at the edits' endpoint or at the generations'.
pub(super) fn unknown(name: &str, edits: bool) -> Problem {
    let hint = hint(name, edits);
    let name = shorten(name);
    Problem::invalid("unknown_parameter", format!("there is no parameter `{name}`{hint}")).param(&name)
}

fn hint(name: &str, edits: bool) -> String {
    let name = shorten(name);
    let spellings = spellings(&name);
    if spellings.is_empty() {
        return String::new();
    }
    for spelling in &spellings {
        if let Some(field) = fields(edits).find(|field| plain(field.name) == *spelling) {
            return meant(&[field.name], edits);
        }
        if let Some(field) = fields(true).find(|field| plain(field.name) == *spelling) {
            return elsewhere(&[field.name]);
        }
        if let Some(synonyms) = SYNONYMS.iter().find(|synonyms| synonyms.names.contains(&spelling.as_str())) {
            let is_here = |name: &&&str| fields(edits).any(|field| field.name == **name);
            let here: Vec<&str> = synonyms.fields.iter().filter(is_here).copied().collect();
            return if here.is_empty() { elsewhere(synonyms.fields) } else { meant(&here, edits) };
        }
        if let Some((_, flag)) = OF_THE_SERVER.iter().find(|(names, _)| names.contains(&spelling.as_str())) {
            return format!("; that is chosen where the server starts, with {flag}");
        }
    }
    let near = nearest(&name, fields(edits).map(|field| field.name));
    near.map_or(String::new(), |near| meant(&[near], edits))
}

fn meant(names: &[&str], edits: bool) -> String {
    let note = match names {
        ["size"] => ", both sides as `WxH`",
        ["image"] if edits => ", several as `image[]`",
        _ => "",
    };
    format!("; is {}{note} meant?", quoted(names))
}

/// Of a field that only edits have.
fn elsewhere(names: &[&str]) -> String {
    format!("; {} is a parameter of {EDITS}", quoted(names))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// A name as it is compared: `numInferenceSteps`, `num-inference-steps` and `num_inference_steps` are one.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// A name, and what it is without the number or the plural that lists bring: `image_1`, `images[0]`, `images`.
fn spellings(name: &str) -> Vec<String> {
    let base = name.split('[').next().unwrap_or(name);
    let whole = plain(base);
    let unnumbered = whole.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_string();
    let singular = unnumbered.strip_suffix('s').unwrap_or(&unnumbered).to_string();
    let mut all = vec![whole, unnumbered, singular];
    all.dedup();
    all.retain(|name| !name.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_synonym_is_of_fields_that_are_and_is_no_field_itself() {
        for Synonyms { fields: meant, names } in &SYNONYMS {
            for name in *meant {
                assert!(fields(true).any(|field| field.name == *name), "{name}");
            }
            for name in *names {
                assert_eq!(plain(name), *name, "it would never be found");
                assert!(fields(true).all(|field| plain(field.name) != *name), "{name} is a field");
            }
        }
        let mut names: Vec<_> = SYNONYMS.iter().flat_map(|synonyms| synonyms.names).collect();
        names.extend(OF_THE_SERVER.iter().flat_map(|(names, _)| *names));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "one stands in two places");
    }

    #[test]
    fn what_other_programs_send_is_answered_with_the_field_that_is_meant() {
        let names = |name: &str, edits: bool, wanted: &[&str]| {
            let text = unknown(name, edits).to_string();
            for wanted in wanted {
                assert!(text.contains(&format!("`{wanted}`")), "{name}: {text}");
            }
        };
        for (name, wanted) in [
            ("steps", "num_inference_steps"),
            ("sampling_steps", "num_inference_steps"),
            ("numInferenceSteps", "num_inference_steps"),
            ("num-inference-steps", "num_inference_steps"),
            ("NUM_INFERENCE_STEPS", "num_inference_steps"),
            ("width", "size"),
            ("height", "size"),
            ("image_size", "size"),
            ("aspect_ratio", "size"),
            ("guidance", "guidance_scale"),
            ("distilled_cfg_scale", "guidance_scale"),
            ("cfg", "guidance_scale"),
            ("cfg", "true_cfg_scale"),
            ("cfg_scale", "guidance_scale"),
            ("cfg_scale", "true_cfg_scale"),
            ("scheduler", "sampler"),
            ("scheduler", "schedule"),
            ("sampler_name", "sampler"),
            ("sampler_index", "sampler"),
            ("negative", "negative_prompt"),
            ("num_images", "n"),
            ("batch_size", "n"),
            ("num_images_per_prompt", "n"),
            ("num_outputs", "n"),
            ("format", "output_format"),
            ("output_quality", "output_compression"),
            ("model_id", "model"),
            ("prompt2", "prompt_2"),
            ("subseed", "variation_seed"),
            ("subseed_strength", "variation_strength"),
            ("max_tokens", "max_sequence_length"),
            ("seeds", "seed"),
            ("text", "prompt"),
            ("prompts", "prompt"),
            ("guidence_scale", "guidance_scale"),
        ] {
            for edits in [false, true] {
                names(name, edits, &[wanted]);
            }
        }
        for name in
            ["image", "mask", "strength", "denoising_strength", "init_image", "image_url", "mask_image"]
        {
            names(name, false, &[]);
            let text = unknown(name, false).to_string();
            assert!(text.contains(EDITS), "{name}: {text}");
        }
        for name in [
            "image_1",
            "image1",
            "images",
            "images[0]",
            "image.0",
            "Image",
            "file",
            "files[]",
            "picture",
            "init_image",
        ] {
            names(name, true, &["image", "image[]"]);
        }
        assert!(unknown("lora", false).to_string().contains("--lora"));
        for name in ["zzz", "enable_safety_checker", "ß", "[0]", "", "__"] {
            let text = unknown(name, false).to_string();
            assert!(!text.contains("meant"), "{name}: {text}");
        }
    }
}
