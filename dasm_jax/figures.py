"""Pictures of synthetic images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dasm_jax.files import write_atomically

MOST_COLUMNS = 20
GAP, MARGIN, HEADER = 2, 8, 64
INK, MUTED, ACCENT = (20, 20, 20), (205, 205, 205), (31, 119, 180)


def save_segment_grid(
    path: Path,
    pixels: np.ndarray,
    class_names: tuple[str, ...],
    title: str,
    decile_shares: np.ndarray | None,
    pool: str,
) -> None:
    """Draw a segment: a class per row, and the difficulty of its pool above.

    Args:
      path: PNG to write.
      pixels: f32[C, n, H, W, ch] in [0, 1].
      class_names: of the rows.
      title: line above the images.
      decile_shares: f[10], share of each difficulty decile that the pool holds, easiest
        first; ``None`` where nothing was scored.
      pool: what to say of the pool in words.
    """
    n_classes, count, height, width, _ = pixels.shape
    columns = min(count, MOST_COLUMNS)
    zoom = max(1, 64 // height)
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    label_width = 8 + 7 * min(max(len(name) for name in class_names), 14)
    body_width = max(columns * cell_w, 430)
    canvas = Image.new(
        "RGB",
        (
            2 * MARGIN + label_width + body_width,
            2 * MARGIN + HEADER + n_classes * cell_h,
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, fill=INK)
    _draw_difficulty(draw, (MARGIN, MARGIN + 16), decile_shares, pool)
    for row, (name, images) in enumerate(zip(class_names, pixels)):
        top = MARGIN + HEADER + row * cell_h
        draw.text((MARGIN, top + cell_h // 2 - 6), name[:14], fill=INK)
        for column, image in enumerate(images[:columns]):
            left = MARGIN + label_width + column * cell_w
            canvas.paste(_to_picture(image, zoom), (left, top))
    write_atomically(path, lambda file: canvas.save(file, format="PNG"))


def _to_picture(image: np.ndarray, zoom: int) -> Image.Image:
    bytes_ = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if bytes_.shape[-1] == 1:
        bytes_ = np.repeat(bytes_, 3, axis=-1)
    height, width = bytes_.shape[:2]
    picture = Image.fromarray(bytes_[..., :3])
    return picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def _draw_difficulty(draw, corner, shares, pool: str) -> None:
    left, top = corner
    draw.text((left, top), pool, fill=INK)
    if shares is None:
        draw.text((left, top + 16), "nothing scored", fill=INK)
        return
    draw.text((left, top + 16), "by difficulty decile:", fill=INK)
    left += 165
    for decile, share in enumerate(shares):
        x = left + 18 * decile
        draw.rectangle((x, top, x + 14, top + 28), fill=MUTED)
        filled = round(28 * float(share))
        if filled:
            draw.rectangle((x, top + 28 - filled, x + 14, top + 28), fill=ACCENT)
    draw.text((left, top + 30), "easy", fill=INK)
    draw.text((left + 18 * 10 - 28, top + 30), "hard", fill=INK)
