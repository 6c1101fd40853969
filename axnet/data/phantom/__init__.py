"""A procedural frontal chest X-ray phantom with exact masks: the data set that axnet always has at hand.

Every image is drawn from numbers (no pixel of a real radiograph is in it), so lungs, heart, findings and boxes are
known exactly. Findings lie inside the anatomy; distractors of the same look lie outside it and are not labelled.
"""

from axnet.data.cardiothoracic import cardiothoracic_ratio
from axnet.data.phantom.dataset import PhantomXray, split_seed
from axnet.data.phantom.export import write_nih
from axnet.data.phantom.rendering import PhantomSample, render, render_study
from axnet.data.phantom.study import Study, marginals, study

__all__ = [
    "PhantomSample",
    "PhantomXray",
    "Study",
    "cardiothoracic_ratio",
    "marginals",
    "render",
    "render_study",
    "split_seed",
    "study",
    "write_nih",
]
