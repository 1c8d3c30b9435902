"""Transforms of labels: what a student is given to learn from, out of what its supervisors said.

Pure functions of arrays. Two forms of label: probabilities of class 1 (classification, comparison), or completions that
were written, each with the probability that its writer gave it. Random choices come from a generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import expit


@dataclass(frozen=True)
class Labels:
    """Labels of some rows, in their order."""

    said: np.ndarray
    """[rows]: probabilities of class 1 (float), or completions (object)."""
    sure: np.ndarray
    """[rows]: |2p - 1|, or the probability of the completion."""
    weight: np.ndarray
    """[rows]: each row's weight in the loss; a row with none is left out."""
    verified: np.ndarray
    """[rows]: whether the label is the truth, known as such."""


def from_probabilities(probability: np.ndarray) -> Labels:
    count = len(probability)
    return Labels(probability, np.abs(2 * probability - 1), np.ones(count), np.zeros(count, bool))


def from_completions(written: Sequence[str], probability: np.ndarray) -> Labels:
    count = len(written)
    return Labels(np.array(written, dtype=object), probability, np.ones(count), np.zeros(count, bool))


def _classes(labels: Labels) -> np.ndarray:
    """[rows]: which class each label leans to; completions are all of one."""
    if labels.said.dtype == object:
        return np.zeros(len(labels.said), bool)
    return labels.said > 0.5


def ensemble(members: Sequence[Labels], *, how: str) -> Labels:
    """Several supervisors' labels together. Of completions, the one with the most votes (`mean`) or the most probability
    (`confident`) behind it; its share of them is its confidence."""
    if members[0].said.dtype == object:
        return _elected(members, how=how)
    said = np.stack([each.said for each in members])
    by = np.stack([each.sure for each in members]) + 1e-6 if how == "confident" else np.ones_like(said)
    joined = from_probabilities((said * by).sum(axis=0) / by.sum(axis=0))
    agree = (said > 0.5).all(axis=0) | (said <= 0.5).all(axis=0)
    return replace(joined, weight=agree.astype(float)) if how == "agreeing" else joined


def _elected(members: Sequence[Labels], *, how: str) -> Labels:
    chosen, share, agree = [], [], []
    for row in range(len(members[0].said)):
        votes: dict[str, float] = {}
        for each in members:
            votes[each.said[row]] = votes.get(each.said[row], 0.0) + (each.sure[row] if how == "confident" else 1.0)
        best = max(sorted(votes), key=lambda written: votes[written])
        chosen.append(best)
        share.append(votes[best] / max(sum(votes.values()), 1e-12))
        agree.append(len(votes) == 1)
    joined = from_completions(chosen, np.array(share))
    return replace(joined, weight=np.array(agree, dtype=float)) if how == "agreeing" else joined


def surest(labels: Labels, *, keep: float) -> Labels:
    """The surest rows of each predicted class, so that leaving rows out doesn't tip the balance between them."""
    weight, classes = np.zeros_like(labels.weight), _classes(labels)
    for each in np.unique(classes):
        rows = np.flatnonzero(classes == each)
        order = rows[np.argsort(-labels.sure[rows], kind="stable")]
        weight[order[: max(1, round(keep * len(rows)))]] = 1.0
    return replace(labels, weight=weight)


def weighed(labels: Labels) -> Labels:
    """Each row by its confidence, of mean 1 (arXiv:2406.19032 weighs by consistency in the same way)."""
    mean = labels.sure.mean()
    return replace(labels, weight=labels.sure / mean if mean > 0 else np.ones_like(labels.sure))


def combined(
    labels: Labels,
    truth: np.ndarray,
    *,
    verified: float,
    truth_weight: float,
    weak_weight: float,
    generator: np.random.Generator,
) -> Labels:
    """The truth on a random share of the rows, with a weight of its own."""
    count = len(labels.said)
    known = np.zeros(count, bool)
    known[generator.permutation(count)[: max(1, round(verified * count))]] = True
    return Labels(
        said=np.where(known, truth, labels.said),
        sure=np.where(known, 1.0, labels.sure),
        weight=np.where(known, truth_weight, weak_weight * labels.weight),
        verified=known,
    )


def noisy(truth: np.ndarray, *, num_errors: int, first: np.ndarray, generator: np.random.Generator) -> Labels:
    """The truth with errors on the rows that come first in the order of `first`, ties at random; half of them in each class.
    A wrong completion is another row's right one."""
    order = np.lexsort((generator.permutation(len(truth)), first))
    said = truth.copy()
    if truth.dtype == object:
        for row in order[:num_errors]:
            others = [each for each in truth[generator.permutation(len(truth))[:64]] if each != truth[row]]
            said[row] = others[0] if others else truth[row]
        return from_completions(list(said), np.ones(len(truth)))
    for each, share in ((0.0, num_errors // 2), (1.0, num_errors - num_errors // 2)):
        wrong = [row for row in order if truth[row] == each][:share]
        said[wrong] = 1 - each
    return from_probabilities(said)


def shuffled(labels: Labels, *, generator: np.random.Generator) -> Labels:
    order = generator.permutation(len(labels.said))
    return replace(labels, said=labels.said[order], sure=labels.sure[order])


# --- by the student's own features --------------------------------------------------------------------------------


def relabelled(labels: Labels, features: np.ndarray, *, how: str, neighbours: int, l2: float) -> Labels:
    """What the rows nearby, or a probe that has not seen the row, would say in the label's place."""
    return from_probabilities(_seconded(labels.said, features, how=how, neighbours=neighbours, l2=l2))


def sieved(labels: Labels, features: np.ndarray, *, how: str, drop: float, neighbours: int, l2: float) -> Labels:
    """Without the rows whose label is farthest from what their features say; or, of each class, what lies outside the
    largest connected component of the graph of nearest neighbours (topological filter, Wu et al. 2020)."""
    weight = labels.weight.copy()
    if how == "topological":
        weight[~_in_largest_component(labels, features, neighbours=neighbours)] = 0.0
        return replace(labels, weight=weight)
    doubt = np.abs(labels.said - _seconded(labels.said, features, how=how, neighbours=neighbours, l2=l2))
    weight[np.argsort(-doubt, kind="stable")[: round(drop * len(doubt))]] = 0.0
    return replace(labels, weight=weight)


def _seconded(said: np.ndarray, features: np.ndarray, *, how: str, neighbours: int, l2: float) -> np.ndarray:
    if how == "knn":
        return said[_nearest(features, min(neighbours, len(said) - 1))].mean(axis=1)
    fold = np.arange(len(said)) % 5
    found = np.empty(len(said))
    for each in range(5):
        held_out = fold == each
        weights = _logistic(features[~held_out], said[~held_out], l2=l2)
        found[held_out] = expit(features[held_out] @ weights[:-1] + weights[-1])
    return found


def _nearest(features: np.ndarray, count: int) -> np.ndarray:
    """[row, count] row numbers, by Euclidean distance, without the row itself."""
    squares = (features**2).sum(axis=1)
    found = np.empty((len(features), count), dtype=np.int64)
    for first in range(0, len(features), 512):
        rows = slice(first, min(first + 512, len(features)))
        distance = squares[rows, None] + squares[None] - 2 * features[rows] @ features.T
        distance[np.arange(rows.stop - first), np.arange(first, rows.stop)] = np.inf
        found[rows] = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return found


def _logistic(features: np.ndarray, said: np.ndarray, *, l2: float) -> np.ndarray:
    """Weights and bias of a logistic regression on soft labels, by L-BFGS."""
    wide = np.hstack((features, np.ones((len(features), 1))))
    penalty = np.append(np.full(features.shape[1], l2), 0.0)

    def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = wide @ weights
        loss = np.logaddexp(0, scores).mean() - (said * scores).mean() + 0.5 * (penalty * weights**2).sum()
        return float(loss), wide.T @ (expit(scores) - said) / len(said) + penalty * weights

    return np.asarray(minimize(cost, np.zeros(wide.shape[1]), jac=True, method="L-BFGS-B").x)


def _in_largest_component(labels: Labels, features: np.ndarray, *, neighbours: int) -> np.ndarray:
    classes, kept = _classes(labels), np.zeros(len(labels.said), bool)
    for each in np.unique(classes):
        rows = np.flatnonzero(classes == each)
        if len(rows) <= 2:
            kept[rows] = True
            continue
        near = _nearest(features[rows], min(neighbours, len(rows) - 1))
        from_, to = np.repeat(np.arange(len(rows)), near.shape[1]), near.ravel()
        mutual = coo_matrix((np.ones(len(to)), (from_, to)), shape=(len(rows), len(rows))).tocsr()
        _, component = connected_components(mutual.multiply(mutual.T), directed=False)
        kept[rows[component == np.bincount(component).argmax()]] = True
    return kept
