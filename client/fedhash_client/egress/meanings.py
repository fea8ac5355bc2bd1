"""What each field that leaves a site means, in words for people who decide about it.

The names come from the wire's own definitions (`wire_fields`); a test holds both against each
other, so a new field without words here fails it.
"""

from __future__ import annotations

__all__ = ["ALL_BLOCKS", "FLOWER", "QUERIES", "RELEASES", "ROUND_REPLIES"]

ALL_BLOCKS = {  # of a vector, masked or not
    "update": "change of the model's parameters",
    "control": "change of the control variate, where the round has one",
    "statistics": "four sums a finding for the margins, where the round has them; "
    "noisy in private rounds",
    "loss": "mean training loss; private rounds do not tell it",
}

_ROUND = {
    "run_id": "the coordinator's name of the run",
    "round_number": "which round was asked for",
    "session": "hash of the round's keys",
}
_KEYS = {
    "keys": "two X25519 public keys of this round",
    "signature": "by the site's Ed25519 identity, over them, run, round and the site's name",
}
_SHARES = {
    "sealed": "shares of the round's two secrets, each for one other site and sealed with its key",
    "commitments": "hashes of these shares",
    "seed_commitment": "hash of the secret seed of the site's own mask",
}
ROUND_REPLIES: dict[str, dict[str, str]] = {
    "KeysReply": _ROUND | _KEYS,
    "SharesReply": _ROUND | _SHARES,
    "MaskedReply": _ROUND
    | _KEYS
    | {
        "masked": f"the vector ({', '.join(ALL_BLOCKS)}, weight, number of clipped values) under "
        "masks: without the shares of other sites it is uniform noise",
        "fingerprint": "keyed hash of vector and request, to notice a changed repetition",
    },
    "UnmaskedReply": _ROUND
    | _SHARES
    | {
        "owners": "the sites whose share is opened",
        "shares": "of the own mask of a site that answered, or of the pair masks of one that did "
        "not; never both",
        "refusal": "why this site refuses the next round's keys, if it does",
    },
    "TrainReply": _ROUND
    | {
        "vector": f"{', '.join(ALL_BLOCKS)} of this site, in clear",
        "weight": "number of patients that trained, their rounded number or 1, by the round's "
        "weighting",
    },
    "Refusal": {
        "reason": "short name of the rule",
        "detail": "what was found and expected of the request; of a spent privacy cap also what "
        "was spent. Nothing of a study",
    },
}

QUERIES = {
    "FromSite.holds": "what this site holds from now on",
    "FromSite.answer": "the answer to one query",
    "Holds.release": "id of the release whose codes this site holds",
    "Answer.number": "of the query on this connection",
    "Answer.hits": "what was found",
    "Answer.refusal": "or why nothing is answered",
    "Answer.signature": "of this site's Ed25519 identity over the query and what was found",
    "Hits.handles": "16 bytes a hit: keyed hash of a study id, opaque without this site's key",
    "Hits.distances": "Hamming distance of each hit's code to the query's",
    "Hits.scores": "weighted agreement of each hit's code with the query",
    "Hits.cut_to_bits": "this site's largest radius, where the query asked for more",
    "Refusal.reason": "short name of the rule",
    "Refusal.message": "what was found and expected of the query",
    "SignedQuery.query": "the bytes of Query, below",
    "SignedQuery.signature": "of this site's Ed25519 identity over them",
    "Query.agreement": "SHA-256 of this site's agreement",
    "Query.requester": "this site's name",
    "Query.purpose": "what the answer is for",
    "Query.nonce": "16 random bytes",
    "Query.asked_at_ms": "this machine's time",
    "Query.deadline_ms": "when answers stop to count",
    "Query.release": "id of the release that made the code",
    "Query.modality": "what is searched for",
    "Query.code": "binary code of the user's own image or report: it tells findings",
    "Query.weights": "how sure each bit of that code is, 16 bits each",
    "Query.k": "most hits that are wanted",
    "Query.radius": "largest distance that is wanted",
    "Query.filters": "attributes that hits must have",
    "Filter.name": "such as sex",
    "Filter.value": "as the user typed it",
}

RELEASES = {
    "FetchRequest.release_id": "which release",
    "FetchRequest.file": "which of its files",
    "FetchRequest.offset": "how much of it is here already",
}

_NODE = "number that the SuperLink gave this node"
FLOWER = {
    "ActivateNodeRequest.public_key": "public half of secrets/supernode.key",
    "ActivateNodeRequest.heartbeat_interval": "a setting of Flower's",
    "DeactivateNodeRequest.node_id": _NODE,
    "SendNodeHeartbeatRequest.node": _NODE,
    "SendNodeHeartbeatRequest.heartbeat_interval": "a setting of Flower's",
    "PullMessagesRequest.node": _NODE,
    "PullMessagesRequest.message_ids": "which messages are wanted; empty: any",
    "PushMessagesRequest.node": _NODE,
    "PushMessagesRequest.messages_list": "envelopes of answers",
    "PushMessagesRequest.message_object_trees": "hashes of their parts",
    "PushMessagesRequest.clientapp_runtime_list": "seconds that this site took to answer, "
    "which grow with its data",
    "GetRunRequest.node": _NODE,
    "GetRunRequest.run_id": "of a run that asked this site",
    "GetFabRequest.node": _NODE,
    "GetFabRequest.hash_str": "of its app bundle, which is vetted here",
    "GetFabRequest.run_id": "of that run",
    "PushObjectRequest.node": _NODE,
    "PushObjectRequest.run_id": "of that run",
    "PushObjectRequest.object_id": "hash of a part",
    "PushObjectRequest.object_content": "a part of an answer of a round: the bytes listed under "
    "replies, or this site's name where the coordinator asks who is there",
    "PushObjectRequest.session_id": "Flower's own",
    "PullObjectRequest.node": _NODE,
    "PullObjectRequest.run_id": "of that run",
    "PullObjectRequest.object_id": "hash of a part of a message to this site",
    "ConfirmMessageReceivedRequest.node": _NODE,
    "ConfirmMessageReceivedRequest.run_id": "of that run",
    "ConfirmMessageReceivedRequest.message_object_id": "hash of a message that has arrived",
    "Node.node_id": _NODE,
    "Message.metadata": "the envelope",
    "Message.content": "left empty: it goes in parts, by PushObjectRequest",
    "Message.error": "instead of an answer: the relay found no daemon, or the program failed",
    "Metadata.run_id": "of that run",
    "Metadata.message_id": "Flower's own",
    "Metadata.src_node_id": _NODE,
    "Metadata.dst_node_id": "the SuperLink",
    "Metadata.reply_to_message_id": "the message that is answered",
    "Metadata.group_id": "Flower's own",
    "Metadata.ttl": "seconds for which the answer counts",
    "Metadata.message_type": "query.relay or query.identify",
    "Metadata.created_at": "this machine's time",
    "Metadata.src_task_id": "Flower's own",
    "Metadata.dst_task_id": "Flower's own",
    "ObjectTree.object_id": "hash of a part",
    "ObjectTree.children": "hashes of its parts",
    "Error.code": "kind of fault",
    "Error.reason": "what is wrong, with the path of the daemon's socket",
}
