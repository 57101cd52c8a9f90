"""KL divergences between the softened class scores of two nets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import above_rounding
from .shapes import check_rank, same_shape

SAME_CLASSES = (
    "both nets must score the same classes at the same positions (classes='by name' in the term compares the classes "
    'that both have)'
)


def kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of softened softmax scores, per sample and position.

    .. math:: \tau^2 \sum_c p^T_c (\ln p^T_c - \ln p^S_c), \qquad p = \mathrm{softmax}(z / \tau)

    Args:
        student: logits ``(N, C, ...)``. teacher: the same shape. tau: temperature.
    Returns:
        ``(N, ...)``, in nats times :math:`\tau^2`.
    Raises:
        ValueError: where the shapes differ.
    Source: Hinton, Vinyals, Dean 2015, section 2. Deviation: none; the factor :math:`\tau^2` is theirs and makes
        the size of the gradient independent of the temperature.
    """
    _check(student, teacher)
    log_p_student = F.log_softmax(student / tau, 1)
    log_p_teacher = F.log_softmax(teacher / tau, 1)
    return (log_p_teacher.exp() * (log_p_teacher - log_p_student)).sum(1) * tau**2


def binary_kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""The same for heads with independent sigmoids: the sum of binary divergences over classes.

    .. math:: \tau^2 \sum_c \left[ p^T_c \ln\frac{p^T_c}{p^S_c} + (1 - p^T_c) \ln\frac{1 - p^T_c}{1 - p^S_c} \right],
              \qquad p = \mathrm{sigmoid}(z / \tau)

    Args, Returns and Raises: as :func:`kd_divergence`.
    """
    _check(student, teacher)
    z_student, z_teacher = student / tau, teacher / tau
    p = z_teacher.sigmoid()
    # ln (1 - sigmoid(z)) = ln sigmoid(-z), which is stable far below 0, as is ln sigmoid(z).
    positive = p * (F.logsigmoid(z_teacher) - F.logsigmoid(z_student))
    negative = (1 - p) * (F.logsigmoid(-z_teacher) - F.logsigmoid(-z_student))
    return (positive + negative).sum(1) * tau**2


def focal_cross_entropy(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    r"""Binary cross entropy with the teacher's probabilities, each class weighted by how far the nets differ.

    .. math:: -\sum_c |p^T_c - p^S_c|^\beta \left[ p^T_c \ln p^S_c + (1 - p^T_c) \ln (1 - p^S_c) \right],
              \qquad p = \mathrm{sigmoid}(z)

    Args:
        student: logits ``(N, C, ...)``. teacher: the same shape. beta: exponent of the difference.
    Returns:
        ``(N, ...)``, in nats; 0 where both agree. The weight has a gradient to the student, too.
    Raises:
        ValueError: where the shapes differ.
    Source: Yang et al., BCKD, ICCV 2023, and Wang et al., CrossKD, CVPR 2024: ``novel_kd_loss`` and
        ``kd_quality_focal_loss`` of their authors' ``kd_loss.py``. Deviation: none.
    """
    _check(student, teacher)
    p = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, p, reduction='none')
    return (entropy * (p - student.sigmoid()).abs().pow(beta)).sum(1)


def decoupled_kd(student: Tensor, teacher: Tensor, target: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The two parts of :func:`kd_divergence`: the target class against the rest, and among the rest.

    .. math::
        \mathrm{TCKD} = \tau^2 \, \mathrm{KL}\big((p^T_y, 1 - p^T_y) \,\|\, (p^S_y, 1 - p^S_y)\big), \qquad
        \mathrm{NCKD} = \tau^2 \, \mathrm{KL}(\hat p^T \,\|\, \hat p^S)

    where :math:`\hat p` is the softmax over the classes other than y. Then
    :math:`\mathrm{KD} = \mathrm{TCKD} + (1 - p^T_y) \, \mathrm{NCKD}`.

    Args:
        student: logits ``(N, C, ...)``. teacher: the same shape. tau: temperature.
        target: y, int64, ``(N, ...)``.
    Returns:
        Two tensors of the shape of ``target``, in nats times :math:`\tau^2`.
    Raises:
        ValueError: shapes that differ, or only one class.
    Source: Zhao et al., Decoupled Knowledge Distillation (DKD), CVPR 2022, eq. 5-7. Deviation: none.
    """
    _check(student, teacher)
    if student.shape[1] < 2:
        raise ValueError('decoupled distillation: needs at least two classes, one is left beside the target')
    mask = F.one_hot(target, student.shape[1]).movedim(-1, 1).bool()

    def parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z / tau
        # ln p_y and ln (1 - p_y), both stable near probability 0; then the log-softmax of the other classes.
        whole = z.logsumexp(1)
        rest = z.masked_fill(mask, -torch.inf).logsumexp(1)
        return (z * mask).sum(1) - whole, rest - whole, torch.where(mask, 0, z - rest.unsqueeze(1))

    s_target, s_rest, s_among = parts(student)
    t_target, t_rest, t_among = parts(teacher)
    of_target = t_target.exp() * (t_target - s_target) + t_rest.exp() * (t_rest - s_rest)
    # At the target both are 0 and add nothing.
    among = (t_among.exp() * (t_among - s_among)).sum(1)
    return of_target * tau**2, among * tau**2


def standardised_scores(z: Tensor) -> Tensor:
    r"""The scores' z-scores over the classes: their softmax no longer depends on shift and scale.

    .. math:: \hat z_c = \frac{z_c - \mu}{s + 10^{-7}}

    with mean and unbiased standard deviation over the classes.

    Args:
        z: logits ``(N, C, ...)``.
    Returns:
        The shape of ``z``, without unit; 0, without gradient, where all classes have the same score.
    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, and the authors' code. Deviation:
        equal scores get no gradient.
    """
    centred = z - z.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(z.shape[1] - 1, 1)
    apart = above_rounding(variance, z, 1)
    # Avoid the square root at 0, where it has no derivative.
    return torch.where(apart, centred / (torch.where(apart, variance, 1).sqrt() + 1e-7), 0)


PARTIAL_KINDS = ('full', 'pt', 'topk', 'sim', 'rel', 'label_smoothing')


def partial_target(
    kind: str,
    teacher: Tensor,
    target: Tensor | None = None,
    tau: float = 1.0,
    k: int | None = None,
    similarities: Tensor | None = None,
    siblings: Tensor | None = None,
    betas: tuple[float, float] | None = None,
    epsilon: float | None = None,
) -> Tensor:
    r"""A distribution over classes that keeps part of the information in the teacher's softened scores.

    With :math:`p = \mathrm{softmax}(z^T / \tau)`, y the true class and K classes:

    * ``full``: p itself.
    * ``pt``: :math:`p_y` for y, the rest spread evenly: keeps the teacher's confidence in the true class.
    * ``topk``: the k largest of p, the rest spread evenly over the others; k = K is ``full``.
    * ``sim``: row y of ``similarities``, which depends on the class alone (:func:`row_similarities`).
    * ``rel``: :math:`\beta_1` for y, :math:`\beta_2` for each other class in its super-class, the rest spread evenly
      over all other classes.
    * ``label_smoothing``: :math:`1 - \epsilon` for y, plus :math:`\epsilon / K` for each class; ignores the teacher.

    Args:
        teacher: logits ``(N, C, ...)``.
        target: y, int64, ``(N, ...)``; not needed for 'full' and 'topk'.
        tau: temperature of 'full', 'pt' and 'topk'.
        k: for 'topk', 1 to K. similarities: ``(K, K)``, rows sum to 1. siblings: ``(K, K)``, bool, whether two
            classes share a super-class. betas, epsilon: as above.
    Returns:
        The shape of ``teacher``; over the classes it sums to 1.
    Raises:
        ValueError: a k outside 1 to K, betas that do not sum to 1 with the other classes.
    Source: Tang et al., Understanding and Improving Knowledge Distillation, arXiv 2002.03532; the
        exact forms of 'pt' and 'sim' are unverified. Deviation: none known.
    """
    classes = teacher.shape[1]
    p = F.softmax(teacher / tau, 1)
    if kind == 'full':
        return p
    if kind == 'topk':
        if not 1 <= k <= classes:
            raise ValueError(f'partial teacher: k must be 1 to {classes}, the number of classes, got {k}')
        largest = torch.zeros_like(p).scatter(1, p.topk(k, 1).indices, 1) > 0
        rest = p.masked_fill(largest, 0).sum(1, keepdim=True)
        return torch.where(largest, p, rest / max(classes - k, 1))
    hot = F.one_hot(target, classes).movedim(-1, 1).to(p)
    if kind == 'pt':
        sure = (p * hot).sum(1, keepdim=True)
        return torch.where(hot > 0, sure, (1 - sure) / (classes - 1))
    if kind == 'label_smoothing':
        return (1 - epsilon) * hot + epsilon / classes
    rows = similarities if kind == 'sim' else _relation_rows(siblings, *betas)
    return rows.to(p)[target].movedim(-1, 1)


def _relation_rows(siblings: Tensor, first: float, second: float) -> Tensor:
    own = torch.eye(len(siblings), dtype=torch.bool, device=siblings.device)
    own, near, far = (part.double() for part in (own, siblings & ~own, ~siblings & ~own))
    left = 1 - first - second * near.sum(1, keepdim=True)
    others = far.sum(1, keepdim=True)
    if (left < -1e-9).any() or ((others == 0) & (left > 1e-9)).any():
        raise ValueError(
            f'partial teacher: betas {first} and {second} leave {left.min().item():.3g} to {left.max().item():.3g} for '
            f'{int(others.min())} to {int(others.max())} classes outside the super-class; they must sum to 1 with them'
        )
    return own * first + near * second + far * (left.clamp(min=0) / others.clamp(min=1))


def row_similarities(weight: Tensor, alpha: float, beta: float) -> Tensor:
    r"""Similarity of the classes in the teacher's logit layer: for each class, a distribution over all classes.

    .. math:: \rho_{yi} = \mathrm{softmax}_i \big( \mathrm{sign}(c_{yi}) |c_{yi}|^\alpha / \beta \big), \qquad
              c_{yi} = \cos(w_y, w_i)

    Args:
        weight: ``(K, ...)``, one row per class. alpha: exponent; below 1 it raises small cosines. beta: temperature.
    Returns:
        ``(K, K)``; rows sum to 1, with the maximum at the class itself. A zero row has cosine 0 with every row.
    Source: Tang et al., arXiv 2002.03532 (KD-sim; the form is unverified). Deviation: the sign, because cosines
        can be negative, where a fractional power is undefined.
    """
    rows = F.normalize(weight.flatten(1), dim=1)
    cosines = rows @ rows.T
    return F.softmax(cosines.sign() * cosines.abs() ** alpha / beta, 1)


def target_divergence(student: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of softened softmax scores from a given distribution, per sample and position.

    .. math:: \sum_c \rho_c (\ln \rho_c - \ln q_c), \qquad q = \mathrm{softmax}(z^S / \tau)

    Its gradient with respect to :math:`z^S` is :math:`(q - \rho) / \tau`, as for the cross-entropy.

    Args:
        student: logits ``(N, C, ...)``. target: :math:`\rho`, the same shape; 0 ln 0 is 0.
    Returns:
        ``(N, ...)``, in nats; no factor of :math:`\tau^2`.
    """
    _check(student, target)
    return (torch.xlogy(target, target) - target * F.log_softmax(student / tau, 1)).sum(1)


def gradient_rescaling(
    student: Tensor,
    soft_target: Tensor,
    target: Tensor,
    tau: float = 1.0,
    weight: float = 1.0,
    task_weight: float = 1.0,
    tau_squared: bool = True,
) -> Tensor:
    r"""The factor by which distillation rescales each sample's gradient at the true class.

    For the loss :math:`\lambda_0 H(y, q) + \lambda \, s \, H(\rho, \tilde q)`, where q are the student's probabilities,
    :math:`\tilde q` those at temperature :math:`\tau`, and s is :math:`\tau^2` or 1:

    .. math:: w = \frac{\partial L / \partial z_y}{\partial H(y, q) / \partial z_y}
                = \lambda_0 + \lambda \frac{s}{\tau} \, \frac{\rho_y - \tilde q_y}{1 - q_y}

    Args:
        student: logits ``(N, C, ...)``. soft_target: :math:`\rho`, the same shape.
        target: y, int64, ``(N, ...)``.
        weight: :math:`\lambda`. task_weight: :math:`\lambda_0`; the paper has 1 - λ.
        tau_squared: whether s is :math:`\tau^2`, as in KDLoss.
    Returns:
        The shape of ``target``, without unit; infinite where the student gives the other classes probability 0.
    Source: Tang et al., arXiv 2002.03532, the factor w_t. Deviation: two separate weights, and the factor s.
    """
    mask = F.one_hot(target, student.shape[1]).movedim(-1, 1).bool()

    def others(z: Tensor) -> Tensor:
        # 1 - q_y without cancellation where q_y is close to 1.
        return (z.masked_fill(mask, -torch.inf).logsumexp(1) - z.logsumexp(1)).exp()

    rest = soft_target.masked_fill(mask, 0).sum(1)
    scale = tau if tau_squared else 1 / tau
    return task_weight + weight * scale * (others(student / tau) - rest) / others(student)


def _check(student: Tensor, teacher: Tensor) -> None:
    who = 'knowledge distillation on logits'
    check_rank(who, student, 2, '(N, C, ...)')
    same_shape(who, student, teacher, SAME_CLASSES)
