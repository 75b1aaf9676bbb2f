"""How fast training is: python tests/benchmarks/bench_train.py [--reference PATH] [flags of a run]

Rays per second at lego's settings (1024 rays, 64 + 128 samples, two networks of 8x256, view directions) on the scene
that ships, or by the flags that are given: our steps in bf16 and fp32, and those of a plain float32 program that
stands in for nerf-pytorch (a checkout at PATH takes part too). They take turns; medians are printed.
"""

from rivals import compare

if __name__ == '__main__':
    compare('train', __doc__, 5)
