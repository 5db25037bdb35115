"""The main job, whole but short."""

import math

import arviz
import matplotlib
import pyro
import pytest
import torch

from pyro_ext.demo import Fit, Images, Verdict, main, paired_difference, read_images, report

matplotlib.use("Agg")

SHORT = ["--steps", "4", "--num-test", "32", "--num-judges", "30", "--num-proposals", "16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, main([*SHORT, "--out", str(out)])


def test_both_priors_are_judged(run):
    _, verdicts = run
    assert list(verdicts) == ["normal", "snis"]
    for verdict in verdicts.values():
        assert verdict.bound.shape == verdict.ess.shape == verdict.pareto_k.shape == (32,)
        assert verdict.bound.isfinite().all()
        assert ((verdict.ess >= 1) & (verdict.ess <= 30)).all()


def test_what_it_leaves_behind(run):
    out, _ = run
    picture = matplotlib.image.imread(out / "demo.png")
    assert picture.shape[1] > 800
    assert picture[..., :3].std() > 0.05  # not an empty page
    data = arviz.from_netcdf(str(out / "posterior.nc"))
    assert dict(data.posterior["z"].sizes) == {"chain": 1, "draw": 500, "data": 20, "z_dim_1": 8}
    assert data.sample_stats["log_weight"].shape == (1, 500, 20)


def test_one_prior_and_the_closing_line(tmp_path, capsys):
    main([*SHORT, "--prior", "snis", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "az.loo" in printed
    assert printed.strip().splitlines()[-1].startswith(f"Open {tmp_path / 'demo.png'}")


def test_it_does_not_touch_the_callers_parameters(tmp_path):
    pyro.param("mine", torch.ones(2))
    main([*SHORT, "--prior", "normal", "--out", str(tmp_path)])
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_equal_seeds_see_equal_test_images():
    first, second = read_images("digits", 20), read_images("digits", 20)
    assert torch.equal(first.test, second.test)
    assert set(first.test.unique().tolist()) == {0.0, 1.0}
    assert 0 <= first.train.min() < first.train.max() == 1


def test_batches_are_binarised_anew():
    images = Images("grey", torch.full((50, 4), 0.5), torch.zeros(1, 4))
    batches = list(images.batches(200, 2, torch.Generator().manual_seed(0)))
    assert [batch.shape for batch in batches] == [(200, 4)] * 2
    assert not torch.equal(*batches)


def test_paired_difference_against_the_definition():
    ours, theirs = torch.randn(2, 100)
    mean, error = paired_difference(ours, theirs)
    difference = (ours - theirs).numpy()
    assert mean == pytest.approx(difference.mean(), abs=1e-6)
    clusters = difference.reshape(4, 25).mean(1)
    assert error == pytest.approx(clusters.std(ddof=1) / 2, rel=1e-5)


def test_noise_shared_by_images_judged_together_is_counted():
    shared = torch.randn(8).repeat_interleave(25)
    _, error = paired_difference(shared, torch.zeros(200))
    assert error == pytest.approx((shared[::25].std() / 8**0.5).item())


def test_report_puts_the_figures_side_by_side():
    def verdict(shift):
        k_hat = torch.tensor([0.1, 0.9]).repeat(25)
        return Verdict(torch.arange(50.0) + shift, torch.full((50,), 7.0), k_hat)

    fits = {name: Fit(None, torch.zeros(3), 5.0) for name in ("normal", "snis")}
    text = report(fits, {"normal": verdict(0.0), "snis": verdict(2.0)})
    assert "24.50" in text
    assert "26.50" in text
    assert "50%" in text
    assert "+2.00 +- 0.00 nats" in text


def test_one_group_of_images_has_no_standard_error():
    mean, error = paired_difference(torch.ones(20), torch.zeros(20))
    assert mean == 1
    assert math.isnan(error)


@pytest.mark.parametrize("option", ["--steps=0", "--num-judges=10", "--num-test=0", "--steps=x"])
def test_bad_options(option, capsys):
    with pytest.raises(SystemExit):
        main([option])
    assert "must be an integer >=" in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["--device", "cuda:99"])
    assert "'cuda:99' is not available here" in capsys.readouterr().err


def test_absent_data_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_EXT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"(?s)PYRO_EXT_DATA.*--download"):
        main(["--data", "mnist"])


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    main([*SHORT, "--prior", "normal", "--threads", "3", "--out", str(tmp_path)])
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    verdicts = main([*SHORT, "--device", "cuda", "--out", str(tmp_path)])
    assert verdicts["snis"].bound.is_cuda
