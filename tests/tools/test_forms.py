"""The forms of Lipschitz guidance that a study tries: what they do not see, and who gets a gradient."""

import pytest
import torch
from bench.forms import lipschitz as forms

MAPS = [(2, 5, 8, 8), (2, 6, 4, 4), (2, 7, 4, 4)]


def maps(channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, c * channels, h, w) for b, c, h, w in MAPS]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def rotated(x, scale=1.0):
    """The map in another orthonormal basis of its channels."""
    q = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], dtype=x.dtype)).Q
    return scale * torch.einsum('dc,bchw->bdhw', q, x.detach())


@pytest.mark.parametrize('form', [forms.ShareOfNorm, forms.Shares, forms.LeadingPatterns, forms.Above])
def test_forms_of_the_transmitting_matrix(form):
    student, teacher = maps(), maps(channels=2, seed=1)
    loss = form()
    value = loss(student, teacher)
    value.backward()
    assert all(x.grad is None for x in teacher)
    # Equal nets lose nothing, in whatever basis; a scale matters to σ itself alone.
    scale = 1.0 if form is forms.Above else 3.0
    assert loss(student, [rotated(x, scale) for x in student]) < 1e-12
    if form is not forms.Above:
        assert value > 1e-3 and all(x.grad.abs().sum() > 0 for x in student)


def test_patterns_are_those_of_the_singular_vectors():
    front, back = maps()[:2]
    pooled = torch.nn.functional.adaptive_avg_pool2d(front, 4)
    u, _, v = torch.linalg.svd(pooled.flatten(2) @ back.flatten(2).mT)
    expected = torch.einsum('bc,bchw->bhw', u[..., 0], front), torch.einsum('bc,bchw->bhw', v[:, 0], back)
    for ours, theirs in zip(forms.LeadingPatterns.patterns(front, back), expected):
        cosine = torch.cosine_similarity(ours, theirs.flatten(1), 1)
        torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine))


def test_principal_patterns_are_those_of_the_singular_vectors():
    x = maps()[0]
    _, _, right = torch.linalg.svd(x.flatten(2), full_matrices=False)
    cosine = torch.cosine_similarity(forms.PrincipalPatterns.pattern(x), right[:, 0], 1)
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine))
    assert forms.PrincipalPatterns()(x, rotated(x, 3.0)) < 1e-12
    value = forms.PrincipalPatterns()(x, maps(2, 1)[0])
    value.backward()
    assert value > 1e-3 and x.grad.abs().sum() > 0


def test_above_is_zero_where_the_student_is_smoother():
    student = maps()
    assert forms.Above()(student, [2 * x for x in student]) == 0
    assert forms.Above()([2 * x for x in student], student) > 0


def test_forms_on_noise():
    x, scores = torch.randn(4, 3, 8, 8), torch.randn(4, 10)
    linear = torch.randn(3 * 64, 10)

    def net(images, factor):
        return [factor * (images.flatten(1) @ linear)]

    def replay(images):
        return net(images, 1.0), net(images, 2.0)

    # A scale changes no relative response; the scores on noise differ.
    assert forms.Response()(net(x, 1.0), net(x, 2.0), inputs=x, replay=replay) < 1e-9
    assert forms.KDOnNoise()(net(x, 1.0), net(x, 2.0), inputs=x, replay=replay) > 0.01
    assert forms.SmoothKD()([scores], [scores], inputs=x, replay=replay) == 0
