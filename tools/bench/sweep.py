"""Distil every published model of the host libraries from itself, one training step each, and count what happens.

    python tools/bench/sweep.py OUT.jsonl [--only TEXT …] [--again KIND …] [--timeout 900] [--memory 8] [--large]

Each config whose model differs from those before it in more than its numbers is the student and, with weights saved to
a file, its own teacher: taps 'backbone', 'neck' and 'logits' as far as it has them, FitNets on the last stage and
level, KD on the class scores; two made-up images of the smallest size on which the host trains it, and 32 proposed
regions. OUT gets one line a config; a second call goes on. The folders of configs take turns, each with its small
models first, so that a sweep which is cut short has seen all of them.

    distils   built, rehearsed, one step
    refused   the model was refused in a sentence; or a preset or a term on it was, and the rest distils, or, where no
              preset fits, the last convolution by its address
    large     above 400 million parameters, not run without --large; or above the memory that --memory gives it
    host      the host alone does not build it or train it here on such images; else: anything else
"""

import argparse
import copy
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

HOSTS = ('mmpretrain', 'mmseg', 'mmdet')
KINDS = ('distils', 'refused', 'large', 'host', 'else')


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='the file of JSON lines')
    p.add_argument('--only', nargs='+', default=[''], metavar='TEXT', help='only configs whose name holds one of these')
    p.add_argument('--timeout', type=float, default=900, help='seconds a config')
    p.add_argument('--memory', type=float, default=8, help='gigabytes a config')
    p.add_argument('--large', action='store_true', help='models above 400 million parameters, too')
    p.add_argument('--again', nargs='+', default=[], choices=KINDS, help='do the rows of these kinds again')
    args = p.parse_args(argv)
    import_hosts()
    chosen = [name for name in published() if any(text in name for text in args.only)]
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in rows if row['kind'] not in args.again or row['config'] not in chosen]
    args.out.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    done, models = ({row[key] for row in rows} for key in ('config', 'model'))
    for name in in_turn(chosen):
        if name in done or (model := fingerprint(name)) is None or model in models:
            continue
        models.add(model)
        start = time.perf_counter()
        row = dict(config=name, model=model) | in_a_process(name, args)
        if 'why' in row:  # without the folders of this machine
            row['why'] = re.sub(r'/\S*/site-packages/', '', row['why'])
        rows.append(row | dict(seconds=round(time.perf_counter() - start, 1)))
        with args.out.open('a') as file:
            file.write(json.dumps(rows[-1]) + '\n')
        print(row['kind'].ljust(8), name, row.get('why', ''), flush=True)
    print(table(rows))


def import_hosts() -> None:
    """Import once what each config needs: their processes are forks of this one."""
    import torch

    torch.set_num_threads(1)
    for name in ('hooks.rehearsal', 'cli.launch', 'hosts', 'taps.presets', 'losses', 'distillation'):
        importlib.import_module(f'lckd_mm.{name}')
    for host in HOSTS:
        importlib.import_module(f'{host}.utils').register_all_modules(init_default_scope=False)


def published() -> list[str]:
    """The names of all configs, such as ``'mmseg::fcn/fcn_r50-d8_….py'``."""
    names = []
    for host in HOSTS:
        folder = Path(importlib.util.find_spec(host).origin).parent / '.mim' / 'configs'
        names += sorted(f'{host}::{path.relative_to(folder)}' for path in folder.glob('[!_]*/**/[!_]*.py'))
    return names


#: Words for sizes of models, by size; 'r50' or 'b0' are ordered by their numbers.
SIZES = [
    *('atto', 'femto', 'pico', 'nano', 'xxs', 'xs', 't', 'tiny', 'n', 's', 'small', 'b', 'base'),
    *('m', 'medium', 'l', 'large', 'xl', 'x', 'h', 'huge', 'g', 'giant'),
]


def in_turn(names: Iterable[str]) -> list[str]:
    """The names ordered so that the folders take turns, each with its small models first, as far as names tell."""

    def size(name: str) -> tuple:
        words = re.split(r'[^a-z0-9]+', name.lower())
        ranks = [SIZES.index(word) for word in words if word in SIZES]
        return min(ranks, default=SIZES.index('base')), [int(n) for n in re.findall(r'\d+', name)], name

    folders: dict[str, list[str]] = {}
    for name in sorted(names, key=size):
        folders.setdefault(name.partition('/')[0], []).append(name)
    return [name for turn in zip_longest(*folders.values()) for name in turn if name is not None]


def fingerprint(name: str) -> str | None:
    """A hash of the config's model without its numbers; of its name if it cannot be read; None if it has no model.

    Models that differ in widths, depths, numbers of classes and weights of losses alone distil alike.
    """
    from lckd_mm.hosts import read_model_config

    try:
        model = without_numbers(without_files(read_model_config(name, 'sweep')[0]))
    except KeyError:
        return None
    except Exception:
        model = name
    return hashlib.sha1(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()[:12]


def without_files(node):
    """A config without the addresses of pretrained weights."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        files = key in ('pretrained', 'teacher_ckpt') or (key == 'init_cfg' and 'checkpoint' in str(value))
        node[key] = None if files else without_files(value)
    return node


def without_numbers(node):
    """A config with 0 for each number, so that models of one structure are equal."""
    if isinstance(node, dict):
        return {key: without_numbers(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [without_numbers(value) for value in node]
    return 0 if isinstance(node, int | float) and not isinstance(node, bool) else node


def without_padding(model: dict) -> dict:
    """A model's config without what enlarges a batch of images to a fixed size, such as 1024 x 1024."""
    preprocessor = model.get('data_preprocessor') or {}
    augments = preprocessor.get('batch_augments') or []
    if any(augment['type'] in ('BatchFixedSizePad', 'BatchResize') for augment in augments):
        preprocessor['batch_augments'] = None
    return model


def few_regions(model: dict) -> dict:
    """A detector's config with 32 proposed regions in place of a thousand, which its heads would take minutes for."""
    for cfg in (model, model.get('detector') or {}):
        proposals = (cfg.get('train_cfg') or {}).get('rpn_proposal'), (cfg.get('test_cfg') or {}).get('rpn')
        for settings in filter(None, proposals):
            settings['max_per_img'] = 32
    return model


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    """The row of :func:`distil`, in a fork of this process, or what ended it."""
    fork = multiprocessing.get_context('fork')
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=send_row, args=(theirs, name, args), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(args.timeout):
            return ours.recv()
        return dict(kind='else', why=f'more than {args.timeout:g} s')
    except EOFError:
        process.join()
        return dict(kind='else', why=f'its process ended with {process.exitcode}')
    finally:
        process.kill()
        process.join()


def send_row(pipe: Connection, name: str, args: argparse.Namespace) -> None:
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (int(args.memory * 2**30),) * 2)
    try:
        row = distil(name, args.large)
    except Exception as error:
        row = dict(kind='else', why=''.join(traceback.format_exception(error))[-600:])
    if re.search("MemoryError|can't allocate memory", row.get('why', '')):
        row |= dict(kind='large', why=f'more than {args.memory:g} GB')
    pipe.send(row)


def distil(name: str, large: bool) -> dict:
    """One row: its kind, the taps of each preset, the presets that are refused, and why."""
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    from lckd_mm.errors import CLEAR, one_line
    from lckd_mm.hosts import build_named_model
    from lckd_mm.taps.presets import PRESETS, preset_taps

    MMLogger.get_instance('sweep', log_level='ERROR')
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, scope = model_for_a_step(name)
            torch.manual_seed(1)
            plain = build_named_model(model, 'student', scope)
        except TypeError as error:
            return dict(kind='refused', why=one_line(error))
        except Exception as error:
            return dict(kind='host', why=one_line(error.__cause__ or error))
        if (count := sum(p.numel() for p in plain.parameters())) > 400e6 and not large:
            return dict(kind='large', parameters=count)
        try:
            with DefaultScope.overwrite_default_scope(scope):
                plain.init_weights()
                size = smallest_size(plain, model)
        except Exception as error:
            return dict(kind='host', why=one_line(error))
        teacher = dict(model=model, checkpoint=f'{folder}/teacher.pth')
        torch.save(dict(state_dict=plain.state_dict()), teacher['checkpoint'])
        taps, refused = {}, {}
        with DefaultScope.overwrite_default_scope(scope):
            for preset in PRESETS:
                if preset == 'neck' and getattr(plain, 'neck', None) is None:
                    continue
                try:
                    taps[preset] = preset_taps(plain, preset, (size, size))
                except ValueError as error:
                    refused[preset] = one_line(error)
            row = dict(kind='else', parameters=count, size=size, taps=dict(taps))
            if not taps:
                # The sentences ask for addresses: that of the last convolution has to do.
                last = [path for path, module in plain.named_modules() if isinstance(module, torch.nn.Conv2d)]
                taps['backbone'] = dict(feature=last[-1])
            while taps:
                try:
                    step(model, scope, teacher, taps, size)
                    return row | dict(kind='refused' if refused else 'distils') | because(refused)
                except Exception as error:
                    # A sentence about a preset's term or tap: without this preset the rest has to distil.
                    about = [p for p, names in taps.items() if about_one(str(error), f'loss_{p}', list(names)[-1])]
                    if not about or not isinstance(error, CLEAR):
                        return row | dict(why=one_line(error))
                    refused[about[0]] = one_line(error)
                    del taps[about[0]]
        return row | because(refused)


def about_one(sentence: str, term: str, tap: str) -> bool:
    return f'term {term!r}' in sentence or f'student tap {tap!r}' in sentence


def model_for_a_step(name: str) -> tuple[dict, str]:
    """A published config's model and scope, changed so that a step of it needs no download and little memory."""
    from mmengine.logging import MessageHub

    from lckd_mm.cli.launch import replace_sync_bn
    from lckd_mm.hosts import read_model_config

    for count in ('iter', 'epoch'):  # some of mmdet's heads and its resizing of whole batches ask for them
        MessageHub.get_current_instance().update_info(count, 0)
    model, scope = read_model_config(name, 'sweep')
    replace_sync_bn(few_regions(without_padding(without_files(model))))
    return model, scope


def because(refused: dict[str, str]) -> dict:
    return dict(refused=list(refused), why='; '.join(refused.values()))


def batch_of(model, size: int) -> dict:
    import torch

    from lckd_mm.hosts import fabricate_samples, image_channels

    images = torch.randint(0, 256, (2, image_channels(model), size, size), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=fabricate_samples(model, 2, (size, size)))


def smallest_size(plain, config: dict) -> int:
    """The side of the smallest images on which the host trains the model; its preprocessor then pads to it.

    Sizes for which the model is made are tried early, and if none works, the error is theirs. Eight equal errors are
    not about the size.
    """
    from lckd_mm.errors import one_line
    from lckd_mm.hosts import own_losses, own_sizes

    own = [height for height, width in own_sizes(plain) if height == width <= 1024]
    errors = {}
    for size in dict.fromkeys([64, *own, 32, 96, 128, 192, 224, 256, 384, 448, 512, 640, 1024]):
        if getattr(plain.data_preprocessor, 'size', None):
            config['data_preprocessor']['size'] = plain.data_preprocessor.size = (size, size)
        model = copy.deepcopy(plain).train()
        try:
            data = model.data_preprocessor(batch_of(model, size), True)
            model.parse_losses(own_losses(model, **data))
            return max(data['inputs'].shape[2:])
        except Exception as error:
            errors[size] = error
            if len(errors) > 7 and len({*map(one_line, list(errors.values())[-8:])}) == 1:
                break
    raise errors.get(own[0] if own else 224) or errors[size]


def step(model: dict, scope: str, teacher: dict, taps: dict, size: int) -> None:
    """Build the distiller of the presets' taps, and train it for one step."""
    terms = {f'loss_{p}': dict(loss=dict(type='lckd_mm.FitNetsLoss'), on=list(taps[p])[-1]) for p in taps}
    if 'logits' in taps:
        terms['loss_logits'] = dict(loss=dict(type='lckd_mm.KDLoss'), on=list(taps['logits']))
    config = dict(student=model, teacher=teacher, taps=list(taps.values()), terms=terms, dry_run_size=size)
    train_step(dict(type='lckd_mm.Distiller', **config), scope, size)


def train_step(config: dict, scope: str, size: int) -> dict:
    """Build a distiller, rehearse a batch, and train for one step, which raises where a term is not finite."""
    from mmengine.optim import build_optim_wrapper

    from lckd_mm.contexts import saved_buffers
    from lckd_mm.hooks.distillation import show_batch
    from lckd_mm.hooks.rehearsal import rehearse, twin
    from lckd_mm.hosts import build_model

    distiller = build_model(config, scope)
    distiller.init_weights()
    wrapper = build_optim_wrapper(distiller, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3)))
    batch = batch_of(distiller.student, size)
    if waiting := [one for term in distiller.terms.values() for one in term.waiting()]:
        show_batch(distiller, waiting, batch)
        for one in waiting:
            one.connector.finish_fitting()
    rehearse(twin(distiller.train()), wrapper, batch, saved_buffers(distiller))
    return distiller.train_step(batch, wrapper)


def table(rows: list[dict]) -> str:
    """Counts by host and kind, then the configs that neither distil nor are refused in a sentence."""
    from lckd_mm.reporting import table

    counts = Counter((row['config'].partition('::')[0], row['kind']) for row in rows)
    lines = [(host, *(str(counts[host, kind]) for kind in KINDS)) for host in HOSTS]
    odd = [f'{row["kind"]}: {row["config"]}: {row["why"]}' for row in rows if row['kind'] in KINDS[3:]]
    return '\n'.join([table(['', *KINDS], lines), '', *odd])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
