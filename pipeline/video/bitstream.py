"""Picture types from packet headers: IDR pictures, and pictures that no other picture refers to."""

import re
from collections.abc import Iterator

import av

IDR = {"h264": (5,), "hevc": (19, 20)}  # NAL unit types (ITU-T H.264, table 7-1; H.265, table 7-1).
PICTURE_HEADERS = {  # Patterns of B-frames, and of all frames (ISO/IEC 14496-2, 6.2.5; ITU-T H.262, 6.2.3).
    "mpeg4": (rb"\x00\x00\x01\xb6[\x80-\xbf]", rb"\x00\x00\x01\xb6."),
    "mpeg2video": (rb"\x00\x00\x01\x00.[\x18-\x1f\x58-\x5f\x98-\x9f\xd8-\xdf]", rb"\x00\x00\x01\x00."),
}


def is_idr(codec: str, extradata: bytes | None, packet: av.Packet) -> bool:
    """Whether no picture after a keyframe packet refers to one before it; True in codecs other than H.264 and HEVC.

    Containers mark open GOPs and intra-refresh points as keyframes too.
    """
    if codec not in IDR:
        return True
    shift, mask = (0, 31) if codec == "h264" else (1, 63)
    return any(header >> shift & mask in IDR[codec] for header in _nal_headers(codec, extradata, bytes(packet)))


def is_disposable(codec: str, extradata: bytes | None, packet: av.Packet) -> bool:
    """Whether no picture refers to those of a packet, so decoding can skip it; False where that is unknown."""
    data = bytes(packet)
    if codec == "h264":
        slices = [header for header in _nal_headers(codec, extradata, data) if 1 <= header & 31 <= 5]
        return bool(slices) and not any(header >> 5 for header in slices)
    if codec not in PICTURE_HEADERS:
        return False
    disposable, every = (re.findall(pattern, data, re.DOTALL) for pattern in PICTURE_HEADERS[codec])
    return len(disposable) == len(every) > 0


def _nal_headers(codec: str, extradata: bytes | None, data: bytes) -> Iterator[int]:
    """Yield the first byte of each NAL unit, after a start code (Annex B) or a length (MP4, Matroska)."""
    if not extradata or extradata[0] != 1:
        yield from (match[1][0] for match in re.finditer(rb"\x00\x00\x01(.)", data, re.DOTALL))
        return
    width = (extradata[4 if codec == "h264" else 21] & 3) + 1
    at = 0
    while at + width < len(data):
        yield data[at + width]
        at += width + int.from_bytes(data[at : at + width])
