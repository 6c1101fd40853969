"""Rows of the arrays between the passes, for shape inference and Triton: the Python twin of csrc/rows.h.

a: anatomies of the masks; b: anatomies of one output block, which is a with fusion "mean" and 1 with "concat".
"""

from __future__ import annotations


def pairs(a: int) -> int:
    """Pairs of anatomies, each with itself included."""
    return a * (a + 1) // 2


def descriptor_rows(a: int) -> int:
    """Average, maximum, and both of every m_a X."""
    return 2 + 2 * a


def mass_rows(a: int) -> int:
    """Sums over the pixels of m_a and of m_a m_b."""
    return a + pairs(a)


def moment_rows(a: int) -> int:
    """Shift c, s1, s2, t_a, t2_a, q1_ab, q2_ab of x' = x - c."""
    return 3 + 2 * a + 2 * pairs(a)


def saved_rows(b: int) -> int:
    """Rows of gate_norm for its backward pass: c, s1, t_a, Q_0, Q_a, E_0, E_a (docs/method.md)."""
    return 1 + 3 * (1 + b)


def sum_rows(b: int) -> int:
    """Sums of the first backward pass: e0, e1, h_a, f_a."""
    return 2 + 2 * b


def fold_rows(b: int) -> int:
    """Folded coefficients of the forward pass: b, w_a, h."""
    return 2 + b


def coef_rows(b: int) -> int:
    """Coefficients of the backward pass: k1, k2, k3, b, w_a."""
    return 4 + b
