"""What Marques' text says, beside the paper's own tables and what they allow."""

from __future__ import annotations

from mpicnn.forecast.papers.marques_model import LARGEST, OTHER, SMALLEST, TABLE_4, TABLE_5, short
from mpicnn.forecast.papers.marques_tables import (
    BATCHES,
    GPU,
    batch_rows,
    fixed_cost,
    laws,
)
from mpicnn.forecast.papers.replay import UNEXPLAINED, Compared, Table, compared

TENSORFLOW = {1: (0.35, 0.60), 2: (0.13, 0.20), 3: (0.13, 0.18), 4: (0.10, 0.10)}
"""Seconds of a step by number of GPUs, least and most (table 1)."""

FREE_GPUS = 4.3
"""The speed-up that the text promises with "virtually nonexistent" communication (5.3.4)."""

CONVOLUTION = (0.60, 0.90)
"""The part of a step that convolutions take, least and most (section 4)."""


def batch_table() -> Table:
    """Return what the text says of speed-ups over the batch, beside what volume makes of them."""
    rows = [
        Compared(each.what, each.paper, each.ours, _with_volume(each)) for each, _ in batch_rows()
    ]
    law, _ = laws()["per slave"]
    over = ", ".join(f"{law.speedup(LARGEST, law.speeds, batch):.2f}" for batch in BATCHES)
    lost, then = fixed_cost()
    return compared(
        "Speed-ups over the batch (5.3.1, 5.3.2), beside the laws of tables 4 and 5",
        rows,
        (
            "A smaller batch sends the kernels more often. By volume 500:1500 on 4 CPUs has "
            f"{over} for batches of {', '.join(map(str, BATCHES))}, not 2.25 to 3.28. A loss of "
            f"{lost:.0f} s in every batch (at 5 MB/s) would make 2.25 of it at 64 and leave "
            f"{then:.2f} at 1,024; the pauses of 1 s in algorithm 2 are far less. On GPUs small "
            "batches of the small network gain most, the reverse of what volume says.",
        ),
    )


def _with_volume(row: Compared) -> str:
    return "text and table 4 differ" if row.paper == 1.4 else UNEXPLAINED


def steps(gpus: int) -> float:
    """Return TensorFlow's speed-up with some GPUs, by the middle of the times of table 1."""
    middle = {count: sum(times) / 2 for count, times in TENSORFLOW.items()}
    return middle[1] / middle[gpus]


def text_table() -> Table:
    """Return statements that can be held against the paper's own figures."""
    three = TABLE_5[LARGEST][1]
    free = 1 / (1 / three - GPU.three / three)
    cpu = f"{short(SMALLEST)} on 4 CPUs at 1,024: text 1.4, table 4"
    rows = [
        Compared(cpu, 1.4, TABLE_4[SMALLEST][2], "the two differ: " + UNEXPLAINED),
        Compared("limit of 500:1500 on CPUs, by Amdahl", 7.76, 1 / OTHER[LARGEST]),
        Compared("limit of any network, by Amdahl", 10, 1 / (1 - CONVOLUTION[1])),
        Compared("least such limit", 2.5, 1 / (1 - CONVOLUTION[0])),
        Compared("3 GPUs, 500:1500, free links", FREE_GPUS, free, "contradicts figure 8's shares"),
        Compared("any GPUs, 500:1500, free links", FREE_GPUS, GPU.limit, "as above"),
        *(
            Compared(f"TensorFlow, {gpus} GPUs, at most", steps(gpus), gpus, UNEXPLAINED)
            for gpus in (2, 3, 4)
        ),
    ]
    many = (1 - GPU.other) / (1 / FREE_GPUS - GPU.other)
    return compared(
        "What the text says, beside the paper's own figures",
        rows,
        (
            f"Without communication 3 GPUs reach {free:.2f} by the stated shares and any number "
            f"{GPU.limit:.1f}. The 4.3 would take GPUs of {many:.1f} times the first one's speed "
            "together; how many it is for is not said.",
            "TensorFlow's step with 2 GPUs takes less than half of that with one: no model in "
            "which GPUs share a step's work explains it. The steps needed halve too (30K for 60K), "
            "so that a step holds more images rather than fewer.",
        ),
    )
