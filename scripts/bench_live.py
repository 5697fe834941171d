"""Answer a live stream for some minutes: the age of the answers, dropped frames, memory, and what a lost source does.

    python scripts/bench_live.py --run data/runs/demo --video data/segments/60.mp4 --minutes 10

Another process sends the video in a loop as MPEG-TS over TCP on this machine. Halfway it is killed, and started again
ten seconds later.
"""

import argparse
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import psutil


def send(video: str, address: str) -> None:
    """Send a video in a loop, at its own speed, to the first that connects."""
    with av.open(f"{address}?listen=1", "w", format="mpegts") as target:
        stream, number, began = None, 0, 0.0
        while True:
            with av.open(video) as source:
                rate = source.streams.video[0].average_rate
                for frame in source.decode(video=0):
                    if not stream:
                        options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(round(rate))}
                        stream = target.add_stream("libx264", rate=rate, options=options)
                        stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, "yuv420p"
                    frame.pts, frame.time_base, number = number, Fraction(1) / rate, number + 1
                    frame.pict_type = 0
                    target.mux(stream.encode(frame))
                    began = began or time.monotonic()  # The first packet waits for the connection.
                    time.sleep(max(began + number / rate - time.monotonic(), 0))


def start(video: Path, address: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--video", str(video), "--send", address]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("data/runs/demo"))
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--send", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        return send(str(args.video), args.send)
    from pipeline.inference.predictor import Predictor  # Takes seconds, which the sender does not need.

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    predictor, senders = Predictor(args.run), [start(args.video, address)]
    began, seconds, ages, memory, killed, back = time.monotonic(), 60 * args.minutes, [], [], None, None
    me, dropped = psutil.Process(), 0
    for answer in predictor.stream(address, print):
        now = time.monotonic() - began
        ages.append(answer.age)
        memory.append((now, me.memory_info().rss / 2**20))
        dropped = answer.dropped
        if killed is None and now > seconds / 2:
            senders[-1].kill()
            killed = now
            threading.Timer(10, lambda: senders.append(start(args.video, address))).start()
        elif killed and back is None and answer.segment.start > killed + 10:
            back = now - killed
        if now > seconds:
            break
    senders[-1].kill()
    early = max(size for at, size in memory if at <= max(seconds / 10, memory[0][0]))
    limit = 2 * predictor.window.seconds + 1
    print(
        f"{args.minutes:g} minutes, {len(ages)} answers; age: mean {sum(ages) / len(ages):.2f} s, "
        f"most {max(ages):.2f} s (limit {limit:.2f} s); {dropped} frames dropped"
    )
    print(f"memory: {early:.0f} MB in the first tenth, {max(size for _, size in memory):.0f} MB at most")
    print(f"source lost for 10 s: answers of new segments {back and round(back, 1)} s after it was killed")


if __name__ == "__main__":
    main()
