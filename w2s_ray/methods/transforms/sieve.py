"""Leave out the labels that the student's own pretrained features contradict (EleutherAI's w2s).

`knn` and `logistic` leave out the rows whose label is farthest from what their features suggest (`feature_opinion.py`).
`topological` keeps, of each class, the largest connected component of the graph of mutual nearest neighbours (the topological
filter of Wu et al. 2020).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from w2s_ray.methods.feature_opinion import feature_opinion, nearest_rows
from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {"generation": "features are compared between two classes, not between written texts"}
NEEDS_FEATURES = True


class Params(WithLoss):
    """Leave out the labels that the student's own pretrained features contradict."""

    how: Literal["knn", "logistic", "topological"] = "knn"
    """As in relabel; or keep each class's largest connected component among nearest neighbours."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """Share of rows left out by knn and logistic. The topological filter finds its own."""
    neighbours: int = Field(default=20, ge=1, le=1000)
    """Number of nearest rows, for knn and topological."""
    l2: float = Field(default=1e-3, gt=0)
    """Penalty on the probe's weights."""


def transform(sources: LabelSources, params: Params) -> Labels:
    labels, features = sources.weak, sources.features()
    weight = labels.weight.copy()
    if params.how == "topological":
        weight[~_in_largest_component(labels.classes, features, num_neighbours=params.neighbours)] = 0.0
    else:
        opinion = feature_opinion(labels.values, features, how=params.how, neighbours=params.neighbours, l2=params.l2)
        doubt = np.abs(labels.values - opinion)
        weight[np.argsort(-doubt, kind="stable")[: round(params.drop * len(doubt))]] = 0.0
    return replace(labels, weight=weight)


def _in_largest_component(classes: np.ndarray, features: np.ndarray, *, num_neighbours: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    is_kept = np.zeros(len(classes), bool)
    for class_ in np.unique(classes):
        rows = np.flatnonzero(classes == class_)
        if len(rows) <= 2:
            is_kept[rows] = True
            continue
        nearest = nearest_rows(features[rows], min(num_neighbours, len(rows) - 1))
        sources, targets = np.repeat(np.arange(len(rows)), nearest.shape[1]), nearest.ravel()
        edges = coo_matrix((np.ones(len(targets)), (sources, targets)), shape=(len(rows), len(rows))).tocsr()
        _, component = connected_components(edges.multiply(edges.T), directed=False)  # mutual neighbours only
        is_kept[rows[component == np.bincount(component).argmax()]] = True
    return is_kept
