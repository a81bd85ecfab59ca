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


Strategy = Union[None, str, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy]

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
    else:
        raise ValueError(f"scheduling_strategy is {strategy!r}; there are 'DEFAULT', 'SPREAD', NodeAffinitySchedulingStrategy and NodeLabelSchedulingStrategy")
    if selector:
        hard = {str(k): _selected(str(v)) for k, v in selector.items()}
        if out is None:
            return ["labels", hard, {}]
        if out[0] != "labels":
            raise ValueError("label_selector goes with the default scheduling_strategy or with labels only")
        out[1] = {**out[1], **hard}
    return out


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
