"""The chest as geometry: where lungs, heart, diaphragm and body end. Images are drawn from it, so masks are exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from axnet.data.phantom.canvas import CurveIndex, Field, Mask, Pose
from axnet.data.phantom.study import Study

_HEART_SHEAR = 0.36
_HEART_EGG = 0.18
_PART_ANATOMY = 1


@dataclass(frozen=True)
class Anatomy:
    """Numbers of one chest in patient units (half the side of an unposed image); angles in radians.

    apex, dome_right, dome_left: heights y; half_width: of the rib cage; wall: soft tissue outside it;
    dome_rise: how far a dome stands above its costophrenic angle; heart_extent: half of the heart's width.
    """

    apex: float
    dome_right: float
    dome_left: float
    dome_rise: float
    half_width: float
    asymmetry: float
    wall: float
    mediastinum: float
    aortic_knob: float
    heart_x: float
    heart_y: float
    heart_extent: float
    heart_height: float
    shoulder: float
    arm_gap: float
    midline: float
    lucency: float
    pose: Pose


def sample_anatomy(study: Study) -> Anatomy:
    """Draw the chest of a study: habitus from its patient, inspiration and pose from the study.

    Findings that reshape the chest act here: emphysema lengthens the lungs and flattens the domes, cardiomegaly takes
    the cardiothoracic ratio past 0.5, atelectasis raises a dome, fibrosis both. AP films have a wider heart, higher
    diaphragms and the arms at the side.
    """
    body, shot = study.patient_rng(), study.study_rng(_PART_ANATOMY)
    female, supine = study.sex == "F", study.view == "AP"
    half_width = body.normal(0.7, 0.03) - 0.025 * female
    wall = 0.05 + body.gamma(3.0, 0.022) + 0.02 * supine
    dome = body.normal(0.42, 0.04) - abs(shot.normal(0, 0.05)) - supine * shot.uniform(0.02, 0.16)
    ratio = body.normal(0.45, 0.033) + supine * shot.uniform(0.02, 0.06) + 0.0006 * (study.age - 50)
    ratio = float(np.clip(ratio, 0.36, 0.55 if supine else 0.505))
    height = body.normal(0.34, 0.02)
    rise = body.uniform(0.17, 0.26)
    lucency = body.normal(0.62, 0.03)
    apex = body.normal(-0.79, 0.03)
    left_lower = body.normal(0.05, 0.02)
    right_shift = left_shift = 0.0

    enlarged = shot.uniform(0.52, 0.63)
    collapsed_left, collapse = shot.random() < 0.5, shot.uniform(0.0, 0.14)
    stretch = shot.uniform(0.4, 1.0)
    if study.has("Emphysema"):
        dome, rise, apex = dome + 0.12 * stretch, rise * (1 - 0.5 * stretch), apex - 0.03 * stretch
        lucency, ratio = lucency * (1 + 0.16 * stretch), ratio - 0.04 * stretch
    if study.has("Cardiomegaly"):
        ratio, height = max(enlarged, ratio + 0.02), height * 1.04
    if study.has("Atelectasis"):
        right_shift, left_shift = (0.0, collapse) if collapsed_left else (collapse, 0.0)
    if study.has("Fibrosis"):
        dome -= 0.06 * stretch
    extent = ratio * half_width
    dome = min(dome, 0.6)
    return Anatomy(
        apex=apex,
        dome_right=dome - right_shift,
        dome_left=dome + left_lower - left_shift,
        dome_rise=rise,
        half_width=half_width,
        asymmetry=shot.normal(0, 0.02),
        wall=wall,
        mediastinum=body.normal(0.105, 0.012) + 0.02 * supine,
        aortic_knob=float(np.clip(body.normal(0.035 + 0.0008 * (study.age - 40), 0.015), 0.005, 0.1)),
        heart_x=extent * body.uniform(0.22, 0.36) + shot.normal(0, 0.012),
        heart_y=dome - height * 0.72 + 0.04,
        heart_extent=extent,
        heart_height=height,
        shoulder=body.normal(0, 0.04) - 0.05 * supine,
        arm_gap=(0.0 if supine and shot.random() < 0.6 else shot.uniform(0.03, 0.6)),
        midline=shot.normal(0, 0.012),
        lucency=lucency,
        pose=Pose(
            turn=shot.normal(0, 0.045 if supine else 0.018),
            scale=shot.uniform(0.95, 1.12) if not supine else shot.uniform(0.9, 1.2),
            shift_x=shot.normal(0, 0.05 if supine else 0.025),
            shift_y=shot.normal(0.02, 0.05),
        ),
    )


class Chest:
    """An anatomy on a pixel grid: signed distances (positive inside) and the masks they bound, each [size,size]."""

    def __init__(self, anatomy: Anatomy, size: int) -> None:
        """Evaluate an anatomy at every pixel of a square of size pixels."""
        self.anatomy = anatomy
        self.size = size
        self.x, self.y = anatomy.pose.coordinates(size)
        self.across: Field = self.x - np.float32(anatomy.midline)
        self.side: Field = np.abs(self.across)
        """Distance from the midline."""
        self.is_left: Mask = self.across > 0
        self._along_y, self._along_x = CurveIndex(self.y), CurveIndex(self.across)
        self.wall_at: Field = self._along_y(self._wall_curve()) * (
            1 + np.float32(anatomy.asymmetry) * np.where(self.is_left, np.float32(1), np.float32(-1))
        )
        self.lateral: Field = self.wall_at - self.side
        right, left = self._mediastinum_curves()
        self.medial: Field = self.side - np.where(self.is_left, self._along_y(left), self._along_y(right))
        self.above_dome: Field = self._along_x(self._dome_curve()) - self.y
        """Height above the diaphragm."""
        self.heart_level: Field = self._heart_level()
        self.hull: Mask = (self.lateral > 0) & (self.medial > 0) & (self.above_dome > 0)
        self.heart: Mask = (self.heart_level < 1) & (self.above_dome > -0.1)
        self.lungs: Mask = self.hull & ~self.heart

    @cached_property
    def masks(self) -> Mask:
        """bool [3,size,size]: left lung, right lung, heart."""
        return np.stack((self.lungs & self.is_left, self.lungs & ~self.is_left, self.heart))

    @cached_property
    def anatomy_mask(self) -> Mask:
        """Lungs and heart together."""
        return self.lungs | self.heart

    @cached_property
    def body(self) -> Field:
        """Depth inside the body's outline in patient units, negative in the air around it."""
        a = self.anatomy
        ticks = np.abs(CurveIndex.ticks)
        top = np.interp(
            ticks,
            [0, 0.19, 0.25, 0.42, 0.7, 0.92, 1.08, 1.25, 1.5],
            np.array([-1.6, -1.5, -1.08, -0.95, -0.83, -0.72, -0.55, -0.2, 1.0]) + a.shoulder,
        )
        from_top = (self.y - self._along_x(top)) * np.float32(0.7)
        torso = self.flank - self.side
        axilla = np.float32(-0.12) - self.y
        arm = self.side - (self.flank + np.float32(a.arm_gap) * np.clip(self.y + np.float32(0.3), 0, 1))
        return np.asarray(
            np.minimum(from_top, np.maximum(np.maximum(torso, axilla), arm if a.arm_gap > 0.02 else torso + 9))
        )

    @cached_property
    def flank(self) -> Field:
        """Distance of the skin of the torso from the midline."""
        return np.float32(self.anatomy.half_width + self.anatomy.wall) + np.float32(0.04) * (self.y - 0.3)

    def dome_height(self, left: bool) -> float:
        """y of the top of a hemidiaphragm."""
        return self.anatomy.dome_left if left else self.anatomy.dome_right

    def costophrenic(self, left: bool) -> tuple[float, float]:
        """Patient point (across the midline, y) of a costophrenic angle."""
        sign = 1 if left else -1
        return sign * self.anatomy.half_width, self.dome_height(left) + self.anatomy.dome_rise

    def hilum(self, left: bool) -> tuple[float, float]:
        """Patient point (across the midline, y) of a hilum; the left one stands higher."""
        a = self.anatomy
        y = a.heart_y - 0.55 * a.heart_height
        return (0.2, y - 0.05) if left else (-0.19, y)

    def _wall_curve(self) -> npt.NDArray[np.float64]:
        a = self.anatomy
        depth = (CurveIndex.ticks - a.apex) / 0.95
        round_off = np.sqrt(1 - (1 - np.clip(depth, 0, 1)) ** 2.3)
        inner = 0.2
        wall = inner + (a.half_width - inner) * round_off + 0.035 * (CurveIndex.ticks - 0.4) * (depth > 1)
        return np.where(depth > 0, wall, -1.0 + depth)

    def _mediastinum_curves(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        a, y = self.anatomy, CurveIndex.ticks
        apical = 0.1 * np.exp(-np.maximum(y - a.apex, 0) / 0.07)
        flare = 0.05 * np.clip((y + 0.1) / 0.5, 0, 1)
        knob = a.aortic_knob * np.exp(-(((y + 0.36) / 0.09) ** 2))
        trunk = 0.05 * np.exp(-(((y + 0.17) / 0.1) ** 2))
        right_vessels = 0.025 * np.exp(-(((y + 0.2) / 0.12) ** 2))
        return a.mediastinum + apical + flare + right_vessels, a.mediastinum + apical + flare + knob + trunk

    def _dome_curve(self) -> npt.NDArray[np.float64]:
        a, x = self.anatomy, CurveIndex.ticks
        s = np.abs(x) / a.half_width
        fall = np.where(s > 0.48, (np.maximum(s - 0.48, 0) / 0.52) ** 2.4, 0.22 * ((0.48 - s) / 0.48) ** 2)
        return np.where(x > 0, a.dome_left, a.dome_right) + a.dome_rise * np.minimum(fall, 4)

    def _heart_level(self) -> Field:
        a = self.anatomy
        t = np.linspace(0, 2 * np.pi, 90)
        widest = np.cos(t) * (1 + _HEART_EGG * np.sin(t)) / (1 - _HEART_EGG * _HEART_SHEAR * np.cos(t))
        # The sheared egg is centred and scaled so that its width is 2 heart_extent whatever its shape.
        unit = (widest.max() - widest.min()) / 2
        centre = a.heart_x - a.heart_extent * (widest.max() + widest.min()) / (2 * unit)
        xi = (self.across - np.float32(centre)) * np.float32(unit / a.heart_extent)
        eta = (self.y - np.float32(a.heart_y)) * np.float32(1 / a.heart_height)
        width = np.maximum(1 + np.float32(_HEART_EGG) * eta, np.float32(0.05))
        return np.asarray((xi / width) ** 2 + (eta - np.float32(_HEART_SHEAR) * xi) ** 2, dtype=np.float32)
