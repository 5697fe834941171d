"""The Python examples of docs/predict.md, and what they promise."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import Predictor
from pipeline.base.errors import KinemaError

from conftest import REPOSITORY, join

EXAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "predict.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(small_set, trained, tmp_path_factory):
    """A folder with the run and the videos that the examples name."""
    folder = tmp_path_factory.mktemp("python")
    clips = sorted((small_set / "videos").glob("*/*_g02_*"))
    (folder / "data" / "runs").mkdir(parents=True)
    (folder / "data" / "runs" / "demo").symlink_to(trained)
    for name, clip in (("holiday.mp4", clips[0]), ("garden.mp4", clips[1])):
        shutil.copyfile(clip, folder / name)
    join(folder / "day.mp4", clips)
    return folder


def test_the_examples_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict = {}
    for example in EXAMPLES:
        exec(example, names)
    out = capsys.readouterr().out
    assert "none.mp4 No such file" in out and re.search(r"0\.0 to \d+\.\d s: \w+ \d+%", out)
    assert "(6, 5120)" in out and "Segment(start=" in out
    assert 0 < names["answer"].age < 2 * names["predictor"].window.seconds + 1
    assert names["prediction"].label in names["prediction"]._repr_html_()


def test_features_and_predictions_agree(folder, trained):
    predictor = Predictor(trained)
    entry, prediction = predictor.features(folder / "holiday.mp4"), predictor.predict(folder / "holiday.mp4")
    assert entry.features.dtype == np.float16 and len(entry.pts) == 6 and prediction.probability > 0.125
    for ask in (predictor.predict, predictor.features):
        with pytest.raises(KinemaError, match="none.mp4: cannot be read: No such file"):
            ask(folder / "none.mp4")


def test_segments_in_several_threads(folder, trained):
    predictor = Predictor(trained)
    alone = list(predictor.segments(folder / "day.mp4"))
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(lambda _: list(predictor.segments(folder / "day.mp4")), range(3)):
            assert [segment[:3] for segment in found] == [segment[:3] for segment in alone]
