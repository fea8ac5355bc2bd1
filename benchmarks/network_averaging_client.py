"""The ClientApp of plain Flower averaging, for `bench_network`: moves the model, sends it back.

It imports no more than it needs, as every message starts it anew.
"""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

__all__ = ["EXAMPLES", "app", "update_of"]

EXAMPLES = 100  # every site's weight

app = ClientApp()


def update_of(place: int) -> np.float32:
    """By how much the site at this place of the roster moves each parameter in a round."""
    return np.float32(0.1 * (place + 1))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Send the moved model back."""
    model = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    moved = model + update_of(int(context.node_config["place"]))
    content = RecordDict(
        {"arrays": ArrayRecord([moved]), "metrics": MetricRecord({"num-examples": EXAMPLES})}
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """Send a number that stands for a loss."""
    model = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    metrics = MetricRecord({"loss": float(model.mean()), "num-examples": EXAMPLES})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
