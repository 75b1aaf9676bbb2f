"""Speed of rendering: python tests/benchmarks/bench_render.py [--reference PATH] [flags of a run]

Rays per second of a test view at lego's settings (64 + 128 samples, two networks of 8x256, view directions) of the
scene that ships, or by the given flags: this program in bf16 and fp32, and a plain float32 program in place of
nerf-pytorch (a checkout at PATH takes part too). The programs take turns; medians are printed.
"""

from rivals import compare

if __name__ == '__main__':
    compare('render', __doc__, 3)
