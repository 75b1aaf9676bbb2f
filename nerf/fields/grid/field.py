"""Field of a sparse voxel grid, with a small network for the part of a colour that depends on the view direction."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nerf.fields.grid.backend import CHANNELS, STRAIGHT, Backend, Ball, Capacity, Marched, Rules, VoxelRays, row_tensor
from nerf.fields.grid.schedule import GridSchedule
from nerf.fields.grid.sparse_grid import MOST_VERTICES, SparseGrid
from nerf.fields.grid.torch_backend import channels
from nerf.fields.interface import Field, Sampler
from nerf.files.packing import packed, unpacked
from nerf.optimiser import is_real
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError
from nerf.space import Space
from run_nerf_helpers import Composite, Rays, RenderResult, Sampling, coarse_depths, disparity, ray_points

POLYNOMIALS = 16  # of the view direction
HALF = torch.finfo(torch.float16).max
SMALLEST, LARGEST = 1e-3, 1e7  # voxel in a checkpoint, by that of the first stage: steps through others round to 0


class GridField(Field):
    """Density and colour in a sparse grid.

    Samples of a ray are composited channel by channel. The first three channels are a colour without view direction; a
    network adds to it once per ray, from all composited channels and the direction.

    Args:
        box: [2, 3] corners of the grid, in grid coordinates.
        voxels: edge of a voxel in each stage of training, in grid units; all cells of the first stage are kept.
        pixel: side of a pixel at the scene's centre, in grid units; 0: unknown.
        seed: seed of the network's initial weights.
        view_chunk: most rays of a picture at once.
    """
    has_slim_weights = True

    def __init__(self, box: np.ndarray, voxels: Sequence[float], schedule: GridSchedule, space: Space,
                 backend: type[Backend], white_bkgd: bool, seed: int, device: torch.device,
                 dtype: torch.dtype = torch.float32, view_chunk: int = 32768, supersample: int = 1, pixel: float = 0.0):
        super().__init__()
        self.schedule, self.space, self.white_bkgd, self.dtype = schedule, space, white_bkgd, dtype
        self.backend_kind, self.view_chunk, self.supersample = backend, view_chunk, supersample
        self.voxels, self.pixel, self.stage = tuple(voxels), pixel, 0
        self.backdrop = torch.full([3], float(white_bkgd), device=device)  # colour of views that meet nothing
        self.network = view_network(schedule, torch.Generator().manual_seed(seed)).to(device)
        self.take(SparseGrid.filled(box, self.voxels[0], device))

    def take(self, grid: SparseGrid, rows: Tensor | None = None) -> None:
        """Replaces the grid and its rows, by rows [M, 16] of `row_tensor`; None: zeros."""
        self.grid, self._backend = grid, None
        self.rows = nn.Parameter(row_tensor(None, (grid.n_rows, CHANNELS), grid.cells.device) if rows is None else rows)

    def release(self) -> None:
        """Frees the memory of the backend and of the gradients, before the rows are replaced."""
        self._backend, self.rows.grad = None, None

    @property
    def backend(self) -> Backend:
        """Backend of the present grid and rows, made at its first use."""
        if self._backend is None:
            numbers, ball = self.schedule, Ball.of(self.grid) if self.space.contracts else STRAIGHT
            rules = Rules(numbers.least if self.stage else numbers.least_first, numbers.dark, numbers.sharpness,
                          numbers.offset, numbers.most_samples, ball)
            self._backend = self.backend_kind(self.grid, self.rows, rules, numbers.most_rays)
        return self._backend

    def __getstate__(self) -> dict:
        """Attributes for a copy, which makes a backend of its own rows."""
        return vars(self) | {'_backend': None}

    def voxel_rays(self, rays: Rays, jitter: Tensor | None = None) -> VoxelRays:
        """R rays in voxels; without jitter [R] the first sample is in the middle of a step."""
        origins, directions, near, far = self.space.grid_rays(rays, self.grid.voxel)
        jitter = torch.full_like(near, 0.5) if jitter is None else jitter
        fade = self.schedule.fade * self.space.distances(rays) if self.schedule.fade else torch.zeros_like(near)
        return VoxelRays(self.grid.scaled(origins), directions / self.grid.voxel, near, far, jitter, fade)

    def march(self, rays: Rays, jitter: Tensor | None = None, capacity: Capacity | None = None) -> Marched:
        """`Backend.march` of `voxel_rays`."""
        return self.backend.march(self.voxel_rays(rays, jitter), capacity)

    def coloured(self, marched: Marched, viewdirs: Tensor, background: Tensor | float) -> Tensor:
        """Colours [R, 3] of R rays on a background [R, 3]."""
        rgb = marched.features[:, :3] + marched.rest[:, None] * background
        if torch.is_grad_enabled():  # a captured step cannot wait for the number of rays that met something
            change = self._view_dependent(marched.features, viewdirs)
            return rgb + torch.where(marched.count[:, None] > 0, change, 0.0)
        hit = marched.count.nonzero()[:, 0]  # the other rays are half of many views
        rgb[hit] += self._view_dependent(marched.features[hit], viewdirs[hit])
        return rgb

    def _view_dependent(self, features: Tensor, viewdirs: Tensor) -> Tensor:
        """Change of colours [R, 3] by the network, from channels [R, 15] and directions [R, 3]."""
        x = torch.cat([features, direction_polynomials(viewdirs)], -1)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x).float()

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        flat, dirs = points.reshape(-1, 3), viewdirs[:, None].expand(points.shape).reshape(-1, 3)
        corner, weights = self.grid.trilinear(self.grid.scaled(self.space.to_grid(flat)))
        _, features = channels(self.rows.detach(), corner.clamp(min=0), weights, self.backend.rules)
        rgb = features[:, :3] + self._view_dependent(features, dirs)
        return rgb.clamp(0.0, 1.0).reshape(points.shape), self.density(flat).reshape(points.shape[:-1])

    def density(self, points: Tensor) -> Tensor:
        """`Field.density`. In contracted or stretched space it is the mean over directions (`Space.grid_scale`)."""
        scaled = self.grid.scaled(self.space.to_grid(points))
        raw, weight = self.grid.interpolated(self.rows.detach()[:, :1], scaled)
        last = constant(self.grid.cells.shape, points.device) - 1
        inside = ((scaled >= 0) & (scaled <= last)).all(-1) & (weight > 1.0 - 1e-4)
        density = self.backend.rules.optical_depth(raw[:, 0]) / self.grid.voxel * self.space.grid_scale(points)
        return torch.where(inside, density, 0.0)

    def sampler(self) -> Sampler:
        return GridSampler(self, min(self.view_chunk, self.backend.most_rays), self.supersample)

    @torch.inference_mode()
    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Densities above 0, evenly along the rays, and colours where a voxel is not thin."""
        colours, density = self.radiance(ray_points(rays, coarse_depths(rays, Sampling(64))), rays.viewdirs)
        seen = colours[density * self.grid.voxel > self.schedule.thin]
        return {'density': density[density > 0], **dict(zip(('red', 'green', 'blue'), seen.unbind(-1)))}

    def describe(self) -> str:
        shape, kind = 'x'.join(map(str, self.grid.cells.shape)), self.backend_kind.name
        return f'grid      {len(self.rows):,} of {shape} vertices, {self.grid.voxel:.4g} apart, {kind}'

    # Checkpoints

    def weights(self) -> dict:
        """`Field.weights`. Rows are not packed, so that saving is quick."""
        cells = packed(torch.from_numpy(np.packbits(self.grid.cells.cpu().numpy().reshape(-1))))
        return {'grid_state_dict': {
            'rows': self.rows.detach().cpu(), 'cells': cells, 'shape': list(self.grid.cells.shape),
            'low': self.grid.low, 'voxel': self.grid.voxel, 'stage': self.stage,
            'contraction': self.space.ball_numbers(), 'backdrop': self.backdrop.cpu(),
            'network': {name: part.cpu() for name, part in self.network.state_dict().items()}}}

    def slim_weights(self) -> dict:
        """`weights` with packed rows in half precision."""
        state = self.weights()['grid_state_dict']
        return {'grid_state_dict': state | {'rows': packed(state['rows'].clamp(-HALF, HALF).half())}}

    def load_weights(self, checkpoint: dict) -> None:
        state = checkpoint.get('grid_state_dict')
        if not isinstance(state, dict):
            raise UserError('it has no grid_state_dict; set field = mlp or use another checkpoint')
        try:
            grid, rows = _read_grid(state, self.voxels[0], self.device)
            space = self.space.with_ball(state.get('contraction'))  # the first versions had none
            stage = min(max(int(state['stage']), 0), len(self.voxels) - 1)
            backdrop = _checked(state.get('backdrop', self.backdrop)).to(self.backdrop).reshape(3)
            self.network.load_state_dict(state['network'])
        except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f'its grid_state_dict is broken ({error!r}); remove it or use another checkpoint') from None
        if space != self.space:  # of an older run, or of another scene
            scale = grid.voxel / self.voxels[stage]
            self.pixel *= space.scale_at_centre / self.space.scale_at_centre
            self.space, self.voxels = space, tuple(scale * voxel for voxel in self.voxels)
        self.stage, self.backdrop = stage, backdrop
        self.take(grid, row_tensor(rows, (grid.n_rows, CHANNELS), self.device))


def _checked(values) -> Tensor:
    """Values of a checkpoint, if they are a tensor of real numbers; else a ValueError."""
    if not is_real(values):
        raise ValueError('a backdrop that is no real numbers')
    return values


def _read_grid(state: dict, voxel: float, device: torch.device) -> tuple[SparseGrid, Tensor]:
    """Grid and rows [M, 16] of a 'grid_state_dict', given the voxel of the first stage. A broken one is an error."""
    shape = [int(size) for size in state['shape']]
    count = math.prod(shape)
    if len(shape) != 3 or min(shape) < 2 or count > MOST_VERTICES:
        raise ValueError(f'cells of shape {shape}')
    low, edge = state['low'].double().reshape(3), float(state['voxel'])
    if not ((low.abs() < LARGEST * voxel).all() and SMALLEST * voxel < edge < LARGEST * voxel):
        raise ValueError(f'voxels of {edge} from {low.tolist()}')
    bits = np.unpackbits(unpacked(state['cells'], ((count + 7) // 8,), torch.uint8).numpy())
    cells, rows = torch.from_numpy(bits[:count].reshape(shape).view(bool)), state['rows']
    n_cells = np.count_nonzero(cells)  # Tensor.sum makes int64 of each first
    n_rows = len(rows) if isinstance(rows, Tensor) else len(rows['low']) // CHANNELS
    if n_cells > n_rows:  # each has a lowest corner; a small file can claim to have a huge grid
        raise ValueError(f'{n_cells} cells but {n_rows} rows')
    grid = SparseGrid.of_cells(low, edge, cells.to(device))
    rows = unpacked(rows, (grid.n_rows, CHANNELS), torch.float16)
    if not is_real(rows) or not grid.n_rows:
        raise ValueError('rows that are no real numbers, or none')
    return grid, rows


class GridSampler(Sampler):
    """Sampler that marches through the grid."""
    name = 'grid'
    field: GridField

    @torch.no_grad()
    def render(self, rays: Rays) -> RenderResult:
        marched = self.field.march(rays)
        rgb = self.field.coloured(marched, rays.viewdirs, self.field.backdrop).clamp(0.0, 1.0)
        acc = 1.0 - marched.rest
        picture = Composite(rgb, disparity(marched.depth, acc), acc, acc[:, None], marched.depth)
        return RenderResult(picture, None, None)


def view_network(schedule: GridSchedule, generator: torch.Generator) -> nn.Sequential:
    """Network from composited channels and polynomials of the direction to a change of colour, small at first."""
    width = schedule.width
    network = nn.Sequential(nn.Linear(CHANNELS - 1 + POLYNOMIALS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                            nn.Linear(width, 3))
    with torch.no_grad():
        for layer in network[::2]:
            bound = layer.in_features ** -0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
        network[-1].weight.mul_(schedule.view_start)
    return network


def direction_polynomials(d: Tensor) -> Tensor:
    """Spherical harmonics [R, 16] up to degree 3 of unit directions [R, 3], without their constant factors."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, z * x, xx - yy, 3 * zz - 1, y * (3 * xx - yy),
                        x * y * z, y * (5 * zz - 1), z * (5 * zz - 3), x * (5 * zz - 1), z * (xx - yy),
                        x * (xx - 3 * yy)], -1)
