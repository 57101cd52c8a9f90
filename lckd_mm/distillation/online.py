"""OnlineDistiller: several nets learn together, each from its peers, without a pretrained teacher."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce_params, broadcast, get_rank
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.func import functional_call

from .. import arguments
from ..connectors import Chain
from ..contexts import Moment, preserved_rng
from ..hosts import build_named_model, normalisation, own_losses
from ..registry import MODELS
from .build import build_objective, inherited
from .dry_run import MadeUpImage, Taps, dry_terms, merge_taps, trace_taps
from .side import detached
from .student import TERM_SEED, StudentModel, stored
from .term import Batch, Term

# Seed offset that keeps the random numbers of the peers apart from net 0's.
_PEER_SEED = 0x9EE5
#: The optimizer names that every config may use; all others come from ``steps``.
NETS, CRITICS = 'nets', 'critics'


@MODELS.register_module()
class OnlineDistiller(StudentModel):
    """K nets trained together on the same batches: each by its own loss, and by terms in which a peer is the teacher.

    Net k learns from net k-1, net 0 from the last one.

    1. ``loss``: runs every net once in training mode and adds the terms of each net: its own features are the
       student's, the peer's, detached, the teacher's. Names begin with ``net0.``, ``net1.``, …
    2. ``predict``, ``tensor``, test and export use net 0. Validation reports net 0 under the host's own names;
       :class:`~lckd_mm.hooks.OnlineHook` adds the other nets and the ensemble.
    3. ``state_dict`` holds net 0's own keys, without prefix, and nothing else. The other nets, connectors and critics
       are stored beside it by :class:`~lckd_mm.hooks.OnlineHook`, which also writes each other net to a plain file.
    4. Net 0 starts from the same weights and draws the same random numbers as when trained alone; with every weight 0
       its training is bit-identical to training alone.

    **Optimizers.** An ordinary ``optim_wrapper`` makes one step for the sum of all losses. With
    ``constructor='lckd_mm.OnlineOptimWrapperConstructor'`` there are several named optimizers: ``nets`` trains the nets
    (and connectors) by all losses except those in ``steps``; each name in ``steps`` trains the nets (and those terms'
    connectors) by its terms only; ``critics``, if given, trains the modules inside losses (discriminators), otherwise
    ``nets`` does. All gradients are computed at the same weights, from one forward pass per net, before any optimizer
    steps; the optimizers then step in config order. (A step in between would change in place the weights that the
    second backward pass needs.) Blocks with reentrant activation checkpointing do not support this.

    Args:
        nets: the nets' model dicts, at least two. They share net 0's preprocessor.
        terms: name to term, see :class:`~lckd_mm.distillation.Term`, for every net; a connector maps to the peer's
            width. Teacher-side connectors that are made from a trained teacher's layers are refused.
        taps: as in :class:`~lckd_mm.distillation.Distiller`, for all nets.
        steps: optimizer name to the names of its terms.
        dry_run_size, data_preprocessor: as in :class:`~lckd_mm.distillation.Distiller`.
    Raises:
        ValueError, KeyError, TypeError: one sentence each, before any training.
    Example:
        model=dict(
            type='lckd_mm.OnlineDistiller',
            nets=[_base_.model, _base_.model],
            taps='logits',
            terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=3.0), on='logits')),
        )
    Source: cyclic peers, one discriminator per net and separate optimizers: Chung et al., Feature-map-level Online
        Adversarial Knowledge Distillation (AFD), ICML 2020. Deviation: the paper updates a net by the logits' loss and
        then by the features' loss; here both gradients are computed before the first update.
    """

    def __init__(
        self,
        nets: Sequence[dict],
        terms: dict[str, dict],
        taps: Taps = None,
        steps: Mapping[str, Sequence[str]] | None = None,
        dry_run_size: int | tuple[int, int] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        if not isinstance(nets, Sequence) or len(nets) < 2 or not all(isinstance(net, Mapping) for net in nets):
            raise ValueError('OnlineDistiller: nets must be a list of two or more model dicts')
        terms = inherited(terms, 'OnlineDistiller')
        # Net 0 first: nothing else may draw random numbers before or while it is built.
        first = build_named_model(nets[0], 'net 0', preprocessor=data_preprocessor)
        super().__init__(first, init_cfg)
        self.peers = nn.ModuleList()
        for k, config in enumerate(nets[1:], 1):
            with self._seeded(k):
                net = build_named_model(config, f'net {k}', preprocessor=data_preprocessor)
            if normalisation(net.data_preprocessor) != normalisation(first.data_preprocessor):
                raise ValueError(
                    f'OnlineDistiller: net {k} normalises images differently from net 0, and all nets get the same '
                    'batch; give them one data_preprocessor'
                )
            self.peers.append(net)
        self.steps = {
            name: arguments.sequence('OnlineDistiller', f'steps[{name!r}]', of, 'names of terms')
            for name, of in (steps or {}).items()
        }
        self._check_steps(terms)
        #: (k, j): net k learns from net j.
        self.pairs = [(k, (k - 1) % len(self.nets)) for k in range(len(self.nets))]
        with preserved_rng(torch.initial_seed() + TERM_SEED):
            self._image = image = MadeUpImage.of('OnlineDistiller', dry_run_size, self.nets)
            self.net_taps = [merge_taps(f'net {k}', net, taps, None, image.size) for k, net in enumerate(self.nets)]
            self.complete(later=True)
            #: 'net<k>_from<j>' to the objective in which net k learns from net j.
            self.terms = nn.ModuleDict()
            for k, j in self.pairs:
                sides = self.net_taps[k], self.net_taps[j]
                objective = build_objective(terms, sides, self.nets[k], f'net{k}.')
                for term in objective.values():
                    self._refuse_bound(term)
                self.terms[_pair(k, j)] = objective
                dry_terms(objective, self.nets[k], self._image, self.net_taps)
        self._passes = 0
        # Gradients by optimizer name, kept while an optimizer accumulates over several batches.
        self._held: dict[str, list[Tensor | None]] = {}
        self.register_load_state_dict_pre_hook(_import_peers)

    def complete(self, later: bool = False) -> None:
        """As :meth:`Distiller.complete`."""
        for taps, net in zip(self.net_taps, self.nets):
            if len(taps.traces) < len(taps.addresses):
                trace_taps(taps, net, self._image, later)
        for terms in () if later else self.named_terms().values():
            for term in terms:
                term.check_axes()

    @property
    def nets(self) -> list[BaseModel]:
        """All nets, net 0 first."""
        return [self.student, *self.peers]

    def _check_steps(self, terms: Mapping) -> None:
        for name, of in self.steps.items():
            if name in (NETS, CRITICS):
                raise ValueError(f'OnlineDistiller: steps: the optimizer {name!r} has its own task; use another name')
            for term in of:
                arguments.choice(f'OnlineDistiller: steps[{name!r}]', 'term', term, terms)
                if self._step_of(term) != name:
                    raise ValueError(f'OnlineDistiller: the term {term!r} is in two steps')

    @staticmethod
    def _refuse_bound(term: Term) -> None:
        if term.match is not None:
            raise ValueError(f'term {term.name!r}: all nets learn the classes of one data set; remove classes')
        if term.unlabelled:
            raise ValueError(f'term {term.name!r}: online nets learn from labelled images alone; remove images')
        if term.part is not None:
            raise ValueError(f'term {term.name!r}: a peer is not frozen, so it cannot be reused; remove reuse')
        if term.regions is not None:
            raise ValueError(f'term {term.name!r}: a peer is not frozen, so it scores no regions; remove regions')
        if term.queries:
            raise ValueError(f'term {term.name!r}: a peer is not frozen, so it judges no queries; remove queries')
        for connector in (part for of in term.teacher_connectors for part in (of if isinstance(of, Chain) else [of])):
            if connector.of_teacher and not connector.online:
                raise ValueError(
                    f'term {term.name!r}: {type(connector).__name__} needs a trained teacher, and a peer is not '
                    'trained yet; remove it'
                )

    def init_weights(self) -> None:
        """Call net 0's own init_weights, and every other net's with a seed of its own."""
        self.student.init_weights()
        for k, net in enumerate(self.peers, 1):
            with self._seeded(k):
                net.init_weights()
        # Runner broadcasts the state dict, which holds only net 0.
        for module in (self.peers, self.terms):
            for tensor in module.state_dict().values():
                broadcast(tensor)

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """Each net's own losses and terms, as ``net<k>.<name>``. The features are freed when this returns.

        Raises:
            NonFiniteError: a term is nan or infinity; raised before any update, on all ranks together.
        """
        features: list[dict] = []
        own: list[dict[str, Any]] = []
        moments: list[Moment] = []
        self.complete()
        self._passes += self.training
        for k, net in enumerate(self.nets):
            names, trained = self._recorded(k)
            with self._seeded(k, 7919 * self._passes + 1_000_003 * get_rank()):
                moments.append(Moment(inputs.device))
                trained = trained if torch.is_grad_enabled() else []
                with self.net_taps[k].record(net, names, require_grad=trained) as recorded:
                    own.append(own_losses(net, inputs, data_samples))
            features.append(recorded)
        losses = {f'net{k}.{name}': value for k, of in enumerate(own) for name, value in of.items()}
        for k, j in self.pairs:
            peer = {name: detached(feature) for name, feature in features[j].items()}
            replay = partial(self._replay, k, j, (moments[k], moments[j]), data_samples)
            batch = Batch(features[k], peer, inputs, data_samples, own[k], replay)
            terms, _ = self.terms[_pair(k, j)](batch, self.training and torch.is_grad_enabled())
            losses |= {f'net{k}.{name}': value for name, value in terms.items()}
        return losses

    @staticmethod
    def _seeded(k: int, offset: int = 0) -> contextlib.AbstractContextManager:
        """Random numbers of net k's own; net 0 uses the global ones, as when trained alone."""
        return preserved_rng(torch.initial_seed() + _PEER_SEED * k + offset) if k else contextlib.nullcontext()

    def _recorded(self, k: int) -> tuple[list[str], list[str]]:
        """The taps of net k to record, and those of them that must carry gradient."""
        own, _ = self.terms[_pair(*self.pairs[k])].used()
        _, read = self.terms[_pair(*self.pairs[(k + 1) % len(self.pairs)])].used()
        return list(dict.fromkeys(own + read)), own

    def _replay(
        self,
        k: int,
        j: int,
        moments: tuple[Moment, Moment],
        data_samples: list | None,
        inputs: Tensor,
        student_names: list[str],
        teacher_names: list[str],
    ) -> tuple[dict, dict]:
        """Run net k and its peer j again on other images; only net k's parameters can get a gradient from it."""
        recorded = []
        for index, moment, names in ((k, moments[0], student_names), (j, moments[1], teacher_names)):
            net, peer = self.nets[index], bool(recorded)
            gradient = inputs.requires_grad if peer else torch.is_grad_enabled()
            constant = {n: p.detach() for n, p in net.named_parameters()} if peer else {}
            with (
                moment.again(net),
                torch.set_grad_enabled(gradient),
                self.net_taps[index].record(net, names, require_grad=gradient and not peer, stop=True) as features,
            ):
                functional_call(net, constant, (inputs, data_samples), dict(mode='tensor'))
            recorded.append(features)
        return recorded[0], recorded[1]

    # ---- several optimizers ----

    def trained_by(self, name: str, optimizers: Sequence[str]) -> nn.Module:
        """The modules that the optimizer ``name`` trains, if ``optimizers`` are the names of all."""
        terms = [(key, term) for of_pair in self.terms.values() for key, term in of_pair.items()]
        if name == CRITICS:
            return nn.ModuleDict(dict(losses=nn.ModuleList(term.loss for _, term in terms)))
        followed = [term for key, term in terms if self._step_of(key) == name]
        connectors = [side for term in followed for side in (term.connectors, term.teacher_connectors)]
        modules = dict(student=self.student, peers=self.peers, connectors=nn.ModuleList(connectors))
        if CRITICS not in optimizers:
            modules['losses'] = nn.ModuleList(term.loss for term in followed)
        return nn.ModuleDict(modules)

    def _step_of(self, term: str) -> str:
        """The name of the optimizer that trains the nets by this term."""
        return next((name for name, of in self.steps.items() if term in of), NETS)

    def _objective(self, name: str, losses: dict) -> Tensor:
        """The sum of the losses that the optimizer ``name`` minimises."""
        terms, chosen = self.named_terms(), {}
        for key, value in losses.items():
            term = key.partition('.')[2]
            if term in terms if name == CRITICS else self._step_of(term) == name:
                chosen[key] = value
        return self.parse_losses(chosen)[0]

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One batch: compute all gradients at the current weights, then let the optimizers step in config order.

        Gradients are averaged over the ranks here, not by DDP, which expects one backward pass per forward pass.
        """
        if not isinstance(optim_wrapper, OptimWrapperDict):
            return super().train_step(data, optim_wrapper)
        with optim_wrapper[NETS].optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self._run_forward(data, mode='loss')
        _, logged = self.parse_losses(losses)
        wrappers = list(optim_wrapper.items())
        parameters = {name: _parameters(wrapper) for name, wrapper in wrappers}
        for name, wrapper in wrappers:
            _set_gradients(parameters[name], self._held.pop(name, None))
            value = wrapper.scale_loss(self._objective(name, losses))
            wrapper.backward(value, inputs=parameters[name], retain_graph=name != wrappers[-1][0])
            self._held[name] = [p.grad for p in parameters[name]]
            _set_gradients(parameters[name], None)
        for name, wrapper in wrappers:
            if not wrapper.should_update():
                continue
            gradients = self._held.pop(name)
            all_reduce_params([g for g in gradients if g is not None], op='mean')
            _set_gradients(parameters[name], gradients)
            wrapper.step()
            wrapper.zero_grad()
        return logged

    # ---- state stored beside net 0 ----

    def named_terms(self) -> dict[str, list[Term]]:
        """Term name to its terms, one per pair of nets."""
        found: dict[str, list[Term]] = {}
        for of_pair in self.terms.values():
            for name, term in of_pair.items():
                found.setdefault(name, []).append(term)
        return found

    def distillation_state(self) -> dict[str, Any]:
        """The other nets' state dicts, connectors and losses' modules, for a key of their own in the checkpoint."""
        return dict(nets=[stored(net) for net in self.peers], terms=stored(self.terms), passes=self._passes)

    def load_distillation_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`distillation_state`; ValueError if it belongs to other nets or terms."""
        held, wanted = len(state.get('nets', ())), len(self.peers)
        if held != wanted:
            raise ValueError(f'OnlineDistiller: the checkpoint holds {held} nets beside net 0, the config has {wanted}')
        try:
            for net, weights in zip(self.peers, state['nets']):
                net.load_state_dict(weights)
            self.terms.load_state_dict(state['terms'])
        except RuntimeError as error:
            raise ValueError(
                f'OnlineDistiller: the stored nets are of another config than this one: {error}'
            ) from error
        self._passes = int(state['passes'])


def _pair(k: int, j: int) -> str:
    return f'net{k}_from{j}'


def _parameters(wrapper: OptimWrapper) -> list[nn.Parameter]:
    return [p for group in wrapper.optimizer.param_groups for p in group['params'] if p.requires_grad]


def _set_gradients(parameters: list[nn.Parameter], gradients: list[Tensor | None] | None) -> None:
    """Set the parameters' gradients, or clear them: optimizers may share a parameter, each with its own gradient."""
    for parameter, gradient in zip(parameters, gradients or [None] * len(parameters)):
        parameter.grad = gradient


def _import_peers(module: OnlineDistiller, state: dict, prefix: str, *_: Any) -> None:
    """As :func:`~lckd_mm.storage.checkpoint.import_keys`: a plain checkpoint is net 0's, peers keep their weights."""
    for key, value in module.peers.state_dict(prefix=prefix + 'peers.').items():
        state[key] = value
