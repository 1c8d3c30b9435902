"""What a student's own pretrained features suggest as a label of each row, given the labels of the other rows."""

from __future__ import annotations

import numpy as np

NUM_FOLDS = 5
ROWS_PER_BLOCK = 512
"""Distances are computed for so many rows at a time, which bounds the memory."""


def feature_opinion(values: np.ndarray, features: np.ndarray, *, how: str, neighbours: int, l2: float) -> np.ndarray:
    """[rows]: the mean label of the nearest rows (`knn`), or what a probe says that has not seen the row (`logistic`)."""
    if how == "knn":
        return values[nearest_rows(features, min(neighbours, len(values) - 1))].mean(axis=1)
    from scipy.special import expit

    fold = np.arange(len(values)) % NUM_FOLDS
    opinion = np.empty(len(values))
    for number in range(NUM_FOLDS):
        held_out = fold == number
        weights = _logistic_regression(features[~held_out], values[~held_out], l2=l2)
        opinion[held_out] = expit(features[held_out] @ weights[:-1] + weights[-1])
    return opinion


def nearest_rows(features: np.ndarray, num_neighbours: int) -> np.ndarray:
    """[row, neighbour] row numbers by Euclidean distance, without the row itself."""
    squares = (features**2).sum(axis=1)
    nearest = np.empty((len(features), num_neighbours), dtype=np.int64)
    for first in range(0, len(features), ROWS_PER_BLOCK):
        rows = slice(first, min(first + ROWS_PER_BLOCK, len(features)))
        distance = squares[rows, None] + squares[None] - 2 * features[rows] @ features.T
        distance[np.arange(rows.stop - first), np.arange(first, rows.stop)] = np.inf
        nearest[rows] = np.argsort(distance, axis=1, kind="stable")[:, :num_neighbours]
    return nearest


def _logistic_regression(features: np.ndarray, values: np.ndarray, *, l2: float) -> np.ndarray:
    """Weights, and last the bias, of a logistic regression on soft labels, by L-BFGS."""
    from scipy.optimize import minimize
    from scipy.special import expit

    with_bias = np.hstack((features, np.ones((len(features), 1))))
    penalty = np.append(np.full(features.shape[1], l2), 0.0)

    def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = with_bias @ weights
        loss = np.logaddexp(0, scores).mean() - (values * scores).mean() + 0.5 * (penalty * weights**2).sum()
        return float(loss), with_bias.T @ (expit(scores) - values) / len(values) + penalty * weights

    return np.asarray(minimize(cost, np.zeros(with_bias.shape[1]), jac=True, method="L-BFGS-B").x)
