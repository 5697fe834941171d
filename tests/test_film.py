"""Films with their answers, and plots."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pysubs2
import pytest
from PIL import Image, ImageColor

from pipeline.config import DecodeConfig
from pipeline.inference.film import Strip, about, write_film
from pipeline.inference.plots import RIGHT, WRONG, SheetClip, contact_sheet
from pipeline.inference.style import COLOURS, colours_of
from pipeline.models.segmenter import Segment

from conftest import kinema, paint, painted_number, write_video

SEGMENTS = [Segment(0.0, 1.0, "Run", 0.9), Segment(1.0, 2.0, "Sit", 0.8)]


def write_sound_film(path, audio_codec, size=(96, 192)):
    """Write painted frames, shown at uneven times, with a tone."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "2"})
        video.height, video.width = size
        video.pix_fmt, ticks = "yuv420p", np.cumsum([1 + n % 3 for n in range(25)])
        sound = container.add_stream(audio_codec, rate=16000)
        sound.layout = "mono"
        for number, tick in enumerate(ticks.tolist()):
            frame = av.VideoFrame.from_ndarray(paint(number, *size), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        tone = np.sin(np.arange(32000) / 20).astype(np.float32)[None]
        tone = tone if audio_codec == "aac" else (tone * 20000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone, format="fltp" if audio_codec == "aac" else "s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def read(path):
    with av.open(path) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    with av.open(path) as container:
        packets = [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]
        stream = container.streams.video[0]
        return frames, packets, (stream.codec_context.name, stream.codec_context.pix_fmt)


@pytest.mark.parametrize(("audio", "suffix"), [("aac", ".mp4"), ("pcm_s16le", ".mkv")])
def test_times_sound_and_picture_are_those_of_the_source(tmp_path, audio, suffix):
    source = write_sound_film(tmp_path / f"source{'.mp4' if audio == 'aac' else '.mov'}", audio)
    seconds, kind = about(source)
    assert kind == suffix and seconds == pytest.approx(2, abs=0.2)
    write_film(source, tmp_path / f"film{kind}", SEGMENTS, seconds)
    before, after = read(source), read(tmp_path / f"film{kind}")
    tolerance = 0 if suffix == ".mp4" else 0.0006  # Matroska counts milliseconds.
    assert [float(t) for t, _ in after[0]] == pytest.approx([float(t) for t, _ in before[0]], abs=tolerance)
    assert [content for _, content in after[1]] == [content for _, content in before[1]]
    assert after[2] == ("h264", "yuv420p")
    for (_, picture), (_, shown) in zip(before[0], after[0], strict=True):
        assert painted_number(shown) == painted_number(picture)
        assert np.abs(shown[:96].astype(int) - picture).mean() < 6


def test_odd_sizes_and_turned_pictures(tmp_path):
    source = write_video(tmp_path / "source.avi", "ffv1", 5, pix_fmt="bgr0", size=(95, 193))
    write_film(source, tmp_path / "film.mp4", SEGMENTS, 0.2)
    shown = read_pictures(tmp_path / "film.mp4")
    assert len(shown) == 5 and shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0
    source = write_video(tmp_path / "turned.mp4", "libx264", 5, rotation=90)
    write_film(source, tmp_path / "film.mp4", SEGMENTS, 0.2)
    assert read_pictures(tmp_path / "film.mp4")[0].shape[1] == 96


def read_pictures(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_strip_shows_the_segment_and_the_cursor():
    strip, colours = Strip(SEGMENTS, 4.0), colours_of(["Run", "Sit"])
    first, second, later = (strip.below(np.zeros((100, 200, 3), np.uint8), t) for t in (0.5, 1.5, 3.0))
    row = -14  # Through the timeline.
    for picture in (first, second):
        assert tuple(picture[row, 10]) == ImageColor.getrgb(colours["Run"])
        assert tuple(picture[row, 60]) == ImageColor.getrgb(colours["Sit"])
    cursors = [np.flatnonzero((picture[row] == 255).all(1)).mean() for picture in (first, second, later)]
    assert cursors == pytest.approx([25, 75, 150], abs=1)
    assert tuple(first[110, 12]) == ImageColor.getrgb(colours["Run"])
    assert tuple(second[110, 12]) == ImageColor.getrgb(colours["Sit"])
    assert (later[110] == later[110, 0]).all()  # No label.


def test_colours():
    names = [f"{n}" for n in range(9)]
    colours = colours_of(["Background", *names])
    assert len({*colours.values()}) == 9 and colours["Background"] not in COLOURS and colours["8"] == colours["0"]


def test_contact_sheet_begins_with_the_least_certain(tmp_path):
    videos = [write_video(tmp_path / label / f"{n}.mp4", "libx264", 5) for n, label in enumerate(["Run", "Sit", "x"])]
    answers = zip(videos, ("Run", "Run", "Sit"), (0.9, 0.4, 0.7), strict=True)
    contact_sheet(tmp_path / "sheet.png", list(itertools.starmap(SheetClip, answers)), ["Run", "Sit"], DecodeConfig())
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    width = sheet.shape[1] // 4
    edges = [tuple(sheet[3, n * width + width // 2]) for n in range(3)]
    assert edges[0] == ImageColor.getrgb(WRONG) and edges[2] == ImageColor.getrgb(RIGHT) and len({*edges}) == 3


def test_the_command_writes_films_and_plots(small_set, trained, tmp_path):
    clips = sorted((small_set / "videos" / "Grow").iterdir())[:2]
    out, _ = kinema("predict", trained, *clips, "--annotate", tmp_path / "films", "--plot", tmp_path)
    assert {path.name for path in (tmp_path / "films").iterdir()} >= {f"{clip.stem}.vtt" for clip in clips}
    [line] = pysubs2.load(tmp_path / "films" / f"{clips[0].stem}.vtt")
    assert line.plaintext.split()[0] == out.split()[0] and line.start == 0 and line.end >= 1900
    assert Image.open(tmp_path / "clips.png").size[0] > 300
    kinema("predict", trained, clips[0], "--segments", "--plot", tmp_path, "--annotate", tmp_path / "one.mp4")
    assert Image.open(tmp_path / f"{clips[0].stem}.png").size[0] > 1000 and (tmp_path / "one.vtt").exists()
    film = tmp_path / "films" / f"{clips[1].stem}.mp4"
    before = film.read_bytes()
    assert "would replace" in kinema("predict", trained, film, "--annotate", tmp_path / "films", code=2)[1]
    assert film.read_bytes() == before
