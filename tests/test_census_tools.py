"""The census' own machinery: the list of models, processes with limits, files that outlast a break, tables."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.census import __main__ as census
from benchmarks.census import results, tables, workers
from benchmarks.census.catalogue import all_names, build, families, varied
from benchmarks.census.file import read_census
from benchmarks.census.made_convolutions import made_convolutions
from benchmarks.census.reasons import in_general
from benchmarks.census.structure import structure_of
from convswap.errors import FileError

from .models import TwoConvs


def test_every_architecture_has_a_name_and_a_family() -> None:
    names = all_names()
    assert len(names) == len(set(names))
    assert {"torchvision:resnet18", "timm:resnet18", "torchvision:raft_small"} <= set(names)
    grouped = families()
    assert sorted(name for of_family in grouped.values() for name in of_family) == sorted(names)
    assert "timm:efficientnet_b0" in grouped["timm:efficientnet"]
    assert "torchvision:ssd300_vgg16" in grouped["torchvision:detection.ssd"]


def test_all_kinds_come_first() -> None:
    order = varied(["timm:resnet18", "timm:resnet34", "timm:resnet50", "timm:dla34", "timm:dla60"])
    assert order == ["timm:resnet18", "timm:dla34", "timm:resnet34", "timm:dla60", "timm:resnet50"]


def test_models_are_built_without_numbers_or_with() -> None:
    assert all(parameter.is_meta for parameter in build("timm:resnet10t").parameters())
    assert not any(parameter.is_meta for parameter in build("timm:resnet10t", "cpu").parameters())


def _work(name: str) -> dict[str, Any]:
    """What a model may do to the process that it is in."""
    if name == "hangs":
        time.sleep(60)
    if name == "grows":
        grown = [torch.ones(2**24) for _ in range(16)]  # 1 GiB
        time.sleep(60)
        return {"grown": len(grown)}
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leaves":
        os._exit(3)
    if name == "raises":
        raise ValueError("wrong\nin many words")
    print("what models print is not seen")
    return {"name": name, "threads": torch.get_num_threads()}


def test_what_a_process_does_is_told_and_harms_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    begun: list[str] = []
    names = ["grows", "dies", "leaves", "raises", "fine"]
    workers.run_each(
        names,
        _work,
        workers=2,
        time_limit=60,
        memory_limit=workers._resident(os.getpid()) / 2**30 + 0.5,
        on_result=found.__setitem__,
        on_start=begun.append,
    )
    assert begun == names
    assert found["grows"]["failure"].startswith("stopped at ")
    assert "GiB of memory" in found["grows"]["failure"]
    assert found["dies"] == {"failure": "its process died of SIGKILL"}
    assert found["leaves"] == {"failure": "its process ended with status 3 and no result"}
    assert found["raises"]["failure"] == "ValueError: wrong"
    assert found["fine"] == {"name": "fine", "threads": 1}
    assert capfd.readouterr().out == ""


def test_what_takes_too_long_is_stopped() -> None:
    found: dict[str, Any] = {}
    started = time.monotonic()
    workers.run_each(["hangs"], _work, workers=1, time_limit=0.5, memory_limit=64, on_result=found.__setitem__)
    assert found == {"hangs": {"failure": "stopped after 0.5 s, the limit of time"}}
    assert 0.5 <= time.monotonic() - started < 30


def test_no_process_outlives_the_run() -> None:
    pids: list[int] = []

    def stop(name: str, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    def work(name: str) -> dict[str, Any]:
        if name == "slow":
            time.sleep(60)
        return {"pid": os.getpid()}

    before = workers._start

    def start(name: str, work: workers.Work) -> Any:
        running = before(name, work)
        pids.append(running.process.pid)
        return running

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_start", start)
        with pytest.raises(KeyboardInterrupt):
            workers.run_each(["slow", "quick"], work, workers=2, time_limit=60, memory_limit=64, on_result=stop)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


RECORDS = {
    "timm:a": {
        "parameters": 10,
        "sites": {"Conv2d": 3},
        "whole": True,
        "regions": 1,
        "targets": {"dcls": {"swapped": 2, "kept": {"a 1×1 kernel has nothing to space": 1}}},
        "seconds": {"all": 0.5},
    },
    "timm:b": {
        "parameters": 20,
        "sites": {"Conv2d": 1, "Conv2dSame": 1},
        "whole": False,
        "regions": 2,
        "failures": {"x": "TraceError: no. See the documentation"},
        "targets": {"dcls": {"swapped": 0, "kept": {"its kernel would take …": 2}}, "partial": {"error": "bad"}},
        "seconds": {"all": 1.5},
    },
    "timm:c": {"failure": "stopped after 3 s, the limit of time"},
}


def test_a_broken_run_goes_on_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    first = results.Results(path, "structure", whole=True)
    first.add("timm:a", RECORDS["timm:a"])
    first.add("timm:c", RECORDS["timm:c"])
    first._file.write('5\n["timm:b", {"tor')  # where it was broken off
    first._file.close()
    second = results.Results(path, "structure", whole=True)
    assert second.begun == {"timm:a": RECORDS["timm:a"]}  # what gave no result is tried again
    assert not path.exists()
    for name in ("timm:b", "timm:c"):
        second.add(name, RECORDS[name])
    second._file.flush()
    assert [json.loads(line)[0] for line in second.lines.read_text().splitlines()[-2:]] == ["timm:b", "timm:c"]
    content = second.write(RECORDS)
    assert content["structure"] == RECORDS
    assert content["versions"] == results.versions()
    assert [file.name for file in tmp_path.iterdir()] == ["census.json"]
    assert read_census(path) == content
    assert results.Results(path, "structure", whole=True).begun == {}


def test_runs_over_some_models_leave_a_broken_run_over_all_alone(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    of_all = results.Results(path, "structure", whole=True)
    of_all.add("timm:a", {"seconds": 1})
    with pytest.raises(FileError, match="is of a run that is going on"):
        results.Results(path, "structure", whole=True)
    of_all._file.close()
    some = results.Results(path, "structure", whole=False)
    some.add("timm:b", {"seconds": 2})
    assert some.write(["timm:b"])["structure"] == {"timm:b": {"seconds": 2}}
    assert results.Results(path, "structure", whole=True).begun == {"timm:a": {"seconds": 1}}


def test_what_models_have_in_common_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    kept = results.Results(path, "structure", whole=True)
    for name in "abcdefgh":
        kept.add(f"timm:{name}", RECORDS["timm:a"])
    kept.write(kept.begun)
    assert path.read_text().count("a 1×1 kernel has nothing to space") == 1
    written = json.loads(path.read_text())
    assert written["targets"] == list(RECORDS["timm:a"]["targets"])
    assert {tuple(record["targets"]) for record in written["structure"].values()} == {
        tuple(range(len(written["outcomes"])))
    }
    assert written["outcomes"][0] == {"swapped": 2, "kept": {"0": 1}}


def test_some_models_replace_their_records_and_other_sections_stay(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    for section in ("structure", "numbers"):
        kept = results.Results(path, section, whole=True)
        kept.add("timm:a", {"seconds": 1})
        kept.add("timm:b", {"seconds": 1})
        kept.write(kept.begun)
    again = results.Results(path, "structure", whole=False)
    again.add("timm:b", {"seconds": 2})
    content = again.write(["timm:b"])
    assert content["structure"] == {"timm:a": {"seconds": 1}, "timm:b": {"seconds": 2}}
    assert content["numbers"] == {"timm:a": {"seconds": 1}, "timm:b": {"seconds": 1}}


def test_results_of_other_versions_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "census.json"
    kept = results.Results(path, "structure", whole=True)
    kept.add("timm:a", RECORDS["timm:a"])
    kept.write(["timm:a"])
    broken = results.Results(path, "structure", whole=True)
    broken.add("timm:a", RECORDS["timm:a"])
    broken._file.close()
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(FileError, match=r"was made with .*torch .*, and this is .*torch 9\.9"):
        results.Results(path, "structure", whole=False)
    other = results.Results(path, "structure", whole=True)
    assert other.begun == {}
    other.add("timm:b", RECORDS["timm:b"])
    assert other.write(["timm:b"])["structure"] == {"timm:b": RECORDS["timm:b"]}


_NO_SUCH_OUTCOME = '{"targets": ["dcls"], "outcomes": [], "reasons": [], "structure": {"a": {"targets": [7]}}}'
_NO_SUCH_REASON = '{"targets": [], "outcomes": [{"kept": {"7": 1}}], "reasons": []}'


def test_a_file_that_is_no_census_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    for text in ("nothing", "[]", _NO_SUCH_REASON, _NO_SUCH_OUTCOME):
        path.write_text(text)
        with pytest.raises(FileError, match="is no census"):
            read_census(path)


@pytest.mark.parametrize(
    ("reason", "general"),
    [
        ("it is 3×3, not 1×1: use", "it is …, not 1×1: use"),
        ("it is 1×1, so there are no taps", "it is 1×1, so there are no taps"),
        ("it has 1 spatial axis, and guided layers have 2", "it has 1 spatial axis, and guided layers have 2"),
        ("take 27.6 GiB (7.4 G numbers), and it is 256 MiB", "take … (… numbers), and it is …"),
        ("used by 'stem.conv' too, as the model's own is", "used by … too, as the model's own is"),
        ("it mixes channels (groups=24)", "it mixes channels (groups=…)"),
        ("it mixes channels (groups=1)", "it mixes channels (groups=1)"),
        ("its 512 predictors need Conv2d", "its … predictors need Conv2d"),
    ],
)
def test_reasons_in_general(reason: str, general: str) -> None:
    assert in_general(reason) == general


def test_tables_tell_of_everything_out_of_the_ordinary() -> None:
    content = {"versions": {"torch": "2"}, "date": {"structure": "2026-01-01"}, "structure": RECORDS}
    text = tables.document(content, "a.json")
    assert "is in `a.json`" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    for row in (
        ["models", "3"],
        ["… without a result", "1"],
        ["convolutions that are sites", "5"],
        ["`dcls`", "1", "2", "3"],
        ["`dcls`", "its kernel would take …", "2", "1"],
        ["timm:b", "`partial`", "bad"],
        ["timm:c", "no result", "stopped after 3 s, the limit of time"],
        ["a part cannot be traced: TraceError: no", "1", "timm:b"],
    ):
        assert row in rows


def test_a_copy_that_is_not_as_planned_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.census import structure

    copy_with = structure.copy_with

    def careless(change: Any) -> Any:
        def copied(model: nn.Module, layers: dict[int, nn.Module]) -> nn.Module:
            made = copy_with(model, layers)
            change(made)
            return made

        return copied

    outcomes = []
    for change in (
        lambda made: made.__setattr__("conv2", nn.Conv2d(8, 8, 3)),
        lambda made: made.__setattr__("norm", nn.GroupNorm(2, 8)),
        lambda made: made.__setattr__("head", nn.Linear(8, 6)),
        lambda made: made.add_module("more", nn.ReLU()),
        lambda made: made.head.half(),
        lambda made: made.act.eval(),
    ):
        monkeypatch.setattr(structure, "copy_with", careless(change))
        outcomes.append(structure_of(TwoConvs(), ["padding_free"])["targets"]["padding_free"].get("error"))
    assert outcomes == [
        "conv2 should be a new layer and is a Conv2d",
        "norm was a BatchNorm2d and is a GroupNorm",
        "the tensors of head are others than they were",
        "more was not there",
        "the tensors of head are others than they were",
        "act is in another mode than it was",
    ]


def test_a_layer_that_is_not_as_planned_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.census import structure

    build = structure.build_layers
    outcomes = []
    for change in (
        lambda layer: nn.Identity(),
        lambda layer: type(layer)(8, 8, 5, device="meta"),
    ):
        monkeypatch.setattr(
            structure, "build_layers", lambda steps, seed, c=change: {k: c(v) for k, v in build(steps, seed).items()}
        )
        outcomes.append(structure_of(TwoConvs().to("meta"), ["padding_free"])["targets"]["padding_free"].get("error"))
    assert outcomes == [
        "conv1 should be a PaddingFreeConv2d and is a Identity",
        "conv1 has 1608 parameters, and the plan says 216",
    ]


def test_convolutions_outside_of_the_modules_are_counted() -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.hidden = [nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1)]
            nn.Conv2d(3, 3, 1)  # which nothing holds on to

    with made_convolutions() as made:
        model = Hiding()
    assert made.outside(model) == {"Conv2d": 1, "ConvTranspose2d": 1}
    model.kept = nn.ModuleList(model.hidden)
    assert made.outside(model) == {}


def test_a_command_for_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "census.json"
    assert census.main(["timm:resnet10t", "--json", str(path), "--workers", "1"]) == 0
    record = read_census(path)["structure"]["timm:resnet10t"]
    assert record["whole"]
    assert record["sites"] == {"Conv2d": 14}
    assert "missing" not in record
    assert record["targets"]["padding_free"]["swapped"] + sum(record["targets"]["padding_free"]["kept"].values()) == 14
    assert "| models | 1 |" in (tmp_path / "census.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the names of models, or --all"),
        (["timm:resnet18", "--all"], "give the names of models, or --all"),
        (["timm:resnet10t", "--workers", "0"], "must be above 0"),
        (["timm:resnet10t", "--time-limit", "soon"], "invalid number value: 'soon'"),
    ],
)
def test_commands_that_make_no_sense(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        census.main(arguments)
    assert words in capsys.readouterr().err


def test_unknown_models_and_folders_are_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert census.main(["timm:resnet10tt"]) == 2
    assert "there is no model 'timm:resnet10tt'. Did you mean 'timm:resnet10t'" in capsys.readouterr().err
    assert census.main(["timm:resnet10t", "--json", str(tmp_path / "none" / "census.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
