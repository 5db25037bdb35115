"""The main job: a VAE with an energy-inspired prior on real images, trained and judged.

``python -m pyro_ext.demo --help`` tells the options.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor
from tqdm import tqdm

from pyro_ext.data.load import load
from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.infer.estimators import pathwise
from pyro_ext.infer.multi_sample_elbo import MultiSampleELBO
from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.models.variational_autoencoder import VariationalAutoencoder
from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.log_weights import effective_sample_size

JUDGED_TOGETHER = 25  # images that share one set of the prior's proposals
GREY_LEVELS = {"digits": 16, "mnist": 255, "static_mnist": 1}


class Images(NamedTuple):
    """Flattened images: probabilities of a white pixel to train on, binarised ones to judge on."""

    name: str
    train: Tensor  # (N, D) in [0, 1]
    test: Tensor  # (M, D) in {0, 1}

    @property
    def side(self) -> int:
        """Height and width in pixels."""
        return int(self.test.shape[-1] ** 0.5)

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Random mini-batches, binarised anew each time."""
        for _ in range(steps):
            index = torch.randint(len(self.train), (size,), generator=generator)
            yield torch.bernoulli(self.train[index], generator=generator)


class Fit(NamedTuple):
    """A trained model and the bound it reached on the way."""

    vae: VariationalAutoencoder
    losses: Tensor  # (steps,) nats per image
    cpu_seconds: float


class Verdict(NamedTuple):
    """What a fit is worth on test images."""

    bound: Tensor  # (M,) nats
    ess: Tensor  # (M,)
    pareto_k: Tensor  # (M,)


def read_images(name: str, num_test: int, seed: int = 0, *, download: bool = False) -> Images:
    """Loads a data set; binarises its test images once, with a fixed seed."""
    arrays = load(name, download=download)
    levels = GREY_LEVELS[name]
    generator = torch.Generator().manual_seed(seed)
    train, test = (arrays[key].flatten(1).float() / levels for key in ("x_train", "x_test"))
    return Images(name, train, torch.bernoulli(test[:num_test], generator=generator))


def build(images: Images, prior: str, num_proposals: int, small: bool) -> VariationalAutoencoder:
    """The VAE of the paper's MNIST experiment, or a small one for small images."""
    latent_dim, hidden_dims = (8, (100, 100)) if small else (50, (300, 300))
    return VariationalAutoencoder(
        images.train.shape[-1],
        latent_dim,
        hidden_dims,
        EnergyInspiredPrior(latent_dim, num_proposals=num_proposals) if prior == "snis" else None,
        data_mean=images.train.mean(0),
    )


def train(
    vae: VariationalAutoencoder,
    images: Images,
    steps: int,
    *,
    num_particles: int = 1,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    label: str = "training",
) -> Fit:
    """Maximises the IWAE bound by SVI, under a cosine learning rate."""
    optimizer = pyro.optim.CosineAnnealingLR(  # type: ignore[attr-defined]
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": learning_rate}, "T_max": steps}
    )
    elbo = MultiSampleELBO(num_particles, gradient=pathwise, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, optimizer, elbo)
    device = next(vae.parameters()).device
    batches = images.batches(batch_size, steps, torch.Generator().manual_seed(seed))
    losses, start = [], process_time()
    with pyro.get_param_store().scope():
        for batch in tqdm(batches, label, steps):
            losses.append(svi.step(batch.to(device), size=len(images.train)))
            optimizer.step()
    return Fit(vae, torch.tensor(losses) / len(images.train), process_time() - start)


@torch.no_grad()
def judge(vae: VariationalAutoencoder, x: Tensor, num_particles: int, label: str) -> Verdict:
    """Estimates the log-likelihood of each test image, and how far to trust the estimate."""
    elbo = MultiSampleELBO(num_particles, max_plate_nesting=1)
    with pyro.get_param_store().scope():
        log_w = torch.cat(
            [
                elbo.log_weights(vae.model, vae.guide, part)
                for part in tqdm(x.split(JUDGED_TOGETHER), label)
            ],
            1,
        )
    return Verdict(iwae(log_w), effective_sample_size(log_w), pareto_k(log_w))


def paired_difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Mean difference over images, and its standard error.

    The error is that of the means over images judged together, since the noise of the proposals
    that they share does not average out among them.
    """
    difference = ours - theirs
    means = torch.stack([part.mean() for part in difference.split(JUDGED_TOGETHER)])
    error = means.std() / len(means) ** 0.5 if len(means) > 1 else means.new_tensor(math.nan)
    return difference.mean().item(), error.item()


def report(fits: dict[str, Fit], verdicts: dict[str, Verdict]) -> str:
    """The verdicts side by side."""
    lines = ["prior     test bound (nats)   ESS    k-hat > 0.7   training CPU (s)"]
    for prior, verdict in verdicts.items():
        unreliable = (verdict.pareto_k > 0.7).float().mean().item()
        lines.append(
            f"{prior:<8} {verdict.bound.mean():>12.2f} {verdict.ess.mean():>13.1f} "
            f"{unreliable:>11.0%} {fits[prior].cpu_seconds:>15.0f}"
        )
    if len(verdicts) == 2:
        mean, error = paired_difference(verdicts["snis"].bound, verdicts["normal"].bound)
        lines.append(f"snis - normal, paired: {mean:+.2f} +- {error:.2f} nats (standard error)")
    return "\n".join(lines)


def draw_picture(fits: dict[str, Fit], images: Images, path: Path | None = None):
    """Data, reconstructions, samples and training curves; returns the figure's axes."""
    import matplotlib.pyplot as plt

    panels = _panels(fits, images.test[:50])
    widths = [1.0] * len(panels) + [2.0]
    figure, axes = plt.subplots(
        1, len(widths), figsize=(1.9 * sum(widths), 4.4), width_ratios=widths, layout="constrained"
    )
    for axis, (title, pixels) in zip(axes, panels.items(), strict=False):
        axis.imshow(_mosaic(pixels, images.side), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    _draw_curves(axes[-1], fits)
    if path is not None:
        figure.savefig(path, dpi=120)
    return axes


@torch.no_grad()
def _panels(fits: dict[str, Fit], x: Tensor) -> dict[str, Tensor]:
    panels = {"test data": x}
    with pyro.get_param_store().scope():
        for prior, (vae, *_) in fits.items():
            q = vae.encode(x.to(next(vae.parameters()).device))
            panels[f"reconstructions,\n{prior} prior"] = vae.decode(q.mean).mean
            panels[f"samples,\n{prior} prior"] = vae.decode(vae.prior().sample((50,))).mean
    return panels


def _mosaic(pixels: Tensor, side: int, columns: int = 5) -> np.ndarray:
    """Tiles flattened images with a white margin of one pixel; fills the last row with white."""
    pixels = torch.cat([pixels, pixels.new_zeros(-len(pixels) % columns, side * side)])
    tiles = torch.nn.functional.pad(pixels.reshape(-1, side, side), (0, 1, 0, 1)).cpu()
    rows = tiles.reshape(-1, columns, side + 1, side + 1)
    return rows.permute(0, 2, 1, 3).reshape(-1, columns * (side + 1)).numpy()


def _draw_curves(axis, fits: dict[str, Fit]) -> None:
    for prior, fit in fits.items():
        window = max(1, len(fit.losses) // 50)
        smooth = -fit.losses.unfold(0, window, window).mean(-1)
        steps = window * np.arange(1, len(smooth) + 1)
        axis.plot(steps, smooth.numpy(), label=f"{prior} prior")
    axis.set(title="training bound", xlabel="step", ylabel="nats per image")
    low = min(-fit.losses[len(fit.losses) // 10 :].max().item() for fit in fits.values())
    axis.set_ylim(bottom=low)
    axis.legend()


def export(fit: Fit, images: Images, num_images: int, num_draws: int, path: Path):
    """Writes the posterior of a few test images for ArviZ."""
    x = images.test[:num_images].to(next(fit.vae.parameters()).device)
    with pyro.get_param_store().scope():
        data = to_arviz(fit.vae.model, fit.vae.guide, x, num_draws=num_draws)
    path.unlink(missing_ok=True)
    data.to_netcdf(str(path))
    return data


def main(argv: Sequence[str] | None = None) -> dict[str, Verdict]:
    """Runs the job; prints its progress and what to look at."""
    options = _parse(argv)
    try:
        images = read_images(options.data, options.num_test, download=options.download)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}\nOr let --download fetch it.") from error
    options.out.mkdir(parents=True, exist_ok=True)
    priors = ["normal", "snis"] if options.prior == "both" else [options.prior]
    with _threads(options.threads):
        fits = {prior: _fit(images, prior, options) for prior in priors}
        test = images.test.to(options.device)
        verdicts = {
            prior: judge(fit.vae, test, options.num_judges, label=f"judge, {prior} prior")
            for prior, fit in fits.items()
        }
        _conclude(images, fits, verdicts, options)
    return verdicts


@contextmanager
def _threads(num: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(images: Images, prior: str, options: argparse.Namespace) -> Fit:
    pyro.set_rng_seed(options.seed)
    vae = build(images, prior, options.num_proposals, small=images.side < 20)
    return train(
        vae.to(options.device),
        images,
        options.steps,
        num_particles=options.num_particles,
        seed=options.seed,
        label=f"train, {prior} prior",
    )


def _conclude(
    images: Images,
    fits: dict[str, Fit],
    verdicts: dict[str, Verdict],
    options: argparse.Namespace,
) -> None:
    import matplotlib.pyplot as plt

    picture, posterior = options.out / "demo.png", options.out / "posterior.nc"
    print(
        f"\n{images.name}: {len(images.train)} training and {len(images.test)} test images, "
        f"{options.steps} steps, IWAE-{options.num_judges} on test images\n"
    )
    print(report(fits, verdicts))
    _print_arviz(export(list(fits.values())[-1], images, 20, 500, posterior))
    plt.close(draw_picture(fits, images, picture)[0].figure)
    print(
        f"\nOpen {picture} (data, reconstructions, samples, training curves); "
        f"arviz.from_netcdf('{posterior}') has the posterior."
    )


def _print_arviz(data) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of k-hat is in the table of az.loo
        _print_summary_and_loo(data)


def _print_summary_and_loo(data) -> None:
    import arviz

    print("\nPosterior of the first test image, az.summary:")
    print(arviz.summary(data, var_names=["z"], coords={"data": [0]}, kind="stats").head(5))
    print("\naz.loo over the first test images. Each has a latent vector of its own, which leaving")
    print("the image out sets free: expect high k-hat, and believe the bound above instead.")
    print(arviz.loo(data))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m pyro_ext.demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", choices=GREY_LEVELS, default="digits")
    parser.add_argument("--prior", choices=["normal", "snis", "both"], default="both")
    parser.add_argument("--steps", type=_at_least(1), default=3000)
    parser.add_argument(
        "--num-particles", type=_at_least(1), default=5, help="of the training bound"
    )
    parser.add_argument(
        "--num-proposals", type=_at_least(1), default=1024, help="of the SNIS prior"
    )
    parser.add_argument("--num-test", type=_at_least(1), default=1000, help="test images at most")
    parser.add_argument(
        "--num-judges", type=_at_least(25), default=1000, help="particles of the test bound"
    )
    parser.add_argument("--download", action="store_true", help="fetch absent data, verified")
    parser.add_argument("--device", type=_device, default="cpu")
    parser.add_argument("--threads", type=_at_least(1), default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    return parser.parse_args(argv)


def _at_least(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer >= {minimum}, got {text}")
        return int(text)

    return integer


def _device(name: str) -> torch.device:
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"{name!r} is not available here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error


if __name__ == "__main__":
    main()
