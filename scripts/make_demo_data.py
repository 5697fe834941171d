"""Generate a small UCF101-style set of real video files whose classes differ in the order of their frames.

    python scripts/make_demo_data.py data/demo --pairs changes orbits
    python scripts/make_demo_data.py data/movements --pairs movements
    python scripts/make_demo_data.py data/lamps --pairs lamps --frames 90 --period 22 90
    python scripts/make_demo_data.py data/stills --pairs stills

Classes come in pairs. Both classes of a pair hold the same frames in opposite order, so the average frame cannot tell
them apart. Changes (Grow/Shrink) and movements (Right/Left) go one way, so a linear layer on averages of segments can.
Cycles start anywhere and repeat, so it cannot, but the LSTM can: an object that orbits, or four lamps lit in turn. In
stills (Disc/Square) nothing moves.

Every group has its own object, background and colours. Files are MPEG-4 AVI, H.264 MP4 and VP9 WebM; some are portrait,
some have a variable frame rate.
"""

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import joblib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

CHANGES = [("Appear", "Vanish"), ("Grow", "Shrink"), ("Open", "Close"), ("Sharpen", "Blur")]
MOVEMENTS = [("Right", "Left"), ("Down", "Up"), ("Grow", "Shrink"), ("Clockwise", "Counterclockwise")]
ORBITS = [("OrbitRight", "OrbitLeft")]
LAMPS = [("LampsRight", "LampsLeft")]
STILLS = [("Disc", "Square")]
PAIRS = {"changes": CHANGES, "movements": MOVEMENTS, "orbits": ORBITS, "lamps": LAMPS, "stills": STILLS}
# High quality throughout: if it rose or fell along a clip, even the average frame would tell the direction. With mbtree
# x264's files differ from run to run.
CODECS = [
    ("avi", "mpeg4", {"bf": "2", "qmin": "1", "qmax": "2", "b": "8M"}),
    ("mp4", "libx264", {"preset": "veryfast", "crf": "12", "threads": "1", "x264-params": "mbtree=0"}),
    ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M", "threads": "1"}),
]
RATE = 12
Renderer = Callable[[float, np.random.Generator], Image.Image]


def texture(rng: np.random.Generator, size: tuple[int, int], grain: int, hue: float) -> Image.Image:
    """Return random blobs and stripes in shades of a hue (0 to 1); `grain` is the number of blobs across."""
    blobs = Image.fromarray(rng.integers(0, 256, (grain, grain), dtype=np.uint8)).resize(size, Image.BICUBIC)
    stripes = np.sin(np.linspace(0, rng.uniform(20, 120), size[0])) * rng.uniform(20, 60)
    value = (np.asarray(blobs, np.float32) * 0.7 + stripes + 60).clip(20, 255)
    hues = np.full_like(value, hue * 255) + rng.uniform(-12, 12)
    saturation = np.full_like(value, rng.uniform(80, 220))
    hsv = np.stack([hues % 256, saturation, value], axis=-1).astype(np.uint8)
    return Image.fromarray(hsv, mode="HSV").convert("RGB")


def outline(rng: np.random.Generator) -> np.ndarray:
    """Return a random star-shaped polygon around the origin with radius about one, float [K,2]."""
    corners = rng.integers(3, 12)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners * 2))
    radii = rng.uniform(0.5, 1.0, corners * 2)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


class Scene:
    """One group: its background, its object and its curtain."""

    def __init__(self, group: int, seed: int):
        rng = np.random.default_rng([seed, group])
        self.size = (120, 160) if group % 4 == 0 else (160, 120)
        hue = rng.uniform()  # Object and curtain have other hues, so that they stand out.
        self.background = texture(rng, self.size, int(rng.integers(6, 30)), hue)
        self.skin = texture(rng, self.size, int(rng.integers(2, 20)), hue + rng.uniform(0.3, 0.5))
        self.curtain = texture(rng, self.size, int(rng.integers(2, 6)), hue - rng.uniform(0.15, 0.3))
        self.outline = outline(rng)

    def with_object(
        self, centre: np.ndarray, radius: float, opacity: float = 1, angle: float = 0, stretch: float = 1
    ) -> Image.Image:
        """Draw the object, turned clockwise by `angle`; `stretch` makes it longer than wide."""
        mask = Image.new("L", self.size)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = centre + self.outline * (radius, radius / stretch) @ turn
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=round(255 * opacity))
        return Image.composite(self.skin, self.background, mask)

    def with_lamps(self, centre: np.ndarray, radius: float, lit: int) -> Image.Image:
        """Draw four lamps in a ring, one of them lit."""
        picture = self.background.copy()
        draw = ImageDraw.Draw(picture)
        middle = (centre + np.array(self.size) / 2) / 2  # So that all lamps are in the picture.
        for lamp, (x, y) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
            at = middle + np.array([x, y]) * 0.75 * radius
            size = 0.45 * radius
            draw.ellipse([*(at - size), *(at + size)], fill="white" if lamp == lit else "black")
        return picture

    def with_shape(self, centre: np.ndarray, radius: float, shape: str) -> Image.Image:
        """Draw a disc or a square."""
        picture = self.background.copy()
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "Disc" else draw.rectangle)([*(centre - radius), *(centre + radius)], fill="white")
        return picture

    def frame(self, action: str, progress: float, centre: np.ndarray, radius: float) -> Image.Image:
        """Draw the first action of a pair at `progress`: 0 to 1, or turns of a cycle."""
        width, height = self.size
        match action:
            case "Appear":
                return self.with_object(centre, radius, opacity=progress)
            case "Grow":
                return self.with_object(centre, radius * (0.15 + 1.1 * progress))
            case "Open":
                whole = self.with_object(centre, radius)
                edge = round(width / 2 * (1 - progress))
                for left in (0, width - edge):
                    whole.paste(self.curtain.crop((left, 0, left + edge, height)), (left, 0))
                return whole
            case "Sharpen":
                return self.with_object(centre, radius).filter(ImageFilter.GaussianBlur(9 * (1 - progress)))
            case "Right":
                return self.with_object(centre + ((progress - 0.5) * 0.5 * width, 0), 0.6 * radius)
            case "Down":
                return self.with_object(centre + (0, (progress - 0.5) * 0.5 * height), 0.6 * radius)
            case "Clockwise":
                return self.with_object(centre, radius, angle=progress * 0.75 * np.pi, stretch=2.5)
            case "OrbitRight":
                turn = np.array([np.cos(2 * np.pi * progress), np.sin(2 * np.pi * progress)])
                return self.with_object(np.array(self.size) / 2 + 0.25 * min(self.size) * turn, 0.5 * radius)
            case "LampsRight":
                return self.with_lamps(centre, radius, lit=int(4 * progress) % 4)
            case "Disc" | "Square":
                return self.with_shape(centre, 0.8 * radius, action)
        raise ValueError(action)


def render(
    scene: Scene, action: str, frames: int, period: tuple[int, int], rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the frames of one clip, uint8 [H,W,3] each; a cycle takes `period` frames, from any phase."""
    width, height = scene.size
    radius = rng.uniform(0.3, 0.42) * min(scene.size)
    centre = np.array([rng.uniform(0.35, 0.65) * width, rng.uniform(0.35, 0.65) * height])
    drift = rng.uniform(-0.08, 0.08, 2) * min(scene.size) * (action not in STILLS[0])
    begin, end = rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)
    light = rng.uniform(0.8, 1.2)
    cyclic = action in (ORBITS[0][0], LAMPS[0][0])
    phase, turns = (rng.uniform(), frames / rng.uniform(*period)) if cyclic else (0, 0)
    pictures = []
    for time in np.linspace(0, 1, frames):
        progress = phase + turns * time if cyclic else float(np.clip((time - begin) / (end - begin), 0, 1))
        picture = scene.frame(action, progress, centre + drift * (time - 0.5), radius)
        noisy = np.asarray(picture, np.float32) * light + rng.normal(0, 4, (height, width, 1))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


def encode(path: Path, codec: str, options: dict[str, str], frames: list[np.ndarray], gaps: np.ndarray) -> None:
    """Write a video; `gaps` holds the ticks (of 1/RATE s) that each frame is shown."""
    with av.open(path, "w", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels, shown_at in zip(frames, np.cumsum(gaps) - gaps[0], strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(shown_at), Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def pairs_of(args: argparse.Namespace) -> list[tuple[str, str]]:
    return [pair for name in args.pairs for pair in PAIRS[name]]


def make_group(videos: Path, group: int, args: argparse.Namespace) -> list[str]:
    """Write all clips of one group and return their paths relative to `videos`."""
    scene = Scene(group, args.seed)
    names = []
    for pair, labels in enumerate(pairs_of(args)):
        for clip in range(1, args.clips + 1):
            rng = np.random.default_rng([args.seed, group, pair, clip])
            frames = render(scene, labels[0], args.frames, args.period, rng)
            opposite = render(scene, labels[1], args.frames, args.period, rng) if labels in STILLS else frames[::-1]
            suffix, codec, options = CODECS[(group + pair + clip) % len(CODECS)]
            # Every fifth group has a variable frame rate where the container can hold one; AVI cannot.
            uneven = group % 5 == 0 and suffix != "avi"
            gaps = rng.integers(1, 4, args.frames + 1) if uneven else np.ones(args.frames + 1, np.int64)
            for label, ordered in zip(labels, (frames, opposite), strict=True):
                name = f"{label}/v_{label}_g{group:02d}_c{clip:02d}.{suffix}"
                (videos / label).mkdir(parents=True, exist_ok=True)
                # The last frame is written twice, because a file's last frame is never sampled.
                encode(videos / name, codec, options, [*ordered, ordered[-1]], gaps)
                names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets videos/ and splits/")
    parser.add_argument("--pairs", choices=PAIRS, nargs="+", default=["changes"])
    parser.add_argument("--groups", type=int, default=24, help="scenes; a third of them is the test split")
    parser.add_argument("--clips", type=int, default=3, help="clips per class and group")
    parser.add_argument("--frames", type=int, default=24, help="frames per clip")
    parser.add_argument("--period", type=float, nargs=2, default=(12, 20), help="frames per cycle, from and to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    videos, splits = args.folder / "videos", args.folder / "splits"
    jobs = (joblib.delayed(make_group)(videos, group, args) for group in range(1, args.groups + 1))
    made = joblib.Parallel(n_jobs=-1, return_as="generator")(jobs)
    names = [name for group in tqdm(made, "demo data", args.groups, disable=None, unit=" groups") for name in group]

    classes = sorted(label for pair in pairs_of(args) for label in pair)
    splits.mkdir(parents=True, exist_ok=True)
    (splits / "classInd.txt").write_text("".join(f"{n} {label}\n" for n, label in enumerate(classes, 1)))
    for split in (1, 2, 3):
        test = {f"_g{group:02d}_" for group in range(split, args.groups + 1, 3)}
        is_test = [any(group in name for group in test) for name in names]
        train_lines = [
            f"{name} {classes.index(name.split('/')[0]) + 1}\n"
            for name, held in zip(names, is_test, strict=True)
            if not held
        ]
        test_lines = [f"{name}\n" for name, held in zip(names, is_test, strict=True) if held]
        (splits / f"trainlist{split:02d}.txt").write_text("".join(sorted(train_lines)))
        (splits / f"testlist{split:02d}.txt").write_text("".join(sorted(test_lines)))
    print(f"{len(names)} clips of {len(classes)} classes in {args.groups} groups: {videos}, lists in {splits}")


if __name__ == "__main__":
    main()
