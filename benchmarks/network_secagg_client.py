"""The ClientApp of Flower's SecAgg+, for `bench_network`: its own mod around the same training."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat

from benchmarks.network_averaging_client import EXAMPLES, update_of

__all__ = ["app"]

app = ClientApp(mods=[secaggplus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Give the moved model to the mod, which masks it."""
    request = recorddict_compat.recorddict_to_fitins(message.content, keep_input=False)
    model = parameters_to_ndarrays(request.parameters)[0]
    moved = model + update_of(int(context.node_config["place"]))
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([moved]), EXAMPLES, metrics={})
    content = recorddict_compat.fitres_to_recorddict(result, keep_input=False)
    return Message(content, reply_to=message)
