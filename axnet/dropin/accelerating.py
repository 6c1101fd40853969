"""`accelerate` and `restore`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from axnet.dropin.checking import difference
from axnet.dropin.examples import Seen, guessed, watched
from axnet.dropin.probing import NoDropout
from axnet.dropin.report import Report, Row
from axnet.dropin.rewriting import Options, Rewritten, rewritten
from axnet.dropin.swapping import Plan, swap, swap_back, swapped_class
from axnet.dropin.tracing import UntraceableError

Model = TypeVar("Model", bound=nn.Module)
_MODES = (False, True)
_NO_GRAPH = "a forward without a graph"
_POOLINGS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Sigmoid)


def accelerate(
    model: Model,
    *,
    inplace: bool = False,
    verify: bool = True,
    time: bool = True,
    example: Sequence[Any] | Tensor | None = None,
    quiet: bool = False,
) -> Model:
    """Let axnet's kernels compute what they can of somebody else's network, and print what was replaced.

    Found by what a forward computes, whatever its classes and names are (docs/dropin.md): mask-guided attention (one
    gate, or many gates on one X before an average, which become one read of it), PCAM pooling with its classifiers, and
    global average and maximum of one X. The modules stay the same objects, with parameters, state_dict, hooks and
    modes; only their forward is another one. It is used for the kind of call that the example is, and the original
    for any other, and where hooks were put on modules that it does not call.

    model: any module; its copy is changed, or with `inplace` itself.
    verify: compare outputs in both modes, gradients and buffers with the original's in float64, place by place on
        random numbers, and for the whole model on the example, in each mode in which the original takes it; a place
        that deviates is kept, with the difference in the table.
    time: replace only what is faster on the model's device, for the example's shapes, in each mode.
    example: what the model is called with, a tensor, or the positional arguments as a list or tuple; without it images,
        features and masks are tried. quiet: do not print the table.

    Returns the model; `.axnet_report` has the rows of the table. `restore` undoes everything.
    Raises TypeError for something else than a module or an example, ValueError for a model that was accelerated before,
    that cannot be copied, that takes neither the example nor a guess, or whose outputs as a whole deviate.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module.")
    if any(swapped_class(m) for m in model.modules()):
        raise ValueError("model is accelerated already, expected one that is not (axnet.restore undoes it).")
    given = (example,) if isinstance(example, Tensor) else example
    if not isinstance(given, list | tuple | None):
        raise TypeError(
            f"example is a {type(example).__name__}, expected a tensor, or a tuple of what model is called with."
        )
    _check_numbers(model, given or ())
    with torch.inference_mode(False):
        return _accelerated(model, given, Options(verify, time), inplace, quiet)


def _accelerated(model: Model, example: Sequence[Any] | None, options: Options, inplace: bool, quiet: bool) -> Model:
    try:
        probe, target = copy.deepcopy(model), model if inplace else copy.deepcopy(model)
        exact = copy.deepcopy(model).double()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"model cannot be copied, so it cannot be accelerated: {error}") from error
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        probe.eval()
        inputs = tuple(example) if example is not None else guessed(probe)
        seen = watched(probe, inputs)
        plans, report = _plans(probe, exact, seen, options)
        if options.verify and plans:
            _compare(model, plans, inputs)
    for path, modes in plans.items():
        _swap(target.get_submodule(path), modes)
    cast(Any, target).axnet_report = report
    if not quiet:
        print(report)
    return target


def _check_numbers(model: nn.Module, example: Sequence[Any]) -> None:
    """Raise ValueError where there are no numbers to compare with: parameters without shape, or on the meta device."""
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(t):
            raise ValueError(
                f"model has the parameter '{name}' without a shape, expected a model that was called once."
            )
        if t.is_meta:
            raise ValueError(f"model has '{name}' on the meta device, expected a model with numbers (model.to_empty).")
    if any(isinstance(t, Tensor) and t.is_meta for t in example):
        raise ValueError("example lies on the meta device, expected tensors with numbers.")


def restore(model: Model) -> Model:
    """Undo accelerate: every module has the class and the forward that it had. Returns the model itself.

    Raises TypeError for something else than a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module.")
    for module in model.modules():
        swap_back(module)
        module.__dict__.pop("axnet_report", None)  # torch.compile's wrapper hands it on to the module within
    return model


def _plans(
    probe: nn.Module, exact: nn.Module, seen: dict[str, Seen], options: Options
) -> tuple[dict[str, dict[bool, Rewritten]], Report]:
    """Rewritten forwards by module and mode, from the innermost modules outwards."""
    plans: dict[str, dict[bool, Rewritten]] = {}
    gated: list[tuple[str, nn.Module]] = []
    done: list[nn.Module] = []
    replaced: list[Row] = []
    kept: list[Row] = []
    for path, module in reversed(list(exact.named_modules())):
        own = seen.get(path)
        if own is None or not own.has_maps or _is_known(module):
            continue
        inner = [m for name, m in gated if name.startswith(f"{path}." if path else "")]
        modes: dict[bool, Rewritten] = {}
        failures: dict[bool, tuple[str, str]] = {}
        for training in _MODES:
            try:
                copied = probe.get_submodule(path)
                modes[training] = rewritten(copied, module, own, training, options, inner, done)
            except UntraceableError as error:
                failures[training] = _NO_GRAPH, str(error)
            except Exception as error:  # somebody's forward, on random numbers
                failures[training] = "a forward that fails on random numbers", " ".join(str(error).split())[:160]
        if not modes:
            what, why = failures[False]
            poolings = any(isinstance(child, _POOLINGS) for child in module.children())
            if what != _NO_GRAPH or inner or poolings:
                kept.append(Row(path, type(module).__name__, what, why=why))
            continue
        rows = _rows(path, module, modes, {mode: f"{what}: {why}" for mode, (what, why) in failures.items()}, options)
        replaced += [row for row in rows if row.replaced]
        kept += [row for row in rows if not row.replaced]
        if False in modes and any("mask-guided" in o.site.kind for o in modes[False].outcomes):
            gated.append((path, module))
        if any(rewrite.plan for rewrite in modes.values()):
            plans[path] = modes
            done.append(module)
    return plans, Report(replaced + kept + _scripted(exact))


def _is_known(module: nn.Module) -> bool:
    """Whether a module is torch's own, axnet's, or one whose forward is not its class's."""
    origin = type(module).__module__
    library = origin.startswith(("torch.nn", "axnet.nn", "torch.ao")) and not isinstance(module, nn.Sequential)
    return library or "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule)


def _scripted(model: nn.Module) -> list[Row]:
    """A row for every module of TorchScript, which has no forward in Python; those within one are not named."""
    found: list[Row] = []
    for path, module in model.named_modules():
        inside = any(not row.path or path.startswith(f"{row.path}.") for row in found)
        if isinstance(module, torch.jit.ScriptModule) and not inside:
            name = str(getattr(module, "original_name", type(module).__name__))
            found.append(Row(path, name, "TorchScript", why="accelerate the model, then trace or script it"))
    return found


def _rows(
    path: str, module: nn.Module, modes: dict[bool, Rewritten], failures: dict[bool, str], options: Options
) -> list[Row]:
    """One row for each site, with what became of it in both modes; failures: modes in which there is no graph."""
    kinds: dict[tuple[str, int], dict[bool, tuple[float | None, str]]] = {}
    for training, rewrite in modes.items():
        count: dict[str, int] = {}
        for outcome in rewrite.outcomes:
            kind = outcome.site.kind
            count[kind] = count.get(kind, 0) + 1
            taken = outcome.pair is not None and not outcome.why
            kinds.setdefault((kind, count[kind]), {})[training] = (outcome.gain if taken else None, outcome.why)
    rows = []
    for (kind, _), found in kinds.items():
        (evaluated, no), (trained, nor) = (
            found.get(mode, (None, failures.get(mode, "not found in this mode"))) for mode in _MODES
        )
        why = no if no == nor else "; ".join(f"{m}: {w}" for m, w in (("eval", no), ("training", nor)) if w)
        rows.append(Row(path, type(module).__name__, kind, evaluated, trained, why, options.time))
    return rows


def _swap(module: nn.Module, modes: dict[bool, Rewritten]) -> None:
    plans: dict[bool, Plan] = {training: r.plan for training, r in modes.items() if r.plan is not None}
    gates = {name: gate for r in modes.values() for name, gate in r.gates.items()}
    swap(module, plans, gates)


def _compare(model: nn.Module, plans: dict[str, dict[bool, Rewritten]], inputs: Sequence[Any]) -> None:
    """Raise ValueError where the accelerated model as a whole deviates from the original in outputs or gradients.

    A mode in which the original itself takes neither the inputs nor twice as many is left out.
    """
    exact = [_in_float64(t) for t in inputs]
    for training in _MODES:
        for given in (exact, [_twice(t) for t in exact]):  # a batch of one is nothing to normalise over
            try:
                first = _trial(model, training, {}, given, 0)
            except Exception:  # somebody's forward
                continue
            again, found = _trial(model, training, {}, given, 1), _trial(model, training, plans, given, 2)
            # what differs between two runs of the original is its own randomness
            if difference(first, again) is None and (why := difference(first, found)):
                mode = "training" if training else "eval"
                raise ValueError(
                    f"model deviates as a whole when it is accelerated, so it was left as it is: {mode}, {why}."
                )
            break


def _trial(
    model: nn.Module, training: bool, plans: dict[str, dict[bool, Rewritten]], inputs: Sequence[Any], seed: int
) -> dict[str, Tensor]:
    """What a copy in float64, with these plans, answers."""
    own = copy.deepcopy(model).double().train(training)
    for path, modes in plans.items():
        _swap(own.get_submodule(path), modes)
    torch.manual_seed(seed)
    with NoDropout():
        return _answers(own, inputs)


def _in_float64(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64, copy=True) if value.is_floating_point() else value.clone()


def _twice(value: Any) -> Any:
    """A batch, and as many others like it."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    return torch.cat([value, value / 2 if value.is_floating_point() else value.flip(-1)])


def _answers(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
    with torch.enable_grad():
        outputs = torch.utils._pytree.tree_leaves(model(*inputs))
        floating = [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        usable = [o for o in floating if o.requires_grad]
        weights = [torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype, device=o.device).view(o.shape) for o in usable]
        found: Sequence[Tensor | None] = ()
        if usable and parameters:
            found = torch.autograd.grad(usable, list(parameters.values()), weights, allow_unused=True)
    answers = {f"output {i}": o.detach() for i, o in enumerate(floating)}
    answers |= {f"gradient of '{n}'": g for n, g in zip(parameters, found, strict=False) if g is not None}
    return answers | {f"buffer '{n}'": b for n, b in model.named_buffers() if b.is_floating_point()}
