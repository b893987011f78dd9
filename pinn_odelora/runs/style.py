"""The look of figures. Matplotlib is used without pyplot: no backend is chosen and no global setting changes."""

from __future__ import annotations

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}

BLUE, ORANGE, RED = "#1f5fa8", "#e08214", "#c0182a"
"""Of the run, of its held-out loss, and of rises."""
