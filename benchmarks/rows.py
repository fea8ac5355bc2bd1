"""The tables of the benches, row by row: headings first, then cells as text.

The same rows are printed by a bench and written into the documents (`benchmarks.tables`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.figures import F, Figure, SeededFigure
from benchmarks.goals import (
    DEMO_GOALS,
    NETWORK_GOALS,
    NETWORK_SECURE,
    PRIVACY_GOALS,
    QUALITY_GOALS,
    SECAGG_CASE,
    SECAGG_FEW_SITES,
    SECAGG_GOALS,
    SIM_GOALS,
)
from fedhash_sim.results import Spread

__all__ = [
    "RADIUS_FIGURES",
    "Rows",
    "as_markdown",
    "as_table",
    "demo_rows",
    "goal_rows",
    "margin_rows",
    "network_goal_rows",
    "network_rows",
    "plain_rows",
    "privacy_audit_rows",
    "privacy_curve_rows",
    "privacy_goal_rows",
    "privacy_linkage_rows",
    "privacy_throughput_rows",
    "quality_rows",
    "radius_rows",
    "router_rows",
    "search_rows",
    "secagg_client_rows",
    "secagg_goal_rows",
    "secagg_rows",
    "secagg_study_rows",
    "secagg_training_rows",
    "sim_goal_rows",
    "sim_rows",
]

Rows = list[tuple[str, ...]]

RADIUS_FIGURES = {  # fields of `fedhash_sim.kappa.KappaRow`, and their headings
    "precision": "precision",
    "precision_of_found": "of what is found",
    "chance": "chance",
    "recall": "recall",
    "empty": "finds nothing",
}


def as_table(rows: Rows, title: str) -> Table:
    """For the terminal."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def as_markdown(rows: Rows) -> str:
    """For a document."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], f"|{'---|' * len(rows[0])}\n", *lines[1:]])


def quality_rows(figures: Sequence[SeededFigure]) -> Rows:
    """A study's directions by mAP over queries, then by the mean over findings (macro)."""
    by_name = _by_name(figures)
    rows: Rows = [
        ("study", "direction", "local", "federated", "central", "chance", "federated / central")
    ]
    for study in dict.fromkeys(each.case for each in figures):
        names = dict.fromkeys(each.figure for each in figures if each.case == study)
        for name in sorted(names, key=lambda name: name.startswith("macro_map ")):
            found = {
                contender: by_name.get((study, name, contender))
                for contender in ("local", "federated", "central", "chance")
            }
            federated, central = found["federated"], found["central"]
            rows.append(
                (
                    study,
                    _direction(name),
                    *(str(Spread(e.value, e.sd, e.seeds)) if e else "" for e in found.values()),
                    f"{federated.value / central.value:.3f}" if federated and central else "",
                )
            )
    return rows


def plain_rows(figures: Sequence[SeededFigure]) -> Rows:
    """The same without the means over findings."""
    return quality_rows([each for each in figures if each.figure.startswith("map ")])


def goal_rows(figures: Sequence[SeededFigure]) -> Rows:
    """Each goal of retrieval quality in each of its directions."""
    by_name = {name: each.value for name, each in _by_name(figures).items()}
    rows: Rows = [("study", "direction", "goal", "measured", "")]
    for goal in QUALITY_GOALS:
        for direction in goal.directions:
            name = f"map {direction}"
            measured = goal.measured(by_name, name)
            shown = "" if measured is None else f"{measured:.3f}"
            rows.append((goal.study, _direction(name), str(goal), shown, goal.verdict(measured)))
    return rows


def radius_rows(figures: Sequence[SeededFigure]) -> Rows:
    """What a kappa finds, a row for each of them in each direction of a study."""
    by_name = _by_name(figures)
    rows: Rows = [("study", "direction", "kappa, radius", *RADIUS_FIGURES.values())]
    lines = dict.fromkeys((e.case, e.figure.split(" ", 1)[1], e.contender) for e in figures)
    for study, direction, kappa in lines:
        found = [by_name.get((study, f"{name} {direction}", kappa)) for name in RADIUS_FIGURES]
        cells = [str(Spread(e.value, e.sd, e.seeds)) if e else "" for e in found]
        rows.append((study, direction.replace("->", "→"), kappa.removeprefix("kappa "), *cells))
    return rows


def margin_rows(figures: Sequence[SeededFigure]) -> Rows:
    """A row a figure of a study, a column for each variant of the margin schedule."""
    by_name = _by_name(figures)
    variants = list(dict.fromkeys(each.contender for each in figures))
    rows: Rows = [("study", "figure", *variants)]
    for study, name in dict.fromkeys((each.case, each.figure) for each in figures):
        found = [by_name.get((study, name, variant)) for variant in variants]
        cells = [str(Spread(e.value, e.sd, e.seeds)) if e else "" for e in found]
        shown = _direction(name) if " -> " in name else name
        rows.append((study, shown, *cells))
    return rows


def search_rows(figures: Sequence[Figure]) -> Rows:
    """The archive beside bare FAISS, a row for each set of codes."""
    by_name = _by_name(figures)
    both = ("FAISS", "archive")
    columns = {
        "single query, ms: FAISS / ours": ("single query", both),
        "in a batch of 64, ms": ("query in a batch of 64", both),
        "filtered, ms": ("filtered query", both),
        "build, s (ours)": ("build", ("archive",)),
        "reopen, s: FAISS / ours": ("reopen", both),
        "bytes a code on disk: FAISS / ours": ("disk", both),
        "in memory, ours": ("memory", ("archive",)),
    }
    rows: Rows = [("codes", *columns)]
    for case in dict.fromkeys(each.case for each in figures):
        cells = []
        for name, contenders in columns.values():
            found = [by_name.get((case, name, contender)) for contender in contenders]
            cells.append(" / ".join(three_digits(each.value) if each else "" for each in found))
        rows.append((case, *cells))
    return rows


def router_rows(figures: Sequence[Figure]) -> Rows:
    """What the router adds, how many queries it takes, and their bytes."""
    by_name = _by_name(figures)
    rows: Rows = [("codes", "figure", "p50", "p99", "queries/s")]
    for case in dict.fromkeys(each.case for each in figures):

        def both(name: str, contender: str, case: str = case) -> tuple[str, str]:
            p50, p99 = (by_name[case, f"{name}, p{share}", contender] for share in (50, 99))
            return f"{three_digits(p50.value)} ms", f"{three_digits(p99.value)} ms"

        for part, text in (
            ("search", "the slowest site's search"),
            ("whole answer", "its whole answer: signature, policy, search, log"),
        ):
            rows.append((case, text, *both("slowest site", part), ""))
            rows.append((case, "... added to it by the round trip", *both("added", part), ""))
        for each in figures:
            if (each.case, each.figure) == (case, "load"):
                times = both("round trip", each.contender)
                rows.append((case, each.contender, *times, three_digits(each.value)))
        same = by_name[case, "identical to one index", "router"]
        rows.append((case, f"identical to one index: {same.value:.0f} queries", "", "", ""))
        for each in figures:
            if (each.case, each.figure) == (case, "messages of a query"):
                name = f"bytes of a query, {each.contender}: {each.value:,.0f}"
                rows.append((case, name, "", "", ""))
    return rows


def demo_rows(figures: Sequence[Figure]) -> Rows:
    """Each figure of the demo beside its goal."""
    rows: Rows = [("make demo", "measured", "goal", "")]
    for each in figures:
        shown = f"{three_digits(each.value)} {each.unit}"
        most = DEMO_GOALS.get(each.figure)
        if most is None:
            rows.append((each.figure, shown, "", ""))
        else:
            verdict = "met" if each.value <= most else "missed"
            rows.append((each.figure, shown, f"at most {most:g} {each.unit}", verdict))
    return rows


def network_rows(figures: Sequence[Figure]) -> Rows:
    """A row for each contender's round and for each part of one that was timed."""
    by_name = _by_name(figures)
    rows: Rows = [("contender", "timed", "rounds", "median, s", "fastest to slowest, s")]
    for each in figures:
        if "," not in each.figure:
            fastest, slowest, counted = (
                by_name[each.case, f"{each.figure}, {name}", each.contender].value
                for name in ("fastest", "slowest", "counted")
            )
            spread = f"{fastest:.2f} to {slowest:.2f}"
            rows.append((each.contender, each.figure, f"{counted:g}", f"{each.value:.2f}", spread))
    return rows


def network_goal_rows(figures: Sequence[Figure]) -> Rows:
    """A secure round as a multiple of what Flower does, with and without our SuperNodes."""
    by_name = {(each.contender, each.figure): each.value for each in figures}
    head = ("a secure round, as a multiple of", "goal", "measured", "")
    rows: Rows = [(*head, "on Flower's own SuperNodes")]
    for (contender, figure), most in NETWORK_GOALS.items():
        other = by_name.get((contender, figure))
        multiples = [
            own / other if own is not None and other else None
            for own in (by_name.get((name, "round")) for name in NETWORK_SECURE)
        ]
        measured = multiples[0]
        if measured is None:
            verdict = "not run"
        else:
            verdict = "" if most is None else "met" if measured <= most else "missed"
        shown, unchanged = ("" if each is None else f"{each:.2f}" for each in multiples)
        goal = "none set" if most is None else f"at most {most:g}"
        rows.append((f"{contender}: {figure}", goal, shown, verdict, unchanged))
    return rows


def secagg_rows(figures: Sequence[Figure]) -> Rows:
    """A row for each contender in each case; its CPU as a share of Flower's."""
    by_name = _by_name(figures)
    columns = {
        "client CPU, s": "client CPU",
        "coordinator CPU, s": "coordinator CPU",
        "all CPU, s": "all CPU",
        "bytes a parameter": "sent by a client",
        "client memory, MB": "client memory",
        "coordinator memory, MB": "coordinator memory",
    }
    rows: Rows = [("case", "contender", *columns, "all CPU / Flower's")]
    for case, contender in dict.fromkeys((each.case, each.contender) for each in figures):
        found = [by_name.get((case, name, contender)) for name in columns.values()]
        if all(found):
            own = by_name[case, "all CPU", contender].value
            flower = by_name.get((case, "all CPU", "Flower SecAgg+"))
            share = f"{own / flower.value:.2f}" if flower else ""
            cells = [three_digits(each.value) for each in found if each]
            rows.append((case, contender, *cells, share))
    return rows


def secagg_goal_rows(figures: Sequence[Figure]) -> Rows:
    """What the protocol is held to, and the keystream limit of the machine."""
    by_name = {name: each.value for name, each in _by_name(figures).items()}
    case, wide = SECAGG_CASE, "secure, 32 bits"

    def value(figure: str, contender: str, of: str = case) -> float | None:
        return by_name.get((of, figure, contender))

    cpu, flower = value("all CPU", wide), value("all CPU", "Flower SecAgg+")
    growth = value("coordinator memory", wide)
    few = value("coordinator memory", wide, SECAGG_FEW_SITES)
    measured = {
        "all CPU": None if cpu is None or flower is None else cpu / flower,
        **{
            f"bytes a parameter, {bits} bits": value("sent by a client", f"secure, {bits} bits")
            for bits in (32, 24, 20)
        },
        "coordinator memory, 20 sites by 5": None if not growth or not few else growth / few,
    }
    rows: Rows = [("at 11.7 million parameters, 20 sites", "goal", "measured", "")]
    for name, (goal, most) in SECAGG_GOALS.items():
        found = measured[name]
        shown = "" if found is None else f"{found:.4f}"
        verdict = "not run" if found is None else "met" if found <= most else "missed"
        rows.append((name, goal, shown, verdict))
    limit = value("keystream and sum", "AES-256-GCM", "this machine")
    client = value("client CPU", wide)
    if limit and client:
        bound = 20 * 4 * 11.7e6 / (limit * 1e9)  # 19 pair masks and the site's own
        rows.append(
            ("client CPU / that of its keystreams alone", "none set", f"{client / bound:.2f}", "")
        )
    return rows


def secagg_client_rows(figures: Sequence[Figure]) -> Rows:
    """The parts of a client's work, in milliseconds of CPU."""
    rows: Rows = [("part of a client's round", "CPU, ms")]
    return rows + [(each.figure, three_digits(1e3 * each.value)) for each in figures]


def secagg_training_rows(figures: Sequence[Figure]) -> Rows:
    """A round of training with plain and with secure sums, a row for each contender."""
    by_name = {name: each.value for name, each in _by_name(figures).items()}
    columns = (
        "client CPU, s",
        "of it training, s",
        "of it the rest, s",
        "the rest beyond plain, s",
    )
    others = {
        "coordinator CPU, s": "coordinator CPU",
        "bytes a parameter": "sent by a client",
        "peak memory of the process, MB": "peak memory",
    }
    rows: Rows = [("study", "contender", *columns, *others)]
    for case, contender in dict.fromkeys((each.case, each.contender) for each in figures):
        client, training = (by_name[case, name, contender] for name in ("client CPU", "training"))
        rest = client - training
        plain = by_name[case, "client CPU", "plain"] - by_name[case, "training", "plain"]
        values = [client, training, rest, rest - plain]
        values += [by_name[case, name, contender] for name in others.values()]
        rows.append((case, contender, *map(three_digits, values)))
    return rows


def secagg_study_rows(figures: Sequence[SeededFigure]) -> Rows:
    """Plain and secure sums side by side, a row for each figure of a study."""
    by_name = _by_name(figures)
    contenders = list(dict.fromkeys(each.contender for each in figures))
    rows: Rows = [("study", "figure", *contenders)]
    for study, figure, unit in dict.fromkeys((e.case, e.figure, e.unit) for e in figures):
        found = [by_name.get((study, figure, contender)) for contender in contenders]
        cells = [str(Spread(e.value, e.sd, e.seeds)) if e else "" for e in found]
        name = _direction(figure) if unit == "mAP" else f"{figure}, {unit}"
        rows.append((study, name, *cells))
    return rows


def privacy_curve_rows(figures: Sequence[SeededFigure]) -> Rows:
    """A row for each study and direction, a column for each privacy."""
    by_name = _by_name(figures)
    contenders = [
        "no privacy",
        *(
            f"{mode}, epsilon {epsilon}"
            for mode in ("distributed", "site")
            for epsilon in (8, 3, 1)
        ),
        "public, at the start",
        "public, trained",
        "chance",
    ]
    rows: Rows = [("study", "direction", *contenders)]
    for case, figure in dict.fromkeys((e.case, e.figure) for e in figures if e.unit == "mAP"):
        cells = []
        for contender in contenders:
            each = by_name.get((case, figure, contender))
            cells.append(str(Spread(each.value, each.sd, each.seeds)) if each else "")
        rows.append((case, _direction(figure), *cells))
    return rows


def privacy_goal_rows(figures: Sequence[SeededFigure]) -> Rows:
    """kermany_cxr: shares of the best figure without privacy, under both protocols."""
    by_name = {name: each.value for name, each in _by_name(figures).items()}
    figure = "map image -> image"
    rows: Rows = [("study", "contender", "goal", "of the best without privacy", "")]
    goals = {**PRIVACY_GOALS, "public, at the start": None, "public, trained": None}
    for protocol in ("held out", "train database"):
        case = f"kermany, frozen, {protocol}"
        both = (case, f"kermany, from scratch, {protocol}")
        known = [by_name.get((each, figure, "no privacy")) for each in both]
        best = max((value for value in known if value is not None), default=None)
        for contender, least in goals.items():
            value = by_name.get((case, figure, contender))
            goal = "none set" if least is None else f"at least {least:.2f}"
            if value is None or best is None:
                rows.append((case, contender, goal, "", "not run"))
                continue
            verdict = "" if least is None else "met" if value / best >= least else "missed"
            rows.append((case, contender, goal, f"{value / best:.3f}", verdict))
    return rows


def privacy_audit_rows(figures: Sequence[Figure]) -> Rows:
    """A row for each audited loss or mechanism."""
    rows: Rows = [("audit", "of", "measured")]
    for case, contender in dict.fromkeys((each.case, each.contender) for each in figures):
        found = [e for e in figures if (e.case, e.contender) == (case, contender)]
        told = "; ".join(f"{e.figure}: {e.value:.3g} {e.unit}" for e in found)
        rows.append((case, contender, told))
    return rows


def privacy_throughput_rows(figures: Sequence[Figure]) -> Rows:
    """A row for each model."""
    by_name = _by_name(figures)
    head = ("plain, patients/s", "private, patients/s", "private / plain", "two vectors / formed")
    rows: Rows = [("model", *head)]
    for case in dict.fromkeys(each.case for each in figures):
        plain, private, ratio, gain = (
            by_name[case, name, contender].value
            for name, contender in (
                ("throughput", "plain"),
                ("throughput", "private"),
                ("throughput of plain", "private"),
                ("throughput of formed gradients", "unformed"),
            )
        )
        shares = (f"{ratio:.2f}", f"{gain:.2f}")
        rows.append((case, three_digits(plain), three_digits(private), *shares))
    return rows


def privacy_linkage_rows(figures: Sequence[SeededFigure]) -> Rows:
    """A row for each set and figure, a column for each contender."""
    by_name = _by_name(figures)
    contenders = list(dict.fromkeys(each.contender for each in figures))
    rows: Rows = [("pairs", "figure", *contenders)]
    for case, figure in dict.fromkeys((each.case, each.figure) for each in figures):
        if not figure.startswith(("recall@1,", "lift@1,", "median_rank,", "probe", "map")):
            continue
        found = [by_name.get((case, figure, contender)) for contender in contenders]
        cells = [_linkage_cell(each) if each else "" for each in found]
        rows.append((case, figure.replace("->", "→"), *cells))
        if figure.startswith("recall@1,"):
            rows.append((case, "... change against contrastive", *_reductions(found, contenders)))
    return rows


def _reductions(found: Sequence[SeededFigure | None], contenders: Sequence[str]) -> list[str]:
    """Change of a figure against the contrastive loss, in per cent."""
    of = dict(zip(contenders, found, strict=True)).get("contrastive")
    if of is None or not of.value:
        return [""] * len(found)
    return [f"{100 * (each.value / of.value - 1):+.1f} %" if each else "" for each in found]


def _linkage_cell(each: SeededFigure) -> str:
    if each.unit in {"mAP", "AUROC"}:
        return str(Spread(each.value, each.sd, each.seeds))
    return f"{three_digits(each.value)} ± {three_digits(each.sd)}"


def three_digits(value: float) -> str:
    """As many digits as a single run is worth, without an exponent for large values."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _by_name(figures: Sequence[F]) -> dict[tuple[str, str, str], F]:
    return {(each.case, each.figure, each.contender): each for each in figures}


def _direction(figure: str) -> str:
    metric, direction = figure.split(" ", 1)
    return direction.replace("->", "→") + (" (macro)" if metric == "macro_map" else "")


def sim_rows(figures: Sequence[Figure]) -> Rows:
    """Contenders of `make bench-sim` in rounds per CPU-second, a column a size of the model."""
    cases = list(dict.fromkeys(each.case for each in figures))
    rounds = {(each.contender, each.case): f"{each.value:.3g}" for each in figures}
    return [
        ("", *(f"{case} parameters" for case in cases)),
        *(
            (contender, *(rounds.get((contender, case), "") for case in cases))
            for contender in dict.fromkeys(each.contender for each in figures)
        ),
    ]


def sim_goal_rows(figures: Sequence[Figure]) -> Rows:
    """Rounds per CPU-second against the goals, alone and as multiples of the peers'."""
    rounds = {(each.contender, each.case): each.value for each in figures}
    rows: Rows = [("", "parameters", "goal", "measured", "")]
    for (contender, case), goals in SIM_GOALS.items():
        for peer, least in goals.items():
            own = rounds.get((contender, case))
            other = 1.0 if peer is None else rounds.get((peer, case))
            goal = f"at least {least:g}" + ("" if peer is None else f" times {peer}")
            if own is None or other is None:
                rows.append((contender, case, goal, "", "not run"))
            else:
                verdict = "met" if own / other >= least else "missed"
                rows.append((contender, case, goal, f"{own / other:.3g}", verdict))
    return rows
