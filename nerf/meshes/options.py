"""Options of a mesh: its flags, and every other number that decides the result."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np

from nerf.runtime.errors import UserError


@dataclass(frozen=True)
class MeshSettings:
    """Numbers that decide a mesh and are no flags. The hidden points' numbers were chosen from about seventy settings
    on two fields of the toy chair, a grid and the paper's networks, by the distance to the true mesh and the PSNR of
    the drawn mesh (docs/measurements.md). Other numbers were set by looking at meshes of the chair, lego and fern."""
    # Box of a scene without bounds
    looking: float = 0.5  # share of the cameras that look at the box
    looked_points: int = 49  # points along the longest side at which it is decided
    # Views of the field from training cameras
    views: int = 64  # views at most. The toy chair's error is 0.45% with 32 views, and about 0.3% with 60
    view_rays: int = 2_000_000  # rays of all views at most. 4 million rays gain 0.1 dB on the toy chair
    texture_rays: int = 4_000_000  # rays of all views at most, for a mesh with a texture
    solid_opacity: float = 0.5  # opacity from which a ray ends on a surface
    # Level of the surface
    level_rays: int = 2048  # training rays at most
    level_samples: int = 384  # samples of each ray
    # Extraction
    survey: int = 193  # grid points along the longest side of the box that is searched for density
    halo: float = 0.5  # share of the level from which a block's corner is near the surface: thin parts are blurred
    small_grid: int = 129  # points along the longest side up to which blocks have 2 cells along an edge; above it 4
    floater_share: float = 0.01  # share of the largest component's faces below which a component is dropped
    # Confirmation, in a scene without bounds; chosen by looking at meshes of alexander and the fox
    confirming_views: int = 3  # views that must show a depth, its own view among them, if as many look at the place
    majority: float = 0.7  # share of these views that must show it; at 0.5 more fog stays beside alexander
    confirmed_share: float = 0.01  # share of a depth within which views agree about it
    confirmed_steps: float = 2.0  # grid steps within which they agree at least
    seen_steps: float = 3.0  # grid steps between a vertex and the depth of a view that shows it, at most
    hole_faces: int = 50  # faces up to which a group of faces that no view shows stays, since it would be a hole
    # Fusion of depths
    band: float = 4.0  # grid steps at which distances are cut off
    block: int = 4  # grid points along the edges of the blocks that are fused closely, or not at all
    margin: float = 2.0  # grid steps around a seen point within which blocks are fused closely; at most half a block
    support: int = 3  # neighbours of a pixel, of eight, that must show the same surface: at an edge, depth is a mixture
    reach: int = 4  # pixels around a block's middle in which the block must lie to be hidden as a whole
    clear_views: int = 6  # views that see far past a point, after which the point is surely outside
    # Hidden points: no training camera sees them
    hidden_views: int = 3  # views at least that see something in front of a hidden point
    hidden_step: int = 2  # grid steps between the hidden points that are decided one by one
    wall_share: float = 0.02  # share of the grid's longest side up to which all is inside behind a seen surface
    denser: float = 2.0  # times the surface's density, from which a point farther behind is inside
    hidden_blur: float = 1.25  # coarse steps: standard deviation of the Gaussian filter over hidden points
    # Outlines
    outline_points: int = 20_000  # points of the surface that are compared with the views' outlines
    outline_shift: float = 2.0  # grid steps by which the surface moves at most
    outline_cosine: float = 0.1  # cosine between normal and line of sight up to which a point lies on an outline
    outline_fewest: int = 100  # points on outlines below which the surface does not move
    # Number of faces
    near_steps: float = 0.25  # grid steps: distance to the field's surface up to which a point is right
    lost_share: float = 0.02  # share of points that simplification may move farther away
    checked_points: int = 20_000  # points at which the distance is checked
    shrink: float = 0.7  # factor by which the number of faces falls at a time
    first_shrink: float = 0.7 ** 3  # factor at first, if the surface stays near enough
    fewest_faces: int = 100  # faces at which the number stops falling
    spare: float = 0.995  # share of the wanted faces that simplification leaves, because parting adds some
    textured_faces: int = 50_000  # faces at most with a texture: laying out more takes too long
    parted_share: float = 0.05  # share of a face's height by which touching sheets are moved apart
    # Colours
    colour_samples: int = 8  # samples on the short ray that gives a vertex its colour
    colour_reach: float = 2.0  # grid steps before and behind the vertex to the ray's ends
    oblique_cosine: float = 0.2  # cosine between normal and direction to a camera from which a texel's colour is taken
    whole_opacity: float = 0.98  # opacity from which a pixel's colour is taken: outlines show the background too
    texel_views: int = 2  # views at least that see a texel; else its colour is that of the vertices
    texel_reach: float = 3.0  # grid steps between a texel and the depth of a view that shows it, at most
    # Layout of the texture
    chart_rounds: int = 2  # rounds in which faces take on the direction of their neighbours: charts are fewer
    chart_cosine: float = 0.3  # cosine between a face and its chart's axis below which the face leaves the chart
    chart_padding: int = 2  # texels between charts
    folded_texels: float = 4.0  # texels between faces of a chart, one above the other, from which they are cut apart
    folded_share: float = 1e-3  # share of faces, one above the other, up to which none is cut apart: they share colours
    chart_layers: int = 3  # times at most that faces are cut apart


DEFAULTS = MeshSettings()


@dataclass(frozen=True)
class MeshOptions:
    """Flags of one mesh."""
    grid_size: int  # grid points along the longest side of the box around the surface
    threshold: float | None = None  # density at the surface, in 1/scene unit; None: that of `surface_level`
    fused: bool = False  # the surface is what the training cameras see; else that of a density
    faces: int = 0  # faces at most; 0: as few as the surface allows (`fewer_faces`)
    texture: int = 0  # texels along a side of the texture, of a .glb or .obj; 0: the vertices have colours
    bounds: np.ndarray | None = None  # [2, 3] world corners of a box to which the mesh is cut; None: all that is seen
    settings: MeshSettings = DEFAULTS

    def need_libraries(self) -> None:
        """Libraries of the mesh are imported, since most runs need none of them; UserError if one is missing."""
        names = ['fast_simplification', 'numba', 'scipy', 'skimage', 'trimesh']
        for name in [*names, 'xatlas'] if self.texture else names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(f'this mesh needs {name}, which cannot be imported ({error}); '
                                'pip install -r requirements.txt') from None
