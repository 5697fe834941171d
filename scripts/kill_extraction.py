"""Kill an extraction with its whole process group at random moments, and check that a rerun completes it.

python scripts/kill_extraction.py --kills 50
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from torture import entries_of, finish, generate, kill_all, processes_of, same, start_extraction
from tqdm import tqdm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kinema-kill-") as temporary:
        root = Path(temporary)
        generate(root)
        began = time.monotonic()
        finish(start_extraction(root / "videos", root / "undisturbed", "undisturbed"))
        length = time.monotonic() - began
        undisturbed = entries_of(root / "undisturbed")
        kept = []
        for number in tqdm(range(args.kills), "kills", disable=None):
            store, token = root / "store", f"kill-{number}"
            process = start_extraction(root / "videos", store, token)
            time.sleep(rng.uniform(0, length))
            kill_all(process)
            kept.append(len(entries_of(store)))  # Raises if an entry is incomplete.
            for path in store.glob("*/tmp/*"):
                os.utime(path, (0, 0))  # Temporary files are removed when they are a day old.
            finish(start_extraction(root / "videos", store, token))
            entries = entries_of(store)
            if entries.keys() != undisturbed.keys() or not all(same(entries[key], undisturbed[key]) for key in entries):
                sys.exit(f"failed: after kill {number + 1} the entries differ from those of an undisturbed run")
            if left := [*processes_of(token), *store.glob("*/tmp/*")]:
                sys.exit(f"failed: after kill {number + 1} these are left: {left}")
            shutil.rmtree(store)
    midway = sum(0 < count < len(undisturbed) for count in kept)
    print(
        f"passed: {args.kills} kills within {length:.1f} s, {midway} of them between the first and the last entry; "
        f"each rerun completed with the same {len(undisturbed)} entries as an undisturbed run, bit for bit"
    )


if __name__ == "__main__":
    main()
