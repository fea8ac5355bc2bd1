"""The tables of a run as they are read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedhash.errors import CheckpointError, DataError
from fedhash_sim.input_files import changed_files, write_stamps
from fedhash_sim.results import (
    COST_COLUMNS,
    EXCHANGE_COLUMNS,
    MARGIN_COLUMNS,
    PRIVACY_COLUMNS,
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    SUM_COLUMNS,
    main_table,
    read_partition,
    read_results,
    read_rounds,
    with_worst_finding,
)
from fedhash_sim.run_folder import RunFolder, file_name, write_table


def result(metric: str, value: float, *, method: str = "central") -> tuple[object, ...]:
    return (method, 0, 4, "image", "report", metric, "all", value, 3)


def test_sites_called_by_numbers_or_na_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "partition.csv").write_text("seed,site,finding,patients\n0,007,NA,3\n0,NA,1,2\n")
    partition = read_partition(tmp_path)
    assert partition["site"].tolist() == ["007", "NA"]
    assert partition["finding"].tolist() == ["NA", "1"]
    rows = [("local", 0, site, 1, site, "ok", "", "", 3, 0.1) for site in ("007", "1")]
    write_table(tmp_path / "rounds.csv", ROUND_COLUMNS, rows)
    rounds = read_rounds(tmp_path)
    assert rounds["site"].tolist() == rounds["model_of"].tolist() == ["007", "1"]
    assert rounds["mean_loss"].isna().all()


def test_a_method_without_a_figure_says_so(tmp_path: Path) -> None:
    rows = [result("map", 0.5), result("chance_map", 0.2), result("ndcg", 0.1, method="local")]
    write_table(tmp_path / "results.csv", RESULT_COLUMNS, rows)
    (row,) = main_table(read_results(tmp_path))
    assert str(row.methods["central"]) == "0.500"
    assert str(row.methods["local"]) == "none"
    assert json.dumps(row.methods["local"].as_json(), allow_nan=False) == (
        '{"mean": null, "sd": null, "seeds": 0}'
    )


def test_the_worst_finding_is_each_models_own_beside_its_own_chance(tmp_path: Path) -> None:
    of_findings = {  # method: finding: mAP, chance
        "central": {"nodule": (0.4, 0.1), "fracture": (0.3, 0.2), "absent": ("", "")},
        "local": {"nodule": (0.2, 0.1), "fracture": (0.25, 0.2)},
    }
    rows = [
        (method, 0, 4, "image", "report", metric, f"finding={finding}", value, 3)
        for method, findings in of_findings.items()
        for finding, both in findings.items()
        for metric, value in zip(("map", "chance_map"), both, strict=True)
    ]
    rows.append(result("map", 0.1))  # over all findings
    write_table(tmp_path / "results.csv", RESULT_COLUMNS, rows)
    table = with_worst_finding(read_results(tmp_path))
    assert len(table) == len(rows) + 4
    told = table[table["metric"].isin(["worst_map", "worst_chance_map"])]
    assert set(told["group"]) == {"all"}
    assert told.set_index(["method", "metric"])["value"].to_dict() == {
        ("central", "worst_map"): 0.3,
        ("central", "worst_chance_map"): 0.2,
        ("local", "worst_map"): 0.2,
        ("local", "worst_chance_map"): 0.1,
    }


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"a,b\n1,2\n", b"method,seed\n", b"method,seed,round\nlocal,zero,1\n"),
        f"{','.join(RESULT_COLUMNS)}\nlocal,{10**30},1,a,a,map,all,0.5,1\n".encode(),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"results\.csv is damaged.*run the study again"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"a,b\n", b'method,"seed\n'])
def test_a_damaged_table_of_a_cell_is_not_joined(tmp_path: Path, content: bytes) -> None:
    cell = RunFolder(tmp_path).cell("central", 0).path
    cell.mkdir(parents=True)
    write_table(cell / "results.csv", RESULT_COLUMNS, [result("map", 0.5)])
    write_table(cell / "exchanges.csv", EXCHANGE_COLUMNS, [])
    write_table(cell / "sums.csv", SUM_COLUMNS, [])
    write_table(cell / "privacy.csv", PRIVACY_COLUMNS, [])
    write_table(cell / "margins.csv", MARGIN_COLUMNS, [])
    write_table(cell / "costs.csv", COST_COLUMNS, [])
    (cell / "rounds.csv").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rounds\.csv is damaged.*remove .*results\.csv"):
        RunFolder(tmp_path).collect(["central"], [0])
    write_table(cell / "rounds.csv", ROUND_COLUMNS, [("central", *range(len(ROUND_COLUMNS) - 1))])
    RunFolder(tmp_path).collect(["central"], [0])
    assert (tmp_path / "results.csv").read_bytes() == (cell / "results.csv").read_bytes()


def test_any_name_has_a_file_name_of_its_own() -> None:
    names = ["a b", "a.b", "../up", "/etc", "", ".", "病院" * 100, "Ż" * 200]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert Path(file).name == file
        assert len(file.encode()) <= 200


def test_stamps_tell_changed_and_missing_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("kept", "changed", "rewritten", "gone")]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
        os.utime(file, (1, 1))  # a clock may be too coarse to tell what is written next
    stamps = tmp_path / "input_files.json"
    assert changed_files(stamps) == []
    write_stamps(stamps, files)
    assert changed_files(stamps) == []
    (tmp_path / "changed").write_bytes(b"longer")
    (tmp_path / "rewritten").write_bytes(b"x")  # the same size, another time
    (tmp_path / "gone").unlink()
    assert changed_files(stamps) == [str(file) for file in files[1:]]
    stamps.write_text("[]")
    with pytest.raises(CheckpointError, match=r"input_files\.json is damaged"):
        changed_files(stamps)
