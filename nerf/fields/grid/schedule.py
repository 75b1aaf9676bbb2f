"""Schedule of a grid: every number that decides what a grid becomes and how it is drawn.

Numbers were tuned on lego at 400x400 and on the toy chair; those of closed spaces on fern and the fox. The trials are
in docs/measurements.md ("The voxel grid", "The grid without bounds")."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from nerf.flag_types import number, whole
from nerf.space import Space


class Stage(NamedTuple):
    """Part of a run that has one size of voxels."""
    begins: float  # share of the run
    cells: int  # along the longest side of the grid's box


def stages_of(text: str) -> list[Stage]:
    """Stages of a text like '0:89 0.08:178 0.25:320': the share of the run at which a stage begins, and its cells.
    ArgumentTypeError: the text is no list of stages, or they do not ascend from 0 on."""
    try:
        stages = [Stage(float(begins), int(cells)) for begins, cells in (part.split(':') for part in text.split())]
    except ValueError:
        stages = []
    ascend = all(one.begins < two.begins and one.cells < two.cells for one, two in pairwise(stages))
    if not stages or stages[0].begins != 0.0 or not ascend or stages[0].cells < 1 or not stages[-1].begins < 1.0:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no list of stages: "0:89 0.08:178" begins with 89 cells along the longest side, and has 178 '
            'from 8% of the run on; both numbers ascend, and the first share is 0')
    return stages


def _stages(text: str) -> str:
    """Converter to the text of stages."""
    stages_of(text)
    return text


def _number(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={'help': help, 'type': number(low, high)})


def _count(default: int, low: int, high: int, help: str) -> Any:
    return field(default=default, metadata={'help': help, 'type': whole(low, high)})


@dataclass(frozen=True)
class GridSchedule:
    """Numbers, or text, of a grid and of its training, with defaults for a space between two bounds. Metadata of each
    field: 'help', one line with the unit and the reason, and 'type', a converter from a flag's text."""

    # Voxels
    stages: str = field(default='0:89 0.08:178 0.25:320', metadata={
        'type': _stages, 'help': 'sizes of voxels: "share of the run at which a stage begins:cells along the longest '
        'side of the box ...". Coarse stages find the shape fast, fine ones its detail'})
    voxel_pixels: float = _number(0.8, 0.0, 100.0, 'smallest voxel, in sides of a pixel at the centre of the scene; '
                                  'finer stages are left out. 0: no limit')
    most_rows: int = _count(4_000_000, 8, 2 ** 31 - 1, 'most rows of a grid, as memory allows; voxels stay larger then')
    rows_per_cell: float = _number(1.3, 0.1, 8.0, 'expected rows per kept cell of a finer grid, as on surfaces')
    # Start and pruning
    seen_by: int = _count(0, 0, 1000, 'fewest training views that see a cell of the unit ball; cells that no view sees '
                          'are dropped too. It removes fog in front of single cameras. 0: all cells are kept')
    seen_rays: int = _count(65, 2, 1000, 'rays along each side of a view, about two cells apart, to find seen cells')
    free_by: int = _count(2, 0, 1000, 'fewest training views that see through a cell, to sparse points behind it, for '
                          'the cell to be dropped at the start. 0: none is dropped')
    pruning: float = _number(0.12, 0.0, 1.0, 'share of the run between prunings')
    pruning_steps: int = _count(8, 1, 2 ** 31 - 1, 'fewest steps between prunings, and before the second stage')
    thin: float = _number(0.05, 0.0, 100.0, 'optical depth of a voxel; cells are pruned if no corner reaches it')
    margin: int = _count(1, 0, 100, 'cells around dense cells that are kept before the last stage, as surfaces move')
    hidden: float = _number(0.2, 0.0, 1.0, 'weight; rows are pruned if all samples around them weigh less, as they lie '
                            'behind surfaces or in no view. 0: no such pruning')
    hidden_margin: int = _count(0, 0, 100, 'voxels around a row that is not hidden; rows so near are kept too. Between '
                                'two prunings rays miss some rows of a surface, and holes would show')
    hidden_after: float = _number(0.5, 0.0, 100.0, 'intervals between prunings that Adam trains before hidden rows are '
                                  'pruned; rays have met all visible rows then')
    # Rays and samples of a step
    blur: float = _number(0.0, 0.0, 100.0, 'side, in voxels at the centre of the scene, of the squares of pixels whose '
                          'mean colours rays should show, down to a power of two in pixels. Coarse voxels cannot show '
                          'single pixels, so these are noise to them. 0: single pixels')
    samples: int = _count(65000, 1, 2 ** 31 - 1, 'kept samples of a step; the number of rays follows from it')
    first_rays: int = _count(1024, 1, 2 ** 20, 'rays of the first step')
    fewest_rays: int = _count(256, 1, 2 ** 20, 'fewest rays of a step')
    most_rays: int = _count(9000, 1, 2 ** 20, 'most rays of a step, and of a tile of a picture on a CPU')
    rays_change: float = _number(1.25, 1.0, 100.0, 'largest factor between the rays of two steps')
    captured_rays: int = _count(9000, 1, 2 ** 20, 'rays of a captured step on a GPU. Rays beyond its capacity are '
                                'ignored')
    captured_in_cells: int = _count(2 ** 19, 256, 2 ** 31 - 1, 'capacity of a captured step: samples in kept cells')
    captured_kept: int = _count(2 ** 16, 256, 2 ** 31 - 1, 'capacity of a captured step: kept samples')
    # Marching
    least_first: float = _number(1e-4, 0.0, 0.5, 'weight below which a sample is skipped in the first, thin stage')
    least: float = _number(1e-3, 0.0, 0.5, 'weight below which a sample is skipped after the first stage')
    dark: float = _number(1e-3, 0.0, 0.5, 'transmittance at which a ray ends')
    most_samples: int = _count(128, 1, 2 ** 16, 'kept samples after which a ray ends, as memory allows')
    sharpness: float = _number(10.0, 1e-3, 1e3, 'factor of a raw density: the optical depth of a voxel is '
                               'softplus(sharpness * raw + offset)')
    offset: float = _number(-5.0, -100.0, 100.0, 'offset of the optical depth; a fresh grid is thin fog by it')
    # Adam of the rows
    rate_density: float = _number(20.0, 0.0, 1e6, 'rate of raw densities, as a multiple of lrate')
    rate_colour: float = _number(20.0, 0.0, 1e6, 'rate of diffuse colours, as a multiple of lrate')
    rate_features: float = _number(10.0, 0.0, 1e6, 'rate of the features behind the network, as a multiple of lrate')
    slow_start: float = _number(0.02, 0.0, 1.0, 'share of the full rate of densities at first; it rises through the '
                                'first stage, so that colours come first. Rays must end on random colours: before one '
                                'plain background, fog of its colour costs nothing and stays')
    smooth_density: float = _number(1e-9, 0.0, 1e6, 'weight in the loss of half the squared differences of '
                                    'neighbouring raw densities, along one axis a step')
    smooth_others: float = _number(4.5e-9, 0.0, 1e6, 'weight in the loss of half the squared differences of '
                                   'neighbouring colours and features')
    distortion: float = _number(0.0, 0.0, 1e6, 'weight in the loss of the distortion of weights along a ray (as in '
                                'mip-NeRF 360), after the first stage. It draws fog onto surfaces')
    fade: float = _number(0.0, 0.0, 100.0, 'share c of the distance from a camera to the scene. The gradient of a '
                          'sample at a smaller share s is multiplied by (s / c)^2: rays are dense near a camera, and '
                          'fog grows there. 0: gradients are whole')
    beta_mean: float = _number(0.9, 0.0, 0.9999, 'decay of the mean of the gradient, in Adam')
    beta_square: float = _number(0.99, 0.0, 0.999999, 'decay of the mean squared gradient, in Adam; few steps touch a '
                                 'row')
    epsilon: float = _number(1e-12, 0.0, 1.0, 'epsilon of Adam. Gradients of single rows are tiny')
    # The network behind the grid, and the run
    width: int = _count(64, 1, 4096, 'channels of the network for view-dependent colour')
    view_start: float = _number(0.1, 0.0, 10.0, 'factor of the initial weights of the last layer of that network; '
                                'colours hardly depend on the direction at first')
    decay: float = _number(20.0, 1.0001, 1e9, 'factor by which the learning rate falls over the run')

    @classmethod
    def defaults(cls, space: Space, n_iters: int) -> GridSchedule:
        """Default schedule of a kind of space and a number of steps."""
        changes = DEFAULTS.get(space.name, CLOSED if space.closed else {})
        if n_iters >= LONG_RUN:
            changes = {'stages': LONG_STAGES} | changes | LONG_DEFAULTS.get(space.name, {})
        return cls(**changes)

    def with_flags(self, values: Mapping[str, Any]) -> GridSchedule:
        """Schedule with values by the names of its fields; None: not given."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def voxels(self, longest: float, pixel: float) -> list[float]:
        """Voxels of each stage, as far as they are not too small, by the longest side of the grid's box and the side of
        a pixel at the scene's centre."""
        voxels = [longest / stage.cells for stage in stages_of(self.stages)]
        return voxels[:1] + [voxel for voxel in voxels[1:] if voxel >= self.voxel_pixels * pixel]

    def pixels_per_ray(self, voxel: float, pixel: float) -> int:
        """Side, in pixels, of the squares of `blur`, by the sides of a voxel and of a pixel in the same unit."""
        return 2 ** int(math.log2(max(self.blur * voxel / pixel, 1.0))) if self.blur and pixel else 1

    def lrate_decay(self, n_iters: int) -> float:
        """Thousand steps in which the learning rate of a run of n_iters steps falls to a tenth."""
        return n_iters / (1000 * math.log10(self.decay))

    def pruning_interval(self, n_iters: int) -> int:
        """Steps between prunings in a run of n_iters steps."""
        return max(int(self.pruning * n_iters), self.pruning_steps)

    def begins(self, stage: int, n_iters: int) -> float:
        """Step after which a later stage begins in a run of n_iters steps."""
        return max(stages_of(self.stages)[stage].begins * n_iters, self.pruning_steps)


LONG_RUN = 4000  # steps from which on a run has a stage more; tuned on lego with 4,500 and 15,000 steps
LONG_STAGES = '0:89 0.06:178 0.20:320 0.45:471'
# Where every ray ends on something, grids stay foggy for long: pruning by weight costs fern in NDC 0.8 dB (6 dB without
# the margin around visible rows), and neighbours need a stronger pull. Their stages are not limited by pixels.
CLOSED = {'hidden': 0.0, 'voxel_pixels': 0.0, 'captured_rays': 4096, 'smooth_density': 6e-8, 'smooth_others': 6e-8}
# Numbers without bounds were chosen on views of the fox, beer and alexander that were held out from training views, in
# about 60 settings of 400 to 1,500 steps. What each buys is in docs/measurements.md
UNBOUNDED = CLOSED | {'seen_by': 2, 'blur': 0.4, 'margin': 0, 'hidden': 0.02, 'hidden_margin': 2, 'least': 3e-3,
                      'distortion': 0.01, 'fade': 1.0, 'smooth_density': 6e-7, 'smooth_others': 6e-7}
# Smoothness in NDC was chosen on 3 views of fern that were held out from its 17 training views, 600 steps: 6e-8, which
# had been chosen on test views, has 18.86 dB, SSIM 0.491; 2e-7 has 18.94 dB, 0.505
NDC = CLOSED | {'stages': '0:120 0.15:240 0.4:480', 'smooth_density': 2e-7, 'smooth_others': 2e-7}
DEFAULTS = {'ndc': NDC, 'unbounded': UNBOUNDED}  # by the name of the space
LONG_DEFAULTS = {'unbounded': {'stages': '0:89 0.06:178 0.20:320 0.45:640'}}  # of runs with LONG_RUN steps or more
