"""The VoCo losses read letter by letter: scalar by scalar, with loops over all pairs.

Slow on purpose and without a line in common with the library. All take (B, S, D) random crops k
and (B, n, D) bases q of a student and a teacher, and (B, S, n) labels, and return the mean over
volumes of each part by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

EPS = 1e-6
Parts = dict[str, torch.Tensor]
Pair = Callable[[int, int], torch.Tensor]


@dataclass
class Side:
    """One network's projections."""

    k: torch.Tensor
    q: torch.Tensor

    def stopped(self) -> Side:
        return Side(self.k.detach(), self.q.detach())


def cos(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return sum_of(x * y for x, y in zip(a, b, strict=True)) / (length(a) * length(b))


def length(a: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(sum_of(x * x for x in a))


def sum_of(values: object) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value in values:  # type: ignore[attr-defined]
        total = total + value
    return total


def s(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    value = cos(a, b)
    return value if value > 0 else 0 * value


def l_pos(y: Pair, similarity: Pair, random: int, n: int) -> torch.Tensor:
    pairs = [(i, j) for i in range(random) for j in range(n)]
    above = sum_of(y(*p) * torch.log(1 - abs(y(*p) - similarity(*p)) + EPS) for p in pairs)
    return -above / (sum_of(y(*p) for p in pairs) + EPS)


def l_neg(y: Pair, cost: Pair, random: int, n: int) -> torch.Tensor:
    empty = [(i, j) for i in range(random) for j in range(n) if y(i, j) == 0]
    return sum_of(cost(i, j) for i, j in empty) / (len(empty) + EPS)


def l_reg(q: torch.Tensor) -> torch.Tensor:
    n = len(q)
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    return 2 / (n * (n - 1)) * sum_of(s(q[a], q[b].detach()) ** 2 for a, b in pairs)


def l_reg_paper(q: torch.Tensor) -> torch.Tensor:
    n = len(q)
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    return 2 / (n * (n - 1)) * sum_of(abs(cos(q[a], q[b])) for a, b in pairs)


def v1(student: Side, teacher: Side | None, labels: torch.Tensor) -> Parts:
    tea = teacher or student.stopped()

    def of(v: int, y: Pair, random: int, n: int) -> Parts:
        def between(i: int, j: int) -> torch.Tensor:
            crop_side = s(student.k[v][i], tea.q[v][j].detach())
            return (crop_side + s(tea.k[v][i].detach(), student.q[v][j])) / 2

        return {
            "pos": l_pos(y, between, random, n),
            "neg": l_neg(y, lambda i, j: between(i, j) ** 2, random, n),
            "reg": l_reg(student.q[v]),
        }

    return mean_over_volumes(labels, of)


def v2(student: Side, teacher: Side | None, labels: torch.Tensor) -> Parts:
    tea = teacher or student.stopped()
    volumes = len(labels)

    def of(v: int, y: Pair, random: int, n: int) -> Parts:
        def intra(i: int, j: int) -> torch.Tensor:
            return s(student.k[v][i], tea.q[v][j].detach())

        def cost(similarity: Pair) -> Pair:
            return lambda i, j: -torch.log(1 - similarity(i, j) + EPS)

        parts = {
            "pos": l_pos(y, intra, random, n),
            "neg": l_neg(y, cost(intra), random, n),
            "reg": l_reg(student.q[v]),
        }
        if teacher is None or volumes == 1:
            return parts
        w = (v + 1) % volumes

        def target(i: int, j: int) -> torch.Tensor:
            return s(tea.k[v][i], tea.q[w][j]).detach()

        def inter(i: int, j: int) -> torch.Tensor:
            return s(student.k[v][i], student.q[w][j])

        across = {
            "inter_pos": l_pos(target, inter, random, n),
            "inter_neg": l_neg(target, cost(inter), random, n),
        }
        return parts | across

    return mean_over_volumes(labels, of)


def paper(student: Side, teacher: Side | None, labels: torch.Tensor) -> Parts:
    volumes = len(labels)

    def of(v: int, y: Pair, random: int, n: int) -> Parts:
        pairs = [(i, j) for i in range(random) for j in range(n)]

        def cost(i: int, j: int) -> torch.Tensor:
            return -torch.log(1 - abs(y(i, j) - s(student.k[v][i], student.q[v][j])) + EPS) / n

        parts = {
            "pos": sum_of(cost(*p) for p in pairs if y(*p) > 0),
            "neg": sum_of(cost(*p) for p in pairs if y(*p) == 0),
            "reg": l_reg_paper(student.q[v]),
        }
        if teacher is None or volumes == 1:
            return parts
        w, tea = (v + 1) % volumes, teacher

        def apart(i: int, j: int) -> torch.Tensor:
            ours = s(student.k[v][i], student.q[w][j])
            return abs(ours - s(tea.k[v][i], tea.q[w][j]).detach())

        inter = sum_of(-torch.log(1 - apart(i, j) + EPS) / n for i, j in pairs)
        return parts | {"inter": inter}

    return mean_over_volumes(labels, of)


def mean_over_volumes(labels: torch.Tensor, of: Callable[[int, Pair, int, int], Parts]) -> Parts:
    volumes, random, n = labels.shape
    each = []
    for v in range(volumes):
        rows = labels[v]
        each.append(of(v, lambda i, j, rows=rows: rows[i, j], random, n))  # type: ignore[misc]
    return {name: sum_of(parts[name] for parts in each) / volumes for name in each[0]}


LITERAL = {"voco-v1": v1, "voco-v2": v2, "voco-paper": paper}
