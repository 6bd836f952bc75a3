"""The plots in the grammar of Vega-Lite, for the page's script and for pictures alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Chart = dict[str, Any]
POINTS, BARS = "points", "bars"  # names of the data
AXES = {
    "drift": ("largest relative drift of the defended latents", "log"),
    "norm": ("mean norm of the perturbation, in the budget's unit", "linear"),
    "flops": ("FLOPs that the search spent on a flip", "log"),
}
TOOLTIP = ("defense", "attack", "board", "recovered", "constrained", *AXES)
_RATE = {"type": "quantitative", "scale": {"domain": [0, 1]}}


def scatter(axis: str, attacks: Sequence[str]) -> Chart:
    """Recovery with its 95 % interval against one of `AXES`; `attacks` are all that have a colour.

    An attack has the same colour in all plots, whichever of them it has points in.
    """
    title, scale = AXES[axis]
    across = {
        "field": axis,
        "type": "quantitative",
        "title": title,
        "scale": {"type": scale},
        "axis": {"format": "~e" if scale == "log" else "~g", "tickCount": 5},
    }
    colour = {
        "field": "attack",
        "type": "nominal",
        "scale": {"domain": list(attacks)},
        "legend": {"orient": "bottom", "columns": 3, "symbolLimit": 12, "labelLimit": 220},
    }
    up = {"field": "low", "title": "recovery", **_RATE}
    shown = [{"field": name, "type": "nominal", "title": name} for name in TOOLTIP]
    return {
        "title": f"recovery against {axis.replace('flops', 'FLOPs')}",
        "description": f"Recovery of every attack on every defense shown, against the {title}.",
        "width": 400,
        "height": 260,
        "data": {"name": POINTS},
        "transform": [{"filter": f"isValid(datum.{axis}) && isValid(datum.recovery)"}],
        "layer": [
            {
                "mark": {"type": "rule", "opacity": 0.5},
                "encoding": {"x": across, "y": up, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 60,
                    "opacity": 0.9,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": across,
                    "y": {**up, "field": "recovery"},
                    "color": colour,
                    "tooltip": shown,
                },
            },
        ],
    }


def standings(terms: str) -> Chart:
    """The behaviour under attack with its 95 % interval, of each defense on each board.

    `terms` are what the runs have in common.
    """
    least = {"field": "shows", "op": "min", "order": "ascending"}
    down = {"field": "defense", "type": "nominal", "title": None, "sort": least}
    across = {"field": "shows", "title": "behaviour under attack", **_RATE}
    return {
        "title": terms,
        "description": "The behaviour under attack of every defense on every board.",
        "data": {"name": POINTS},
        "facet": {"field": "board", "type": "nominal", "title": None},
        "columns": 2,
        "resolve": {"scale": {"y": "independent"}},
        "spec": {
            "width": 240,
            "height": {"step": 16},
            "layer": [
                {
                    "mark": {"type": "rule", "opacity": 0.5, "strokeWidth": 2},
                    "encoding": {
                        "y": down,
                        "x": {**across, "field": "low"},
                        "x2": {"field": "high"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
                    "encoding": {"y": down, "x": across},
                },
            ],
        },
    }


def bars() -> Chart:
    """The share of an effect that each part of the deltas has, with its 95 % interval."""
    part = {"field": "part", "type": "nominal", "title": None, "sort": None}
    share = {"type": "quantitative", "title": "share of the effect"}
    return {
        "description": "Shares of the effect of the parts of the deltas; the table has the same.",
        "width": 300,
        "height": {"step": 26},
        "data": {"name": BARS},
        "layer": [
            {"mark": "bar", "encoding": {"y": part, "x": {**share, "field": "share"}}},
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "y": part,
                    "x": {**share, "field": "low"},
                    "x2": {"field": "high"},
                    "color": {"value": "#888"},
                },
            },
        ],
    }
