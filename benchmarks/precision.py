"""What `matmul_precision` brings and costs on this machine: time and error of the products of a training step.

    python benchmarks/precision.py

Times are the fastest of 30 blocks, on one thread; errors the largest ones against double precision, for numbers of N(0, 1).
"""

import time

import torch

SHAPES = [(32, 30, 64), (512, 32, 128), (100, 784, 500), (1000, 784, 500)]


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
    """Print a line per shape and precision."""
    torch.set_num_threads(1)
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


if __name__ == "__main__":
    main()
