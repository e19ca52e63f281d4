"""Layer-wise pruning in plain numpy, one output and one weight at a time."""

from __future__ import annotations

import numpy as np


def moment(x, damping=0.0):
    """`X'X / N + damping mean(diag) I` of rows x, all positions of an example together."""
    n = len(x)
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    h = rows.T @ rows / n
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def greedy(h, w, alive=None, groups=None, most=None):
    """[(q, loss)] of one output: the matrix of what is left is inverted anew at every step.

    Args:
      groups, most: no group may lose more than `most`, entries that are not alive included.
    """
    i = len(w)
    left = [q for q in range(i) if alive is None or alive[q]]
    groups = np.zeros(i, int) if groups is None else np.asarray(groups)
    lost = np.array([sum(q not in left for q in np.flatnonzero(groups == g))
                     for g in range(groups.max() + 1)])  # fmt: skip
    w, found = np.where([q in left for q in range(i)], w, 0.0), []
    while True:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        costs = [w[q] ** 2 / inverse[k, k] if most is None or lost[groups[q]] < most else np.inf
                 for k, q in enumerate(left)]  # fmt: skip
        if not left or np.isinf(min(costs)):
            return found
        k = int(np.argmin(costs))
        q = left[k]
        w[left] -= w[q] / inverse[k, k] * inverse[:, k]
        w[q] = 0
        found.append((q, costs[k]))
        lost[groups[q]] += 1
        left.pop(k)
        if not left:
            return found


def rising(found, i):
    """Scores [i] from such a list: the running maximum of the losses."""
    scores, top = np.full(i, np.nan), 0.0
    for q, loss in found:
        top = max(top, loss)
        scores[q] = top
    return scores


def solved(h, w, keep):
    """[i, o]: `argmin (v - w)' h (v - w)`, v = 0 off the mask, by least squares on a root of h."""
    root = np.linalg.cholesky(h).T
    out = np.zeros(w.shape)
    for o in range(w.shape[1]):
        k = keep[:, o]
        out[k, o] = np.linalg.lstsq(root[:, k], root @ w[:, o], rcond=None)[0]
    return out


def sparse_gpt(h, w, block, sparsity=None, n_of_m=None):
    """The paper's loop over columns: W is [outputs, inputs], and so is the mask."""
    w = w.T.copy()
    outputs, inputs = w.shape
    root = np.linalg.cholesky(np.linalg.inv(h)).T
    keep, done, errors = np.ones(w.shape, bool), 0, np.zeros(w.shape)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        for j in range(start, end):
            if n_of_m is None and j == start:
                goes = int(np.floor(round(sparsity * w.size) * end / inputs + 0.5)) - done
                done += goes
                lowest(keep, w, root, slice(start, end), goes)
            if n_of_m is not None and j % n_of_m[1] == 0:
                for r in range(outputs):
                    own = slice(j, j + n_of_m[1])
                    lowest(keep[r : r + 1], w[r : r + 1], root, own, n_of_m[1] - n_of_m[0])
            errors[:, j] = np.where(keep[:, j], 0, w[:, j]) / root[j, j]
            w[:, j:end] -= errors[:, j : j + 1] * root[j, j:end]
            w[:, j] = np.where(keep[:, j], w[:, j], 0)
        w[:, end:] -= errors[:, start:end] @ root[start:end, end:]
    return w.T, keep.T


def lowest(keep, w, root, span, goes):
    """Prune the lowest `w^2 / U_ii^2` of some columns, in place."""
    scores = (w[:, span] / np.diag(root)[span]) ** 2
    part = np.ones(scores.shape, bool)
    part.flat[np.argsort(scores, axis=None, kind="stable")[:goes]] = False
    keep[:, span] = part
