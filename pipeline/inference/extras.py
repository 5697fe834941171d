"""Files beside the printed answers: segments for other programs, films and plots."""

from pathlib import Path

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.inference.film import about, write_film
from pipeline.inference.formats import Answered, check_formats, save, unused_name
from pipeline.inference.plots import THUMBNAILS, SheetClip, contact_sheet, plot_recording, thumbnails
from pipeline.inference.predictor import Prediction, Predictor
from pipeline.models.segmenter import Segment
from pipeline.runs.recordings import actions
from pipeline.video.recording import Recording

FILMS = ".mp4", ".mkv", ".mov"


class Extras:
    """Writes what was asked for: `formats` into the folder `out`, films to `annotate` (a folder, or a file for one
    video), plots into the folder `plot`."""

    def __init__(self, formats: list[str], out: Path, annotate: Path | None, plot: Path | None):
        check_formats([*formats, *(["vtt"] if annotate else [])])
        self.formats, self.out, self.annotate, self.plot = formats, out, annotate, plot
        self.saved: list[Answered] = []
        self.names: list[str] = []
        self.clips: list[SheetClip] = []

    def add_recording(
        self, source: str, recording: Recording, segments: list[Segment], cells: list, predictor: Predictor
    ) -> None:
        name = self._name(source)
        answered = Answered(source, name, recording.frame_rate, actions(segments))
        if self.formats:
            self.saved.append(answered)
            save(self.out, self.formats, self.saved, predictor.run.name)
        if self.annotate:
            self._film(recording.path, answered, segments)
        if self.plot:
            self.plot.mkdir(parents=True, exist_ok=True)
            unknown = np.full(len(predictor.classes), np.nan)
            probabilities_KC = np.array([unknown if cell is None else np.exp(cell) for cell in cells])
            frames = thumbnails([recording.path], THUMBNAILS, predictor.config.decode).get(recording.path, [])
            out = self.plot / f"{name}.png"
            plot_recording(out, source, probabilities_KC, predictor.classes, segments, frames)

    def add_clip(self, source: str, path: Path, prediction: Prediction) -> None:
        if self.plot:
            self.clips.append(SheetClip(path, prediction.label, prediction.probability))
        if self.annotate:
            whole = [Segment(0.0, about(path).seconds, prediction.label, prediction.probability)]
            self._film(path, Answered(source, self._name(source), 0.0, actions(whole)), whole)

    def finish(self, predictor: Predictor) -> None:
        """Draw the contact sheet of the clips."""
        if self.clips:
            self.plot.mkdir(parents=True, exist_ok=True)
            contact_sheet(self.plot / "clips.png", self.clips, predictor.classes, predictor.config.decode)

    def _name(self, source: str) -> str:
        self.names.append(unused_name(source, self.names))
        return self.names[-1]

    def _film(self, path: Path, answered: Answered, segments: list[Segment]) -> None:
        seconds, suffix = about(path)
        out = self.annotate
        if out.suffix.lower() not in FILMS:
            out = out / (answered.name + suffix)
        elif len(self.names) > 1:
            raise ConfigError(f"--annotate: {out} is one file; name a folder for several videos")
        if out.exists() and out.samefile(path):
            raise ConfigError(f"--annotate: the film would replace {out}, its source; name another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_film(path, out, segments, seconds)
        save(out.parent, ["vtt"], [answered._replace(name=out.stem)], "")
