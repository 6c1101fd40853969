"""The segmenter's teacher is the exponential mean of the students' weights, buffers included, by torch's own class."""

from __future__ import annotations

import torch

from axnet.segment.learner import Learner
from axnet.segment.segmenter import Segmenter


def test_the_teacher_follows_the_student_as_the_formula_says() -> None:
    torch.manual_seed(0)
    student = Segmenter()
    learner = Learner(student, steps=9, lr=1e-3, mirror=None, seed=0, val=None, run={}, ema=0.5)
    expected = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    for step in range(1, 5):
        with torch.no_grad():
            for value in student.state_dict().values():
                value.add_(torch.full_like(value, step))
        learner.on_train_batch_end()  # before the first step, when the decay is 0.1
        for name, value in student.state_dict().items():
            expected[name] = expected[name].lerp(value, 0.9) if value.is_floating_point() else value.clone()
    assert any(not value.is_floating_point() for value in expected.values())
    for name, value in learner.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert not learner.teacher.training
