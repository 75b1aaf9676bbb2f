"""Loops over the rays and samples of a sparse grid on a CPU, compiled by Numba and cached on disk.

Each gives the same bits on any number of threads: rays are independent of each other, and a thread that adds gradients
to vertices owns those of one parity of their x index, and adds in the order of the samples. nerf/fields/grid_torch.py
computes the same in plain PyTorch.

Shapes: R rays, K samples that a ray can keep, M rows of 16 channels. Rays are in voxels: vertex (i, j, k) is at the
point (i, j, k). All numbers are float32.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from nerf.fields.grid_torch import DARK, FIRST_RATE, OFFSET, SECOND_RATE, SHARPNESS, STEP
from nerf.fields.sparse_grid import BLOCK

F = np.float32
OPTIONS = {'cache': True, 'error_model': 'numpy', 'fastmath': {'contract', 'nsz', 'arcp'}}
ONE, ZERO = F(1.0), F(0.0)


@njit(**OPTIONS)
def _inverse(x):
    return ONE / x if abs(x) > F(1e-9) else F(1e9)


@njit(parallel=True, **OPTIONS)
def march(origins, directions, near, far, jitter, rows, index, cells, blocks, least, count, rest, depth, features,
          values, corners, places):
    """Marches rays through the kept cells and composites what they meet.

    Args:
        origins, directions: [R, 3] in voxels; near, far, jitter: [R], jitter in [0, 1) of a step.
        rows, index, cells, blocks: the grid's.
        least: weight below which a sample is skipped: it takes no light either.
        count, rest, depth: [R], get the number of kept samples, the light that is left, and the expected depth.
        features: [R, 15], get the composited channels.
        values: [R, K, 16], get each kept sample's weight and its 15 channels, the first three as colours.
        corners: [R, K, 8] int32, get the rows around it, by the last bits of x, y and z.
        places: [R, K, 5], get its place in the cell, the slope of its optical depth by raw density, and the parity of
            its cell's x index.
    """
    nx, ny, nz = index.shape
    for r in prange(origins.shape[0]):
        ox, oy, oz = origins[r, 0], origins[r, 1], origins[r, 2]
        dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
        over_x, over_y, over_z = _inverse(dx), _inverse(dy), _inverse(dz)
        ax, bx = -ox * over_x, (F(nx - 1) - ox) * over_x
        ay, by = -oy * over_y, (F(ny - 1) - oy) * over_y
        az, bz = -oz * over_z, (F(nz - 1) - oz) * over_z
        start = max(max(min(ax, bx), min(ay, by)), max(min(az, bz), near[r]))
        end = min(min(max(ax, bx), max(ay, by)), min(max(az, bz), far[r]))
        dt = F(STEP) / math.sqrt(dx * dx + dy * dy + dz * dz)
        t = start + jitter[r] * dt
        light, distance, n = ONE, ZERO, 0
        sums = np.zeros(16, np.float32)
        while t < end:
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            i, j, k = min(max(int(x), 0), nx - 2), min(max(int(y), 0), ny - 2), min(max(int(z), 0), nz - 2)
            bi, bj, bk = i // BLOCK, j // BLOCK, k // BLOCK
            if not blocks[bi, bj, bk]:
                leave_x = (F((bi + (dx >= 0)) * BLOCK) - ox) * over_x
                leave_y = (F((bj + (dy >= 0)) * BLOCK) - oy) * over_y
                leave_z = (F((bk + (dz >= 0)) * BLOCK) - oz) * over_z
                t += F(max(int((min(leave_x, min(leave_y, leave_z)) - t) / dt) + 1, 1)) * dt
                continue
            if not cells[i, j, k]:
                t += dt
                continue
            fx, fy, fz = x - F(i), y - F(j), z - F(k)
            gx, gy, gz = ONE - fx, ONE - fy, ONE - fz
            r0, r1, r2, r3 = index[i, j, k], index[i, j, k + 1], index[i, j + 1, k], index[i, j + 1, k + 1]
            r4, r5 = index[i + 1, j, k], index[i + 1, j, k + 1]
            r6, r7 = index[i + 1, j + 1, k], index[i + 1, j + 1, k + 1]
            w0, w1, w2, w3 = gx * gy * gz, gx * gy * fz, gx * fy * gz, gx * fy * fz
            w4, w5, w6, w7 = fx * gy * gz, fx * gy * fz, fx * fy * gz, fx * fy * fz
            raw = (w0 * rows[r0, 0] + w1 * rows[r1, 0] + w2 * rows[r2, 0] + w3 * rows[r3, 0]
                   + w4 * rows[r4, 0] + w5 * rows[r5, 0] + w6 * rows[r6, 0] + w7 * rows[r7, 0])
            a = F(SHARPNESS) * raw + F(OFFSET)
            optical, slope = a, F(SHARPNESS)
            if a <= F(15.0):
                e = math.exp(a)
                optical, slope = math.log1p(e), F(SHARPNESS) * e / (ONE + e)
            passed = math.exp(-F(STEP) * optical)
            weight = light * (ONE - passed)
            if weight < least:
                t += dt
                continue
            values[r, n, 0] = weight
            for c in range(1, 16):
                values[r, n, c] = (w0 * rows[r0, c] + w1 * rows[r1, c] + w2 * rows[r2, c] + w3 * rows[r3, c]
                                   + w4 * rows[r4, c] + w5 * rows[r5, c] + w6 * rows[r6, c] + w7 * rows[r7, c])
            for c in range(1, 4):
                values[r, n, c] = ONE / (ONE + math.exp(-values[r, n, c]))
            for c in range(1, 16):
                sums[c] += weight * values[r, n, c]
            corners[r, n, 0], corners[r, n, 1], corners[r, n, 2], corners[r, n, 3] = r0, r1, r2, r3
            corners[r, n, 4], corners[r, n, 5], corners[r, n, 6], corners[r, n, 7] = r4, r5, r6, r7
            places[r, n, 0], places[r, n, 1], places[r, n, 2] = fx, fy, fz
            places[r, n, 3], places[r, n, 4] = F(STEP) * slope, F(i & 1)
            distance += weight * t
            light *= passed
            n += 1
            if light < F(DARK) or n == values.shape[1]:
                break
            t += dt
        count[r], rest[r], depth[r] = n, light, distance
        for c in range(15):
            features[r, c] = sums[c + 1]


@njit(parallel=True, **OPTIONS)
def raw_gradients(count, rest, values, places, of_features, of_rest):
    """Replaces each kept sample's slope by the loss's gradient for its raw density, back to front along each ray.

    Args:
        of_features, of_rest: [R, 15] and [R], the loss's gradients for what `march` gave.
    """
    for r in prange(count.shape[0]):
        light, behind = rest[r], of_rest[r] * rest[r]
        for s in range(count[r] - 1, -1, -1):
            weight, by_weight = values[r, s, 0], ZERO
            for c in range(15):
                by_weight += of_features[r, c] * values[r, s, c + 1]
            places[r, s, 3] *= light * by_weight - behind
            behind += weight * by_weight
            light += weight


@njit(parallel=True, **OPTIONS)
def scatter(count, values, corners, places, of_features, gradients, touched, n_touched, is_touched):
    """Adds the samples' gradients to those of the rows around them.

    Args:
        gradients: [M, 16], zero in rows that are not touched.
        touched: [2, M] int32, gets the touched rows of each parity, in the order in which they were met.
        n_touched: [2], gets how many.
        is_touched: [M] bool, all False.
    """
    for parity in prange(2):
        gradient, n = np.zeros(16, np.float32), 0
        for r in range(count.shape[0]):
            for s in range(count[r]):
                weight = values[r, s, 0]
                gradient[0] = places[r, s, 3]
                for c in range(3):
                    colour = values[r, s, c + 1]
                    gradient[c + 1] = weight * of_features[r, c] * colour * (ONE - colour)
                for c in range(3, 15):
                    gradient[c + 1] = weight * of_features[r, c]
                side = parity ^ int(places[r, s, 4])
                fx, fy, fz = places[r, s, 0], places[r, s, 1], places[r, s, 2]
                share_x = fx if side else ONE - fx
                for corner in range(4):
                    share = share_x * (fy if corner & 2 else ONE - fy) * (fz if corner & 1 else ONE - fz)
                    row = corners[r, s, 4 * side + corner]
                    for c in range(16):
                        gradients[row, c] += share * gradient[c]
                    if not is_touched[row]:
                        is_touched[row] = True
                        touched[parity, n] = row
                        n += 1
        n_touched[parity] = n


@njit(parallel=True, **OPTIONS)
def adam(rows, gradients, means, squares, touched, n_touched, is_touched, rates, debias_mean, debias_square, apply):
    """Adam's step on the touched rows only, after which no row is touched and all gradients are zero.

    Args:
        means, squares: [M, 16], the running means of rows that are not touched stay.
        rates: [16], of each channel.
        debias_mean, debias_square: what the running means are multiplied with, as they began at zero.
        apply: False only clears the gradients.
    """
    for parity in range(2):
        for n in prange(n_touched[parity]):
            row = touched[parity, n]
            is_touched[row] = False
            for c in range(16):
                g = gradients[row, c]
                gradients[row, c] = ZERO
                if apply:
                    mean = F(FIRST_RATE) * means[row, c] + (ONE - F(FIRST_RATE)) * g
                    square = F(SECOND_RATE) * squares[row, c] + (ONE - F(SECOND_RATE)) * g * g
                    means[row, c], squares[row, c] = mean, square
                    rows[row, c] -= rates[c] * debias_mean * mean / (math.sqrt(debias_square * square) + F(1e-12))
