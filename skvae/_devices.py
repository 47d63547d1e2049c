"""Where and how to compute: devices, threads and modes, set in a scope and given back."""

import ctypes
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")

_DEVICE_FLOPS = 2e7  # work per step below which a processor is done before a device has been told what to do
_PARALLEL_FLOPS = 1e8  # work per call below which a second thread costs more than it brings,
_WAITING_FLOPS = 2e8  # and per step, where threads wait for each other in every product


def resolve_device(device: str | torch.device, flops: float = math.inf) -> torch.device:
    """Return the device that a `device` parameter names; "auto" is CUDA when there is one and the work is worth it.

    `flops` is the work of one step of training, or of encoding and decoding a thousand rows.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and flops >= _DEVICE_FLOPS else "cpu")
    try:
        probe = torch.empty(0, dtype=torch.float32, device=device)
        probe.cpu()  # fails on "meta", which has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}). Use 'auto' or 'cpu'."
        ) from error
    return probe.device


def has_wide_vectors() -> bool:
    """Tell whether the processor takes sixteen numbers of single precision at a time."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def room_for_data(device: torch.device) -> int:
    """Return how many bytes of encoded rows may stay on a device: half of what is free there.

    In the memory of the computer, where the user's table is too, it is 32 MB; larger tables are encoded window by window.
    """
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**25


@contextmanager
def gradients() -> Iterator[None]:
    """Allow gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class _Outside(threading.local):
    """How many threads there are outside of all scopes that this thread is in; None where it is in none."""

    n_threads: int | None = None


_outside = _Outside()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the calling thread alone, but for work within that is large: a scope, and a decorator if called.

    Two threads that wait for each other on busy cores are ten to fifty times slower than one, and the smaller the work the
    oftener they wait. The limit holds for this thread alone and ends with the scope.
    """
    with _limited_to(1):
        yield


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Let small work run on one thread, and large work, on the main thread, on what the process has: a scope."""
    with _limited_to(_n_threads_for(flops, _WAITING_FLOPS)):
        yield


def _n_threads_for(flops: float, fewest_flops: float) -> int:
    if flops < fewest_flops or threading.current_thread() is not threading.main_thread():
        return 1
    return _outside.n_threads or torch.get_num_threads()


@contextmanager
def _limited_to(n_threads: int) -> Iterator[None]:
    outside = torch.get_num_threads()  # sets the number of a new thread, too, as its first operation would
    before, set_mkl_threads, libraries = _outside.n_threads, _mkl_set_num_threads_local(), _openmp_libraries()
    openmp_threads = [library.omp_get_max_threads() for library in libraries]
    mkl_threads = set_mkl_threads(n_threads)
    try:
        _outside.n_threads = before or outside
        for library in libraries:
            library.omp_set_num_threads(n_threads)
        yield
    finally:
        for library, n in zip(libraries, openmp_threads, strict=True):
            library.omp_set_num_threads(n)
        set_mkl_threads(mkl_threads)
        _outside.n_threads = before


def spread(work: Callable[[Item], None], items: Iterable[Item], flops: float) -> None:
    """Do `work` on every item, each on one thread; where its calls of `flops` are large, as many at a time as threads are set.

    Threads that never wait for each other lose nothing on busy cores, and what an item gives does not depend on their number.
    """
    items = list(items)
    n_threads = min(_n_threads_for(flops, _PARALLEL_FLOPS), len(items))
    queue = iter(items)

    def take_turns() -> None:
        try:
            with one_thread(), torch.inference_mode():
                for item in queue:
                    work(item)
        finally:
            for _ in queue:  # after an error or an interruption nobody goes on
                pass

    if n_threads < 2:
        take_turns()
        return
    with ThreadPoolExecutor(n_threads - 1) as pool:
        helpers = [pool.submit(take_turns) for _ in range(n_threads - 1)]
        take_turns()
    for helper in helpers:
        helper.result()


@cache
def _openmp_libraries() -> list[ctypes.CDLL]:
    """Return the OpenMP libraries of the process, which take milliseconds to find."""
    return [library.dynlib for library in ThreadpoolController().select(user_api="openmp").lib_controllers]


@cache
def _mkl_set_num_threads_local() -> Callable[[int], int]:
    """Return MKL's function that sets the threads of the calling thread and returns their number before.

    Once somebody has called `torch.set_num_threads`, the MKL inside torch no longer heeds OpenMP's number.
    """
    try:
        return ctypes.CDLL(torch._C.__file__).MKL_Set_Num_Threads_Local
    except (AttributeError, OSError):  # a torch with another BLAS
        return lambda n: 0


_precision_changes = threading.Lock()
_precisions: dict[object, str] = {}  # before any scope, and of those that last, in the order in which they began


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Let products of float32 matrices be as exact as `name` says, in torch's words.

    torch keeps one precision for the process, so other threads compute with it too while the scope lasts.
    """
    scope = object()
    with _precision_changes:
        if len(_precisions) <= 1:
            _precisions[None] = torch.get_float32_matmul_precision()
        _precisions[scope] = name
        torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        with _precision_changes:
            del _precisions[scope]
            torch.set_float32_matmul_precision(list(_precisions.values())[-1])


_one_recording = threading.Lock()


def capture(work: Callable[[], None], changed: list[torch.Tensor], random: torch.Generator) -> Callable[[], None]:
    """Record `work` on the present CUDA device as a graph; return what replays it, with new numbers from `random`.

    `changed` are the tensors that the work changes in place; they and the stream of random numbers are as before when this
    returns. Raises a RuntimeError where the work cannot be recorded. Other threads may compute on the device meanwhile, but
    record only in turn: torch deals out the same few streams again and again, and waiting for a stream, or for the device,
    which is recording for another thread ends that recording.
    """
    with _one_recording:
        before, random_before = [tensor.clone() for tensor in changed], random.get_state()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        graph.register_generator_state(random)
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries set themselves up in the first calls
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
            for tensor, kept in zip(changed, before):
                tensor.copy_(kept)
            random.set_state(random_before)
    return graph.replay
