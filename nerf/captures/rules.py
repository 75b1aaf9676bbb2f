"""Numbers that decide how cameras are estimated, which sparse points are used, and where a scene lies.

All were set by hand; no search over them is on record. The tests check their results on fern and on synthetic captures,
and their results were looked at on fox_small and beer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EstimationRules:
    """Numbers of `estimate_cameras`."""

    fewest_photographs: int = 8  # with a camera, for a scene to be trained on
    longest_side: int = 1200  # pixels of a copy in which features are found; more takes time, for no better cameras
    all_pairs: int = 80  # photographs up to which every pair is matched
    neighbours: int = 10  # photographs on either side that each of more photographs is matched with
    anchors: int = 20  # photographs, spread evenly, that all others are matched with; they find closed loops
    fewest_in_model: int = 3  # photographs of a COLMAP model
    seed: int = 0  # of COLMAP


@dataclass(frozen=True)
class PointRules:
    """Numbers of `reliable_points`, which chooses sparse points of a COLMAP model."""

    fewest_observations: int = 2  # features of a point
    error_ratio: float = 3.0  # largest reprojection error of a point, as a multiple of the median
    least_error: float = 1.0  # pixels of reprojection error that are always accepted


@dataclass(frozen=True)
class PlacementRules:
    """Numbers of `place`."""

    distance: float = 4.0  # mean distance of cameras around a centre from it, in scene units, as in Blender scenes
    bd_factor: float = 0.75  # the nearest depth of forward-facing captures is at 1 / bd_factor, as load_llff's
    widest: float = 40.0  # degrees between a camera's axis and the mean axis, at most, in a forward-facing capture
    level: float = 0.15  # right axes lie in a level plane if their variance across it is below this share of the next

    # Depths of a view
    extremes: tuple[float, float] = (1.0, 99.0)  # percentiles of the points' depths: nearest and farthest thing
    fewest_points: int = 20  # points that a view needs for its own percentiles
    most_points: int = 50_000  # points that are projected into views; of more, every n-th
    margin: tuple[float, float] = (0.9, 1.1)  # near and far bound, as shares of nearest and farthest depth
    guessed_ahead: tuple[float, float] = (0.4, 4.0)  # nearest and farthest without points: shares of the axes' crossing
    guessed_around: tuple[float, float] = (0.3, 3.0)  # around a centre: shares of a camera's distance from it
    closest: float = 0.2  # least distance for guessed_around, as a share of the mean distance

    # Orbit around a centre
    path_views: int = 120
    overhead: float = 0.3  # cameras nearer to the vertical axis than this share of the median have no azimuth
    open_gap: float = 60.0  # degrees of azimuth without a camera that the orbit does not cross
    smooth: float = 15.0  # degrees of azimuth over which the orbit's radius and height are averaged


ESTIMATION, POINTS, PLACEMENT = EstimationRules(), PointRules(), PlacementRules()
