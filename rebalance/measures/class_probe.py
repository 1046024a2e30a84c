"""A small classifier of features, which says how sure one can be that an image is of its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rebalance.measures.sets import at_most

_FOLDS = 5
_MOST_OF_A_CLASS = 500
_MOST_OF_ALL = 10_000
_LEAST_OF_A_CLASS = 20


@dataclass(frozen=True)
class ClassProbe:
    """Logistic regression on standardised features, every class weighing the same.

    Attributes:
        names: the classes.
        weights: (d, classes) float64.
        offsets: (classes,) float64.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    offsets: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return class probabilities (n, classes) of features (n, d)."""
        return _softmax(features.astype(np.float64) @ self.weights + self.offsets)

    def confidence(self, features: np.ndarray, name: str) -> np.ndarray:
        """Return the probability (n,) of one class."""
        return self.probabilities(features)[:, self.names.index(name)]

    def among(self, logits: np.ndarray, name: str) -> np.ndarray:
        """Return the probability (n,) of one class by logits (n, classes), features times weights plus offsets."""
        return _softmax(logits)[:, self.names.index(name)]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the names (n,) of the likeliest classes."""
        return np.array(self.names)[self.probabilities(features).argmax(1)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def most_of_a_class(n_classes: int) -> int:
    """Return how many images of a class a probe looks at, so that many classes cost no more than twenty large ones."""
    return max(_LEAST_OF_A_CLASS, min(_MOST_OF_A_CLASS, _MOST_OF_ALL // max(n_classes, 1)))


def fit_probe(train: Mapping[str, np.ndarray], seed: int) -> ClassProbe | None:
    """Fit a probe on features of real train images by class; None where fewer than two classes have any."""
    names = tuple(name for name, features in train.items() if len(features))
    if len(names) < 2:
        return None
    features, labels = _stacked(train, names, seed)
    return _fit(features, labels, names)


def held_out_confidence(train: Mapping[str, np.ndarray], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Return for each class how sure probes are of it (n,) for the images of every class, its own and the others'.

    None of the probes has seen the images that it is asked of (cross-validation). All classes share the folds, so a
    hundred of them cost five probes and not five hundred. A class of one image has none: without it no probe knows it.

    Args:
        train: features by class, of two classes or more.
        seed: seed of the folds.
    """
    names = tuple(other for other, features in train.items() if len(features))
    features, labels = _stacked(train, names, seed)
    fold = np.full(len(labels), -1)
    for number in range(len(names)):
        own = np.random.default_rng((seed, number)).permutation(np.flatnonzero(labels == number))
        if len(own) > 1:
            fold[own] = np.arange(len(own)) % _FOLDS
    held_out = np.full((len(labels), len(names)), np.nan)
    for left_out in (fold == number for number in range(_FOLDS) if (fold == number).any()):
        probe = _fit(features[~left_out], labels[~left_out], names)
        held_out[left_out] = probe.probabilities(features[left_out])
    of_class = {name: held_out[(labels == number) & (fold >= 0)] for number, name in enumerate(names)}
    return {asked: {name: of[:, column] for name, of in of_class.items()} for column, asked in enumerate(names)}


def _stacked(train: Mapping[str, np.ndarray], names: tuple[str, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    most = most_of_a_class(len(names))
    parts = [at_most(train[name], most, seed, number) for number, name in enumerate(names)]
    return np.concatenate(parts), np.repeat(np.arange(len(names)), [len(part) for part in parts])


def _fit(features: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> ClassProbe:
    from sklearn.linear_model import LogisticRegression  # takes a second, and most processes fit nothing

    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")
    model.fit((features - mean) / scale, labels)
    weights = np.zeros((features.shape[1], len(names)))
    offsets = np.full(len(names), -np.inf)
    if len(model.classes_) == 2:  # one row of coefficients stands for both
        weights[:, model.classes_[1]], offsets[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weights[:, model.classes_], offsets[model.classes_] = model.coef_.T, model.intercept_
    weights = weights / scale[:, None]
    return ClassProbe(names, weights, offsets - mean @ weights)
