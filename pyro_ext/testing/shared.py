"""The clauses that distributions and transforms have in common."""

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from pyro_ext.testing.case import (
    Case,
    Clause,
    Params,
    cast,
    clause,
    default_dtype,
    expect,
    expect_close,
    expect_derivative,
    gradients,
    leaves,
    modules,
    seeded,
    total,
)

SHARED: list[Clause] = []


@clause(SHARED, "create tensors with new_* or dtype=parameter.dtype, never with the default dtype")
def dtype(case: Case) -> None:
    """Results have the parameters' dtype, whatever the default dtype is."""
    for wanted, default in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        params = case.cast(wanted)
        if not leaves(params):
            return
        with default_dtype(default):
            outputs = case.exercise(case.build(params), _to(case.points, wanted))
        for out in outputs:
            expect(out.dtype == wanted or not out.is_floating_point(), out.dtype, wanted)


@clause(SHARED, "clamp inside both branches of torch.where, and keep log and sqrt away from zero")
def finite_gradients(case: Case) -> None:
    """Gradients with respect to parameters and value are finite."""
    expect_finite_gradients(case, case.points)


@clause(SHARED, "keep every step differentiable: no detach, no .data, no Python numbers")
def derivatives(case: Case) -> None:
    """Gradients with respect to parameters agree with finite differences, under one seed."""
    params = case.cast(grad=True)
    if leaves(params):
        expect_derivative(lambda: case.run(params), leaves(params))


@clause(SHARED, "let the numbers depend on the parameters only, not on their dtype")
def to(case: Case) -> None:
    """Moving the parameters to float32 changes nothing but rounding."""
    expected = case.run(case.frozen_params)
    small = case.cast(torch.float32)
    expect_close(case.run(cast(small)), expected, "the value after .to(float32)", rtol=1e-3)
    if case.deterministic:
        seen = case.run(small, _to(case.points, torch.float32))
        expect_close(seen, expected, "the value in float32", rtol=1e-3)


@clause(SHARED, "hold picklable attributes: no lambdas, no local functions, no open resources")
def pickles(case: Case) -> None:
    """A pickle round trip changes nothing."""
    thing = case.build(case.frozen_params)
    _expect_same(case, pickle.loads(pickle.dumps(thing)), thing)


@clause(SHARED, "drop caches and computed tensors in __deepcopy__ or __getstate__")
def deepcopies(case: Case) -> None:
    """A deep copy works after use, and changes nothing."""
    thing = case.build(case.cast())
    x = case.points.clone()
    case.evaluate(thing, x.requires_grad_(x.is_floating_point()))
    _expect_same(case, copy.deepcopy(thing), thing)


@clause(SHARED, "register all state of modules as parameters or buffers, plain tensors only")
def state_dict(case: Case) -> None:
    """State dicts survive ``torch.load(weights_only=True)`` and carry the whole state."""
    params = case.cast()
    expected = case.run(params)
    for name, module in modules(params).items():
        other = _scrambled(module)
        other.load_state_dict(_through_file(module.state_dict()))
        params[name] = other
    expect_close(case.run(params), expected, "the value after load_state_dict")


@clause(SHARED, "read parameters from the module at each call, keep no second reference to them")
def param_store(case: Case) -> None:
    """Parameters survive a round trip through Pyro's ParamStore and a file."""
    params = case.cast(grad=True)
    expected = case.run(params)
    _register(params)
    _save_clear_load()
    others = case.cast(grad=True)
    with torch.no_grad():
        for leaf in leaves(others).values():
            leaf.add_(1)
    expect_close(case.run(_register(others)), expected, "the value after ParamStore.load")


@clause(SHARED, "use cache_size=0 and keep no table of values or parameters by identity")
def updates(case: Case) -> None:
    """A parameter update is seen at once, for the very same value object."""
    _expect_update(case, lambda thing: case.points.clone())
    _expect_update(case, case.draw)


@clause(SHARED, "store parameters contiguous: the ParamStore stops training the others")
def contiguous(case: Case) -> None:
    """Parameters are contiguous, before and after use."""
    params = case.cast()
    case.run(params)
    for name, leaf in (leaves(case.params) | leaves(params)).items():
        expect(leaf.is_contiguous(), f"{name!r} with strides {leaf.stride()}", "contiguous")


@clause(
    SHARED,
    "create tensors with new_* or device=parameter.device, never on the default device, to which "
    "torch.tensor(x) and torch.as_tensor(x) belong",
)
def device(case: Case) -> None:
    """Nothing lands on the default device, here set to one that holds no numbers."""
    params = case.frozen_params
    expected = seeded(lambda: case.exercise(case.build(params), case.points))
    with torch.device("meta"):
        seen = case.exercise(case.build(params), case.points)
    for out, twin in zip(seen, expected, strict=True):
        expect(out.device == twin.device, f"device {out.device}", twin.device)


@clause(SHARED, "avoid .item(), numpy and branches on values when validate_args=False")
def compiles(case: Case) -> None:
    """Construction and evaluation compile into one graph, with validation off."""
    tensors = {name: v for name, v in case.frozen_params.items() if isinstance(v, Tensor)}

    def evaluate(tensors: Params, x: Tensor):
        return case.evaluate(case.build({**case.frozen_params, **tensors}), x)

    torch._dynamo.reset()
    compiled = torch.compile(evaluate, fullgraph=True, backend="eager")
    try:
        seen = seeded(lambda: compiled(tensors, case.points))
    finally:
        torch._dynamo.reset()
    expect_close(seen, case.run(case.frozen_params), "the compiled value")


def expect_finite_gradients(case: Case, x: Tensor) -> None:
    """Differentiates with respect to every parameter and, if it is continuous, the value."""
    params = case.cast(grad=True)
    variables = leaves(params)
    if x.is_floating_point() and case.continuous:
        variables["value"] = x = x.detach().clone().requires_grad_()
    output = total(case.run(params, x))
    expect(not output.isnan(), "NaN", "a number")
    if output.requires_grad or leaves(params):
        for name, grad in gradients(output, variables).items():
            expect(bool(grad.isfinite().all()), f"a gradient {grad} in {name!r}", "finite numbers")


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _expect_same(case: Case, other: object, thing: object) -> None:
    expected = seeded(lambda: case.exercise(thing, case.points))
    expect_close(seeded(lambda: case.exercise(other, case.points)), expected, "the copy's value")


def _expect_update(case: Case, choose: Callable[[object], Tensor]) -> None:
    params = case.cast()
    thing = case.build(params)
    x = choose(thing)
    seeded(lambda: case.evaluate(thing, x))
    for leaf in leaves(params).values():
        leaf.detach().mul_(1.01)
    seen = seeded(lambda: case.evaluate(thing, x))
    same = seeded(lambda: case.evaluate(thing, x.clone()))
    expect_close(seen, same, "the same object after an update")
    fresh = case.run(cast(params), x.clone())
    expect_close(case.run(params, x), fresh, "the rebuilt object after an update")


def _through_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _scrambled(module: nn.Module) -> nn.Module:
    """A copy whose state, and any tensor that escaped registration, has other numbers."""
    other = copy.deepcopy(module)
    hidden = [v for part in other.modules() for v in vars(part).values() if isinstance(v, Tensor)]
    for value in [*other.state_dict().values(), *hidden]:
        if isinstance(value, Tensor) and value.is_floating_point():
            value.add_(1)
    return other


def _register(params: Params) -> Params:
    registered = dict(params)
    for name, module in modules(params).items():
        registered[name] = pyro.module(name, module, update_module_params=True)
    for name in leaves(params).keys() & params.keys():
        registered[name] = pyro.param(name, params[name])
    return registered


def _save_clear_load() -> None:
    store = pyro.get_param_store()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "params.pt")
        store.save(path)
        store.clear()
        store.load(path)
