import re

import av
import decord
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DecodeConfig
from pipeline.video.decode import decode_clip
from pipeline.video.decord_reader import read_decord
from pipeline.video.pyav_reader import read_pyav
from pipeline.video.sampling import sample_indices
from pipeline.video.timestamps import DecodeError, read_table

from conftest import painted_number, remux, write_video

UNEVEN = list(np.cumsum([0] + [1 + n % 3 for n in range(39)]))
VIDEOS = {
    "mpeg4.avi": dict(codec="mpeg4"),
    "mpeg4_b_frames.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "h264.mp4": dict(codec="libx264"),
    "h264_keyframe_a_second.mkv": dict(codec="libx264", options={"g": "25"}),
    "h264_uneven.mp4": dict(codec="libx264", ticks=UNEVEN),
    "h265.mp4": dict(codec="libx265", options={"x265-params": "log-level=none"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp9_uneven.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, ticks=UNEVEN),
    "wmv2.wmv": dict(codec="wmv2"),
    "flv1.flv": dict(codec="flv1"),
    "mpeg2.ts": dict(codec="mpeg2video"),
    "mpeg1.mpg": dict(codec="mpeg1video"),
    "h264.avi": dict(codec="libx264"),
    "h264_without_times.h264": dict(codec="libx264"),
    "mpeg4_b_frames.mp4": dict(codec="mpeg4", options={"bf": "2"}),
    "mpeg4_dropped_frames.avi": dict(codec="mpeg4", ticks=UNEVEN),
    "vp8_hidden_frames.webm": dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "ten_bit.mp4": dict(codec="libx264", pix_fmt="yuv420p10le"),
    "grey.mp4": dict(codec="libx264", pix_fmt="gray"),
    "alpha.mov": dict(codec="qtrle", pix_fmt="argb"),
    "alpha.webm": dict(codec="libvpx-vp9", pix_fmt="yuva420p", options={"deadline": "realtime", "cpu-used": "8"}),
    "interlaced.mp4": dict(codec="libx264", options={"flags": "+ildct+ilme"}),
    "odd_size.mp4": dict(codec="libx264", pix_fmt="yuv444p", size=(97, 193)),
    "an_hour.mp4": dict(codec="libx264", options={"g": "10"}, frames=200, ticks=list(range(0, 90000, 450))),
}
NOT_BY_DECORD = {
    *("mpeg4_b_frames.avi", "mpeg4_b_frames.mp4", "mpeg2.ts", "mpeg1.mpg", "wmv2.wmv"),
    *("h264.avi", "h264_without_times.h264", "h264_uneven.mp4"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / name, **options) for name, options in VIDEOS.items()}


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("frames", [5, 16, 60])
def test_every_sampled_frame_is_right(videos, name, frames):
    table = read_table(videos[name])
    plan = sample_indices(table.times_N - table.times_N[0], frames)
    found, pixels = read_pyav(videos[name], table, plan, 2**25)
    assert numbers(pixels) == list(found) == list(np.unique(plan))
    if name in NOT_BY_DECORD:
        with pytest.raises(DecodeError, match="decord is unreliable for this file: "):
            read_decord(videos[name], table, plan)
    else:
        assert numbers(by_decord(videos[name], table, plan)) == list(plan)
    clip = decode_clip(videos[name], frames)
    assert numbers(clip.frames) == list(clip.indices) == list(plan)
    assert clip.planned == len(plan) and table.present == len(table.times_N)


def numbers(frames):
    return [painted_number(frame) for frame in frames]


def by_decord(path, table, plan):
    """Read with decord, unless it refuses: with AVX-512 it mistakes the padding of some widths for pixels."""
    try:
        return read_decord(path, table, plan)
    except DecodeError as error:
        assert "from_size == to_size" in str(error)
        return read_pyav(path, table, plan, 2**25)[1]


@pytest.mark.parametrize(
    ("name", "shift", "hidden", "options"),
    [
        ("edit_list.mp4", -5, 5, {}),
        ("late.mp4", 7, 0, {}),
        ("late.mkv", 7, 0, {}),
        ("negative.mkv", -5, 0, {"avoid_negative_ts": "disabled"}),
        ("fragmented.mp4", 0, 0, {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_clocks_that_do_not_start_at_zero(videos, tmp_path, name, shift, hidden, options):
    path = remux(videos["h264.mp4"], tmp_path / name, shift, options)
    clip = decode_clip(path, 16)
    assert numbers(clip.frames) == [index + hidden for index in clip.indices]
    assert clip.planned == len(clip.indices) == 16
    np.testing.assert_allclose(clip.pts, clip.indices / 25, atol=1e-3)
    table = read_table(path)
    assert numbers(read_pyav(path, table, clip.indices, 2**25)[1]) == numbers(clip.frames)


def test_a_size_that_changes_within_the_stream(tmp_path):
    small = write_video(tmp_path / "a.h264", "libx264", frames=20)
    large = write_video(tmp_path / "b.h264", "libx264", frames=20, size=(192, 384))
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    clip = decode_clip(tmp_path / "both.h264", 8)
    assert clip.frames.shape[1:3] == (96, 192) and clip.planned == len(clip.indices) == 8
    assert numbers(clip.frames[:4]) == list(clip.indices[:4])


def test_pts_are_seconds_from_the_first_frame(videos):
    clip = decode_clip(videos["h264_uneven.mp4"], 8)
    np.testing.assert_allclose(clip.pts, np.array(UNEVEN)[clip.indices] / 25, atol=1e-3)
    assert clip.pts.dtype == np.float32 and clip.frames.dtype == np.uint8


def test_a_segment_is_cut_by_time(videos):
    clip = decode_clip(videos["h264_uneven.mp4"], 4, start=1.0, end=2.0)
    assert ((clip.pts >= 1.0) & (clip.pts < 2.0)).all() and len(clip.pts) == 4
    with pytest.raises(DecodeError, match="no frame from 100 s to 101 s"):
        decode_clip(videos["h264.mp4"], 4, start=100.0, end=101.0)


def test_bad_files_give_their_reason(tmp_path):
    def reason(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError) as caught:
            decode_clip(tmp_path / name, 8)
        return str(caught.value)

    assert reason("empty.avi", b"") == "empty file"
    assert "Invalid data" in reason("text.avi", b"This is not a video.\n" * 100)
    assert reason("one.mp4", write_video(tmp_path / "1.mp4", "libx264", frames=1).read_bytes()) == "only one frame"
    whole = write_video(tmp_path / "whole.mp4", "libx264", frames=40).read_bytes()
    assert "Invalid data" in reason("truncated.mp4", whole[: len(whole) // 2])
    for path, reason in (("missing.mp4", "No such file"), (".", "not a regular file")):
        with pytest.raises(DecodeError, match=reason):
            decode_clip(tmp_path / path, 8)


def test_a_cut_off_file_is_partial(tmp_path):
    """The plan is that of the whole clip; what is left of it is read, and the rest is missing, not replaced."""
    whole = write_video(tmp_path / "whole.avi", "mpeg4")
    planned = decode_clip(whole, 16).indices
    content = whole.read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(content[: int(len(content) * 0.85)])
    clip = decode_clip(path, 16)
    assert clip.planned == 16 and 8 <= len(clip.indices) < 16 and clip.decoder == "pyav"
    assert numbers(clip.frames) == list(clip.indices) == list(planned[: len(clip.indices)])
    with pytest.raises(DecodeError, match="damaged: .* of 16 planned frames can be read"):
        decode_clip(path, 16, config=DecodeConfig(min_readable=1))


def test_damage_is_noticed_in_one_file_after_another(tmp_path):
    """PyAV does not log a line again that is the same as the last."""
    content = write_video(tmp_path / "whole.webm", "libvpx-vp9", options={"deadline": "realtime"}).read_bytes()
    for name in ("a.webm", "b.webm"):
        (tmp_path / name).write_bytes(content[: int(len(content) * 0.8)])
        table = read_table(tmp_path / name)
        assert table.packets[-1].corrupt
        assert len(table.packets) - 1 not in decode_clip(tmp_path / name, 40).indices


def test_damage_is_left_out_up_to_the_next_keyframe(tmp_path):
    path = write_video(tmp_path / "a.avi", "mpeg4", options={"g": "10"})
    content = bytearray(path.read_bytes())
    chunks = [at for at in range(len(content)) if content[at : at + 4] == b"00dc"][:40]  # As many follow in the index.
    content[chunks[14] + 8 : chunks[15]] = bytes(chunks[15] - chunks[14] - 8)
    path.write_bytes(content)
    clip = decode_clip(path, 39)
    assert numbers(clip.frames) == list(clip.indices)
    assert {*range(13), *range(20, 39)} <= {*clip.indices} <= {*range(14), *range(20, 39)}
    assert clip.planned == 39


def test_damage_to_the_first_frame_is_over_at_the_next_keyframe(tmp_path):
    """FFmpeg either fails at it or shows it, marked as corrupt."""
    path = write_video(tmp_path / "a.mp4", "libx264", options={"g": "8"})
    content = path.read_bytes()
    with av.open(path) as container:
        first = next(container.demux(video=0))
    for place in range(first.pos + 5, first.pos + first.size, 7):
        path.write_bytes(content[:place] + bytes(4) + content[place + 4 :])
        clip = decode_clip(path, 39, config=DecodeConfig(min_readable=0))
        assert {*range(8, 39)} <= {*clip.indices} and numbers(clip.frames) == list(clip.indices)


HOLES = {
    "h264.ts": ("libx264", {}),
    "mpeg2.ts": ("mpeg2video", {}),
    "h264.mkv": ("libx264", {}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b_frames.avi": ("mpeg4", {"bf": "2"}),
}


@pytest.mark.parametrize("where", [0.2, 0.3, 0.45, 0.6, 0.8])
@pytest.mark.parametrize("name", HOLES)
def test_a_hole_gives_no_frame_that_refers_to_a_lost_one(tmp_path, name, where):
    """A twentieth of the file is cut out or zeroed; of an AVI whole packets are zeroed, to keep the index right."""
    codec, options = HOLES[name]
    path = write_video(tmp_path / name, codec, frames=120, options={"g": "60"} | options)
    content = path.read_bytes()
    start, length = int(len(content) * where), len(content) // 20
    fillings = [b"", bytes(length)]
    if name.endswith(".avi"):
        start = content.index(b"00dc", start)
        length = content.index(b"00dc", start + length) - start
        fillings = [bytes(length)]
    for filling in fillings:
        path.write_bytes(content[:start] + filling + content[start + length :])
        try:
            clip = decode_clip(path, 30, config=DecodeConfig(min_readable=0))
        except DecodeError:
            continue
        assert numbers(clip.frames) == [round(seconds * 25) for seconds in clip.pts.tolist()]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["mpeg4.avi", "h264.mp4", "h264_keyframe_a_second.mkv", "mjpeg.avi"]), data=st.data())
def test_damage_never_makes_decord_give_another_frame(videos, tmp_path_factory, name, data):
    """Zeros anywhere in the file: every frame that decord still gives is the one that PyAV shows at its time, unless
    FFmpeg drops one without a message. `scripts/torture.py` compares PyAV's frames with a strict decoder's."""
    content = bytearray(videos[name].read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 2000))
    content[start : start + length] = bytes(len(content[start : start + length]))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    try:
        clip = decode_clip(path, 16, decoders=("decord",))
    except DecodeError:
        return
    table = read_table(path)
    found, shown = read_pyav(path, table, np.arange(table.present), 2**25)
    if len(found) == table.present:
        assert np.array_equal(clip.frames, shown[clip.indices])


def test_a_frame_that_decord_warns_about_is_rejected(videos, tmp_path):
    """Single bits are flipped in the middle of a file, each in a frame of its own. Decord does not notice frames that
    FFmpeg drops without a message, for a bit in their header."""
    content = videos["h264.mp4"].read_bytes()
    path = tmp_path / "turned.mp4"
    warnings = 0
    for place in range(len(content) // 4, len(content) // 2, 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        try:
            clip = decode_clip(path, 40, decoders=("decord",))
        except DecodeError as error:
            warnings += "decoder warning" in str(error)
        else:
            found, _ = read_pyav(path, read_table(path), clip.indices, 2**25)
            assert numbers(clip.frames) == list(clip.indices) or len(found) < len(clip.indices)
    assert warnings


class WithAnotherClock(decord.VideoReader):
    def get_frame_timestamp(self, indices):
        times_N2 = super().get_frame_timestamp(indices)
        times_N2[-1] += 0.04
        return times_N2


class GivesTheFirstTwice(decord.VideoReader):
    def get_batch(self, indices):
        return super().get_batch([indices[0], indices[0], *indices[2:]])


@pytest.mark.parametrize(
    ("reader", "reason"),
    [(WithAnotherClock, "time table differs"), (GivesTheFirstTwice, "frames are equal")],
)
def test_decord_is_rejected_where_it_contradicts_the_packets(videos, monkeypatch, reader, reason):
    plain = decode_clip(videos["h264.mp4"], 16)
    assert plain.decoder == "decord"
    monkeypatch.setattr(decord, "VideoReader", reader)
    with pytest.raises(DecodeError, match=reason):
        decode_clip(videos["h264.mp4"], 16, decoders=("decord",))
    instead = decode_clip(videos["h264.mp4"], 16)
    assert instead.decoder == "pyav" and numbers(instead.frames) == numbers(plain.frames)


def test_limits(videos):
    with pytest.raises(DecodeError, match=r"frame size 192x96 exceeds decode\.max_pixels"):
        decode_clip(videos["h264.mp4"], 4, config=DecodeConfig(max_pixels=10_000))
    with pytest.raises(DecodeError, match=r"duration 3582 s exceeds decode\.max_duration"):
        decode_clip(videos["an_hour.mp4"], 4, config=DecodeConfig(max_duration=600))


def test_files_that_name_other_files_are_not_opened(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = videos["mpeg2.ts"]
    (tmp_path / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")
    (tmp_path / "script.avi").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    for name in ("playlist.mp4", "script.avi"):
        with pytest.raises(DecodeError, match="not a video container|Invalid data"):
            decode_clip(tmp_path / name, 4)
    for name in (f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", "http://localhost/a.mp4"):
        with pytest.raises(DecodeError, match="No such file"):
            decode_clip(type(tmp_path)(name), 4)


@pytest.mark.parametrize("start", [52_396, 52_460, 100_000, 150_001])
def test_a_hole_among_packed_b_frames_gives_no_shifted_frame(real_clips, tmp_path, start):
    whole = real_clips / "ucf101_strays" / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi"
    content = whole.read_bytes()
    path = tmp_path / "hole.avi"
    path.write_bytes(content[:start] + content[start + 64 :])
    clip = decode_clip(path, 30, config=DecodeConfig(min_readable=0))
    with av.open(whole) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert all(np.array_equal(frame, shown[index]) for frame, index in zip(clip.frames, clip.indices, strict=True))


@pytest.mark.parametrize("frames", [16, 64])
def test_real_clips_give_the_frames_of_a_plain_decode(real_clips, frames):
    paths = [path for name in ("ucf101_strays", "hmdb51_strays") for path in (real_clips / name).rglob("*.avi")]
    assert len(paths) >= 18
    for path in paths:
        clip = decode_clip(path, frames)
        assert len(clip.frames) == frames
        with av.open(path) as container:
            wanted = (frame for number, frame in enumerate(container.decode(video=0)) if number in clip.indices)
            for frame, own in zip(wanted, clip.frames, strict=True):
                assert np.array_equal(own, frame.to_ndarray(format="rgb24")), (path, clip.decoder)


def test_a_spliced_stream_gives_no_shifted_frame(tmp_path):
    """The second part has no B-frames, so its frames come without the delay of the first."""
    parts = [write_video(tmp_path / f"{b}.avi", "mpeg4", options={"bf": b, "g": "10"}).read_bytes() for b in "20"]
    one, two = ([match.start() for match in re.finditer(b"00dc", part[: part.index(b"idx1")])] for part in parts)
    path = tmp_path / "spliced.avi"
    path.write_bytes(parts[0][: one[20]] + parts[1][two[0] :])
    clip = decode_clip(path, 50, config=DecodeConfig(min_readable=0))
    assert len(clip.indices) >= 15
    for index, frame in zip(clip.indices.tolist(), clip.frames, strict=True):
        assert painted_number(frame) == (index if index < 20 else index - 20)
