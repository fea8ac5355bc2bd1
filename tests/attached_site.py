"""One site of a `tests.router_network.Place` in a process of its own, to be killed.

python -m tests.attached_site FOLDER SITE PORT
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from benchmarks.router_member import member_network
from fedhash.agreement import Agreement
from fedhash.audit_log import AuditLog
from fedhash.configuration import read_settings
from fedhash.index import SiteSearcher
from fedhash.index.answering import QueryDesk
from fedhash.search.policy import QueryPolicy
from fedhash.search.terms import QueryLimits
from fedhash_client.query_stream import QueryStream
from tests.search_consortium import archive

LIMITS = QueryLimits(purposes=("care",), smallest_bucket=1, queries_per_hour=1_000_000)
HELD = {
    "hospital-a": [b"\x00\x00", b"\x01\x00"],
    "hospital-b": [b"\x00\x00", b"\x0f\x0f", b"\xff\xff"],
    "hospital-c": [b"\x01\x00"],
}


def main(folder: Path, site: str, port: int) -> None:
    agreement = read_settings(folder / "coordinator" / "agreement.yaml", Agreement)
    own = folder / site
    entries = [(f"p{n}", code, {}) for n, code in enumerate(HELD[site])]
    with archive(own, site, entries) as index, AuditLog(own / "audit.jsonl") as log:
        desk = QueryDesk(QueryPolicy(agreement, LIMITS, started_ms=0), log.append)
        searcher = SiteSearcher(site, index, agreement)
        stream = QueryStream(
            member_network(folder, site, port), desk.answer, lambda: searcher, first_pause_s=0.05
        )
        stream.start()
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
