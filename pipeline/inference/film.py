"""A video with its answers: the picture as it is, and below it a strip with the label and a timeline."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw

from pipeline.base.errors import KinemaError, first_line, printable
from pipeline.base.files import atomic_write
from pipeline.inference.style import DARK, colours_of, font
from pipeline.models.segmenter import Segment
from pipeline.video.pyav_reader import Converter
from pipeline.video.timestamps import DecodeError, open_video

OF_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "flac", "opus")
"""Audio codecs that an MP4 can hold; with others, the film is a Matroska file."""
TAGS = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}
"""BT.709 in the limited range, as FFmpeg numbers them."""


class About(NamedTuple):
    seconds: float
    suffix: str  # Of a container that can hold the film.


def about(video: Path) -> About:
    """Return what a film of a video needs; raises a KinemaError if it cannot be opened."""
    try:
        with open_video(video) as (container, _):
            fits = all(audio.codec_context.name in OF_MP4 for audio in _audio(container))
            return About((container.duration or 0) / av.time_base, ".mp4" if fits else ".mkv")
    except DecodeError as error:
        raise KinemaError(f"{printable(video)}: {error}") from None


def write_film(video: Path, out: Path, segments: list[Segment], seconds: float) -> None:
    """Write H.264 with the times of the frames of `video`, and its audio packets as they are."""
    try:
        with open_video(video) as (source, stream), atomic_write(out) as temporary:
            kind = "matroska" if out.suffix.lower() == ".mkv" else "mp4"
            # The ticks of the source, so that no time is rounded.
            options = {"video_track_timescale": str(stream.time_base.denominator)} if kind == "mp4" else {}
            with av.open(temporary, "w", format=kind, options=options) as target:
                _transcode(source, stream, target, Strip(segments, seconds))
    except (DecodeError, av.FFmpegError) as error:
        raise KinemaError(f"{printable(out)}: cannot be written: {first_line(error)}") from None


def _audio(container: av.container.InputContainer) -> list[av.AudioStream]:
    return [stream for stream in container.streams.audio if stream.codec_context]


def _transcode(
    source: av.container.InputContainer,
    stream: av.VideoStream,
    target: av.container.OutputContainer,
    strip: "Strip",
) -> None:
    rate, convert, begin = stream.average_rate or Fraction(25), Converter(), None
    encoder = target.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
    copies = {audio.index: target.add_stream_from_template(audio) for audio in _audio(source)}
    sound: list[av.Packet] = []  # Waits for the first picture, whose size the header of the file needs.
    stream.thread_type = "AUTO"
    for packet in source.demux([stream, *_audio(source)]):
        if packet.stream.index in copies:
            if packet.size and packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                sound.append(packet)
        else:
            for frame in _decode(packet):
                begin = frame.time if begin is None else begin
                picture = strip.below(convert(frame), frame.time - begin)
                if not encoder.is_open:
                    _configure(encoder, picture, frame.time_base)
                shown = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                shown.pts, shown.time_base = frame.pts, frame.time_base
                target.mux(encoder.encode(shown))
        if encoder.is_open:
            target.mux(sound)
            sound = []
    target.mux(encoder.encode())


def _decode(packet: av.Packet) -> list[av.VideoFrame]:
    """Return the frames of a packet that have a time; of a damaged one none, as players do."""
    try:
        return [frame for frame in packet.decode() if frame.pts is not None]
    except av.FFmpegError:
        return []


def _configure(encoder: av.VideoStream, picture: np.ndarray, time_base: Fraction) -> None:
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuv420p", time_base
    encoder.codec_context.time_base = time_base
    for name, value in TAGS.items():
        setattr(encoder.codec_context, name, value)


class Strip:
    """Draws the strip: the label of this moment, its probability, and below them all segments and a cursor."""

    def __init__(self, segments: list[Segment], seconds: float):
        self.segments, self.duration = segments, max([seconds, 1e-3, *(segment.end for segment in segments)])
        self.colours = colours_of([segment.label for segment in segments])
        self.drawn: dict[int, np.ndarray] = {}  # Without the cursor, by the number of the segment; -1: none.

    def below(self, picture: np.ndarray, seconds: float) -> np.ndarray:
        """Return a picture of even height and width, the given one at the top."""
        height, width = picture.shape[:2]
        bar = max(height // 16, 14)
        canvas = np.zeros((height + height % 2 + 4 * bar - 4 * bar % 2, width + width % 2, 3), np.uint8)
        canvas[:height, :width] = picture
        now = next((n for n, s in enumerate(self.segments) if s.start <= seconds < s.end), -1)
        if now not in self.drawn:
            self.drawn[now] = self._draw(now, canvas.shape[1], 4 * bar - 4 * bar % 2, bar)
        canvas[-len(self.drawn[now]) :] = self.drawn[now]
        at = min(int(seconds / self.duration * canvas.shape[1]), canvas.shape[1] - 1)
        canvas[-2 * bar :, max(at - 1, 0) : at + 2] = 255
        return canvas

    def _draw(self, now: int, width: int, height: int, bar: int) -> np.ndarray:
        strip = Image.new("RGB", (width, height), DARK)
        draw = ImageDraw.Draw(strip)
        for segment in self.segments:
            left, right = (edge / self.duration * width for edge in segment[:2])
            draw.rectangle((left, height - 1.5 * bar, right - 1, height - bar / 2), fill=self.colours[segment.label])
        if now >= 0:
            segment, gap = self.segments[now], bar // 2
            draw.rectangle((gap, gap, gap + bar, gap + bar), fill=self.colours[segment.label])
            text, size = f"{printable(segment.label)}  {segment.probability:.0%}", bar * 1.2
            while draw.textlength(text, font(size)) > width - 3 * gap - bar and size > 6:
                size *= 0.9
            draw.text((2 * gap + bar, gap + bar / 2), text, "white", font(size), anchor="lm")
        return np.asarray(strip)
