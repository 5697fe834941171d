"""Write field-coded H.264 (PAFF), which FFmpeg does not encode: each frame is two field pictures of raw samples."""

import numpy as np

WIDTH, HEIGHT = 192, 96


class _Bits:
    def __init__(self, *codes: tuple[int, int | None]) -> None:
        self.bits: list[int] = []
        self.put(*codes)

    def put(self, *codes: tuple[int, int | None]) -> "_Bits":
        """Append numbers of a given number of bits, or as Exp-Golomb codes where that is None."""
        for value, count in codes:
            length = count or 2 * (value + 1).bit_length() - 1
            self.bits += [(value + (count is None)) >> i & 1 for i in range(length - 1, -1, -1)]
        return self

    def bytes(self, stop: bool = True) -> bytes:
        return np.packbits(self.bits + [1] * stop).tobytes()


def _nal(reference: int, kind: int, payload: bytes) -> bytes:
    escaped, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([reference << 5 | kind]) + bytes(escaped)


def _parameters() -> bytes:
    """SPS (Main, level 3, not frame_mbs_only, 25 frames/s) and PPS."""
    sizes = [(WIDTH // 16 - 1, None), (HEIGHT // 32 - 1, None)]
    sps = [(77, 8), (0, 8), (30, 8), *[(0, None)] * 3, (4, None), (1, None), (0, 1), *sizes]
    sps += [(0, 1), (0, 1), (1, 1), (0, 1), (1, 1), (0, 4), (1, 1), (1, 32), (50, 32), (1, 1), (0, 4)]
    pps = [(0, None), (0, None), (0, 2), *[(0, None)] * 3, (0, 1), (0, 2), *[(0, None)] * 3, (1, 1), (0, 2)]
    return _nal(3, 7, _Bits(*sps).bytes()) + _nal(3, 8, _Bits(*pps).bytes())


def _field(luma: np.ndarray, bottom: bool, idr_id: int) -> bytes:
    header = [(0, None), (7, None), (0, None), (0, 4), (1, 1), (int(bottom), 1)]
    header += [(int(bottom), 8), (0, 1)] if bottom else [(idr_id, None), (0, 8), (0, 2)]
    bits, data = _Bits(*header, (0, None), (1, None)), b""
    for y in range(0, luma.shape[0], 16):
        for x in range(0, luma.shape[1], 16):
            data += bits.put((25, None)).bytes(stop=False)  # I_PCM
            data += luma[y : y + 16, x : x + 16].tobytes() + bytes([128]) * 128
            bits = _Bits()
    return _nal(3, 1 if bottom else 5, data + b"\x80")


def fields_of(luma: np.ndarray, number: int) -> tuple[bytes, bytes]:
    """Encode the two fields of a picture, uint8 [96,192]."""
    delimiter = _nal(0, 9, b"\x10")
    top = delimiter + _parameters() + _field(luma[0::2], False, number % 2)
    return top, delimiter + _field(luma[1::2], True, 0)
