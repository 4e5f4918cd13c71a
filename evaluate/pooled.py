"""`python -m evaluate pooled`: several protocols as one number, out of the predictions that runs kept."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.metrics import class_weights
from evaluate.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from evaluate.provenance import kind, setting
from evaluate.source import EvaluateError
from store.cli import resolved

if TYPE_CHECKING:
    from evaluate.records import Score
    from store.bank import Bank

Key = tuple[Any, ...]
# Of a setting's detail, what belongs to one run of it.
OF_ONE_RUN = ("source", "strength", "epoch", "gap", "held_out_accuracy", "chance", "each")


@dataclass(frozen=True)
class Kept:
    """The predictions that a run kept of one setting, under one protocol."""

    run_id: str
    protocol: str
    part: str
    said: Predictions


def pooled(
    bank: str = "bank",
    runs: str | None = None,
    command: str = "probe",
    dataset: str | None = None,
    protocols: str | None = None,
) -> int:
    """Pool what was predicted under several protocols, and average over them: Drive&Act's three splits, say.

    Pooled: the test clips of all protocols count as one test (CMVRA's avgbacc), so that a class of three
    clips in one split and thirty in another weighs once. Mean: each protocol counts alike. A modality with
    its options (shots, prompt set, ...) is pooled where each protocol has a run of it. Clips that are in
    several of the test parts are refused for pooling; the mean is given nevertheless.

    Examples:
      python -m evaluate probe --dataset daa --protocol 0       and 1, and 2
      python -m evaluate pooled --dataset daa --protocols 0,1,2     the newest probe of each
      python -m evaluate pooled --runs run:A,run:B,run:C            these ones

    Args:
        bank: The bank's directory.
        runs: With commas: the runs to pool, of one command and dataset. None: the newest run of each setting
            and protocol.
        command: Whose runs, where none are named: probe, knn, zero-shot, ...
        dataset: Which dataset; may be left out if the bank has one.
        protocols: With commas; None: all that have runs.
    """
    from evaluate.records import print_table
    from store.bank import Bank

    asked = resolved(**locals())
    opened = Bank.open(bank)
    chosen = named_runs(opened, runs) if runs else newest_runs(opened, command, dataset)
    known = settings(chosen, refuse_twice=runs is not None)
    wanted = _named(protocols) or sorted({each for found in known.values() for each in found})
    whole = complete(known, wanted)
    command, dataset = chosen[0]["command"], chosen[0]["dataset"]
    config = {**asked, "command": command, "dataset": dataset, "protocol": " + ".join(wanted)}
    rows: list[dict[str, Any]] = []
    with opened.record_run("evaluate pooled", config) as run:
        for found in whole:
            scores, lines = summary(command, found)
            rows += lines
            for score in scores:
                score.record(run, "pooled")
    print(f"{dataset}, {command.removeprefix('evaluate ')} over {', '.join(wanted)}; percent [95 %]\n")
    print_table(rows)
    return 0


def named_runs(bank: "Bank", runs: str) -> list[dict[str, Any]]:
    """The runs of these ids (which may be cut short where they stay unique).

    Raises:
        EvaluateError: If one is not there, kept no predictions, or is of another command or dataset.
    """
    everything, found = _finished(bank), []
    for name in _named(runs):
        fitting = [row for row in everything if row["run_id"].startswith(name.removeprefix("run:"))]
        if len(fitting) != 1:
            what = "several runs match" if fitting else "no finished evaluation"
            raise EvaluateError(f"pooled: {what}: {name}; `python -m store sql` lists runs")
        if not (fitting[0]["folder"] / PREDICTIONS_FILE).exists():
            raise EvaluateError(f"pooled: {name} ({fitting[0]['command']}) kept no predictions; run it again")
        found += fitting
    kinds = sorted({(row["command"], row["dataset"]) for row in found})
    if len(kinds) > 1:
        told = " and ".join(f"{command} of {dataset}" for command, dataset in kinds)
        raise EvaluateError(f"pooled: these runs are {told}; one command and dataset are accepted")
    return found


def newest_runs(bank: "Bank", command: str, dataset: str | None) -> list[dict[str, Any]]:
    """All runs of a command with predictions, oldest first.

    Raises:
        EvaluateError: If there is none, with the command that makes one.
    """
    from align.recipe import choose_dataset

    name, full = choose_dataset(bank, dataset), f"evaluate {command.removeprefix('evaluate ')}"
    found = [row for row in _finished(bank) if (row["command"], row["dataset"]) == (full, name)]
    found = [row for row in found if (row["folder"] / PREDICTIONS_FILE).exists()]
    if not found:
        raise EvaluateError(
            f"pooled: no run of {full} on {name} kept predictions; python -m {full} --dataset {name} "
            f"--protocol NAME --bank {bank.path}, once a protocol"
        )
    return found


def _finished(bank: "Bank") -> list[dict[str, Any]]:
    query = """
        SELECT run_id, command, directory, config ->> 'dataset' AS dataset,
            coalesce(config ->> 'protocol', 'all clips') AS protocol, config ->> 'part' AS part
        FROM runs WHERE status = 'done' AND command LIKE 'evaluate %' ORDER BY started_at, run_id
    """
    return [row | {"folder": Path(bank.path) / row["directory"]} for row in bank.sql(query).to_pylist()]


def settings(runs: Sequence[Mapping[str, Any]], refuse_twice: bool) -> dict[Key, dict[str, Kept]]:
    """Setting -> protocol -> what the newest of the runs kept.

    Raises:
        EvaluateError: If two runs hold the same setting and protocol, where that is refused.
    """
    known: dict[Key, dict[str, Kept]] = {}
    for row in runs:
        for said in read_predictions(row["folder"]):
            key = (row["part"], *kind(said.detail))
            before = known.setdefault(key, {}).get(row["protocol"])
            if before is not None and refuse_twice:
                raise EvaluateError(
                    f"pooled: run:{before.run_id} and run:{row['run_id']} are the same under protocol "
                    f"{row['protocol']}; name one of them (several checkpoints: --checkpoint A,B in one run)"
                )
            known[key][row["protocol"]] = Kept(row["run_id"], row["protocol"], row["part"], said)
    return known


def complete(known: Mapping[Key, Mapping[str, Kept]], protocols: Sequence[str]) -> list[list[Kept]]:
    """The settings that each protocol has a run of, in the protocols' order; others are named on stderr.

    Raises:
        EvaluateError: If fewer than two protocols are there, or no setting is complete.
    """
    there = sorted({name for found in known.values() for name in found})
    missing = [name for name in protocols if name not in there]
    if missing or len(protocols) < 2:
        wrong = f"no run under protocol {missing[0]}" if missing else "one protocol is nothing to pool"
        raise EvaluateError(f"pooled: {wrong}; there are runs under: {', '.join(there)}")
    whole = []
    for found in known.values():
        lacking = [name for name in protocols if name not in found]
        if not lacking:
            whole.append([found[name] for name in protocols])
            continue
        one = next(iter(found.values()))
        print(f"left out: {_told(one.said.detail)}: no run under {', '.join(lacking)}", file=sys.stderr)
    if not whole:
        raise EvaluateError(f"pooled: nothing was scored under each of {', '.join(protocols)} alike")
    return whole


def summary(command: str, found: Sequence[Kept]) -> "tuple[list[Score], list[dict[str, Any]]]":
    """One setting under several protocols -> scores (mean, pooled) and rows to print (each, mean, pooled).

    Raises:
        EvaluateError: If the protocols were scored by different numbers of models.
    """
    from evaluate.records import share

    first = found[0].said
    models = [len(each.said.hits) for each in found]
    if len(set(models)) > 1:
        told = ", ".join(f"{each.protocol}: {count}" for each, count in zip(found, models, strict=True))
        raise EvaluateError(
            f"pooled: {_told(first.detail)} was scored by different numbers of models ({told}); "
            "use as many checkpoints or draws under each protocol"
        )
    names = ", ".join(each.protocol for each in found)
    detail = {key: value for key, value in first.detail.items() if key not in OF_ONE_RUN}
    detail |= {
        "of": command.removeprefix("evaluate "),
        "source": " ".join(dict.fromkeys(each.said.detail["source"] for each in found)),
        "chance": float(np.mean([each.said.detail["chance"] for each in found])),
        "runs": [each.run_id for each in found],
    }
    hits, labels = np.concatenate([each.said.hits for each in found], 1), [each.said.labels for each in found]
    mean, together = {**detail, "over": f"mean of {names}"}, {**detail, "over": f"pooled over {names}"}
    scores = [
        share("accuracy", hits, mean, weights=alike([np.ones(len(one)) for one in labels])),
        share("balanced_accuracy", hits, mean, weights=alike([class_weights(one) for one in labels])),
    ]
    items = np.concatenate([each.said.items for each in found])
    repeated = len(items) - len(set(items.tolist()))
    if repeated:
        told = f"{repeated} clips are in several of these test parts, so that nothing is pooled"
        print(f"{_told(first.detail)}: {told}; the mean stands", file=sys.stderr)
    else:
        scores.append(share("accuracy", hits, together))
        scores.append(share("balanced_accuracy", hits, together, np.concatenate(labels)))
    rows = [_row(first, each.protocol, _each(each)) for each in found]
    rows += [_row(first, "mean", scores[:2])]
    rows += [_row(first, "pooled", scores[2:])] if scores[2:] else []
    return scores, rows


def alike(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of mean 1 within each part -> of mean 1 over all clips, so that each part counts alike."""
    total = sum(len(part) for part in parts)
    return np.concatenate([part * (total / (len(parts) * len(part))) for part in parts])


def _each(kept: Kept) -> "list[Score]":
    """Accuracy and balanced accuracy under one protocol."""
    from evaluate.records import share

    hits, labels = kept.said.hits, kept.said.labels
    return [share("accuracy", hits, {}), share("balanced_accuracy", hits, {}, labels)]


def _row(said: Predictions, over: str, scores: "Sequence[Score]") -> dict[str, Any]:
    from evaluate.records import percent

    shown = {"scored": _told(said.detail), "over": over}
    shown |= {name: percent(score) for name, score in zip(("accuracy", "balanced"), scores, strict=True)}
    return {**shown, "chance": f"{said.detail['chance'] * 100:.1f}", "n": scores[0].n}


def _told(detail: Mapping[str, Any]) -> str:
    """A setting, for people: ``depth, aligned, 5 shots, trained with labels``."""
    how = setting(detail)
    source = str(detail.get("source", "")).split(" ")[0]
    told = [f"trained with {one}" for one in detail.get("supervision") or []]
    return ", ".join(part for part in (str(detail.get("modality", "")), source, how, *told) if part)


def _named(given: str | None) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()] if given else []
