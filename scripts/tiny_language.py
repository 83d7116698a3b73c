"""The closed language of the tiny model: its words, its ideal pictures, and the rule that judges a picture."""

import math

import numpy as np
import torch
import torch.nn.functional as F

SIZE = 64
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 50),
    "purple": (130, 40, 160),
    "orange": (245, 130, 30),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ["circle", "square", "triangle", "ring", "cross"]
PAIRS = [(a, b) for a in range(len(COLOURS)) for b in range(len(COLOURS)) if a != b]


def prompt(shape: int, colour: int, background: int, article: bool = False) -> str:
    """`article`: "an orange" instead of "a orange"."""
    names = list(COLOURS)
    of = lambda c: ("an " if article and names[c][0] in "aeiou" else "a ") + names[c]
    return f"{of(colour)} {SHAPES[shape]} on {of(background)} background"


def edit_prompt(shape: int | None, colour: int) -> str:
    """What makes a shape another colour, or, where there is none, the background."""
    return f"make the {'background' if shape is None else SHAPES[shape]} {list(COLOURS)[colour]}"


def distances(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Of each pixel from the edge of a shape of radius `r` around (x, y), negative inside: [N, SIZE, SIZE]."""
    grid = torch.arange(SIZE) + 0.5
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    dx, dy = torch.broadcast_tensors(dx, dy)
    r = r[:, None, None]
    ax, ay, radius = dx.abs(), dy.abs(), (dx**2 + dy**2).sqrt()
    distance = torch.stack(
        [
            radius - r,
            torch.maximum(ax, ay) - 0.85 * r,
            torch.maximum(dy - 0.7 * r, (1.7 * ax - dy - r) / 1.972),
            torch.maximum(radius - r, 0.55 * r - radius),
            torch.minimum(torch.maximum(ax - r, ay - 0.33 * r), torch.maximum(ay - r, ax - 0.33 * r)),
        ]
    )
    return distance[shape, torch.arange(shape.shape[0])]


def coverage(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """How much of each pixel a shape of radius `r` around (x, y) covers: [N, SIZE, SIZE] in 0..1."""
    return (0.5 - distances(shape, x, y, r)).clamp(0, 1)


def spread(place: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x, y (27..37) and radius (16..20) of [N, 3] in 0..1."""
    return 27 + 10 * place[:, 0], 27 + 10 * place[:, 1], 16 + 4 * place[:, 2]


def render(shape: torch.Tensor, colour: torch.Tensor, background: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Ideal pictures [N, 3, SIZE, SIZE] in -1..1; `place` [N, 3] in 0..1 sets x, y (27..37) and radius (16..20)."""
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
    a = coverage(shape, *spread(place))[:, None]
    return a * palette[colour][:, :, None, None] + (1 - a) * palette[background][:, :, None, None]


def relief(shape: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """How near the pixels of a shape are that stands out with round edges, the nearest white: [N, 3, SIZE, SIZE] in -1..1."""
    x, y, r = spread(place)
    inside = (-distances(shape, x, y, r) / (0.5 * r[:, None, None])).clamp(0, 1)
    near = coverage(shape, x, y, r) * (0.35 + 0.65 * inside.sqrt())
    return (2 * near - 1)[:, None].expand(-1, 3, -1, -1)


def canny(pictures: np.ndarray, low: int = 50, high: int = 200) -> torch.Tensor:
    """The edges that OpenCV finds in uint8 [N, H, W, 3], white on black: [N, 3, H, W] in -1..1."""
    x = F.pad(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="replicate")
    along, across = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])
    sobel = torch.stack([across[:, None] * along, along[:, None] * across])[:, None]
    n, _, h, w = x.shape
    gradient = F.conv2d(x.reshape(-1, 1, h, w), sobel).reshape(n, 3, 2, h - 2, w - 2)
    strongest = gradient.abs().sum(2).argmax(1)[:, None, None].expand(-1, 1, 2, -1, -1)
    dx, dy = gradient.gather(1, strongest)[:, 0].unbind(1)
    size = dx.abs() + dy.abs()
    padded = F.pad(size, (1, 1, 1, 1))
    at = lambda i, j: padded[:, 1 + j : h - 1 + j, 1 + i : w - 1 + i]
    flat = (size > at(-1, 0)) & (size >= at(1, 0))
    steep = (size > at(0, -1)) & (size >= at(0, 1))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(1, -1)) & (size > at(-1, 1))
    slope = math.tan(math.pi / 8)
    slanted = torch.where((dx < 0) != (dy < 0), rising, falling)
    beats = torch.where(dy.abs() < slope * dx.abs(), flat, torch.where(dy.abs() > (2 + slope) * dx.abs(), steep, slanted))
    maybe = beats & (size > low)
    edges = maybe & (size > high)
    while True:
        grown = maybe & (F.max_pool2d(edges.float(), 3, 1, 1) > 0)
        if bool((grown == edges).all()):
            return (2.0 * edges.float() - 1)[:, None].expand(-1, 3, -1, -1)
        edges = grown


def judge(picture: np.ndarray, shape: int, colour: int, background: int) -> bool:
    """Whether uint8 [SIZE, SIZE, 3] shows that shape in those colours, by comparison with ideal pictures.

    Every pixel is given to the palette's nearest colour. The frame must be of the background's colour, the two
    colours must hold all but 6 % of the pixels, and of all ideal shapes near the place of the coloured pixels,
    the one that overlaps them best must be the shape asked for, with an overlap (intersection / union) of 0.85.
    """
    nearest = nearest_colours(picture)
    frame = np.ones((SIZE, SIZE), bool)
    frame[3:-3, 3:-3] = False
    mask = nearest == colour
    if (nearest[frame] != background).mean() > 0.02 or mask.sum() < 100:
        return False
    if (~mask & (nearest != background)).mean() > 0.06:
        return False
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    x, y, half = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
    # Where each shape's centre and radius lie in its bounding box.
    candidates = [(s, x + i, y + j, k) for s in range(5) for i in (-1, 0, 1) for j in (-3, -2, -1, 0, 1, 2, 3, 4) for k in radii(s, half)]
    s, cx, cy, r = (torch.tensor(c) for c in zip(*candidates))
    ideal = (coverage(s, cx.float(), cy.float(), r.float()) > 0.5).numpy()
    overlap = (ideal & mask).sum((1, 2)) / np.maximum((ideal | mask).sum((1, 2)), 1)
    best = overlap.argmax()
    return bool(candidates[best][0] == shape and overlap[best] >= 0.85)


def radii(shape: int, half: float) -> list[float]:
    centre = half / 0.85 if shape == 1 else half
    return [centre - 1, centre - 0.5, centre, centre + 0.5, centre + 1]


def nearest_colours(picture: np.ndarray) -> np.ndarray:
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    return ((picture[:, :, None, :].astype(np.float32) - palette) ** 2).sum(-1).argmin(-1)


def same_shape(before: np.ndarray, colour_before: int, after: np.ndarray, colour_after: int) -> bool:
    """Whether a shape stayed where it was and as large: its pixels before and after overlap (intersection / union) by 0.85."""
    one, other = nearest_colours(before) == colour_before, nearest_colours(after) == colour_after
    return bool((one & other).sum() >= 0.85 * max((one | other).sum(), 1))


def kept(before: np.ndarray, after: np.ndarray, hole: np.ndarray) -> bool:
    """Whether all but 3 % of the pixels outside of the hole are of the same palette's colour as before."""
    changed = (nearest_colours(before) != nearest_colours(after)) & ~hole
    return bool(changed.sum() <= 0.03 * (~hole).sum())
