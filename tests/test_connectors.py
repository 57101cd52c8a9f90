import math
import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lckd_mm.connectors import (
    MLP,
    AutoEncoder,
    Chain,
    ChannelPart,
    ConvBN,
    FactorEncoder,
    MarginReLU,
    MaskedGenerator,
    MatchSize,
    MatchStatistics,
    Paraphraser,
    Standardise,
    Translator,
)
from lckd_mm.functional import bn_margin
from lckd_mm.losses import FTLoss


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_conv_bn_is_a_convolution_without_bias_and_a_norm():
    connector = ConvBN(3, 5)
    x = torch.randn(4, 3, 6, 6)
    mixed = torch.einsum('oi,bihw->bohw', connector[0].weight[:, :, 0, 0], x)
    mean, var = mixed.mean((0, 2, 3), keepdim=True), mixed.var((0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(connector(x), (mixed - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in connector.named_parameters()] == ['0.weight', '1.weight', '1.bias']


def test_conv_bn_starts_he_normal_by_fan_out():
    weight = ConvBN(128, 256)[0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_conv_bn_does_not_look_at_the_other_side():
    connector, x = ConvBN(3, 5).eval(), torch.randn(1, 3, 2, 2)
    assert torch.equal(connector(x, torch.zeros(1)), connector(x))


def test_conv_bn_without_affine_gives_mean_0_and_deviation_1():
    connector, x = ConvBN(3, 5, affine=False), torch.randn(4, 3, 6, 6)
    y = connector(x)
    torch.testing.assert_close(y, Standardise()(F.conv2d(x, connector[0].weight)), rtol=1e-2, atol=1e-2)
    assert [name for name, _ in connector.named_parameters()] == ['0.weight']
    with pytest.raises(ValueError, match='ConvBN: affine must be True or False'):
        ConvBN(3, 5, affine=0)


def test_conv_bn_trains():
    connector, x = ConvBN(3, 5), torch.randn(4, 3, 2, 2, requires_grad=True)
    connector(x).sin().sum().backward()
    assert all(t.grad.abs().max() > 0 for t in (x, *connector.parameters()))


# ---- MLP


def test_mlp_is_two_linear_layers_along_the_channels():
    connector, x = MLP(3, 5), torch.randn(2, 3, 4, 6)
    first, _, second = connector.layers
    inner = torch.einsum('oi,bihw->bohw', first.weight, x) + first.bias.view(-1, 1, 1)
    expected = torch.einsum('oi,bihw->bohw', second.weight, inner.relu()) + second.bias.view(-1, 1, 1)
    torch.testing.assert_close(connector(x, torch.zeros(1)), expected)
    torch.testing.assert_close(connector(x.flatten(2).mT), expected.flatten(2).mT)
    torch.testing.assert_close(connector(x[:, :, 0, 0]), expected[:, :, 0, 0])
    assert second.in_features == second.out_features == 5


# ---- statistics of channels


@pytest.mark.parametrize('shape', [(6, 3), (2, 5, 3), (2, 3, 4, 5)])
def test_standardised_channels_have_mean_0_and_deviation_1(shape):
    x = 3 * torch.randn(shape, dtype=torch.float64) + 7
    y, rows = Standardise()(x), [0, *range(2, len(shape))]
    if len(shape) == 3:
        y, rows, x = y.mT, [0, 2], x.mT
    assert y.shape == x.shape
    torch.testing.assert_close(y, (x - x.mean(rows, keepdim=True)) / (x.std(rows, keepdim=True) + 1e-6))
    assert not list(Standardise().parameters())


@pytest.mark.parametrize('shape', [(6, 3), (2, 5, 3), (2, 3, 4, 5)])
def test_matched_channels_have_the_other_net_s_mean_and_deviation(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    like = (2 * torch.randn(shape, dtype=torch.float64) - 4).requires_grad_()
    y, rows = MatchStatistics()(x, like), [0, 1] if len(shape) == 3 else [0, *range(2, len(shape))]
    torch.testing.assert_close(y.mean(rows), like.mean(rows))
    torch.testing.assert_close(y.std(rows), like.std(rows), rtol=1e-5, atol=0)
    # A feature of the same channels, moved and scaled, becomes the other net's own.
    torch.testing.assert_close(MatchStatistics()(5 * like - 3, like), like, rtol=1e-5, atol=1e-5)
    y.sin().sum().backward()
    assert x.grad.abs().max() > 0 and like.grad is None


def test_matched_channels_may_be_constant_and_must_be_as_many():
    x = torch.ones(2, 3, 2, 2, requires_grad=True)
    y = MatchStatistics()(x, torch.randn(2, 3, 4, 4))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"3 channels .* other net's 4; write .*ConvBN.*MatchStatistics"):
        MatchStatistics()(x, torch.randn(2, 4, 4, 4))
    with pytest.raises(ValueError, match='Linear'):
        MatchStatistics()(torch.ones(2, 3), torch.ones(2, 4))


# ---- MaskedGenerator


def test_a_masked_generator_generates_from_the_positions_that_are_left():
    connector = MaskedGenerator(3, 5, ratio=0.65)
    seen = []
    connector.generator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(8, 3, 16, 16)
    y = connector(x, torch.zeros(1))
    hidden = (seen[0] == 0).all(1)
    assert (hidden | (seen[0] == connector.align(x)).all(1)).all()
    # 2048 positions: five standard deviations.
    assert hidden.float().mean().item() == pytest.approx(0.65, abs=5 * math.sqrt(0.65 * 0.35 / 2048))
    first, _, last = connector.generator
    torch.testing.assert_close(y, last(first(seen[0]).relu()))
    assert [tuple(m.weight.shape) for m in (connector.align, first, last)] == [(5, 3, 1, 1), (5, 5, 3, 3), (5, 5, 3, 3)]
    assert isinstance(MaskedGenerator(3, 3).align, nn.Identity)


@pytest.mark.parametrize(('ratio', 'kept'), [(0.0, True), (1.0, False)])
def test_a_masked_generator_hides_all_or_nothing(ratio, kept):
    connector, x = MaskedGenerator(3, 3, ratio=ratio), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(connector(x), connector.generator(x if kept else 0 * x))


def test_masks_are_drawn_anew_apart_from_the_training_and_go_on_from_a_stored_state():
    x = torch.randn(2, 3, 8, 8)
    connector = MaskedGenerator(3, 3)
    before = torch.get_rng_state()
    first = connector(x)
    assert torch.equal(torch.get_rng_state(), before)
    state = {key: value.clone() for key, value in connector.state_dict().items()}
    second = connector(x)
    assert not torch.equal(first, second)
    resumed = MaskedGenerator(3, 3)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(x), second)
    with pytest.raises(ValueError, match='MaskedGenerator: ratio must be at most 1'):
        MaskedGenerator(3, 3, ratio=1.5)


# ---- MatchSize


def test_match_size_leaves_an_equal_size_as_it_is():
    x = torch.randn(1, 3, 4, 6)
    assert MatchSize()(x, torch.zeros(1, 9, 4, 6)) is x


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(8, 12), (2, 3), (5, 5)])
def test_match_size_is_bilinear(align_corners, size):
    x = torch.randn(2, 3, 4, 6)
    value = MatchSize(align_corners)(x, torch.zeros(2, 1, *size))
    assert value.shape == (2, 3, *size)
    assert torch.equal(value, F.interpolate(x, size, mode='bilinear', align_corners=align_corners))


def test_match_size_by_hand():
    x = torch.tensor([[[[0.0, 4.0]]]])
    assert MatchSize()(x, torch.zeros(1, 1, 1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    corners = MatchSize(align_corners=True)(x, torch.zeros(1, 1, 1, 3))
    assert corners.flatten().tolist() == [0.0, 2.0, 4.0]


def test_match_size_has_no_parameters():
    assert list(MatchSize().state_dict()) == []
    assert isinstance(MatchSize(), nn.Module)


# ---- MarginReLU


def test_margin_relu_takes_its_margin_from_the_batch_norm():
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    connector = MarginReLU(3)
    connector.bind(norm, 'term')
    expected = bn_margin(norm.weight, norm.bias).detach()
    assert torch.equal(connector.margin, expected)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(connector(x), torch.maximum(x, expected.view(1, 3, 1, 1)))
    assert not connector.margin.requires_grad


@pytest.mark.parametrize(
    ('norm', 'says'),
    [
        (None, 'before the tap comes no normalisation layer'),
        (nn.LayerNorm(3), 'before the tap comes LayerNorm;'),
        (nn.BatchNorm2d(3, affine=False), 'before the tap comes BatchNorm2d without the two'),
        (nn.BatchNorm2d(5), 'the last BatchNorm before the tap has 5 channels, the feature 3'),
    ],
)
def test_a_margin_without_a_fitting_batch_norm_raises(norm, says):
    with pytest.raises(ValueError, match=f"tap 'stage1': .*{says}"):
        MarginReLU(3, margin='bn').bind(norm, "tap 'stage1'")
    connector = MarginReLU(3)
    connector.bind(norm, "tap 'stage1'")
    assert connector.waits_for_data


def test_a_margin_from_data_waits_and_is_settled_in_place():
    connector = MarginReLU(2, margin='data')
    buffer = connector.margin
    connector.bind(None, 'term')
    assert connector.waits_for_data
    connector.observe(torch.tensor([[[-2.0, 1.0], [5.0, 0.0]]]))  # two tokens of width 2
    connector.observe(torch.tensor([[[[-1.0, -1.5, 0.0]], [[2.0, 2.0, 2.0]]]]))  # a map
    assert connector.waits_for_data
    connector.finish_fitting()
    assert not connector.waits_for_data
    assert connector.margin is buffer
    assert buffer.tolist() == [-1.5, 0.0]
    other = MarginReLU(2, margin='data')
    other.load_state_dict(connector.state_dict())
    assert not other.waits_for_data


@pytest.mark.parametrize(
    ('arguments', 'says'), [(dict(margin='bm'), "unknown margin 'bm'"), (dict(batches=0), 'at least 1')]
)
def test_margin_relu_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        MarginReLU(3, **arguments)


# ---- Translator, Paraphraser


def features(batch=8):
    """Maps of 8 channels that follow from 2."""
    hidden = torch.randn(batch, 2, 6, 6)
    return torch.einsum('oi,bihw->bohw', torch.linspace(-1, 1, 16).view(8, 2), hidden)


def test_a_factor_has_the_rates_channels():
    x = torch.randn(2, 8, 6, 6)
    assert Paraphraser(8)(x).shape == (2, 4, 6, 6)
    assert Translator(3, 8)(torch.randn(2, 3, 6, 6)).shape == (2, 4, 6, 6)
    assert Paraphraser(8, rate=0.75)(x).shape == Translator(8, 8, rate=0.75)(x).shape == (2, 6, 6, 6)


def test_a_paraphraser_learns_to_give_the_feature_back():
    connector = Paraphraser(8, lr=1e-2)
    before = [p.clone() for p in connector.parameters()]
    with torch.no_grad():  # as in a hook
        for _ in range(80):
            connector.observe(features())
        assert connector.waits_for_data
        said = connector.finish_fitting()
    assert not connector.waits_for_data
    lost = float(said.split('loses ')[1].split('%')[0])
    assert lost < 15
    x = features()
    assert F.mse_loss(connector.decoder(connector.encoder(x)), x) < 0.2 * x.var()
    assert all(not torch.equal(a, b) for a, b in zip(before, connector.parameters(), strict=True))


def test_a_paraphraser_is_frozen():
    connector = Paraphraser(8)
    for step in ('fresh', 'trained'):
        assert not any(m.training for m in connector.train().modules()), step
        assert not any(p.requires_grad or p.grad is not None for p in connector.parameters()), step
        state = {key: value.clone() for key, value in connector.state_dict().items()}
        connector(features())
        assert all(torch.equal(state[key], value) for key, value in connector.state_dict().items()), step
        connector.observe(features())
        connector.finish_fitting()


def test_a_paraphraser_comes_back_from_a_checkpoint():
    connector, other = Paraphraser(8), Paraphraser(8)
    connector.observe(features())
    connector.finish_fitting()
    other.load_state_dict(connector.state_dict())
    assert not other.waits_for_data
    x = features()
    assert torch.equal(other(x), connector(x))


@pytest.mark.parametrize('arguments', [dict(rate=0.0), dict(batches=0), dict(lr=0.0)])
def test_paraphraser_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=r'Paraphraser: (rate|lr|batches) must be (above 0|at least 1)'):
        Paraphraser(3, **arguments)


# ---- FactorEncoder, AutoEncoder


def test_the_encoders_of_both_nets_are_alike():
    ours, theirs = FactorEncoder(8, 8), AutoEncoder(8).encoder
    assert str(list(ours)) == str(list(theirs))
    kinds = [nn.LeakyReLU, *3 * [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]]
    assert [type(m) for m in ours] == kinds
    assert {m.negative_slope for m in ours if isinstance(m, nn.LeakyReLU)} == {0.1}
    assert FactorEncoder(3, 8, rate=0.75)(torch.randn(2, 3, 6, 6)).shape == (2, 6, 6, 6)
    assert AutoEncoder(8, rate=0.75)(torch.randn(2, 8, 6, 6)).shape == (2, 6, 6, 6)


@pytest.mark.parametrize('mode', AutoEncoder.MODES)
def test_an_auto_encoder_learns_to_give_the_feature_back(mode):
    connector = AutoEncoder(8, mode=mode, lr=1e-2)
    with torch.no_grad():
        for _ in range(80):
            connector.observe(features())
        said = connector.finish_fitting()
    x = features()
    back = connector.decoder(connector.encoder(x))
    assert F.mse_loss(back, x) < 0.25 * x.var()
    assert F.l1_loss(back, x) < 0.5 * x.abs().mean()
    lost = float(said.split('loses ')[1].split('%')[0])
    relative = float(said.split('mean absolute error is ')[1].split('%')[0])
    assert lost < 25 and relative < 50
    assert not any(p.requires_grad for p in connector.parameters())


@pytest.mark.parametrize(('mode', 'error'), [('l1', F.l1_loss), ('l2', F.mse_loss)])
def test_its_first_update_is_of_the_modes_error(mode, error):
    connector = AutoEncoder(8, mode=mode, lr=1e-3)
    other, x = AutoEncoder(8), features()
    other.load_state_dict(connector.state_dict())
    connector.observe(x)
    other.requires_grad_(True)
    nn.Module.train(other, True)
    error(other.decoder(other.encoder(x)), x).backward()
    torch.optim.Adam(other.parameters(), 1e-3).step()
    assert all(torch.equal(a, b) for a, b in zip(connector.parameters(), other.parameters(), strict=True))


def test_an_auto_encoder_that_is_trained_along_makes_its_factor_as_a_frozen_one_does():
    connector = AutoEncoder(8, online=True).train()
    x = features()
    assert not connector.waits_for_data
    assert not connector(x).requires_grad
    before = {key: value.clone() for key, value in connector.state_dict().items()}
    connector(x)
    assert all(torch.equal(before[key], value) for key, value in connector.state_dict().items())
    # Batch statistics while it learns, and they are remembered; running ones else.
    connector.reconstruct(x).sum().backward()
    assert connector.encoder[2].num_batches_tracked == 1
    assert all(p.grad is not None for p in connector.parameters())
    connector.eval().reconstruct(x)
    connector.train().reconstruct(features(1)[:, :, :1, :1])  # one value a channel
    assert connector.encoder[2].num_batches_tracked == 1
    assert not any(m.training for m in connector.modules())


@pytest.mark.parametrize('arguments', [dict(rate=0.0), dict(batches=0), dict(lr=0.0)])
def test_auto_encoder_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=r'AutoEncoder: .* must be (above 0|at least 1)'):
        AutoEncoder(3, **arguments)
    with pytest.raises(ValueError, match="AutoEncoder: unknown mode 'mse', expected one of l1, l2"):
        AutoEncoder(3, mode='mse')


# ---- ChannelPart


def test_natural_parts_are_the_halves():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(ChannelPart(5)(x), x[:, :2])
    assert torch.equal(ChannelPart(5, part='explore')(x), x[:, 2:])
    assert torch.equal(ChannelPart(3, part='explore')(x[..., 0]), x[:, :, 1:, 0])


def test_the_inheriting_part_is_the_plain_loss_on_half_the_channels():
    x, y = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 3, 3)
    encoder = FactorEncoder(4, 8)
    assert torch.equal(FTLoss()(Chain([ChannelPart(8), encoder])(x), y), FTLoss()(encoder(x[:, :4]), y))


def test_a_part_is_a_known_one():
    with pytest.raises(ValueError, match="unknown part 'both'"):
        ChannelPart(8, 'both')


def observe(rank, folder):
    """On rank 1 the first feature is of one position: a batch that neither rank may train on."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    torch.manual_seed(0)
    connector = Paraphraser(4)
    generator = torch.Generator().manual_seed(rank)
    for size in (4 if rank == 0 else 1, 4, 4):
        connector.observe(torch.randn(1, 4, size, size, generator=generator))
    connector.finish_fitting()
    torch.save(connector.state_dict(), f'{folder}/{rank}.pth')
    # A process that exits while gloo's threads still run is aborted by them.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ranks_leave_the_same_batches_out(tmp_path):
    fork = multiprocessing.get_context('fork')
    ranks = [fork.Process(target=observe, args=(rank, tmp_path)) for rank in range(2)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=120)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first['encoder.1.num_batches_tracked'] == 2


def test_the_generators_of_several_taps_hide_other_positions():
    torch.manual_seed(0)
    first, second = MaskedGenerator(4, 4), MaskedGenerator(4, 4)
    for generator in (first, second):
        generator.generator = torch.nn.Identity()
    x = torch.ones(2, 4, 8, 8)
    masks = [generator(x) for generator in (first, second, first)]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
