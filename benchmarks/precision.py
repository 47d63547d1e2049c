"""What precision brings and costs on this machine: time and error of the products of a training step, time by denormal numbers.

    python benchmarks/precision.py

Times are the fastest of 30 blocks, on one thread; errors the largest ones against double precision, for numbers of N(0, 1).
Denormal numbers are some of the slopes by the outputs of a decoder, from which come those of its last layer.
"""

import argparse
import time

import torch

SHAPES = [(32, 30, 64), (512, 32, 128), (100, 784, 500), (1000, 784, 500)]
SLOPE = (512, 129, 160)  # rows, in and out of the layer
SHARES = [0.0, 0.0005, 0.001, 0.003]


def microseconds(function, n_calls=10, n_blocks=30):
    """Return the time of a call in the fastest block."""
    found = []
    for _ in range(n_blocks):
        start = time.perf_counter()
        for _ in range(n_calls):
            function()
        found.append(time.perf_counter() - start)
    return min(found) / n_calls * 1e6


def main():
    """Print both tables."""
    torch.set_num_threads(1)
    precisions()
    torch.set_float32_matmul_precision("highest")
    denormal_numbers()


def precisions():
    """Print a line per shape and precision."""
    stream = torch.Generator().manual_seed(0)
    print(f"# torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(f"{'rows, in, out':<18}{'precision':<10}{'us':>10}{'largest error':>16}")
    for n, n_in, n_out in SHAPES:
        x, weight = torch.randn((1, n, n_in), generator=stream), torch.randn((1, n_in, n_out), generator=stream)
        exact = x.double() @ weight.double()
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            error = float((torch.bmm(x, weight) - exact).abs().max())
            seconds = microseconds(lambda x=x, weight=weight: torch.bmm(x, weight))
            print(f"{f'{n}, {n_in}, {n_out}':<18}{precision:<10}{seconds:>10.1f}{error:>16.1e}")


def denormal_numbers():
    """Print a line per share of denormal numbers."""
    stream = torch.Generator().manual_seed(0)
    n, n_in, n_out = SLOPE
    x, normal = torch.randn((1, n, n_in), generator=stream), torch.randn((1, n, n_out), generator=stream)
    drawn = torch.rand((1, n, n_out), generator=stream)
    print(f"{f'slope of {n}, {n_in}, {n_out}':<24}{'denormal':>10}{'us':>10}")
    for share in SHARES:
        delta = torch.where(drawn < share, 1e-41, normal)
        print(f"{'':<24}{share:>10.2%}{microseconds(lambda delta=delta: torch.bmm(x.mT, delta)):>10.1f}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
