//! Looks fields up by their names. The error about an unknown one names the field that is meant, from a table of the names
//! that other programs use.

use crate::api_error::{ApiError, nearest, shorten};
use crate::fields::fields;
use crate::routes::EDITS;
use tch_flux::generation::params::Parameter;

/// The fields that may be meant, and the other names for them.
type Synonyms = (&'static [&'static str], &'static str);

/// From what is documented of AUTOMATIC1111's and Forge's web interfaces, ComfyUI, diffusers, SwarmUI, InvokeAI, mflux,
/// stable-diffusion.cpp, and of the services of Black Forest Labs, Replicate, fal, Together, Runware, Stability and Google.
/// Case and what stands between words are no part of a name.
#[rustfmt::skip]
const SYNONYMS: [Synonyms; 33] = [
    (
        &["prompt"],
        "text caption input inputs description positive positive_prompt text_prompt text_prompts clip_l query \
         instruction prompt_strings",
    ),
    (
        &["prompt_2"],
        "t5 t5xxl t5_prompt prompt_t5 second_prompt prompt_3",
    ),
    (
        &["negative_prompt"],
        "negative neg_prompt neg uncond negative_text negative_prompt_2 negative_prompt_3 unconditional_prompt",
    ),
    (
        &["model"],
        "model_id model_name model_path checkpoint ckpt ckpt_name unet_name sd_model_checkpoint base_model \
         engine engine_id version deployment",
    ),
    (
        &["n"],
        "num num_images num_image batch_size batch num_images_per_prompt num_outputs count samples num_samples \
         sample_count n_iter batch_count n_images number_of_images number_results image_count images_count \
         quantity",
    ),
    (
        &["size"],
        "width height w h resolution image_size aspect_ratio ratio dimensions dimension img_size output_size \
         target_size megapixels image_width image_height side_length max_area",
    ),
    (
        &["response_format"],
        "response_type return_type return_format base64 b64 b64_json return_base64 output_base64 as_url url \
         sync_mode return_url",
    ),
    (
        &["output_format", "response_format"],
        "format output_type",
    ),
    (
        &["output_format"],
        "image_format file_format file_type extension mime_type output_mime_type output_format_type",
    ),
    (
        &["output_compression"],
        "output_quality jpeg_quality image_quality webp_quality compression compression_quality",
    ),
    (
        &["partial_images"],
        "preview previews partials num_partial_images num_previews show_progress_images intermediate_images",
    ),
    (
        &["seed"],
        "random_seed noise_seed rng_seed seeds generator manual_seed",
    ),
    (
        &["num_inference_steps"],
        "steps step sampling_steps num_steps inference_steps sample_steps infer_steps num_sampling_steps \
         iterations ddim_steps step_count num_inference_step n_steps",
    ),
    (
        &["guidance_scale"],
        "guidance guidance_strength distilled_guidance distilled_guidance_scale distilled_cfg \
         distilled_cfg_scale embedded_guidance embedded_guidance_scale flux_guidance flux_guidance_scale \
         guidance_embed guidance_embed_scale",
    ),
    (
        &["guidance_scale", "true_cfg_scale"],
        "cfg cfg_scale scale classifier_free_guidance classifier_free_guidance_scale \
         unconditional_guidance_scale",
    ),
    (
        &["true_cfg_scale"],
        "true_cfg true_guidance true_guidance_scale real_cfg real_cfg_scale use_real_cfg real_guidance",
    ),
    (
        &["sampler", "schedule"],
        "scheduler scheduler_name scheduler_type noise_scheduler noise_schedule schedule_type",
    ),
    (
        &["sampler"],
        "sampler_name sampler_index sampler_type sampling_method sample_method sampling_algorithm solver \
         solver_type",
    ),
    (
        &["shift"],
        "mu base_shift max_shift flow_shift time_shift timestep_shift scheduler_shift sigma_shift",
    ),
    (
        &["sigmas"],
        "sigma timesteps custom_timesteps custom_sigmas denoising_sigmas",
    ),
    (
        &["cache"],
        "teacache fb_cache first_block_cache taylor_seer cache_config cache_threshold cache_type",
    ),
    (
        &["max_sequence_length"],
        "max_tokens max_length max_seq_len max_sequence_len t5_max_length t5_length tokenizer_max_length \
         max_prompt_tokens",
    ),
    (
        &["variation_seed"],
        "subseed variant_seed variation_noise_seed",
    ),
    (
        &["variation_strength"],
        "subseed_strength variation_seed_strength variant_strength variation_amount variations",
    ),
    (
        &["strength"],
        "denoise denoising denoising_strength image_strength prompt_strength img2img_strength \
         image2image_strength edit_strength init_image_strength init_image_creativity denoise_strength \
         noise_level",
    ),
    (
        &["image"],
        "file files img imgs picture pictures photo photos pic upload source init_image init_img input_image \
         input_img image_input image_url image_urls source_image src_image seed_image image_file image_files \
         image_data image_path image_base64 image_b64 base64_image reference_image reference_images \
         reference_image_url ref_image image_reference reference base_image original original_image attachment \
         kontext_image context_image",
    ),
    (
        &["mask"],
        "mask_image mask_img mask_url mask_path inpaint_mask inpainting_mask image_mask mask_file mask_base64 \
         masked_image_path",
    ),
    (
        &["redux_image"],
        "image_prompt redux_images redux_image_path redux_image_url style_reference",
    ),
    (
        &["prompt_embeds_scale"],
        "redux_strength redux_scale redux_image_strength image_prompt_strength",
    ),
    (
        &["control_image"],
        "controlnet_image controlnet_image_path control_image_url condition_image conditioning_image control_img \
         control_input pose_image depth_image depth_image_path canny_image hint_image",
    ),
    (
        &["controlnet_conditioning_scale"],
        "controlnet_strength control_strength controlnet_scale control_scale controlnet_weight control_weight \
         conditioning_scale conditioning_strength",
    ),
    (
        &["ip_adapter_scale"],
        "ip_adapter_strength ip_adapter_weight ip_adapter_scales ip_scale image_prompt_scale",
    ),
    (
        &["ip_adapter_image"],
        "ip_image ip_adapter_images ip_adapter_image_url style_image face_image",
    ),
];

/// Names of settings that are chosen with a flag when the server starts, and not in a request.
#[rustfmt::skip]
const SERVER_SETTINGS: [(&str, &str); 3] = [
    (
        "--lora",
        "lora loras lora_scale lora_weights lora_path lora_url lora_strength lora_name extra_lora hf_lora \
         image_lora strength_model strength_clip",
    ),
    (
        "--autoencoder",
        "vae vae_path vae_name sd_vae autoencoder",
    ),
    (
        "--quantize or --kind",
        "quantize quantization dtype torch_dtype weight_dtype precision",
    ),
];

/// Names of what this server does not have, although one of its fields has a similar name.
const UNSUPPORTED: &str = "enhance_prompt guidance_rescale image_cfg_scale img_cfg interval pooled_prompt_embeds prompt_embeds store \
                          style_preset";

fn is_among(names: &str, spelling: &str) -> bool {
    names.split_whitespace().any(|name| normalize(name) == spelling)
}

/// Returns the field of a name, or the error that there is none.
pub(crate) fn find_field(name: &str, edits: bool) -> Result<&'static Parameter, ApiError> {
    let field = fields(edits).find(|(field, _)| *field == name);
    field.map(|(_, parameter)| parameter).ok_or_else(|| unknown(name, edits))
}

/// Returns the error about a field that does not exist, at the edits' endpoint or at the generations'.
fn unknown(name: &str, edits: bool) -> ApiError {
    let hint = hint(name, edits);
    let name = shorten(name);
    ApiError::invalid("unknown_parameter", format!("there is no parameter `{name}`{hint}")).param(&name)
}

/// The names of the fields of edits, or of generations.
fn names(edits: bool) -> impl Iterator<Item = &'static str> {
    fields(edits).map(|(name, _)| name)
}

fn hint(name: &str, edits: bool) -> String {
    let name = shorten(name);
    let spellings = spellings(&name);
    if spellings.is_empty() {
        return String::new();
    }
    for spelling in &spellings {
        if let Some(field) = names(edits).find(|field| normalize(field) == *spelling) {
            return suggest(&[field], edits);
        }
        if let Some(field) = names(true).find(|field| normalize(field) == *spelling) {
            return only_in_edits(&[field]);
        }
        if let Some((targets, _)) = SYNONYMS.iter().find(|(_, names)| is_among(names, spelling)) {
            let is_here = |name: &&&str| names(edits).any(|field| field == **name);
            let here: Vec<&str> = targets.iter().filter(is_here).copied().collect();
            return if here.is_empty() { only_in_edits(targets) } else { suggest(&here, edits) };
        }
        if let Some((flag, _)) = SERVER_SETTINGS.iter().find(|(_, names)| is_among(names, spelling)) {
            return format!("; that is chosen where the server starts, with {flag}");
        }
        if is_among(UNSUPPORTED, spelling) {
            return String::new();
        }
    }
    let near = nearest(&name, names(edits));
    near.map_or(String::new(), |near| suggest(&[near], edits))
}

fn suggest(names: &[&str], edits: bool) -> String {
    let note = match names {
        ["size"] => ", both sides as `WxH`",
        ["image"] if edits => ", several as `image[]`",
        _ => "",
    };
    format!("; is {}{note} meant?", quoted(names))
}

/// Returns the hint at fields that only edits have.
fn only_in_edits(names: &[&str]) -> String {
    format!("; {} is a parameter of {EDITS}", quoted(names))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// Returns a name as it is compared: `numInferenceSteps`, `num-inference-steps` and `num_inference_steps` are one.
fn normalize(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Returns a name, also without the number or the plural of a list: `image_1`, `images[0]`, `images`. Of `input[image]`, as
/// some programs write the fields of an object, the part in brackets counts.
fn spellings(name: &str) -> Vec<String> {
    let (base, within) = name.split_once('[').unwrap_or((name, ""));
    let within = normalize(within.split(']').next().unwrap_or_default());
    let is_named = within.len() > 1 && within.starts_with(|first: char| first.is_ascii_alphabetic());
    let whole = if is_named { within } else { normalize(base) };
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
        for name in SYNONYMS.iter().flat_map(|(meant, _)| *meant) {
            assert!(super::names(true).any(|field| field == *name), "{name}");
        }
        let lists = SYNONYMS.iter().map(|(_, names)| *names);
        let lists = lists.chain(SERVER_SETTINGS.iter().map(|(_, names)| *names)).chain([UNSUPPORTED]);
        let mut names: Vec<String> = lists.flat_map(str::split_whitespace).map(normalize).collect();
        for name in &names {
            assert!(super::names(true).all(|field| normalize(field) != *name), "{name} is a field");
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "one stands in two places");
    }

    #[test]
    fn what_other_programs_send_is_answered_with_the_field_that_is_meant() {
        let names = |name: &str, edits: bool, expected: &[&str]| {
            let text = unknown(name, edits).to_string();
            for expected in expected {
                assert!(text.contains(&format!("`{expected}`")), "{name}: {text}");
            }
        };
        for (name, expected) in [
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
            ("sampleCount", "n"),
            ("side_length", "size"),
            ("sigmashift", "shift"),
            ("variationseedstrength", "variation_strength"),
            ("image_prompt", "redux_image"),
            ("image_prompt_strength", "prompt_embeds_scale"),
            ("redux_image_paths", "redux_image"),
            ("controlnet_image_path", "control_image"),
            ("unet_name", "model"),
            ("textPrompts", "prompt"),
        ] {
            for edits in [false, true] {
                names(name, edits, &[expected]);
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
            "seedImage",
            "source",
            "input[image]",
        ] {
            names(name, true, &["image", "image[]"]);
        }
        assert!(unknown("lora", false).to_string().contains("--lora"));
        for name in ["image_loras", "hf_lora", "lora_scales", "strength_model"] {
            assert!(unknown(name, true).to_string().contains("--lora"), "{name}");
        }
        for name in [
            "zzz",
            "enable_safety_checker",
            "ß",
            "[0]",
            "",
            "__",
            // What is like a field's name and means something else.
            "interval",
            "enhancePrompt",
            "store",
            "guidance_rescale",
            "image_cfg_scale",
        ] {
            let text = unknown(name, false).to_string();
            assert!(!text.contains("meant"), "{name}: {text}");
        }
    }
}
