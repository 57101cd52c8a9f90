"""RehearsalHook: runs the first training batch once before the first iteration, and leaves no trace of it."""

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contexts import preserved_rng, saved_buffers
from ..distillation import NonFiniteError
from ..distillation.online import NETS
from ..distillation.summary import Seen, summary
from ..errors import one_line
from ..hosts import unwrapped


class RehearsalHook(Hook):
    """Computes the losses of the first batch, with all terms, on a copy of the model, so that what fails fails there.

    The batch is the loop's own, and all other hooks have prepared its iteration: device, precision, modes and samples
    are those of training. Nothing is updated. Parameters are shared with the copy; its buffers and other state, the
    random states and the message hub are as if it had not been. It costs one forward pass, after each start. Then the
    log says what is distilled: nets, taps and terms, with the shapes of this batch.
    """

    def __init__(self) -> None:
        self.done = False

    @classmethod
    def add_to(cls, runner) -> None:
        """Register it in this runner, behind all other hooks, unless it is there."""
        if not any(isinstance(hook, cls) for hook in runner.hooks):
            runner.register_hook(cls(), priority='LOWEST')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.done:
            return
        self.done = True
        model = unwrapped(runner.model)
        model.complete()
        try:
            stand_in = twin(model)
        except Exception as error:  # a module may hold anything
            runner.logger.warning(
                f'{type(model).__name__}: the first batch is not rehearsed, since the model cannot be copied '
                f'({one_line(error)})'
            )
            runner.logger.info(summary(model, Seen()))
            return
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            wrapper = wrapper[NETS]
        seen = Seen.by(stand_in)
        rehearse(stand_in, wrapper, copy.deepcopy(data_batch), saved_buffers(model))
        runner.logger.info(summary(model, seen))


def rehearse(model: nn.Module, wrapper: OptimWrapper, batch: Any, restore: Any) -> None:
    """One forward pass in training mode with the loss; ``restore`` is called at its end."""
    for terms in model.named_terms().values():
        for term in terms:
            term.weight = term.scale = 1.0  # what a schedule sets in later has to fit now
    try:
        # A value that is not finite is met again, and treated as the run's hooks say.
        with preserved_rng(), kept_messages(), contextlib.suppress(NonFiniteError), wrapper.optim_context(model):
            model.loss(**model.data_preprocessor(batch, True))
    finally:
        restore()


def twin(model: nn.Module) -> nn.Module:
    """A copy of a distiller that shares its parameters, and has a state of its own; its observers do nothing."""
    shared: list[Any] = [*model.parameters()]
    for module in model.modules():
        for name, value in vars(module).items():
            # What hooks put there, process groups, and tensors that are computed from parameters.
            if name in ('train_step', 'process_group') or (isinstance(value, Tensor) and not value.is_leaf):
                shared.append(value)
    for terms in model.named_terms().values():
        shared += [side.follow for term in terms for side in (term.student, term.teacher)]
    observers = getattr(model, 'observers', [])
    memo = {id(value): value for value in shared} | {id(observers): [_ignore for _ in observers]}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        # A wrapped forward runs the layers of the model itself. It may save memory, as activation checkpointing does.
        if vars(module).pop('forward', None) is not None:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return copied


def _ignore(*_: Any) -> None:
    pass


@contextlib.contextmanager
def kept_messages() -> Iterator[None]:
    """The message hub is left as it is found."""
    hub = MessageHub.get_current_instance()
    stores = [(hub.log_scalars, copy.deepcopy), (hub.runtime_info, dict)]
    before = [dict(store) for store, _ in stores]
    for store, copied in stores:
        store.update(copied(store))
    try:
        yield
    finally:
        for (store, _), values in zip(stores, before):
            store.clear()
            store.update(values)
