"""Chooses the file from which training starts, and checks that it fits the model."""

import contextlib
from pathlib import Path

from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import Runner
from torch import nn

from ..hosts import unwrapped
from ..registry import resolved
from ..storage.checkpoint import check_loading
from ..storage.files import newest_good, read_checkpoint, read_resumable


def choose_start(cfg: Config, resume: str | None) -> tuple[dict | None, list[str]]:
    """Decide which file training starts from, read it completely, and set the config accordingly.

    Args:
        resume: ``--resume``: a file, 'auto' for the newest good one in the work_dir, None to follow the config.
    Returns:
        The file's content, or None if training starts from scratch or from a URL that is fetched later; and messages
        for the log.
    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged, or all files are damaged; for a damaged file the
            error names the newest good one beside it.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    notes = []
    if resume == 'auto':
        saving = cfg.default_hooks.get('checkpoint') or {}
        # mmengine's rule for the checkpoints' folder.
        folders = [Path(saving['out_dir'], Path(cfg.work_dir).name)] if saving.get('out_dir') else []
        names = [saving['filename_tmpl']] if saving.get('filename_tmpl') else []
        found = newest_good(cfg.work_dir, folders, names)
        if found is None:
            # A run killed before its first checkpoint starts as it did the first time, with load_from.
            cfg.resume = False
            notes.append(f'resume: {cfg.work_dir!r} has no checkpoint yet; training starts from scratch')
            resume = None
        else:
            resume, loaded, broken = found
            notes += [f'{note}; it is skipped and left in place' for note in broken]
    elif resume is not None:
        loaded = _read_named(resume) if '://' not in resume else None
    if resume is not None:
        cfg.resume, cfg.load_from = True, resume
        notes.append(f'resume: continuing from {resume}')
        seed = loaded and loaded['meta'].get('seed')
        if seed is not None and (cfg.get('randomness') or {}).get('seed') is None:
            # The Runner adopts the file's seed only after the loaders were shuffled with another seed.
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        return loaded, notes
    source = cfg.get('load_from')
    return (read_checkpoint(source, 'load_from') if source and '://' not in source else None), notes


def _read_named(path: str) -> dict:
    try:
        return read_resumable(path)
    except ValueError as error:
        found = None
        with contextlib.suppress(ValueError, OSError):
            found = newest_good(Path(path).parent)
        good = f'; the newest good checkpoint beside it is {found[0]}' if found else ''
        raise ValueError(f'{error}{good}') from error


def check_start(runner: Runner, loaded: dict | None) -> None:
    """Log what does not fit the model in the start file or in each ``init_cfg=dict(type='Pretrained')``.

    Raises:
        ValueError: nothing fits, or, on resume, not everything.
    """
    if not isinstance(runner.model, nn.Module):
        return  # FlexibleRunner builds its model later
    model = unwrapped(runner.model)
    if loaded is not None:
        who = 'resume' if runner._resume else 'load_from'
        reports = [check_loading(model, loaded, runner._load_from, who, strict=runner._resume)]
    else:
        reports = check_pretrained(model)
    for report in filter(None, reports):
        runner.logger.warning(report)


def check_pretrained(model: nn.Module) -> list[str | None]:
    """:func:`~lckd_mm.storage.checkpoint.check_loading` for every module that ``init_cfg`` loads from a local file."""
    reports = []
    for name, module in model.named_modules():
        rules = getattr(module, 'init_cfg', None)
        for rule in rules if isinstance(rules, (list, tuple)) else [rules]:
            kind = resolved(rule.get('type'), WEIGHT_INITIALIZERS) if isinstance(rule, dict) else None
            source = rule.get('checkpoint') if kind is PretrainedInit else None
            if not isinstance(source, str) or '://' in source:
                continue
            who = f'init_cfg of {name or type(module).__name__}'
            loaded = read_checkpoint(source, who)
            prefix = rule.get('prefix')
            if prefix:
                state, prefix = loaded.get('state_dict', loaded), prefix.rstrip('.') + '.'
                loaded = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            reports.append(check_loading(module, loaded, source, who))
    return reports
