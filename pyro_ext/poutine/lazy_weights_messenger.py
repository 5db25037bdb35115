"""Normal sample sites that give lazy weights instead of draws."""

from collections.abc import Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_ext.distributions.log_variance_normal import LogVarianceNormal
from pyro_ext.distributions.multiplicative_normal import MultiplicativeNormal
from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.poutine.lazy_rules import Contract, rules
from pyro_ext.poutine.weight_state import Rule

Sites = Collection[str] | None

NORMALS = (pyro.distributions.Normal, Normal, LogVarianceNormal, MultiplicativeNormal)
DRAWN = "_is_drawn"  # in the infer of a site: an inner handler asks for draws
PARTICLES = ("num_particles_vectorized", "_num_predictive_samples")  # plates that hold no data


class LazyWeightsMessenger(Messenger):
    """Abstract: gives lazy weights at the normal sites outside of plates of data.

    Args:
        contract: computes a linear map with a lazy weight.
        sites: names of the weights; all normal sites outside of plates if not given.
    """

    def __init__(self, contract: Contract, sites: Sites = None):
        super().__init__()
        if isinstance(sites, str):
            raise ValueError(f"sites is a collection of names, got '{sites}'. Give ['{sites}'].")
        self.sites = sites
        self.rules = rules(contract)
        self.met: set[str] = set()

    def __enter__(self):
        self.met.clear()
        return super().__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        unmet = sorted(set(self.sites or ()) - self.met)
        if exc_type is None and unmet:
            raise ValueError(
                f"The sites {unmet} of the handler are none of the program, which has "
                f"{sorted(self.met)}. Correct their names, or leave sites= out for all weights."
            )

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        self.met.add(msg["name"])
        is_given = msg["is_observed"] or msg["value"] is not None or msg["infer"].get(DRAWN)
        if not is_given and self._is_weight(msg):
            msg["fn"] = lazy(msg["fn"], msg["name"], self.rules)

    def _is_weight(self, msg: Any) -> bool:
        is_normal = _is_normal(msg["fn"])
        if self.sites is None:
            return is_normal and not any(map(_holds_data, msg["cond_indep_stack"]))
        if msg["name"] in self.sites and not is_normal:
            raise ValueError(
                f"Site '{msg['name']}' is {msg['fn']}, not a Normal, so its linear maps have no "
                "normal law. Leave it out of sites=, or draw it from a Normal."
            )
        return msg["name"] in self.sites


def _is_normal(fn: Any) -> bool:
    if isinstance(fn, Independent):
        return _is_normal(fn.base_dist)
    return type(fn) in NORMALS


def lazy(fn: Any, name: str, rules: Mapping[Any, Rule]) -> Any:
    """The same independent normals, whose reparameterised draws are lazy weights.

    Args:
        fn: of the weight.
        name: of the sample site.
        rules: of the lazy weights.
    """
    if isinstance(fn, Independent):
        base = lazy(fn.base_dist, name, rules)
        dims = fn.reinterpreted_batch_ndims
        return pyro.distributions.Independent(base, dims, validate_args=False)

    def rsample(sample_shape=torch.Size()) -> Tensor:
        whole = fn.expand(sample_shape + fn.batch_shape) if sample_shape else law
        return LazyNormal(whole, name, rules)

    def expand(batch_shape, _instance=None) -> Any:
        return lazy(fn.expand(batch_shape), name, rules)

    law = object.__new__(type(fn))
    law.__dict__.update(fn.__dict__, rsample=rsample, expand=expand)
    return law


def _holds_data(frame: Any) -> bool:
    return frame.vectorized and not frame.name.startswith(PARTICLES)
