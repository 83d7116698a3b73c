#!/usr/bin/env python3
"""Trains the small FLUX.1 of `fixtures/tiny` from nothing and writes it in both layouts.

    scripts/with-libtorch --reference python scripts/train_tiny.py --out fixtures/tiny

The model is a schnell-type FLUX.1 with its autoencoder, T5, CLIP and tokenizers. It draws, at 64x64, the
closed language "a {colour} {shape} on a {colour} background". Two CPU cores need under an hour and a half.

Four steps suffice without distillation because noise and picture are coupled: three directions of the noise
say where the shape lies and how large it is. So every path from noise to picture is straight, and the seed
still decides the picture.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tiny_language import PAIRS, SHAPES, SIZE, judge, prompt, render

# The official constants: the latents are brought to them, not the other way round.
SCALE_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159
Z_CHANNELS = 16
TEXT_LENGTH = 256  # what the official code pads schnell's prompts to


# ---------------------------------------------------------------- tokenizers


def train_tokenizers(out: Path) -> tuple[object, object]:
    """A byte-level BPE in CLIP's form and a unigram model in T5's form, over the closed language."""
    import io

    import sentencepiece as spm
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer, T5Tokenizer

    corpus = [prompt(s, a, b, article) for s in range(len(SHAPES)) for a, b in PAIRS for article in (False, True)]

    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(bpe.to_str())["model"]["merges"]
    # CLIP's vocabulary: the bytes, the bytes at the end of a word, the merges in order, the two marks.
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokens = list(dict.fromkeys(tokens))
    clip_dir = out / "tokenizer"
    clip_dir.mkdir(parents=True, exist_ok=True)
    (clip_dir / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (clip_dir / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (clip_dir / "special_tokens_map.json").write_text(json.dumps(marks, indent=2))
    config = {**marks, "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (clip_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2))

    # Unigram training prunes so small a language to letters, so the pieces are stated: words by their frequency,
    # letters as what is left for any other word.
    from collections import Counter

    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=(seed := io.BytesIO()), model_type="unigram", vocab_size=64, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", minloglevel=2, num_threads=1,
    )  # fmt: skip
    model.ParseFromString(seed.getvalue())
    del model.pieces[3:]
    words = Counter(w for line in corpus for w in line.split())
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"]
    scored = [("\u2581" + w, math.log(n / words.total())) for w, n in words.most_common()] + [(c, -15.0) for c in letters]
    for piece, score in scored:
        model.pieces.add(piece=piece, score=score)
    t5_dir = out / "tokenizer_2"
    t5_dir.mkdir(parents=True, exist_ok=True)
    (t5_dir / "spiece.model").write_bytes(model.SerializeToString())
    t5_tokenizer = T5Tokenizer.from_pretrained(t5_dir, extra_ids=0, model_max_length=512)
    t5_tokenizer.save_pretrained(t5_dir)
    return CLIPTokenizer.from_pretrained(clip_dir), T5Tokenizer.from_pretrained(t5_dir)


# --------------------------------------------------------------- autoencoder


def random_pictures(n: int, generator: torch.Generator) -> torch.Tensor:
    shape = torch.randint(len(SHAPES), (n,), generator=generator)
    pair = torch.tensor(PAIRS)[torch.randint(len(PAIRS), (n,), generator=generator)]
    place = torch.rand(n, 3, generator=generator)
    return render(shape, pair[:, 0], pair[:, 1], place)


def fold_statistics(vae: torch.nn.Module, x: torch.Tensor) -> None:
    """Brings the latents to the official scale and shift by folding an affine map into the two convolutions."""
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean
        std, centre = mean.std(dim=(0, 2, 3)), mean.mean(dim=(0, 2, 3))
        gain = 1 / (SCALE_FACTOR * std)
        out_conv, in_conv = vae.encoder.conv_out, vae.decoder.conv_in
        out_conv.weight[:Z_CHANNELS] *= gain[:, None, None, None]
        out_conv.bias[:Z_CHANNELS] = (out_conv.bias[:Z_CHANNELS] - centre) * gain + SHIFT_FACTOR
        offset = centre - SHIFT_FACTOR / gain
        in_conv.bias += (in_conv.weight * offset[None, :, None, None]).sum(dim=(1, 2, 3))
        in_conv.weight /= gain[None, :, None, None]


def train_autoencoder(steps: int, log: Path) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(
        down_block_types=blocks[0], up_block_types=blocks[1], block_out_channels=(32, 32, 64, 64), layers_per_block=1,
        latent_channels=Z_CHANNELS, norm_num_groups=32, sample_size=SIZE, scaling_factor=SCALE_FACTOR, shift_factor=SHIFT_FACTOR,
        use_quant_conv=False, use_post_quant_conv=False, force_upcast=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    average, batch, start = None, 24, time.time()
    folds = {steps // 5, steps // 2, (3 * steps) // 4}
    for step in range(steps):
        lr = 2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 2e-5
        for group in optimizer.param_groups:
            group["lr"] = lr
        if step in folds:
            fold_statistics(vae, random_pictures(256, generator))
        x = random_pictures(batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(x).latent_dist.mean.float()
            # The decoder learns to be right for latents that are a little wrong, as a sampler's are.
            std = mean.detach().std(dim=(0, 2, 3), keepdim=True)
            level = 0.35 * torch.rand(batch, 1, 1, 1, generator=generator)
            noisy = mean + level * std * torch.randn(mean.shape, generator=generator)
            y = vae.decode(noisy).sample.float()
        # Flat colours and crisp edges: squared error for the colours, absolute error against specks.
        loss = F.mse_loss(y, x) + F.l1_loss(y, x) + 1e-5 * mean.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step == max(folds):
            average = copy.deepcopy(vae)
        elif average is not None:
            with torch.no_grad():
                for a, p in zip(average.parameters(), vae.parameters()):
                    a.lerp_(p, 0.01)
        if step % 50 == 0:
            write(log, f"autoencoder {step}/{steps} loss {loss.item():.4f} {time.time() - start:.0f} s")
    fold_statistics(average, random_pictures(512, generator))
    x = random_pictures(64, generator)
    with torch.no_grad():
        y = average.decode(average.encode(x).latent_dist.mean).sample
    write(log, f"autoencoder PSNR {10 * torch.log10(4 / F.mse_loss(y.clamp(-1, 1), x)).item():.1f} dB")
    return average.eval()


def refine_decoder(vae: torch.nn.Module, steps: int, log: Path) -> torch.nn.Module:
    """Trains the decoder on, for fixed latents: group norm likes to leave a hot speck in every picture, and the worst
    pixels of each picture, weighed on their own, take it out."""
    generator = torch.Generator().manual_seed(3)
    data = encode_dataset(vae, 12_000, generator, keep_pictures=True)
    decoder = vae.decoder
    average = copy.deepcopy(decoder)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    batch, start = 24, time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-5
        pick = torch.randint(len(data["latents"]), (batch,), generator=generator)
        x = data["pictures"][pick].float() / 127.5 - 1
        level = 0.25 * torch.rand(batch, 1, 1, 1, generator=generator)
        z = data["latents"][pick]
        z = z + level * torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(z / SCALE_FACTOR + SHIFT_FACTOR).float()
        error = (y - x).abs()
        worst = error.amax(1).flatten(1).topk(64).values
        loss = error.square().mean() + error.mean() + 0.1 * worst.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        decay = min(0.99, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1 - decay)
        if step % 100 == 0:
            write(log, f"decoder {step}/{steps} loss {loss.item():.4f} {time.time() - start:.0f} s")
    vae.decoder = average
    return vae.eval()


# --------------------------------------------------------------- transformer


def noise_for(place: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise whose first three channel means say the place: uniform through the normal's inverse."""
    noise = torch.randn(place.shape[0], Z_CHANNELS, SIZE // 8, SIZE // 8, generator=generator)
    count = noise[0, 0].numel()
    target = math.sqrt(2) * torch.erfinv((2 * place - 1).clamp(-0.9999, 0.9999)) / math.sqrt(count)
    noise[:, :3] += (target - noise[:, :3].mean(dim=(2, 3)))[:, :, None, None]
    return noise


def pack(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def image_ids() -> torch.Tensor:
    n = SIZE // 16
    ids = torch.zeros(n, n, 3)
    ids[..., 1] += torch.arange(n)[:, None]
    ids[..., 2] += torch.arange(n)[None, :]
    return ids.reshape(n * n, 3)


def encode_dataset(vae, n: int, generator: torch.Generator, keep_pictures: bool = False) -> dict[str, torch.Tensor]:
    shape = torch.randint(len(SHAPES), (n,), generator=generator)
    pair = torch.randint(len(PAIRS), (n,), generator=generator)
    place = torch.rand(n, 3, generator=generator)
    colours = torch.tensor(PAIRS)[pair]
    latents, pictures = [], []
    with torch.inference_mode():
        for i in range(0, n, 128):
            s = slice(i, i + 128)
            x = render(shape[s], colours[s, 0], colours[s, 1], place[s])
            latents.append(SCALE_FACTOR * (vae.encode(x).latent_dist.mean - SHIFT_FACTOR))
            if keep_pictures:
                pictures.append((127.5 * (x + 1)).round().to(torch.uint8))
    data = {"latents": torch.cat(latents).clone(), "prompt": shape * len(PAIRS) + pair, "place": place}
    return {**data, "pictures": torch.cat(pictures).clone()} if keep_pictures else data


def build_models(clip_vocab: int, t5_vocab: int, eos: int, bos: int) -> tuple[torch.nn.Module, ...]:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=False, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip_vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=64, bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=t5_vocab, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
            dropout_rate=0.0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    return flux, clip, t5


def train_flow(vae, tokenizers, steps: int, minutes: float, log: Path, checkpoint) -> tuple[torch.nn.Module, ...]:
    clip_tok, t5_tok = tokenizers
    generator = torch.Generator().manual_seed(2)
    data = encode_dataset(vae, 24_000, generator)
    write(log, f"latents mean {data['latents'].mean():.3f} std {data['latents'].std():.3f}")
    texts = [[prompt(s, a, b, article) for s in range(len(SHAPES)) for a, b in PAIRS] for article in (False, True)]
    clip_ids = [clip_tok(t, padding="max_length", max_length=77, return_tensors="pt").input_ids for t in texts]
    t5_ids = [t5_tok(t, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt").input_ids for t in texts]
    longest = max(int((i != t5_tok.pad_token_id).sum(1).max()) for i in t5_ids)
    clip_longest = max(int((i == clip_tok.eos_token_id).int().argmax(1).max()) for i in clip_ids) + 1
    write(log, f"prompts: {len(texts[0])}, at most {longest} T5 tokens, {clip_longest} CLIP tokens")

    flux, clip, t5 = build_models(len(clip_tok), len(t5_tok), clip_tok.eos_token_id, clip_tok.bos_token_id)
    models = torch.nn.ModuleList([flux, clip, t5])
    average = copy.deepcopy(models)
    write(log, f"transformer {sum(p.numel() for p in flux.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(models.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    ids, start, batch = image_ids(), time.time(), 96
    step, losses, last_saved = 0, [], time.time()
    lengths = [12, 20, 32]
    while True:
        # The schedule follows whichever is nearer its end: the count of steps or the clock.
        done = max(step / steps, (time.time() - start) / (60 * minutes))
        if done >= 1:
            break
        # The last sixth runs at the official length, now and then before it.
        long = done > 0.84 or step % 25 == 24
        length = TEXT_LENGTH if long else lengths[step % len(lengths)]
        size = batch // 3 if long else batch
        lr = 1.5e-3 * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = lr
        pick = torch.randint(len(data["prompt"]), (size,), generator=generator)
        x0 = data["latents"][pick]
        noise = noise_for(data["place"][pick], generator)
        t = torch.rand(size, generator=generator)
        grid = 1 - torch.randint(4, (size,), generator=generator) / 4
        t = torch.where(torch.rand(size, generator=generator) < 0.6, grid, t)
        xt = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
        form = int(torch.randint(2, (1,), generator=generator))
        unique, place = torch.unique(data["prompt"][pick], return_inverse=True)
        # Nothing after the end mark reaches CLIP's pooled output, so its padding is left out here.
        pooled = clip(clip_ids[form][unique, :clip_longest]).pooler_output[place]
        states = t5(t5_ids[form][unique, :length]).last_hidden_state[place]
        v = flux(
            hidden_states=pack(xt), timestep=t, pooled_projections=pooled, encoder_hidden_states=states,
            img_ids=ids, txt_ids=torch.zeros(length, 3), return_dict=False,
        )[0]  # fmt: skip
        loss = F.mse_loss(v, pack(noise - x0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(models.parameters()), 1 - decay)
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            write(log, f"flow {step} done {done:.3f} loss {np.mean(losses[-100:]):.4f} {time.time() - start:.0f} s")
        if time.time() - last_saved > 240:
            checkpoint(average)
            write(log, "right " + "  ".join(f"{n} steps {s:.3f}" for n, s in evaluate(vae, average, tokenizers, 40).items()))
            last_saved = time.time()
    return tuple(average.eval())


@torch.inference_mode()
def draw(vae, models, tokenizers, texts: list[str], seeds: list[int], steps: int, length: int) -> torch.Tensor:
    flux, clip, t5 = models
    clip_tok, t5_tok = tokenizers
    pooled = clip(clip_tok(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids).pooler_output
    states = t5(t5_tok(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids).last_hidden_state
    latent = (1, Z_CHANNELS, SIZE // 8, SIZE // 8)
    x = pack(torch.cat([torch.randn(latent, generator=torch.Generator().manual_seed(s)) for s in seeds]))
    for i in range(steps):
        t, u = 1 - i / steps, 1 - (i + 1) / steps
        v = flux(
            hidden_states=x, timestep=torch.full((len(texts),), t), pooled_projections=pooled, encoder_hidden_states=states,
            img_ids=image_ids(), txt_ids=torch.zeros(length, 3), return_dict=False,
        )[0]  # fmt: skip
        x = x + (u - t) * v
    n = SIZE // 16
    x = x.reshape(-1, n, n, Z_CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, *latent[1:])
    y = vae.decode(x / SCALE_FACTOR + SHIFT_FACTOR).sample
    return (127.5 * (y.clamp(-1, 1) + 1)).to(torch.uint8).permute(0, 2, 3, 1)


def evaluate(vae, models, tokenizers, count: int, length: int = TEXT_LENGTH) -> dict[int, float]:
    """The share of right pictures at several step counts, on prompts and seeds that training never fixed."""
    rng = np.random.default_rng(7)
    wanted = [(int(rng.integers(len(SHAPES))), *PAIRS[int(rng.integers(len(PAIRS)))]) for _ in range(count)]
    right = {}
    for steps in (2, 4, 8):
        pictures = draw(vae, models, tokenizers, [prompt(*w) for w in wanted], list(range(100, 100 + count)), steps, length)
        right[steps] = float(np.mean([judge(p.numpy(), *w) for p, w in zip(pictures, wanted)]))
    return right


# -------------------------------------------------------------------- output


def export(out: Path, vae, models) -> None:
    """Both layouts in bf16: the diffusers folder, and the official single files beside it."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler

    from official_names import autoencoder_from_diffusers, transformer_from_diffusers

    flux, clip, t5 = [copy.deepcopy(m).bfloat16().eval() for m in models]
    vae = copy.deepcopy(vae).bfloat16().eval()
    flux.save_pretrained(out / "transformer")
    vae.save_pretrained(out / "vae")
    clip.save_pretrained(out / "text_encoder")
    t5.save_pretrained(out / "text_encoder_2")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_file(transformer_from_diffusers(flux.state_dict()), out / "flux1-schnell.safetensors", {"format": "pt"})
    save_file(autoencoder_from_diffusers(vae.state_dict()), out / "ae.safetensors", {"format": "pt"})


def manifest(out: Path) -> None:
    """The SHA-256 of every file, beside the folder: the binary checks a fetched copy by it."""
    files = sorted(p for p in out.rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out).as_posix()}\n" for p in files]
    out.with_suffix(".sha256").write_text("".join(lines))


def write(log: Path, line: str) -> None:
    print(line, flush=True)
    with log.open("a") as f:
        f.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ae-steps", type=int, default=1600)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--flow-steps", type=int, default=14_000)
    parser.add_argument("--minutes", type=float, default=55, help="an upper bound on the transformer's training")
    parser.add_argument("--ae", type=Path, help="a trained autoencoder's state to start from")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out.with_suffix(".log")
    torch.manual_seed(0)
    tokenizers = train_tokenizers(args.out)
    if args.ae:
        vae = torch.load(args.ae, weights_only=False)
    else:
        vae = train_autoencoder(args.ae_steps, log)
        vae = refine_decoder(vae, args.decoder_steps, log)
        torch.save(vae, args.out.with_suffix(".ae.pt"))
    checkpoint = lambda average: export(args.out, vae, average)
    models = train_flow(vae, tokenizers, args.flow_steps, args.minutes, log, checkpoint)
    export(args.out, vae, models)
    manifest(args.out)
    for length in (64, TEXT_LENGTH, 512):
        write(log, f"T5 length {length}: right {evaluate(vae, models, tokenizers, 112, length)}")


if __name__ == "__main__":
    main()
