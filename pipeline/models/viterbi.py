"""The most likely labels of a sequence, each given as soon as it is certain."""

import numpy as np


class Viterbi:
    """Viterbi decoding (IEEE Trans. Inf. Theory 13, 1967) with one penalty, in nats, for every change of label.

    A label is certain when the best paths to all present labels agree on it: nothing that follows can change it. If
    `lag` is given, labels older than `lag` steps are taken from the best path so far."""

    def __init__(self, penalty: float, lag: int | None = None):
        self.penalty, self.lag = penalty, lag
        self.scores_C = np.zeros(1)
        self.before: list[np.ndarray] = []  # By uncertain step: the best label before each label.

    def push(self, logs_C: np.ndarray) -> None:
        """Take the log-probabilities of the next step."""
        best = int(self.scores_C.argmax())
        changed = self.scores_C[best] - self.penalty
        self.before.append(np.where(self.scores_C >= changed, np.arange(len(logs_C)), best))
        scores_C = np.maximum(self.scores_C, changed) + logs_C
        self.scores_C = scores_C - scores_C.max()

    def certain(self) -> list[int]:
        """Return the labels that have become certain since the last call."""
        labels_C = np.arange(len(self.scores_C))
        for step in range(len(self.before) - 1, 0, -1):
            labels_C = self.before[step][labels_C]
            if (labels_C == labels_C[0]).all():
                return self._take(step, int(labels_C[0]))
        if self.lag and len(self.before) > self.lag:
            label = int(self.scores_C.argmax())
            for step in range(len(self.before) - 1, len(self.before) - 1 - self.lag, -1):
                label = int(self.before[step][label])
            return self._take(len(self.before) - self.lag, label)
        return []

    def rest(self) -> list[int]:
        """Return the labels of all remaining steps, and start anew."""
        labels = self._take(len(self.before), int(self.scores_C.argmax()))
        self.scores_C = np.zeros(1)
        return labels

    def _take(self, steps: int, label: int) -> list[int]:
        """Remove the first steps, whose last label is known, and return their labels."""
        labels = []
        for before_C in reversed(self.before[:steps]):
            labels.append(label)
            label = int(before_C[label])
        del self.before[:steps]
        return labels[::-1]
