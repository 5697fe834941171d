"""Extract damaged and healthy files together while processes are killed, and check every entry of the store.

    python scripts/torture.py --seed 0 --files 2000

Damages generated clips, and real ones in the folder that KINEMA_TEST_CLIPS names, if any. Checks that every healthy
clip has the same features as in an undisturbed run; that every damaged one has the features of the frames that a strict
decode of its file gives (of fewer than planned, if it is partial), or is recorded as failed; and that no process or
temporary file is left. Exits with 1 if a check fails.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil
import torch
from av.bitstream import BitStreamFilterContext

from pipeline.config import BackboneConfig
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures, read_entry
from pipeline.video.pyav_reader import Converter
from pipeline.video.timestamps import VideoTable, is_disposable, open_video, read_table

FRAMES = 8
DEADLINE = 8
TOKEN = "KINEMA_TORTURE"  # An environment variable by which all processes of a run are found.
OUTCOMES = ("as strictly decoded", "partial", "recorded as failed", "not a readable file", "WRONG", "lost")


def generate(folder: Path) -> list[Path]:
    """Make healthy clips: MPEG-4 AVI, H.264 MP4, VP9 WebM."""
    script = Path(__file__).with_name("make_demo_data.py")
    subprocess.run([sys.executable, script, folder, "--groups", "6", "--clips", "1"], check=True, capture_output=True)
    return sorted((folder / "videos").rglob("*.*"))


def real_clips() -> list[Path]:
    """Find real clips, at most forty of each kind."""
    root = os.environ.get("KINEMA_TEST_CLIPS")
    found = sorted(Path(root).rglob("v_*.*")) if root else []
    return [path for suffix in (".avi", ".mp4") for path in [p for p in found if p.suffix == suffix][:40]]


def damage(rng: random.Random, sources: list[Path], folder: Path, number: int) -> str:
    """Make one damaged file and return the kind of damage."""
    source = rng.choice(sources)
    other = rng.choice(sources).read_bytes()
    content = bytearray(source.read_bytes())
    kinds = ["cut off", "bits flipped", "zero block", "hole", "spliced", "header of another"]
    kind = rng.choice([*kinds, *kinds, "wrong extension", "text", "empty"])
    special = {3: "pipe", 13: "folder", 23: "dangling link", 33: "no permission", 203: "pipe"}
    kind = special.get(number, kind)
    path = folder / f"d{number:05d}{source.suffix}"
    if kind == "pipe":
        os.mkfifo(path)
        return kind
    if kind == "folder":
        path.mkdir()
        return kind
    if kind == "dangling link":
        path.symlink_to(folder / "nowhere")
        return kind
    if kind == "cut off":
        content = content[: rng.randrange(1, len(content))]
    elif kind == "bits flipped":
        for _ in range(rng.choice((1, 3, 10, 50))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "zero block":
        start, length = rng.randrange(len(content)), rng.choice((64, 512, 4096))
        content[start : start + length] = bytes(len(content[start : start + length]))
    elif kind == "hole":
        start = rng.randrange(len(content))
        del content[start : start + rng.choice((64, 512, 4096))]
    elif kind == "spliced":
        at = rng.randrange(min(len(content), len(other)))
        content[at:] = other[at:]
    elif kind == "header of another":
        length = rng.choice((16, 256, 4096))
        content[:length] = other[:length]
    elif kind == "wrong extension":
        path = path.with_suffix(rng.choice((".mp4", ".avi", ".webm", ".ts", ".wmv")))
    elif kind == "text":
        content = bytearray(b"This is not a video.\n" * rng.randrange(1, 500))
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(content)
    if kind == "no permission":
        path.chmod(0)
    return kind


def start_extraction(videos: Path, store: Path, token: str, *more: str) -> subprocess.Popen:
    """Start `kinema extract` in a process group of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "extract", "--data.root", videos]
    command += ["--store", store, "--sampling.frames", FRAMES, "--decode.timeout", DEADLINE, *more]
    environment = {**os.environ, TOKEN: token}
    return subprocess.Popen(
        list(map(str, command)),
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for an extraction to succeed, and return its summary line."""
    printed, _ = process.communicate()
    if process.returncode:
        sys.exit(f"extraction ended with {process.returncode}:\n{printed}")
    return [line for line in printed.splitlines() if line.startswith("extract: ") and " done" in line][-1]


def kill_all(process: subprocess.Popen) -> None:
    """Kill the whole process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def processes_of(token: str) -> list[psutil.Process]:
    """Find all processes of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def entries_of(store: Path) -> dict[str, ClipFeatures]:
    """Read all entries by key."""
    return {path.stem: read_entry(path) for path in store.glob("*/??/*.safetensors")}


def key_of(path: Path) -> str | None:
    """Return the key of a file in the store, None if it cannot be read."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return None


def same(one: ClipFeatures, other: ClipFeatures) -> bool:
    """Whether two entries hold the same numbers, bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


class WorkerKiller(threading.Thread):
    """Kill a worker of a run every now and then."""

    def __init__(self, token: str, rng: random.Random):
        super().__init__(daemon=True)
        self.token, self.rng, self.killed = token, rng, 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(self.rng.uniform(0.2, 1.5)):
            # A worker is a child of the fork server, which is a child of the command.
            everyone = processes_of(self.token)
            numbers = {process.pid: process.ppid() for process in everyone if process.is_running()}
            workers = [pid for pid, parent in numbers.items() if numbers.get(parent) in numbers]
            if workers:
                os.kill(self.rng.choice(workers), signal.SIGKILL)
                self.killed += 1


def strictly_decoded(path: Path, indices: np.ndarray) -> list[dict[int, np.ndarray]]:
    """Decode a whole file from the start, strictly: the slow and plain way.

    Returns:
        uint8 [H,W,3] by index, without what comes after damage and before the next keyframe; once with every frame
        decoded, once without unwanted frames that no other refers to.
    """
    table = read_table(path)
    ways = []
    for asked in (None, set(indices.tolist())):
        convert, frames = Converter(), _strictly_decoded(path, table, asked)
        ways.append({index: convert(frames[index]) for index in indices.tolist() if index in frames})
    return ways


def _strictly_decoded(path: Path, table: VideoTable, asked: set[int] | None) -> dict[int, av.VideoFrame]:
    """Decode from the start to the end, without frames that are not in `asked` and that no other refers to."""
    index_of = {row: index for index, row in enumerate(table.rows_N[: table.present].tolist())}
    ranks = {row: rank for rank, row in enumerate(table.rows_N.tolist())} | {len(table.packets): len(table.rows_N)}
    shown: dict[int, av.VideoFrame] = {}
    damaged, keys = -1, [0]
    with open_video(path) as (container, stream), contextlib.suppress(av.FFmpegError):
        codec = stream.codec_context
        codec.options, codec.thread_count = {"err_detect": "explode"}, 1
        unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream) if table.packed and asked else None
        packets = (packet for packet in container.demux(stream) if packet.size or packet.dts is None)
        for row, packet in enumerate(packets):
            known = table.packets[row] if row < len(table.packets) else None
            if known and known.key:
                keys.append(row)
                if damaged >= 0:
                    codec.flush_buffers()
            if unpack and known:
                packet = unpack.filter(packet)[0]
            packet.pts = row
            own = ranks.get(row, -1) - codec.reorder_depth if table.counted else index_of.get(row, -1)
            skips = asked is not None and own not in asked and not (table.counted and table.codec == "h264")
            if skips and is_disposable(table.codec, codec.extradata, packet):
                continue
            try:
                frames = codec.decode(packet)
                bad = any(frame.is_corrupt for frame in frames)
            except av.FFmpegError:
                frames, bad = [], True
            if bad or (known and known.corrupt):
                damaged = row
            for late, frame in enumerate(frames):
                if frame.key_frame and damaged < (keys[-1] if table.counted else frame.pts):
                    damaged = -1
                index = own + late if table.counted else index_of.get(frame.pts, -1)
                if damaged < 0 and 0 <= index < table.present:
                    shown[index] = frame
    return shown


def agrees(path: Path, entry: ClipFeatures, backbone: Backbone) -> bool:
    """Whether an entry's features are those of the strictly decoded frames."""
    for frames in strictly_decoded(path, entry.indices):
        if all(index in frames for index in entry.indices.tolist()):
            pixels = np.stack([frames[index] for index in entry.indices.tolist()])
            frames_T3HW = backbone.transform(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            if np.array_equal(backbone(frames_T3HW.numpy()), entry.features):
                return True
    return False


def make_files(rng: random.Random, root: Path, number: int) -> dict[Path, str]:
    """Make healthy/ and all/, which has the same clips and damaged ones; return the kinds of damage."""
    sources = generate(root / "sources") + real_clips()
    for folder in ("healthy/Healthy", "all/Healthy", "all/Damaged"):
        (root / folder).mkdir(parents=True)
    for n in range(max(12, number // 10)):
        source = rng.choice(sources)
        for folder in ("healthy/Healthy", "all/Healthy"):
            (root / folder / f"h{n:05d}{source.suffix}").symlink_to(source)
    kinds = {}
    for n in range(number):
        kind = damage(rng, sources, root / "all/Damaged", n)
        [path] = (root / "all/Damaged").glob(f"d{n:05d}.*")
        kinds[path] = kind
    return kinds


def disturb(rng: random.Random, root: Path, token: str, kills: int, files: int) -> None:
    """Extract all/ while single workers and whole runs are killed."""
    killer = WorkerKiller(token, rng)
    killer.start()
    for number in range(kills):
        process = start_extraction(root / "all", root / "store", token)
        time.sleep(rng.uniform(4, 8 + files / 100))
        if process.poll() is None:
            print(f"killed whole, time {number + 1}: {len(entries_of(root / 'store'))} entries")
            kill_all(process)
        else:
            print(f"ended before it was killed: {finish(process)}")
    print("disturbed:", finish(start_extraction(root / "all", root / "store", token)))
    killer.done.set()
    killer.join()
    for path in (root / "store").glob("*/tmp/*"):
        os.utime(path, (0, 0))  # As if a day had passed.
    # As a user would after being told that some clips failed.
    print("the last run:", finish(start_extraction(root / "all", root / "store", token, "--retry-failed")))
    print(f"{killer.killed} workers killed")


def outcome_of(path: Path, entries: dict[str, ClipFeatures], failed: set[str], backbone: Backbone) -> str:
    """Return what became of a damaged file, one of OUTCOMES."""
    key = key_of(path)
    if key is None:
        return "not a readable file"
    if key not in entries:
        return "recorded as failed" if key in failed else "lost"
    entry = entries[key]
    if not agrees(path, entry, backbone):
        return "WRONG"
    return "partial" if len(entry.indices) < entry.planned else "as strictly decoded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=2000, help="damaged files, beside a tenth as many healthy ones")
    parser.add_argument("--kills", type=int, default=3, help="how often the whole run is killed")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    token = uuid.uuid4().hex
    problems: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kinema-torture-") as temporary:
        root = Path(temporary)
        kinds = make_files(rng, root, args.files)
        print("undisturbed:", finish(start_extraction(root / "healthy", root / "undisturbed", token)))
        disturb(rng, root, token, args.kills, args.files)

        undisturbed, entries = entries_of(root / "undisturbed"), entries_of(root / "store")
        failed = {path.stem for path in (root / "store").glob("*/failed/*.json")}
        for key, entry in undisturbed.items():
            if key not in entries:
                problems.append(f"{key}: healthy, but {'failed' if key in failed else 'lost'}")
            elif not same(entry, entries[key]):
                problems.append(f"{key}: healthy, but other features than undisturbed")
        backbone = Backbone(BackboneConfig(), torch.device("cpu"))
        table: dict[str, Counter[str]] = {}
        for path, kind in kinds.items():
            outcome = outcome_of(path, entries, failed, backbone)
            table.setdefault(kind, Counter())[outcome] += 1
            if outcome in ("lost", "WRONG"):
                problems.append(f"{path.name} ({kind}): {outcome}")
        problems += [f"process {process.pid} is left" for process in processes_of(token)]
        problems += [f"{path}: temporary file is left" for path in (root / "store").glob("*/tmp/*")]
        verify = [sys.executable, "-m", "pipeline.cli", "store", "verify", "--store", str(root / "store")]
        verified = subprocess.run(verify, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        print(verified.stdout.strip())
        if verified.returncode:
            problems.append(verified.stderr.strip())

    print(f"\n| {'damage':18} | files | " + " | ".join(OUTCOMES) + " |")
    print("|:--|" + "--:|" * (len(OUTCOMES) + 1))
    for kind, counts in sorted(table.items()):
        row = " | ".join(f"{counts[outcome]:{len(outcome)}}" for outcome in OUTCOMES)
        print(f"| {kind:18} | {counts.total():5} | {row} |")
    seconds = time.monotonic() - began
    healthy = len(undisturbed)
    print(f"\n{'failed' if problems else 'passed'}: seed {args.seed}, {args.files} damaged files, ", end="")
    print(f"{healthy} healthy entries, {seconds:.0f} s")
    print(*problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
