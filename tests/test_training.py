"""Ray batches, the training step, the dead-network guard and exact resume."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import run_nerf
from nerf.fields.dead_networks import CHECK_STEPS, FRESH_DENSITY, TRIES
from nerf.runtime.errors import UserError
from nerf.flags import parse_flags
from run_nerf import RayBatcher, Scene, Trainer, choose_precision, create_nerf, load_scene
from run_nerf_helpers import NeRF, draw, get_rays, img2mse
from nerf.scene import target_colours

SMALL = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '3', '--netwidth', '16',
         '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '4', '--multires_views', '2',
         '--N_samples', '8', '--N_importance', '8', '--N_rand', '32', '--lrate', '1e-2', '--testskip', '1',
         '--device', 'cpu']


@pytest.fixture(scope='module')
def scene_dir(tiny_scene, tmp_path_factory):
    return tiny_scene(tmp_path_factory.mktemp('scene'))


@pytest.fixture
def flags(scene_dir, tmp_path):
    """Flags of a run on the tiny scene; later ones win."""
    def make(*extra: str, expname: str = 'run') -> list[str]:
        return [*SMALL, '--datadir', str(scene_dir), '--basedir', str(tmp_path), '--expname', expname,
                '--precision', 'fp32', *extra]
    return make


def trainer_of(flags: list[str]) -> Trainer:
    args = parse_flags(flags)
    model = create_nerf(args, torch.device('cpu'), choose_precision(args.precision, torch.device('cpu')))
    return Trainer(args, load_scene(args), model)


# Ray batches


@pytest.fixture
def numbered_scene():
    """Four images of 6x8 whose colours are (image, row, column), each with a camera of its own."""
    n, H, W = 4, 6, 8
    images = np.stack(np.meshgrid(np.arange(n), np.arange(H), np.arange(W), indexing='ij'), -1).astype(np.uint8)
    poses = np.random.default_rng(0).normal(size=(n, 3, 4)).astype(np.float32)
    K = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
    return Scene(images=images, poses=poses, K=K, H=H, W=W, near=2.0, far=6.0, ndc=False, white_bkgd=False,
                 render_poses=poses, i_train=np.array([0, 2, 3]), i_val=np.array([1]), i_test=np.array([1]))


def batcher_of(scene: Scene, n_rays: int, no_batching: bool = False, precrop_iters: int = 0, precrop_frac: float = 0.5,
               seed: int = 0) -> RayBatcher:
    return RayBatcher(scene, n_rays, no_batching, precrop_iters, precrop_frac, torch.Generator().manual_seed(seed))


def pixels(target: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in (255 * target).round().int().tolist()]


@pytest.mark.parametrize('no_batching', [False, True])
def test_each_ray_is_that_of_the_pixel_whose_colour_it_should_have(numbered_scene, no_batching):
    rays, target = batcher_of(numbered_scene, 20, no_batching).next(1)
    for i, (image, row, column) in enumerate(pixels(target)):
        origins, directions = get_rays(6, 8, numbered_scene.K, torch.from_numpy(numbered_scene.poses[image]))
        torch.testing.assert_close(rays.origins[i], origins[row, column])
        torch.testing.assert_close(rays.directions[i], directions[row, column])
    assert (rays.near == 2).all()
    assert (rays.far == 6).all()


def test_all_images_give_each_training_pixel_once_per_epoch_in_an_order_that_changes(numbered_scene):
    batcher = batcher_of(numbered_scene, 10)
    drawn = [pixel for step in range(1, 44) for pixel in pixels(batcher.next(step)[1])]  # 430 of 3 epochs of 144
    first, second = drawn[:144], drawn[144:288]
    everything = {(image, row, column) for image in (0, 2, 3) for row in range(6) for column in range(8)}
    assert set(first) == set(second) == everything
    assert first != second
    assert first != sorted(first)


def test_one_image_a_step_gives_no_pixel_twice_and_visits_every_training_image(numbered_scene):
    batcher = batcher_of(numbered_scene, 48, no_batching=True)
    images = set()
    for step in range(1, 30):
        drawn = pixels(batcher.next(step)[1])
        assert len(set(drawn)) == 48
        assert len({image for image, _, _ in drawn}) == 1
        images.add(drawn[0][0])
    assert images == {0, 2, 3}


def test_the_centre_crop_ends_after_precrop_iters(numbered_scene):
    batcher = batcher_of(numbered_scene, 12, no_batching=True, precrop_iters=10)
    cropped = {pixel[1:] for step in range(1, 11) for pixel in pixels(batcher.next(step)[1])}
    assert cropped == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4, 5)}
    later = {pixel[1:] for step in range(11, 60) for pixel in pixels(batcher.next(step)[1])}
    assert later == {(row, column) for row in range(6) for column in range(8)}


@pytest.mark.parametrize(('no_batching', 'n_rays', 'precrop_iters'), [(False, 145, 0), (True, 49, 0), (True, 13, 5)])
def test_more_rays_than_pixels_is_an_error(numbered_scene, no_batching, n_rays, precrop_iters):
    batcher_of(numbered_scene, n_rays - 1, no_batching, precrop_iters)
    with pytest.raises(UserError, match=rf'N_rand is {n_rays} but a step can draw only {n_rays - 1} pixels'):
        batcher_of(numbered_scene, n_rays, no_batching, precrop_iters)


@pytest.mark.parametrize('no_batching', [False, True])
@pytest.mark.parametrize('steps', [3, 17])  # in the first and in the second epoch
def test_a_restored_batcher_goes_on_with_the_same_pixels(numbered_scene, no_batching, steps):
    batcher = batcher_of(numbered_scene, 10, no_batching)
    for step in range(steps):
        batcher.next(step + 1)
    other = batcher_of(numbered_scene, 10, no_batching, seed=5)
    other.load_state_dict(batcher.state_dict(), steps)
    for step in range(steps, steps + 20):
        assert pixels(batcher.next(step + 1)[1]) == pixels(other.next(step + 1)[1])


def test_a_white_background_is_composited_on_the_sampled_pixels():
    pixel = torch.tensor([[100, 200, 0, 51], [9, 9, 9, 0]], dtype=torch.uint8)
    on_white = target_colours(pixel, white_bkgd=True)
    expected = torch.tensor([[100 / 255 * 0.2 + 0.8, 200 / 255 * 0.2 + 0.8, 0.8], [1, 1, 1]])
    torch.testing.assert_close(on_white, expected)
    torch.testing.assert_close(target_colours(pixel, white_bkgd=False), pixel[:, :3] / 255)


# The step


def test_the_rate_falls_to_a_tenth_every_lrate_decay_thousand_steps(flags):
    trainer = trainer_of(flags('--lrate', '2e-3', '--lrate_decay', '3'))
    assert trainer.learning_rate(0) == 2e-3
    assert trainer.learning_rate(1500) == pytest.approx(2e-3 * 0.1 ** 0.5)
    assert trainer.learning_rate(3000) == pytest.approx(2e-4)
    trainer.step(1500)
    assert trainer.optimizer.param_groups[0]['lr'] == trainer.learning_rate(1500)


def test_a_step_is_adam_on_the_gradient_of_the_summed_errors_of_both_passes(flags):
    tiled, plain = (trainer_of(flags('--raw_noise_std', '0.5')) for _ in range(2))
    tiled.model.chunk = 5
    mse, _ = tiled.step(1)

    rays, target = plain.batcher.next(1)
    result = plain.model.render(rays, draw(len(target), plain.model.sampling, plain.generator))
    errors = [img2mse(result.coarse.rgb, target), img2mse(result.final.rgb, target)]
    sum(errors).backward()
    torch.testing.assert_close(mse, torch.stack(errors).detach())
    for ours, theirs in zip(tiled.model.parameters(), plain.model.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    # Adam's first step moves every weight by the rate, against the sign of its gradient.
    before = trainer_of(flags()).model.parameters()
    for ours, old in zip(tiled.model.parameters(), before):
        large = ours.grad.abs() > 1e-6
        torch.testing.assert_close((ours - old)[large], -1e-2 * ours.grad.sign()[large], rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize('change', [('--chunk', '7'), ('--netchunk', '13'), ('--chunk', '1', '--netchunk', '1')])
def test_chunk_and_netchunk_do_not_change_training(flags, change):
    whole, cut = trainer_of(flags()), trainer_of(flags(*change))
    for step in range(1, 4):
        torch.testing.assert_close(whole.step(step)[0], cut.step(step)[0], rtol=1e-4, atol=1e-6)
    assert len(cut.model.tiles(32)) == (1 if change[0] == '--netchunk' else -(-32 // int(change[1])))


def test_tiles_cover_all_rays_once_and_stay_within_chunk(flags):
    model = trainer_of(flags('--chunk', '10')).model
    assert model.tiles(32) == [(0, 10), (10, 20), (20, 30), (30, 32)]


@pytest.mark.parametrize('extra', [
    ('--N_importance', '0'), ('--precision', 'bf16'), ('--lindisp',), ('--i_embed', '-1'), ('--perturb', '0'),
    ('--raw_noise_std', '1')])
def test_every_way_of_training_learns(flags, extra):
    trainer = trainer_of(flags(*extra, '--seed', '3', '--N_rand', '128'))
    first = [trainer.step(step)[0] for step in range(1, 6)]
    for step in range(6, 150):
        trainer.guard.watch(step, trainer.step(step)[1])
    last = [trainer.step(step)[0] for step in range(150, 155)]
    assert len(first[0]) == (1 if '--N_importance' in extra else 2)
    assert (sum(last) < 0.7 * sum(first)).all()


def test_without_view_directions_a_fine_network_has_five_outputs_as_in_the_reference(flags):
    plain = [flag for flag in flags() if flag != '--use_viewdirs']
    assert trainer_of(plain).model.fine.network.output_linear.out_features == 5
    trainer_of(plain).step(1)
    assert trainer_of([*plain, '--N_importance', '0']).model.coarse.network.output_linear.out_features == 4


# Dead networks


def empty(network: NeRF) -> None:
    """Makes density zero everywhere."""
    with torch.no_grad():
        network.alpha_linear.weight.zero_()
        network.alpha_linear.bias.fill_(-1.0)


def whiten(network: NeRF) -> None:
    """Makes a white fog in front of the white background: saturated colours, whose density does not matter."""
    with torch.no_grad():
        network.rgb_linear.bias.fill_(30.0)
        network.alpha_linear.bias.fill_(1.0)


@pytest.mark.parametrize('kill', [empty, whiten])
@pytest.mark.parametrize(('name', 'other'), [('coarse', 'fine'), ('fine', 'coarse')])
def test_a_dead_network_is_noticed_started_afresh_from_the_next_seed_and_learns(flags, name, other, kill):
    trainer = trainer_of(flags('--seed', '3', '--lrate', '1e-3'))
    dead, alive = trainer.model.networks()[name], trainer.model.networks()[other]
    kill(dead)
    with torch.no_grad():
        alive.alpha_linear.bias.fill_(1.0)
    for step in range(1, 500):
        ranges = trainer.step(step)[1]
        kept = [p.clone() for p in alive.parameters()]
        said = trainer.guard.watch(step, ranges)
        if said:
            break
    assert len(said) == 1
    assert f'the {name} network is dead' in said[0]
    assert 'from seed 4 (try 1 of 5)' in said[0]
    fresh = trainer_of(flags()).model.networks()[name]
    fresh.reset_parameters(torch.Generator().manual_seed(4), FRESH_DENSITY)
    assert all(torch.equal(a, b) for a, b in zip(dead.parameters(), fresh.parameters()))
    assert not any(value.any() for p in dead.parameters() for value in trainer.optimizer.state[p].values())
    assert all(torch.equal(a, b) for a, b in zip(kept, alive.parameters()))  # the other network is left alone

    index = list(trainer.model.networks()).index(name)
    before = trainer.step(step + 1)[0][index]
    for later in range(step + 2, 500):
        mse, ranges = trainer.step(later)
        trainer.guard.watch(later, ranges)
    assert mse[index] < 0.5 * before


def window(shown: torch.Tensor) -> list[torch.Tensor]:
    """The ranges of CHECK_STEPS steps of one ray each: shown [steps, P + 1, 3], the last row the target's."""
    return [torch.stack([colours, colours]) for colours in shown]


@pytest.mark.parametrize(('pass_changes', 'target_changes', 'revived'), [
    (0.0, 0.5, ['coarse', 'fine']),  # one colour where more was wanted
    (0.002, 0.5, []),  # half a grey level more in one ray of the whole window is life
    (0.0, 0.0, []),  # nothing but background was wanted
])
def test_only_one_colour_where_more_was_wanted_is_death(flags, pass_changes, target_changes, revived):
    trainer = trainer_of(flags())
    shown = torch.full((CHECK_STEPS, 3, 3), 0.5)
    shown[3, 0, 1] += pass_changes
    shown[7, 1, 2] -= pass_changes
    shown[9, 2, 0] += target_changes
    said = [line for step, ranges in enumerate(window(shown), 1) for line in trainer.guard.watch(step, ranges)]
    assert [line.split('the ')[1].split(' ')[0] for line in said] == revived


def test_the_step_reports_the_ranges_of_what_each_pass_showed_and_should_have_shown(flags):
    cut, plain = trainer_of(flags('--chunk', '5')), trainer_of(flags())
    low, high = cut.step(1)[1]
    rays, target = plain.batcher.next(1)
    passes = plain.model.render(rays, draw(len(target), plain.model.sampling, plain.generator)).passes()
    colours = torch.stack([one.rgb.detach() for one in passes] + [target])
    torch.testing.assert_close(low, colours.amin(1))
    torch.testing.assert_close(high, colours.amax(1))


def test_a_network_that_stays_dead_ends_the_run_with_code_1_and_advice(flags, monkeypatch, capsys):
    original = NeRF.reset_parameters

    def stillborn(self, *args):
        original(self, *args)
        empty(self)
    monkeypatch.setattr(NeRF, 'reset_parameters', stillborn)
    assert run_nerf.main(flags('--N_iters', '1000')) == 1
    out, err = capsys.readouterr()
    assert out.count('started afresh') == 2 * TRIES
    assert 'network shows one colour and nothing else again after 5 fresh starts' in err
    assert 'lower lrate' in err
    assert err.count('error:') == 1


# Resuming


def states(folder, step: int) -> dict:
    checkpoint = torch.load(folder / f'{step:06d}.tar', weights_only=True)
    del checkpoint['run_state']['flags']
    return checkpoint


def assert_same(a, b) -> None:
    """Bit for bit, all the way down."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize('extra', [(), ('--no_batching', '--precrop_iters', '15'), ('--precision', 'bf16')])
def test_a_resumed_run_is_the_run_it_would_have_been(flags, tmp_path, capsys, extra):
    extra = (*extra, '--raw_noise_std', '0.1', '--N_rand', '60', '--i_print', '5', '--i_img', '1000')
    assert run_nerf.main(flags(*extra, '--N_iters', '24', expname='whole')) == 0  # its epoch ends in step 18
    assert run_nerf.main(flags(*extra, '--N_iters', '12', expname='parts')) == 0
    capsys.readouterr()
    assert run_nerf.main(flags(*extra, '--N_iters', '24', expname='parts')) == 0
    assert f"weights from {tmp_path / 'parts' / '000012.tar'} (step 12)" in capsys.readouterr().out
    assert_same(states(tmp_path / 'whole', 24), states(tmp_path / 'parts', 24))


def test_another_seed_is_another_run(flags, tmp_path):
    for seed in ('1', '2'):
        assert run_nerf.main(flags('--N_iters', '2', '--seed', seed, expname=seed)) == 0
    one, two = (states(tmp_path / seed, 2)['network_fn_state_dict'] for seed in ('1', '2'))
    assert not torch.equal(one['pts_linears.0.weight'], two['pts_linears.0.weight'])


def test_no_reload_starts_afresh_and_sets_the_old_run_aside(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '4', '--i_weights', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '2', '--no_reload')) == 0
    run = tmp_path / 'run'
    assert sorted(path.name for path in run.glob('*.tar')) == ['000002.tar']
    assert sorted(path.name for path in run.glob('previous_1/*.tar')) == ['000002.tar', '000004.tar']
    assert 'is now in' in capsys.readouterr().out
    assert_same(states(run, 2), states(run / 'previous_1', 2))


def test_ft_path_gives_a_fresh_run_its_weights_and_loses_to_the_runs_own_checkpoint(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    tuned = flags('--ft_path', str(tmp_path / 'run' / '000003.tar'), '--lrate', '1e-9', expname='tuned')
    assert run_nerf.main([*tuned, '--N_iters', '2']) == 0
    old, new = states(tmp_path / 'run', 3), states(tmp_path / 'tuned', 2)
    for key in ('network_fn_state_dict', 'network_fine_state_dict'):
        for name, weight in old[key].items():
            torch.testing.assert_close(new[key][name], weight, rtol=0, atol=1e-8)
    capsys.readouterr()
    assert run_nerf.main([*tuned, '--N_iters', '3']) == 0
    assert f"weights from {tmp_path / 'tuned' / '000002.tar'} (step 2)" in capsys.readouterr().out


def test_a_finished_run_says_so_and_changes_nothing(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert 'has all 2 steps already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}


def test_another_precision_may_go_on_with_a_run(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '3', '--precision', 'bf16')) == 0
    assert (tmp_path / 'run' / '000003.tar').is_file()


def spoil_losses(monkeypatch, steps: range) -> None:
    """Makes the loss NaN at some steps, counted from 1; each has one tile and two passes."""
    calls = itertools.count()
    monkeypatch.setattr(run_nerf, 'img2mse', lambda x, y: img2mse(x, y) * (
        float('nan') if next(calls) // 2 + 1 in steps else 1.0))


def test_a_step_whose_loss_is_not_finite_is_said_and_not_applied(flags, monkeypatch):
    trainer = trainer_of(flags())
    spoil_losses(monkeypatch, range(3, 5))
    for step in range(1, 7):
        before = {name: value.clone() for name, value in trainer.model.fine.state_dict().items()}
        trainer.step(step)
        bad = step in (3, 4)
        assert trainer.check(step) == [
            f'step {step}: the loss of the coarse network is not finite; the step was not applied'] * bad
        same = all(torch.equal(value, before[name]) for name, value in trainer.model.fine.state_dict().items())
        assert same == bad
    assert {float(state['step']) for state in trainer.optimizer.state.values()} == {4.0}
    assert all(torch.isfinite(state['exp_avg_sq']).all() for state in trainer.optimizer.state.values())


def test_a_gradient_that_is_not_finite_is_not_applied_either(flags, monkeypatch):
    trainer = trainer_of(flags())
    trainer.step(1)
    before = trainer.model.fine.network.rgb_linear.bias.clone()
    hook = trainer.model.fine.network.rgb_linear.bias.register_hook(lambda gradient: gradient * float('inf'))
    trainer.step(2)
    assert trainer.check(2) == ['step 2: the gradient is not finite; the step was not applied']
    assert torch.equal(trainer.model.fine.network.rgb_linear.bias, before)
    hook.remove()
    trainer.step(3)
    assert trainer.check(3) == []
    assert not torch.equal(trainer.model.fine.network.rgb_linear.bias, before)


def test_ten_such_steps_in_a_row_end_the_run_with_the_last_good_checkpoint(flags, tmp_path, capsys, monkeypatch):
    spoil_losses(monkeypatch, range(8, 100))
    assert run_nerf.main(flags('--N_iters', '30', '--i_print', '1', '--i_weights', '7')) == 1
    streams = capsys.readouterr()
    assert 'error: step 17: the loss of the coarse network was not finite 10 times in a row' in streams.err
    assert streams.out.count('the step was not applied') == 9
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == list(range(1, 8))
    newest = torch.load(tmp_path / 'run' / '000014.tar', weights_only=True)  # steps 8 to 14 changed nothing
    good = torch.load(tmp_path / 'run' / '000007.tar', weights_only=True)
    for name, value in good['network_fine_state_dict'].items():
        assert torch.equal(value, newest['network_fine_state_dict'][name])


def test_nine_of_them_do_not(flags, tmp_path, monkeypatch):
    spoil_losses(monkeypatch, range(8, 17))
    assert run_nerf.main(flags('--N_iters', '20')) == 0


def test_the_recorded_flags_of_a_fresh_start_render_what_it_trained(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2', '--no_reload')) == 0
    args = str(tmp_path / 'run' / 'args.txt')
    assert run_nerf.main(['--config', args, '--render_only', '--render_factor', '8']) == 0
    assert run_nerf.main(['--config', args, '--N_iters', '3']) == 0
    assert not (tmp_path / 'run' / 'previous_1').exists()


def test_a_render_factor_that_leaves_nothing_is_an_error_before_training(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--render_factor', '17')) == 1
    assert 'render_factor 17 leaves nothing of 16x16 pixels' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_a_run_stopped_while_it_rendered_at_the_end_renders_when_started_again(flags, tmp_path, capsys):
    wanted = flags('--N_iters', '2', '--i_testset', '2', '--i_video', '2', '--render_factor', '2')
    assert run_nerf.main(wanted) == 0
    metrics = tmp_path / 'run' / 'testset_000002' / 'metrics.json'
    video = tmp_path / 'run' / 'run_spiral_000002_disp.mp4'
    before = metrics.read_text()
    metrics.unlink()
    video.unlink()
    assert run_nerf.main(wanted) == 0
    assert metrics.read_text() == before
    assert video.is_file()
    assert 'has all' not in capsys.readouterr().out
    assert run_nerf.main(wanted) == 0
    assert 'has all 2 steps already' in capsys.readouterr().out


def test_resuming_under_another_network_names_the_flags(flags, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '4', '--netwidth', '8')) == 1
    error = capsys.readouterr().err
    assert 'pts_linears.0.weight is (16, 27) there and (8, 27) here' in error
    assert '(changed since then: netwidth 16 -> 8)' in error
    assert run_nerf.main(flags('--N_iters', '4', '--N_importance', '0')) == 1
    assert '(changed since then: N_importance 8 -> 0)' in capsys.readouterr().err


def test_resuming_on_other_data_is_an_error_that_names_the_flags_or_the_files(flags, scene_dir, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    without_white = [flag for flag in flags('--N_iters', '4') if flag != '--white_bkgd']
    assert run_nerf.main(without_white) == 1
    assert '(changed since then: white_bkgd True -> False)' in capsys.readouterr().err
    elsewhere = tmp_path / 'elsewhere'
    shutil.copytree(scene_dir, elsewhere)
    assert run_nerf.main(flags('--N_iters', '4', '--datadir', str(elsewhere))) == 0  # the same scene in another place
    assert f'datadir {scene_dir} -> {elsewhere}' in capsys.readouterr().out
    (elsewhere / 'train' / 'r_0.png').write_bytes((elsewhere / 'train' / 'r_0.png').read_bytes())
    Image.new('RGBA', (16, 16)).save(elsewhere / 'train' / 'r_0.png')
    before = sorted((tmp_path / 'run').iterdir())
    assert run_nerf.main(flags('--N_iters', '6', '--datadir', str(elsewhere))) == 1
    assert f'(changed since then: the files in {elsewhere})' in capsys.readouterr().err
    assert sorted((tmp_path / 'run').iterdir()) == before


def test_harmless_changes_are_allowed_and_said(flags, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '4', '--i_print', '2', '--chunk', '10', '--lrate', '2e-3')) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith('changed since the checkpoint: '))
    for change in ('N_iters 2 -> 4', 'i_print 100 -> 2', 'chunk 32768 -> 10', 'lrate 0.01 -> 0.002'):
        assert change in line
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '6', '--i_print', '2', '--chunk', '10', '--lrate', '2e-3')) == 0
    assert 'changed since the checkpoint: N_iters 4 -> 6\n' in capsys.readouterr().out


@pytest.mark.parametrize('state', [5, [], {}, {'scaler': 1}, {'scaler': {}, 'batcher': {}, 'guard': {}},
                                   {'scaler': {}, 'batcher': None, 'guard': None, 'flags': None}])
def test_a_checkpoint_with_a_broken_state_is_one_line(flags, tmp_path, capsys, state):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    path = tmp_path / 'run' / '000002.tar'
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {'run_state': state}, path)
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '4')) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: its run_state is broken')
    assert error.count('\n') == 1
