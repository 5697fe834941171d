"""Why a run chose a class for a video: which moments and cells of the frame mattered, and what the LSTM's gates did."""

from typing import NamedTuple

import numpy as np
import torch

from pipeline.inference.gates import lstm_gates
from pipeline.inference.occlusion import Evidence, cover_cells, fill_moments, remove_parts
from pipeline.inference.predictor import Predictor
from pipeline.models.classifier import Classifier
from pipeline.models.heads import LSTM
from pipeline.video.decode import DecodedClip

CELLS = 4  # In each direction.
RANDOM_ORDERS_OF_MOMENTS, RANDOM_ORDERS_OF_CELLS = 19, 9  # Those of cells take the CNN's time.


class Gates(NamedTuple):
    weight: float  # Of the branch in the sum of log-probabilities.
    means: dict[str, list[float]]  # Of each gate of the last layer, [T].
    difference: float  # Largest one between the states recomputed here and those of nn.LSTM.


class Explanation(NamedTuple):
    label: str
    probability: float
    moments: Evidence
    cells: Evidence
    gates: Gates | None  # None if the run has no LSTM.


@torch.inference_mode()
def explain_clip(predictor: Predictor, clip: DecodedClip) -> Explanation:
    """Explain the most likely class of a clip by its frames, transformed for the CNN."""
    features_TD = predictor.backbone(clip.frames).astype(np.float32)
    classifier = predictor.classifier
    logits_C = _logits(classifier, features_TD[None])[0]
    place = int(logits_C.argmax())

    def without_cells(gone_SK: np.ndarray) -> np.ndarray:
        features_STD = np.stack([predictor.backbone(cover_cells(clip.frames, gone_K, CELLS)) for gone_K in gone_SK])
        return _log_odds(_logits(classifier, features_STD), place)

    return Explanation(
        predictor.classes[place],
        float(torch.from_numpy(logits_C).softmax(0)[place]),
        explain_moments(classifier, features_TD, place),
        remove_parts(without_cells, CELLS**2, RANDOM_ORDERS_OF_CELLS),
        _gates(classifier, features_TD),
    )


@torch.inference_mode()
def explain_moments(classifier: Classifier, features_TD: np.ndarray, place: int) -> Evidence:
    """Return which moments carried the class at `place`; only the head runs again."""

    def without(gone_ST: np.ndarray) -> np.ndarray:
        parts = np.array_split(gone_ST, -(-len(gone_ST) // 64))
        logits = [_logits(classifier, fill_moments(features_TD, part)) for part in parts]
        return _log_odds(np.concatenate(logits), place)

    return remove_parts(without, len(features_TD), RANDOM_ORDERS_OF_MOMENTS)


def _gates(classifier: Classifier, features_TD: np.ndarray) -> Gates | None:
    reduction, head = classifier.reduction, classifier.head
    for branch, weight in zip(head.branches.values(), head.weights.tolist(), strict=True):
        if isinstance(branch, LSTM):
            features_1TD = torch.from_numpy(features_TD).to(head.weights.device)[None]
            inputs_1TH = branch.inputs(reduction(features_1TD, torch.tensor([len(features_TD)])))
            means, states_TH = lstm_gates(branch.lstm, inputs_1TH[0])
            difference = float((states_TH - branch.lstm(inputs_1TH)[0][0]).abs().max())
            return Gates(weight, {name: values_T.tolist() for name, values_T in means.items()}, difference)
    return None


def _logits(classifier: Classifier, features_NTD: np.ndarray) -> np.ndarray:
    features = torch.from_numpy(features_NTD.astype(np.float32)).to(classifier.head.weights.device)
    return classifier(features, torch.full((len(features),), features.shape[1])).cpu().numpy()


def _log_odds(logits_NC: np.ndarray, place: int) -> np.ndarray:
    """Return the log-odds of a class against all others, which still change where the probability is close to 1."""
    return logits_NC[:, place] - np.logaddexp.reduce(np.delete(logits_NC, place, 1), axis=1)
