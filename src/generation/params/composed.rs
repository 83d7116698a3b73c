//! Parameters of which several make up a field of a request, and those of the pictures that a request brings.

use super::{Group, Kind, Parameter};
use crate::generation::{ReduxMix, Role};

/// The names of schedules without times of their own.
const SCHEDULES: &[(&str, &str)] = &[
    ("linear", "Even steps, as schnell's."),
    ("shifted", "Leaning to noise the more, the larger the picture."),
];

const fn sampling(kind: Kind) -> Parameter {
    Parameter::new(kind, Group::Sampling)
}

const fn picture(kind: Kind) -> Parameter {
    Parameter::new(kind, Group::Picture)
}

const fn redux(kind: Kind) -> Parameter {
    Parameter::new(kind, Group::Redux)
}

const fn control(kind: Kind) -> Parameter {
    Parameter::new(kind, Group::ControlNet)
}

const fn ip_adapter(kind: Kind) -> Parameter {
    Parameter::new(kind, Group::IpAdapter)
}

#[rustfmt::skip]
pub(super) const COMPOSED: [Parameter; 28] = [
    sampling(Kind::Choice(SCHEDULES)).flag("--schedule").field("schedule")
        .default("what the model's folder says, else linear for schnell and shifted for the others")
        .named("schedule", "How the times of the steps are chosen."),
    sampling(Kind::Shift)
        .flag("--shift").value_name("BASE,MAX|SHIFT").field("shift").default("0.5,1.15")
        .named("shift", "How far a shifted schedule leans to noise: for 256 patches and for 4096, or by one factor for every \
                         size, as `shift` in a scheduler_config.json without dynamic shifting."),
    sampling(Kind::Numbers { min: 0.0, max: 1.0, counts: (1, 1001) })
        .flag("--sigmas").value_name("S1,S2,…").field("sigmas").served_up_to(101)
        .named("sigmas", "The times of the steps themselves, falling from at most 1, which is noise; the 0 at the end may be \
                          left out."),
    sampling(Kind::Number { min: 0.0, max: 1.0 })
        .flag("--variation-strength").value_name("STRENGTH").field("variation_strength")
        .named("variation_strength", "How far the noise is led towards that of another seed; several pictures then vary one \
                                      seed's."),
    sampling(Kind::Integer { min: 0, max: u64::MAX })
        .flag("--variation-seed").value_name("SEED").field("variation_seed")
        .default("another one each time, which is said")
        .named("variation_seed", "The seed to vary with, of the first picture."),

    picture(Kind::Pictures).common_flag("--image", Some('i'), None).value_name("FILE").field("image")
        .named("image", "The picture to begin with, PNG, JPEG or WebP. As a reference there may be several."),
    picture(Kind::Pictures).common_flag("--mask", None, None).value_name("FILE").field("mask")
        .named("mask", "Where the picture is drawn anew; as large as the picture. A program takes what is white in it, OpenAI's \
                        API what is transparent."),
    picture(Kind::Fraction).common_flag("--strength", None, None).field("strength").default("0.6")
        .named("strength", "How much of a start is drawn anew: 1 forgets it, near 0 it stays."),
    picture(Kind::Choice(Role::CHOICES)).common_flag("--as", None, None).value_name("ROLE").field("as")
        .default("what the model is made for, else start")
        .named("role", "What the picture is to the model."),
    picture(Kind::Boolean).flag("--keep-size").field("keep_size").default("false")
        .named("keep_size", "Whether references stay as large as they are, in place of one of the sizes that Kontext was \
                             trained on."),
    picture(Kind::Boolean).flag("--canny").field("canny").default("false")
        .named("canny", "Whether the picture's edges are followed, as OpenCV's Canny finds them, and not the picture itself."),
    picture(Kind::Boolean).flag("--depth").field("depth").default("false")
        .named("depth", "Whether it is followed how far away the picture's pixels are, as a depth model says, and not the \
                         picture itself."),

    redux(Kind::Pictures).field("redux_image")
        .named("redux_image", "What the drawing shall look like, with its prompt or without one."),
    redux(Kind::per_picture(-10.0, 10.0)).field("prompt_embeds_scale").default("1")
        .named("prompt_embeds_scale", "What Redux sees is multiplied by it; once for all pictures of Redux, or for each."),
    redux(Kind::per_picture(-10.0, 10.0)).field("pooled_prompt_embeds_scale").default("1")
        .named("pooled_prompt_embeds_scale", "The same of the pooled text, of a sum."),
    redux(Kind::Choice(ReduxMix::CHOICES)).flag("--redux-mix").field("redux_mix").default("append")
        .named("redux_mix", "How several pictures of Redux come together: one behind the other, or as diffusers has it, summed \
                             with the text."),
    redux(Kind::Boolean).flag("--redux-without-text").field("redux_without_text").default("false")
        .named("redux_without_text", "Whether zeros stand in place of the text's states, as diffusers' Redux takes them where \
                                      it has no text encoders; the prompt is then left out."),

    control(Kind::Names).field("controlnet").default("the only one")
        .named("controlnet", "Which ControlNet: once for all pictures, or for each."),
    control(Kind::Pictures).flag("--control-image").value_name("FILE").field("control_image")
        .named("control_image", "What a ControlNet follows; of one ControlNet there may be several."),
    control(Kind::Modes).flag("--control-mode").value_name("MODE").field("control_mode")
        .named("control_mode", "What the picture is to a union ControlNet, and only to one: canny, tile, depth, blur, pose, \
                                gray, low-quality, or a number; once for all pictures, or for each."),
    control(Kind::per_picture(-10.0, 10.0))
        .flag("--control-strength").value_name("X").field("controlnet_conditioning_scale").default("1")
        .named("control_strength", "How much of what the ControlNet says is added; once for all pictures, or for each."),
    control(Kind::per_picture(0.0, 1.0))
        .flag("--control-start").value_name("SHARE").field("control_guidance_start").default("0")
        .named("control_start", "The share of the steps after which the ControlNet begins; once for all pictures, or for each."),
    control(Kind::per_picture(0.0, 1.0))
        .flag("--control-end").value_name("SHARE").field("control_guidance_end").default("1")
        .named("control_end", "The share of the steps after which the ControlNet ends; once for all pictures, or for each."),
    control(Kind::Boolean).flag("--control-canny").field("control_canny").default("false")
        .named("control_canny", "Whether the edges of the pictures are followed, as OpenCV's Canny finds them, and not the \
                                 pictures themselves."),

    ip_adapter(Kind::Names).field("ip_adapter").default("the only one")
        .named("ip_adapter", "Which IP-Adapter: one for all pictures, or one for each."),
    ip_adapter(Kind::Pictures).flag("--ip-image").value_name("FILE").field("ip_adapter_image")
        .named("ip_adapter_image", "What the drawing shall be like; of one IP-Adapter there may be several."),
    ip_adapter(Kind::Pictures).flag("--ip-negative-image").value_name("FILE").field("negative_ip_adapter_image")
        .default("a black picture")
        .named("negative_ip_adapter_image", "What the negative prompt's drawing is like."),
    ip_adapter(Kind::Scales { min: -10.0, max: 10.0 })
        .flag("--ip-strength").value_name("X[,X…]").field("ip_adapter_scale").default("1")
        .named("ip_adapter_scale", "How much of the IP-Adapter is added, or that for each double block; once for all, or for \
                                    each IP-Adapter."),
];
