"""The plan of a Sonnet checkpoint: which of its tensors goes into which variable of a module."""

from collections.abc import Mapping
from typing import Literal

from modulekit.core.module import Module
from modulekit.core.places import Parts, places
from modulekit.core.plan import Plan, line_of, unexpected
from modulekit.sonnet.checkpoint import Checkpoint
from modulekit.sonnet.routes import Rename, by_name, by_path


def plan(
    checkpoint: Checkpoint,
    module: Parts,
    *,
    by: Literal["path", "name"] = "path",
    rename: Mapping[str, str] | None = None,
) -> Plan:
    """Returns which tensor of a Sonnet checkpoint goes into which variable of a module. Nothing changes.

    By path, the attributes that lead to a variable are followed through the objects of the checkpoint: `layers[0].w` is
    found at `_layers/0/w`, since leading underscores do not count where one name fits. In a list of variables, as
    optimizers keep their slots, the names must agree too, and decide where the order differs.

    By name, `mlp/linear_0/w` is looked up among the full names of the saved variables. Names may repeat, and a repeated
    one is refused.

    Args:
      checkpoint: from `read_checkpoint`.
      module: the module, built, where it was the checkpoint's root; or the parts as they were given to
        `tf.train.Checkpoint`: `{"model": model, "optimizer": optimizer}`.
      by: `path` or `name`.
      rename: what parts of the checkpoint are called in the module, from their beginning: `{"model/old": "model/new"}`.

    Returns:
      The plan, to be printed and applied.

    Raises:
      ValueError: the module has no variables yet, or `by` or `rename` cannot be followed.

    >>> import pathlib, modulekit as mk
    >>> recorded = pathlib.Path(mk.__file__).parents[1] / "tests" / "recorded" / "mlp_adam-1"
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> plan = mk.sonnet.plan(mk.sonnet.read_checkpoint(recorded), {"model": model})
    >>> plan
    Plan(4 matched, 0 wrong, 0 missing, 9 unexpected)
    >>> plan.apply()
    """
    if by not in ("path", "name"):
        raise ValueError(f"by={by!r}: a plan goes by 'path' or by 'name'")
    if by == "path" and not checkpoint.nodes:
        raise ValueError(f"{checkpoint!r} holds names without objects, as TensorFlow 1 wrote them: give by='name'")
    wanted = places(module)
    routes = (by_path if by == "path" else by_name)(checkpoint, wanted, Rename(rename or {}))
    used = {route.tensor.path for route in routes if route.tensor is not None}
    lines = [
        line_of(place.path, place.variable, route.tensor, route.problem)
        for place, route in zip(wanted, routes, strict=True)
    ]
    left = [t for t in checkpoint.values() if t.path not in used and not checkpoint.is_bookkeeping(t)]
    hint = "" if used or by == "name" else _hint(checkpoint, module)
    return Plan([*lines, *map(unexpected, left)], hint)


def _hint(checkpoint: Checkpoint, module: Parts) -> str:
    tops = sorted({t.path.partition("/")[0] for t in checkpoint.values() if not checkpoint.is_bookkeeping(t)})
    if not isinstance(module, Module) or not tops:
        return ""
    return (
        f"Nothing fits: the variables of the checkpoint stand below {', '.join(map(repr, tops))}. Name the parts as they "
        f"were given to tf.train.Checkpoint, as in plan(checkpoint, {{{tops[0]!r}: module}})."
    )
