"""Files as cameras, broadcasters and encoders write them: open GOPs, field pairs, cover pictures, display matrices."""

import os
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import paff
import pytest

from pipeline.video import pyav_reader, timestamps
from pipeline.video.decode import decode_clip
from pipeline.video.decord_reader import decoder_log, read_decord
from pipeline.video.timestamps import DecodeError, read_table

from conftest import paint, painted_number, remux, write_video

X264 = "keyint=12:min-keyint=12:scenecut=0:"
OPEN = {
    "x265.mp4": ("libx265", {"x265-params": "log-level=none:keyint=25"}),
    "x265.mkv": ("libx265", {"x265-params": "log-level=none:keyint=25"}),
    "x265.ts": ("libx265", {"x265-params": "log-level=none:keyint=25"}),
    "x264.mkv": ("libx264", {"x264opts": X264 + "bframes=1:b-adapt=0:open-gop=1"}),
    "x264.mp4": ("libx264", {"x264opts": X264 + "bframes=3:b-adapt=0:open-gop=1"}),
    "x264.ts": ("libx264", {"x264opts": X264 + "bframes=3:b-adapt=0:open-gop=1"}),
    "x264.h264": ("libx264", {"x264opts": X264 + "bframes=3:b-adapt=0:open-gop=1"}),
    "x264.avi": ("libx264", {"x264opts": X264 + "bframes=3:b-adapt=0:open-gop=1"}),
    "refresh.mp4": ("libx264", {"x264opts": X264 + "bframes=0:intra-refresh=1"}),
    "refresh.ts": ("libx264", {"x264opts": X264 + "bframes=2:intra-refresh=1"}),
    "refresh.h264": ("libx264", {"x264opts": X264 + "bframes=0:intra-refresh=1"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "g": "12"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2", "g": "12"}),
}


def numbers(frames):
    return [painted_number(frame) for frame in frames]


@pytest.mark.parametrize("name", OPEN)
def test_frames_are_right_where_gops_are_open(tmp_path, name):
    codec, options = OPEN[name]
    path = write_video(tmp_path / name, codec, frames=100, options=options)
    for frames, start, end in ((8, None, None), (60, None, None), (4, 1.2, 2.0), (3, 3.0, 3.9)):
        clip = decode_clip(path, frames, start, end)
        assert numbers(clip.frames) == list(clip.indices)
        assert len(clip.indices) == clip.planned and clip.decoder == "pyav"
    with pytest.raises(DecodeError, match="decord is unreliable for this file: "):
        read_decord(path, read_table(path), np.array([50]))


@pytest.mark.parametrize(("frames", "decoder"), [(16, "pyav"), (40, "decord")])
def test_decord_reads_dense_samples_where_gops_are_closed(tmp_path, frames, decoder):
    path = write_video(tmp_path / "closed.mp4", "libx264", frames=100, options={"g": "12"})
    clip = decode_clip(path, frames)
    assert clip.decoder == decoder and numbers(clip.frames) == list(clip.indices)


LONG = {
    "h264.ts": ("libx264", {"g": "25"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "25", "bf": "2", "b": "2M"}),
    "mpeg4.avi": ("mpeg4", {"g": "25", "bf": "2"}),
    "wmv2.wmv": ("wmv2", {"g": "25"}),
    "h264.h264": ("libx264", {"g": "25"}),
    "h264.avi": ("libx264", {"g": "25"}),
    "mpeg4.mp4": ("mpeg4", {"g": "25", "bf": "2"}),
}


@pytest.mark.parametrize("name", LONG)
def test_a_late_segment_is_not_decoded_from_the_start(tmp_path, monkeypatch, name):
    codec, options = LONG[name]
    path = write_video(tmp_path / name, codec, frames=250, options=options, size=(192, 384))
    starts = []
    plain = pyav_reader._Stream.frames_from

    def spied(stream, start, wanted):
        starts.append(start)
        yield from plain(stream, start, wanted)

    monkeypatch.setattr(pyav_reader._Stream, "frames_from", spied)
    clip = decode_clip(path, 4, start=8.2, end=9.0, decoders=("pyav",))
    assert [painted_number(frame[:24, :192]) for frame in clip.frames] == list(clip.indices)
    assert min(starts) >= 150 and len(clip.indices) == 4


def test_the_packets_of_a_file_are_read_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", "libx264")
    reads = []
    plain = timestamps._read_packets
    monkeypatch.setattr(timestamps, "_read_packets", lambda *args: reads.append(1) or plain(*args))
    for start in (0.0, 0.4, 0.8):
        decode_clip(path, 2, start, start + 0.4)
    assert len(reads) == 1
    write_video(path, "libx264", frames=20)
    assert len(decode_clip(path, 40).indices) == 19


def test_a_cover_picture_before_the_film_is_skipped(tmp_path):
    film = write_video(tmp_path / "film.mp4", "libx264")
    path = tmp_path / "cover.mp4"
    with av.open(film) as source, av.open(path, "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
    _put_first(path, b"udta")
    with av.open(path) as container:
        assert container.streams[0].disposition & av.stream.Disposition.attached_pic
    clip = decode_clip(path, 8)
    assert numbers(clip.frames) == list(clip.indices) and clip.planned == 8


def _put_first(path, kind):
    """Move a box of an MP4's moov to its front; nothing else changes its place."""
    content = path.read_bytes()
    at = 0
    while content[at + 4 : at + 8] != b"moov":
        at += struct.unpack_from(">I", content, at)[0]
    end = at + struct.unpack_from(">I", content, at)[0]
    boxes, place = [], at + 8
    while place < end:
        size = struct.unpack_from(">I", content, place)[0]
        boxes.append(content[place : place + size])
        place += size
    boxes.sort(key=lambda box: box[4:8] != kind)
    path.write_bytes(content[: at + 8] + b"".join(boxes) + content[end:])


def test_a_second_video_stream_goes_to_pyav(tmp_path):
    """A proxy of fewer pixels and bits stands first; players show the better stream."""
    proxy = write_video(tmp_path / "proxy.mp4", "libx264", size=(48, 192), options={"crf": "50"}, still=True)
    film = write_video(tmp_path / "film.mp4", "libx264")
    path = tmp_path / "both.mkv"
    with av.open(proxy) as one, av.open(film) as two, av.open(path, "w") as out:
        sources = [(source, out.add_stream_from_template(source.streams.video[0])) for source in (one, two)]
        sources[1][1].disposition = av.stream.Disposition.default
        for source, stream in sources:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    clip = decode_clip(path, 16)
    assert clip.frames.shape[1] == 96 and numbers(clip.frames) == list(clip.indices) and clip.decoder == "pyav"


@pytest.mark.parametrize("per", ["field", "frame"])
def test_two_fields_are_one_frame(tmp_path, per):
    """AVCHD and DVB: two packets per frame, with a time each or one time for both."""
    units = [paff.fields_of(paint(number)[:, :, 0], number) for number in range(38)]
    (tmp_path / "raw.h264").write_bytes(b"".join(top + bottom for top, bottom in units))
    path = tmp_path / "fields.mts"
    with av.open(tmp_path / "raw.h264") as source, av.open(path, "w", format="mpegts") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, (top, bottom) in enumerate(units):
            for half, data in enumerate([top + bottom] if per == "frame" else [top, bottom]):
                packet = av.Packet(data)
                packet.pts = packet.dts = 90000 + number * 3600 + half * 1800
                packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 90000), half == 0, stream
                out.mux(packet)
    clip = decode_clip(path, 60)
    assert clip.planned == len(clip.indices) == 37  # The last frame is never asked for.
    assert numbers(clip.frames) == list(clip.indices) == list(range(37))
    np.testing.assert_allclose(clip.pts, clip.indices / 25, atol=1e-3)
    assert len(decode_clip(path, 4, start=1.0, end=1.4).indices) == 4


ONE = 65536
MATRICES = {
    "mirrored left-right": ([-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30], lambda frame: frame[:, ::-1]),
    "mirrored top-bottom": ([ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30], lambda frame: frame[::-1]),
    "transposed": ([0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30], lambda frame: frame.transpose(1, 0, 2)),
    "anti-transposed": ([0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30], lambda frame: frame[::-1, ::-1].transpose(1, 0, 2)),
    "turned clockwise": ([0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30], lambda frame: np.rot90(frame, -1)),
    "upside down": ([-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30], lambda frame: frame[::-1, ::-1]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_applied(tmp_path, name):
    matrix, shown = MATRICES[name]
    path = write_video(tmp_path / "phone.mp4", "libx264", matrix=matrix)
    clip = decode_clip(path, 16)
    with av.open(path) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        wanted = shown(stored[index])
        assert frame.shape == wanted.shape and np.abs(frame.astype(int) - wanted).mean() < 3


def test_a_still_scene_gives_all_frames(tmp_path):
    path = write_video(tmp_path / "title.mp4", "libx264", still=True)
    clip = decode_clip(path, 16)
    assert len(clip.indices) == clip.planned == 16 and numbers(clip.frames) == [0] * 16


def test_a_frame_that_lasts_long_is_repeated(tmp_path):
    """A screen recording: seconds without a change, then a burst."""
    ticks = [*range(0, 500, 25), *range(500, 540)]
    path = write_video(tmp_path / "screen.mp4", "libx264", frames=60, ticks=ticks)
    clip = decode_clip(path, 43)
    assert numbers(clip.frames) == list(clip.indices) and len(set(clip.indices.tolist())) < 43
    assert (clip.pts < 20).sum() >= 39


def test_lines_of_other_threads_are_passed_on(capfd):
    with decoder_log() as lines:
        writer = threading.Thread(target=os.write, args=(2, b"a line of another thread\n"))
        writer.start()
        writer.join()
        os.write(2, b"[h264 @ 0x55d0c0ffee00] error while decoding MB 1 2\n")
        os.write(2, b"[swscaler @ 0x55d0c0ffee00] deprecated pixel format used\n")
    assert lines == ["[h264 @ 0x55d0c0ffee00] error while decoding MB 1 2"]
    assert capfd.readouterr().err == "a line of another thread\n"


def test_seeking_works_where_times_start_late(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", frames=100, options={"g": "10"})
    late = remux(path, tmp_path / "late.ts", shift=1000)
    clip = decode_clip(late, 4, start=3.0, end=3.5)
    assert numbers(clip.frames) == list(clip.indices)
