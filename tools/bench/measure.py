"""Shared code of the benchmarks: models and batches, alternating timings, peak memory, description of the machine."""

import argparse
import copy
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=rounds)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--json', type=Path, help='write the figures to this file, too')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    return p


def publish(text: str, result: dict, path: Path | None) -> None:
    """Print the tables, and write the figures if a file was named."""
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, as torch's own allocator does on GPUs.

    Otherwise every tensor above 32 MiB is unmapped and mapped again, and most of the measured time goes into the
    kernel's clearing of fresh pages. Does nothing on systems without glibc.
    """
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        pass


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    slow: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side over ``rounds`` alternating rounds, after one warm-up round.

    A side whose first run takes longer than ``slow`` seconds is not run again; that run counts.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    waived = set()
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            if name in waived:
                continue
            synchronise(device)
            start = clock()
            side()
            synchronise(device)
            seconds = clock() - start
            if round_ == 0 and seconds > slow:
                waived.add(name)
                times[name].append(seconds)
            elif round_:
                times[name].append(seconds)
    return times


def median_ms(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def build_for_training(cfg, device: torch.device):
    """A config's model as a single-process Runner trains it; a teacher keeps its initial weights.

    Times do not depend on the weights, and the teacher's may not be on disk.
    """
    from mmengine.registry import init_default_scope

    from lckd_mm.cli.launch import replace_sync_bn
    from lckd_mm.config import has_teacher
    from lckd_mm.hosts import build_model

    init_default_scope(cfg.get('default_scope', 'mmengine'))
    torch.manual_seed(0)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # In a single process mmengine's Runner replaces SyncBN by BatchNorm.
    replace_sync_bn(cfg.model)
    model = build_model(cfg.model, cfg.get('default_scope')).to(device).train()
    if has_teacher(cfg):
        for one in model.teachers.values():
            one.teacher.loaded = True
    return model


def training_batch(cfg, student) -> tuple[dict, str]:
    """One batch from the training loader, or a fabricated one if the data is not on disk, and a description of it."""
    from mmengine.runner import Runner

    from lckd_mm.config import check_data
    from lckd_mm.hosts import fabricate_samples, image_channels, training_size

    try:
        check_data(cfg, ('train_dataloader',))
    except FileNotFoundError:
        size, count = training_size(student), cfg.train_dataloader.batch_size
        shape = count, image_channels(student), *size
        images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
        batch = dict(inputs=list(images.to(torch.uint8)), data_samples=fabricate_samples(student, count, size))
        return batch, f'{count} made-up images of {size[0]} x {size[1]}'
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.num_workers, loader.persistent_workers = 0, False
    loader.pop('prefetch_factor', None)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    return batch, f'{len(batch["inputs"])} images of the training data'


def synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peak_memory(run: Callable[[], object], device: torch.device) -> tuple[object, int, int]:
    """What ``run`` returns, and the bytes allocated since its start: at the peak, and at its end."""
    if device.type == 'cuda':
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        synchronise(device)
        return result, *(
            x - before for x in (torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device))
        )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    # The allocator's events, sorted by time.
    events = [(e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return result, peak, held


def machine(device: torch.device) -> str:
    """One line that describes the machine of a measurement."""
    if device.type == 'cuda':
        where = torch.cuda.get_device_name(device)
    else:
        where = f'{_processor()}, {torch.get_num_threads()} threads'
    return (
        f'{where}; torch {torch.__version__.partition("+")[0]}, {platform.system()}, Python {platform.python_version()}'
    )


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    vector = 'AVX-512' if 'avx512' in torch.backends.cpu.get_cpu_capability().lower() else ''
    return ' '.join(filter(None, [name, f'{os.cpu_count()} cores', vector]))
