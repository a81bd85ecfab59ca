"""Where tasks are placed: scheduling_strategy and label_selector of a task's options."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Union


class In:
    """The label has one of the values."""

    op = "in"

    def __init__(self, *values: str) -> None:
        self.values = list(values)


class NotIn:
    """The label has none of the values, or is not there."""

    op = "!in"

    def __init__(self, *values: str) -> None:
        self.values = list(values)


class Exists:
    """The label is there."""

    op = "exists"
    values: List[str] = []


class DoesNotExist:
    """The label is not there."""

    op = "!exists"
    values: List[str] = []


Rule = Union[In, NotIn, Exists, DoesNotExist]


class NodeAffinitySchedulingStrategy:
    """On a node, by id; with soft, elsewhere when that node is gone or has no room."""

    def __init__(self, node_id: str, soft: bool) -> None:
        self.node_id, self.soft = node_id, soft


class NodeLabelSchedulingStrategy:
    """On nodes with these labels: hard ones must hold, soft ones where they can."""

    def __init__(self, hard: Optional[Dict[str, Rule]] = None, *, soft: Optional[Dict[str, Rule]] = None) -> None:
        self.hard, self.soft = dict(hard or {}), dict(soft or {})


class PlacementGroupSchedulingStrategy:
    """In the room of a placement group: of one bundle, or with -1 of any.

    placement_group_capture_child_tasks: what is submitted from there runs in the group
    too, unless it says otherwise.
    """

    def __init__(self, placement_group: Any, placement_group_bundle_index: int = -1, placement_group_capture_child_tasks: Optional[bool] = None) -> None:
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def check(self, need: Optional[Dict[str, Any]] = None) -> None:
        """Raise for a bundle that there is not, or that is too small for a task's options."""
        index, bundles = self.placement_group_bundle_index, self.placement_group._bundles
        if isinstance(index, bool) or not isinstance(index, int) or index < -1:
            raise ValueError(f"placement group bundle index {index!r} must be at least -1")
        if bundles is None:  # of a group that is known by its id only
            return
        if index >= len(bundles):
            raise ValueError(f"placement group bundle index {index} is invalid. Valid placement group indexes: 0-{len(bundles) - 1}")
        if need is None:
            return
        wanted = {"CPU": need.get("cpu", _UNIT), "GPU": need.get("gpu", 0), **need.get("resources", {})}
        for b in bundles if index < 0 else bundles[index : index + 1]:
            if all(round(b.get(k, 0) * _UNIT) >= v for k, v in wanted.items()) and b.get("memory", 0) >= need.get("memory", 0):
                return
        amounts = {k: v / _UNIT for k, v in wanted.items() if v}
        raise ValueError(f"cannot be scheduled in the placement group: a task asks for {amounts}, and no bundle that it may use has that; the bundles are {bundles}")


Strategy = Union[None, str, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, PlacementGroupSchedulingStrategy]

_UNIT = 10000

_LIST = re.compile(r"(!?)in\((.*)\)")


def encode(strategy: Any, selector: Optional[Dict[str, str]]) -> Optional[List[Any]]:
    """A strategy as frames have it; None for the default."""
    out: Optional[List[Any]] = None
    if strategy is None or strategy == "DEFAULT":
        pass
    elif strategy == "SPREAD":
        out = ["spread"]
    elif isinstance(strategy, NodeAffinitySchedulingStrategy):
        out = ["node", str(strategy.node_id), bool(strategy.soft)]
    elif isinstance(strategy, NodeLabelSchedulingStrategy):
        out = ["labels", _rules(strategy.hard), _rules(strategy.soft)]
    elif isinstance(strategy, PlacementGroupSchedulingStrategy):
        strategy.check()
        if not strategy.placement_group.is_empty:
            out = ["group", strategy.placement_group._id, strategy.placement_group_bundle_index, bool(strategy.placement_group_capture_child_tasks)]
    elif isinstance(strategy, list):  # of the task that submits, which its group captures
        out = strategy
    else:
        raise ValueError(f"scheduling_strategy is {strategy!r}; there are 'DEFAULT', 'SPREAD', NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy and PlacementGroupSchedulingStrategy")
    if selector:
        hard = selected(selector)
        if out is None:
            return ["labels", hard, {}]
        if out[0] != "labels":
            raise ValueError("label_selector goes with the default scheduling_strategy or with labels only")
        out[1] = {**out[1], **hard}
    return out


def selected(selector: Dict[str, str]) -> Dict[str, List[Any]]:
    """A label_selector as frames have it."""
    return {str(k): _selected(str(v)) for k, v in selector.items()}


def _rules(rules: Dict[str, Any]) -> Dict[str, List[Any]]:
    for k, r in rules.items():
        if not isinstance(r, (In, NotIn, Exists, DoesNotExist)):
            raise ValueError(f"the rule for the label {k!r} is {r!r}; there are In, NotIn, Exists and DoesNotExist")
    return {str(k): [r.op, [str(v) for v in r.values]] for k, r in rules.items()}


def _selected(text: str) -> List[Any]:
    """One condition of a label_selector: "a", "!a", "in(a, b)" or "!in(a, b)"."""
    m = _LIST.fullmatch(text)
    if m:
        return [m.group(1) + "in", [v.strip() for v in m.group(2).split(",")]]
    if text.startswith("!"):
        return ["!in", [text[1:]]]
    return ["in", [text]]
