"""Marques, Falcao and Alexandre 2017 replayed (arXiv 1712.02546)."""

from __future__ import annotations

from mpicnn.forecast.papers import marques_figures as figures
from mpicnn.forecast.papers.marques_model import TABLE_4
from mpicnn.forecast.papers.marques_tables import table_4, table_5, volume_table
from mpicnn.forecast.papers.marques_text import batch_table, text_table
from mpicnn.forecast.papers.replay import Replay


def marques(seed: int = 0) -> Replay:
    """Return tables 4 and 5, the text and figures 9 to 13 beside ours; `seed` draws speeds."""
    return Replay(
        "Marques, Falcao, Alexandre 2017: Distributed learning of CNNs on heterogeneous CPU/GPU "
        "architectures",
        (
            volume_table(), table_4(), table_5(), batch_table(), text_table(),
            *figures.node_tables(seed), *figures.link_tables(),
        ),
        (figures.table_4_panel(TABLE_4), *figures.panels(seed)),
    )  # fmt: skip
