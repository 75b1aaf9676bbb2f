"""Speed of training: python tests/benchmarks/bench_train.py [--reference PATH] [flags of a run]

Rays per second at lego's settings (1024 rays, 64 + 128 samples, two networks of 8x256, view directions) on the scene
that ships, or by the given flags: steps of this program in bf16 and fp32, and of a plain float32 program in place of
nerf-pytorch (a checkout at PATH takes part too). The programs take turns; medians are printed.
"""

from rivals import compare

if __name__ == '__main__':
    compare('train', __doc__, 5)
