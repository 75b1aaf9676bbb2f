"""Kernels of a sparse grid on a CPU: loops over rays, samples and rows, compiled by Numba and cached on disk.

Results have the same bits on any number of threads. Rays are independent of each other; a thread that adds gradients
to rows owns all vertices with an even, or an odd, index along x, and adds in the order of the samples.

Arrays are float32 unless a type is named, of R rays, at most K kept samples of a ray, and M rows:

origins, directions [R, 3], near, far, jitter, fade [R]: rays in voxels, as `VoxelRays` of backend.py
rows, gradients [M, 16]: channels of the rows and their gradients; gradients of untouched rows are zero
heaviest [M]: largest weight of a sample around a row in this step; 0: the row is not touched
number [X', Y', Z'], origin [B], index [512 B], slots [M], all int32: `Bricks` of sparse_grid.py
raw [512 B]: raw density in each slot, very negative if it has no row
count [R] int64, rest, depth, distortion [R], features [R, 15]: kept samples, and the results of `Marched` (backend.py)
values [R, K, 16]: weight of each kept sample and its 15 channels, the first three as colours
corners [R, K, 4] int32: rows of the lower corners around a sample, by the last bits of x and y; the next row of each
    is that of the corner above it
places [R, K, 7]: place of a sample in its cell, slope of its optical depth by raw density, parity of its cell's x
    index, normalised distance along the ray, and factor of its gradients

Inner loops run to `width`, which is 16. The compiler makes vector instructions of a loop only if it does not know that
the loop is short."""

import math
from pathlib import Path

import numpy as np
import torch
from numba import njit, prange

from nerf.fields.grid import sparse_grid


def _can_be_kept() -> bool:
    """Whether Numba finds a folder for compiled code that it can write to; else `cache=True` is an error."""
    try:
        njit(cache=True)(_can_be_kept)  # this compiles nothing
    except RuntimeError:
        return False
    return True


F = np.float32
OPTIONS = {'cache': _can_be_kept(), 'error_model': 'numpy', 'fastmath': {'contract', 'nsz', 'arcp'}}
ONE, ZERO, HALF, TWO = F(1.0), F(0.0), F(0.5), F(2.0)  # samples are half a voxel apart
BLOCK_BITS = 2  # blocks have 4 cells along an edge; all 64 are the bits of an int64
BLOCK = 1 << BLOCK_BITS
FARTHEST_CLEAR = 8  # blocks of a jump of a contracted ray, about; further ones cost time at each change of the grid
BRICK_BITS = 3  # as in sparse_grid.py; Numba's cache does not notice an edited number of another file
BRICK = 1 << BRICK_BITS
if BRICK_BITS != sparse_grid.BRICK_BITS:
    raise ImportError('BRICK_BITS of kernels.py and of sparse_grid.py differ; set both to one number')
INSIDE = BRICK - 1  # mask of a vertex's index within its brick
X_STEP, Y_STEP = BRICK * BRICK, BRICK  # between slots in a brick


@njit(**OPTIONS)
def _inverse(x):
    return ONE / x if abs(x) > F(1e-9) else F(1e9)


@njit(**OPTIONS)
def _contracted(x, y, z, dx, dy, dz, cx, cy, cz, radius):
    """Point (x, y, z) of a straight ray, contracted, and the factor by which the contraction shortens a step there:
    `contracted` and `shrinkage` of nerf/space.py for a ball at (cx, cy, cz)."""
    px, py, pz = x - cx, y - cy, z - cz
    square = px * px + py * py + pz * pz
    if square <= radius * radius:
        return x, y, z, ONE
    over = radius / math.sqrt(square)
    across = (TWO - over) * over
    inner = px * dx + py * dy + pz * dz
    along = min(inner * inner / (square * (dx * dx + dy * dy + dz * dz)), ONE)  # the squared cosine
    shorter = math.sqrt(along * over * over * over * over + (ONE - along) * across * across)
    return cx + across * px, cy + across * py, cz + across * pz, shorter


@njit(**OPTIONS)
def _free_steps(x, y, z, bi, bj, bk, clearance):
    """Steps of half a voxel for which a path from (x, y, z) in block (bi, bj, bk) meets no kept cell, however it bends.
    All blocks at a distance of less than `clearance` blocks from this one, which is at least 1, are empty."""
    near_x = min(x - F(bi << BLOCK_BITS), F((bi + 1) << BLOCK_BITS) - x)
    near_y = min(y - F(bj << BLOCK_BITS), F((bj + 1) << BLOCK_BITS) - y)
    near_z = min(z - F(bk << BLOCK_BITS), F((bk + 1) << BLOCK_BITS) - z)
    return int(TWO * (min(near_x, min(near_y, near_z)) + F((clearance - 1) << BLOCK_BITS)))


@njit(**OPTIONS)
def _leaves_ball(px, py, pz, dx, dy, dz, radius):
    """Depth at which a ray from (px, py, pz), relative to the ball's centre, leaves the ball; -1e9: the ray misses."""
    square, middle = dx * dx + dy * dy + dz * dz, px * dx + py * dy + pz * dz
    root = middle * middle - square * (px * px + py * py + pz * pz - radius * radius)
    return (math.sqrt(root) - middle) / square if root > ZERO else F(-1e9)


@njit(**OPTIONS)
def _crossing(x, y, z, over_x, over_y, over_z, nx, ny, nz, near, far):
    """Depths at which a ray from (x, y, z) enters and leaves the box of nx x ny x nz vertices, within its bounds."""
    ax, bx = -x * over_x, (F(nx - 1) - x) * over_x
    ay, by = -y * over_y, (F(ny - 1) - y) * over_y
    az, bz = -z * over_z, (F(nz - 1) - z) * over_z
    return (max(max(min(ax, bx), min(ay, by)), max(min(az, bz), near)),
            min(min(max(ax, bx), max(ay, by)), min(max(az, bz), far)))


@njit(**OPTIONS)
def _leaves_block(bi, bj, bk, x, y, z, dx, dy, dz, over_x, over_y, over_z):
    """Depth at which a ray from (x, y, z) leaves a block that it meets."""
    leave_x = (F((bi + (dx >= 0)) << BLOCK_BITS) - x) * over_x
    leave_y = (F((bj + (dy >= 0)) << BLOCK_BITS) - y) * over_y
    leave_z = (F((bk + (dz >= 0)) << BLOCK_BITS) - z) * over_z
    return min(leave_x, min(leave_y, leave_z))


@njit(**OPTIONS)
def bit_in_block(i, j, k):
    """Number of the bit that cell (i, j, k) is in its block."""
    return ((i % BLOCK << BLOCK_BITS) + j % BLOCK << BLOCK_BITS) + k % BLOCK


def clearance_of(blocks):
    """Distance [X', Y', Z'] uint8 of each block to the nearest block that is not 0, in blocks, along the axis in which
    it is largest; at most FARTHEST_CLEAR."""
    distance, empty = np.zeros(blocks.shape, np.uint8), blocks == 0
    for _ in range(FARTHEST_CLEAR):
        distance += empty
        empty = ~sparse_grid.dilated(torch.from_numpy(~empty)).numpy()
    return distance


def cells_of_blocks(cells):
    """Blocks [X', Y', Z'] int64 of cells [X, Y, Z] bool, as bits; rays jump over blocks that are 0."""
    padded = np.pad(cells, [(0, -size % BLOCK) for size in cells.shape])
    x, y, z = (size // BLOCK for size in padded.shape)
    in_blocks = padded.reshape(x, BLOCK, y, BLOCK, z, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    bits = np.packbits(in_blocks.reshape(x, y, z, BLOCK ** 3), axis=-1, bitorder='little')
    return bits.view('<i8')[..., 0].astype(np.int64)


@njit(**OPTIONS)
def _corner_weights(fx, fy, fz):
    """Trilinear weights of a cell's eight corners, in the order of the last bits of x, y and z."""
    gx, gy, gz = ONE - fx, ONE - fy, ONE - fz
    return (gx * gy * gz, gx * gy * fz, gx * fy * gz, gx * fy * fz, fx * gy * gz, fx * gy * fz, fx * fy * gz,
            fx * fy * fz)


@njit(**OPTIONS)
def _slot(number, i, j, k):
    """Slot of vertex (i, j, k), whose brick exists."""
    brick = number[i >> BRICK_BITS, j >> BRICK_BITS, k >> BRICK_BITS]
    return (((brick << BRICK_BITS | i & INSIDE) << BRICK_BITS | j & INSIDE) << BRICK_BITS) | k & INSIDE


@njit(**OPTIONS)
def _corner_slots(number, i, j, k):
    """Slots of the corners of cell (i, j, k), in the order of `_corner_weights`. Most cells lie in one brick."""
    if (i & INSIDE) < INSIDE and (j & INSIDE) < INSIDE and (k & INSIDE) < INSIDE:
        p = _slot(number, i, j, k)
        q = p + X_STEP
        return p, p + 1, p + Y_STEP, p + Y_STEP + 1, q, q + 1, q + Y_STEP, q + Y_STEP + 1
    return (_slot(number, i, j, k), _slot(number, i, j, k + 1), _slot(number, i, j + 1, k),
            _slot(number, i, j + 1, k + 1), _slot(number, i + 1, j, k), _slot(number, i + 1, j, k + 1),
            _slot(number, i + 1, j + 1, k), _slot(number, i + 1, j + 1, k + 1))


@njit(**OPTIONS)
def _interpolated(raw, corner_slots, weights):
    """Raw density in a cell."""
    p0, p1, p2, p3, p4, p5, p6, p7 = corner_slots
    w0, w1, w2, w3, w4, w5, w6, w7 = weights
    return (w0 * raw[p0] + w1 * raw[p1] + w2 * raw[p2] + w3 * raw[p3] + w4 * raw[p4] + w5 * raw[p5] + w6 * raw[p6]
            + w7 * raw[p7])


@njit(parallel=True, **OPTIONS)
def march(origins, directions, near, far, jitter, fade, rows, raw, size, number, index, blocks, clearance, rules,
          saved, count, rest, depth, distortion, features, values, corners, places):
    """Marches rays through kept cells of a box of `size` vertices, and composites their samples by the `Rules` of
    backend.py. `blocks` are those of `cells_of_blocks`; `clearance` is that of `clearance_of`, or 0 for rays that take
    all steps. All arrays from `count` on are filled in. If `saved`, a backward pass follows: it needs the channels of
    the samples."""
    contracted, cx, cy, cz = rules.ball.contracted, F(rules.ball.x), F(rules.ball.y), F(rules.ball.z)
    radius, least_step, least, dark = F(rules.ball.radius), F(rules.least_step), F(rules.least), F(rules.dark)
    sharpness, offset = F(rules.sharpness), F(rules.offset)
    for r in prange(origins.shape[0]):  # such a loop takes no tuples, but they can be made in it
        count[r], rest[r], depth[r] = _met(
            origins[r], directions[r], (near[r], far[r], jitter[r], fade[r]), raw, size, (number, index),
            (blocks, clearance), (least, dark), (sharpness, offset),
            (contracted, cx, cy, cz, radius, least_step), values[r], corners[r], places[r])
        distortion[r] = _distortion_along(count[r], values[r], places[r])
        _composite(rows, count[r], saved, values[r], corners[r], places[r], features[r])


@njit(**OPTIONS)
def _met(origin, direction, numbers, raw, size, bricks, kept_cells, limits, opacity, ball, values, corners, places):
    """Number of one ray's kept samples, transmittance behind them, and expected depth; weights, corners and places of
    the samples are filled in."""
    (near, far, jitter, fade), (nx, ny, nz), (number, index) = numbers, size, bricks
    (blocks, clearance), (least, dark), (sharpness, offset) = kept_cells, limits, opacity
    contracted, cx, cy, cz, radius, least_step = ball
    thin = F(math.log((ONE - least) ** -2 - ONE))  # below it even a sample in full light weighs less than `least`
    ox, oy, oz = origin[0], origin[1], origin[2]
    dx, dy, dz = direction[0], direction[1], direction[2]
    over_x, over_y, over_z = _inverse(dx), _inverse(dy), _inverse(dz)
    speed = math.sqrt(dx * dx + dy * dy + dz * dz)
    dt, per_depth, leaves_ball = HALF / speed, speed / F(max(nx, ny, nz)), F(1e9)
    if contracted:  # each step asks whether it is in the box
        start, end = near, far
        x, y, z = ox + start * dx, oy + start * dy, oz + start * dz
        t = start + jitter * dt / _contracted(x, y, z, dx, dy, dz, cx, cy, cz, radius)[3]
        leaves_ball = _leaves_ball(ox - cx, oy - cy, oz - cz, dx, dy, dz, radius)
    else:
        start, end = _crossing(ox, oy, oz, over_x, over_y, over_z, nx, ny, nz, near, far)
        t = start + jitter * dt
    light, distance, n = ONE, ZERO, 0
    while t < end:
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        step = dt
        if contracted:
            x, y, z, shorter = _contracted(x, y, z, dx, dy, dz, cx, cy, cz, radius)
            step = max(dt / shorter, least_step * t)
            if not (ZERO <= x <= F(nx - 1) and ZERO <= y <= F(ny - 1) and ZERO <= z <= F(nz - 1)):
                t += step
                continue
        i, j, k = min(max(int(x), 0), nx - 2), min(max(int(y), 0), ny - 2), min(max(int(z), 0), nz - 2)
        bi, bj, bk = i >> BLOCK_BITS, j >> BLOCK_BITS, k >> BLOCK_BITS
        kept = blocks[bi, bj, bk]
        if not kept:
            if step > dt:  # outside the ball, where a ray that moves outwards becomes ever slower
                steps = F(_free_steps(x, y, z, bi, bj, bk, clearance[bi, bj, bk]))
                outwards = (x - cx) * dx + (y - cy) * dy + (z - cz) * dz >= ZERO
                t += max(steps, ONE) * step if outwards else max(steps * dt, step)
                continue
            leave = min(_leaves_block(bi, bj, bk, ox, oy, oz, dx, dy, dz, over_x, over_y, over_z), leaves_ball)
            t += F(max(int((leave - t) / dt) + 1, 1)) * dt
            continue
        if not kept >> bit_in_block(i, j, k) & 1:
            t += step
            continue
        fx, fy, fz = x - F(i), y - F(j), z - F(k)
        around = _corner_slots(number, i, j, k)
        a = sharpness * _interpolated(raw, around, _corner_weights(fx, fy, fz)) + offset
        if a < thin:
            t += step
            continue
        e = math.exp(min(a, F(40.0)))
        passed = ONE / math.sqrt(ONE + e)  # exp(-0.5 softplus(a)): over half a voxel
        weight = light * (ONE - passed)
        if weight < least:
            t += step
            continue
        values[n, 0] = weight
        corners[n, 0], corners[n, 1], corners[n, 2], corners[n, 3] = (
            index[around[0]], index[around[2]], index[around[4]], index[around[6]])
        places[n, 0], places[n, 1], places[n, 2] = fx, fy, fz
        places[n, 3], places[n, 4] = HALF * sharpness * e / (ONE + e), F(i & 1)
        places[n, 5] = ONE - near / t if contracted else (t - near) * per_depth
        places[n, 6] = ONE if t >= fade else t * t / (fade * fade)
        distance += weight * t
        light *= passed
        n += 1
        if light < dark or n == values.shape[0]:
            break
        t += step
    return n, light, distance


@njit(**OPTIONS)
def _distortion_along(n, values, places):
    """Distortion of a ray's n samples."""
    total, moment, distortion = ZERO, ZERO, ZERO
    for s in range(n):
        weight, distance = values[s, 0], places[s, 5]
        distortion += TWO * weight * (distance * total - moment)
        total += weight
        moment += weight * distance
    return distortion


@njit(**OPTIONS)
def _composite(rows, n, saved, values, corners, places, features):
    """Sums of the channels of a ray's n samples; if `saved`, the channels of each sample are filled in too."""
    width, sums, sample = rows.shape[1], np.zeros(16, np.float32), np.empty(16, np.float32)
    for s in range(n):
        w0, w1, w2, w3, w4, w5, w6, w7 = _corner_weights(places[s, 0], places[s, 1], places[s, 2])
        r0, r2, r4, r6 = corners[s, 0], corners[s, 1], corners[s, 2], corners[s, 3]
        r1, r3, r5, r7 = r0 + 1, r2 + 1, r4 + 1, r6 + 1  # rows are in the order of z
        for c in range(width):
            sample[c] = (w0 * rows[r0, c] + w1 * rows[r1, c] + w2 * rows[r2, c] + w3 * rows[r3, c]
                         + w4 * rows[r4, c] + w5 * rows[r5, c] + w6 * rows[r6, c] + w7 * rows[r7, c])
        for c in range(1, 4):  # colours
            sample[c] = ONE / (ONE + math.exp(-sample[c]))
        sample[0], weight = ONE, values[s, 0]
        for c in range(width):
            sums[c] += weight * sample[c]
        if saved:
            for c in range(1, width):
                values[s, c] = sample[c]
    for c in range(15):
        features[c] = sums[c + 1]


@njit(parallel=True, **OPTIONS)
def raw_gradients(count, rest, values, places, of_features, of_rest, of_distortion):
    """Gradients of the loss by the raw density of each kept sample, in place of its slope; back to front along a ray.
    The loss has the gradients of_features [R, 15] by `features`, of_rest and of_distortion [R] by the others."""
    for r in prange(count.shape[0]):
        light, behind = rest[r], of_rest[r] * rest[r]
        before, moment_before, after, moment_after = ZERO, ZERO, ZERO, ZERO  # sums of weights, and times distances
        for s in range(count[r]):
            before += values[r, s, 0]
            moment_before += values[r, s, 0] * places[r, s, 5]
        for s in range(count[r] - 1, -1, -1):
            weight, distance = values[r, s, 0], places[r, s, 5]
            before -= weight
            moment_before -= weight * distance
            away = distance * (before - after) - moment_before + moment_after
            by_weight = of_distortion[r] * TWO * away
            for c in range(15):
                by_weight += of_features[r, c] * values[r, s, c + 1]
            places[r, s, 3] *= places[r, s, 6] * (light * by_weight - behind)
            behind += weight * by_weight
            light += weight
            after += weight
            moment_after += weight * distance


@njit(parallel=True, **OPTIONS)
def scatter(count, values, corners, places, of_features, gradients, heaviest):
    """Adds gradients of the samples, by of_features [R, 15], to those of the rows around them. Fills in `heaviest`."""
    width = gradients.shape[1]
    for parity in prange(2):
        gradient = np.zeros(16, np.float32)
        for r in range(count.shape[0]):
            for s in range(count[r]):
                weight = values[r, s, 0]
                pull = places[r, s, 6] * weight
                for c in range(width - 1):
                    gradient[c + 1] = pull * of_features[r, c]
                for c in range(1, 4):
                    colour = values[r, s, c]
                    gradient[c] *= colour * (ONE - colour)
                gradient[0] = places[r, s, 3]
                side = parity ^ int(places[r, s, 4])
                fx, fy, fz = places[r, s, 0], places[r, s, 1], places[r, s, 2]
                share_x = fx if side else ONE - fx
                for corner in range(2):
                    lower = corners[r, s, 2 * side + corner]
                    share_xy = share_x * (fy if corner else ONE - fy)
                    for up in range(2):
                        row, share = lower + up, share_xy * (fz if up else ONE - fz)
                        for c in range(width):
                            gradients[row, c] += share * gradient[c]
                        heaviest[row] = max(heaviest[row], weight)


@njit(**OPTIONS)
def _neighbour(slot, axis, step, number, origin, index):
    """Row of the vertex one step, -1 or 1, along an axis from a slot; -1: it has none."""
    shift = BRICK_BITS * (2 - axis)
    within = (slot >> shift & INSIDE) + step
    if 0 <= within < BRICK:
        return index[slot + (step << shift)]
    brick, last = origin[slot >> 3 * BRICK_BITS], number.shape[axis] - 1
    stride = 1
    for later in range(axis + 1, 3):
        stride *= number.shape[later]
    if not 0 <= brick // stride % (last + 1) + step <= last:
        return np.int32(-1)
    other = number.reshape(-1)[brick + step * stride]
    if other < 0:
        return np.int32(-1)
    return index[(other << 3 * BRICK_BITS) + (slot & BRICK ** 3 - 1) - (step * INSIDE << shift)]


@njit(parallel=True, **OPTIONS)
def smooth(rows, number, origin, index, slots, gradients, heaviest, weights, axis, sums):
    """Gradients of half the squared differences of neighbouring rows along an axis, times weights [16], added to those
    of touched rows. sums [P, 16] get sums of the touched rows' gradients, for P parts of the rows."""
    width, n_rows, n_parts = rows.shape[1], rows.shape[0], sums.shape[0]
    for part in prange(n_parts):  # rows are in the order of the memory
        for c in range(width):
            sums[part, c] = ZERO
        for row in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            if heaviest[row] == ZERO:
                continue
            for side in range(2):
                other = _neighbour(slots[row], axis, 2 * side - 1, number, origin, index)
                if other < 0:
                    continue
                for c in range(width):
                    gradients[row, c] += weights[c] * (rows[row, c] - rows[other, c])
            for c in range(width):
                sums[part, c] += gradients[row, c]


@njit(parallel=True, **OPTIONS)
def adam(rows, raw, slots, gradients, means, squares, heaviest, strongest, rates, betas, epsilon, debias_mean,
         debias_square, apply):
    """Adam's step on the touched rows, and on their running means [M, 16], at rates [16] of the channels. strongest [M]
    get `heaviest`, if it is larger. No row is touched afterwards, and all gradients are zero. Running means began at
    zero: the debias factors correct this. Unless `apply`, neither rows nor means change."""
    width, first, second, epsilon = rows.shape[1], F(betas[0]), F(betas[1]), F(epsilon)
    for row in prange(rows.shape[0]):
        if heaviest[row] == ZERO:
            continue
        strongest[row], heaviest[row] = max(strongest[row], heaviest[row]), ZERO
        if apply:
            for c in range(width):
                g = gradients[row, c]
                mean = first * means[row, c] + (ONE - first) * g
                square = second * squares[row, c] + (ONE - second) * g * g
                means[row, c], squares[row, c] = mean, square
                rows[row, c] -= rates[c] * debias_mean * mean / (math.sqrt(debias_square * square) + epsilon)
            raw[slots[row]] = rows[row, 0]
        for c in range(width):
            gradients[row, c] = ZERO


def compile_note() -> str | None:
    """A line about the wait for the compiler; None: compiled code is on disk already."""
    if not OPTIONS['cache']:
        return ("compiling the grid's loops; this takes about 10 s in each run, as Numba finds no folder to keep them "
                'in: set NUMBA_CACHE_DIR to one that can be written to')
    line = march.py_func.__code__.co_firstlineno  # is in the names of Numba's files
    if any(Path(march.stats.cache_path).glob(f'{Path(__file__).stem}.march-{line}.*.nbi')):
        return None
    return "compiling the grid's loops, once; this takes about 10 s"
