"""`python -m evaluate.utd_mhad`: what stored features and alignment are worth on real recordings (UTD-MHAD).

From a bank that holds its features (`python -m extract --dataset utd-mhad --root DIR`) it scores, in one run,
five tables (`--tables`):

* ``actions``, per modality: a linear (logistic) classifier on the stored features (``probe``), and ridge
  classifiers on embeddings aligned with the action names as one more modality (``aligned, named``:
  supervised) and on embeddings aligned on unlabelled pairs alone (``aligned, pairs``), beside a ridge
  ``baseline`` on the raw sequence (``evaluate.baseline``); retrieval of clips with the same action, inertial
  to skeleton, and of clips by the action's name;
* ``heads``: the same recipe with other heads. ``linear`` and ``mlp`` see a clip's mean over frames, in which
  hardly anything is left of skeletons (their features are movements around it), ``attention`` a bag of
  frames, the others their order; the recipe's own, an MLP of the whole sequence, is ``aligned, named``;
* ``fusion``: every subset of the modalities. Stored features: late (the probes' log-probabilities, weighed
  alike or by weights learnt between teaching subjects) and concatenated (one classifier). Aligned: late,
  with equal weights, of the ridge classifiers, or of the cosines to the action names, where nothing is fitted
  to embeddings of clips that the heads were trained on;
* ``shots``: one, two or four labelled clips a class, the heads having seen no label;
* ``transfer``: a classifier learnt on one modality and asked about the other; nearest neighbours.

Subjects 1 and 3 teach and 2 and 4 are scored; then the halves are swapped. How each choice was made:

* what is fitted (standardisation, strengths, heads): on the teaching half, anew in each half, strengths with
  one teaching subject held out after the other;
* the recipe (`configs/align/utd-mhad.yaml`), the ways of fusing, ``READ`` and the constants of the ``joints``
  and ``imu`` encoders: by training on subject 1 and scoring 3 and the other way round, which `--check
  training` repeats. In the swapped half the scored subjects are those on which all this was designed: it
  shows that the result does not hang on who teaches, no more (the same goes for its share of "both halves
  together");
* the baseline's 48 steps: the length at which it gives the figures known of it, near its best.

The test part was scored THREE times, so hardly a row is a clean one-shot figure. In the first scoring the
probe was a ridge classifier on movement and velocity; on skeletons it got 74.1 where the baseline gets 76.4
(swapped: 78.1, 62.8). That result is why the probe was looked at again. 72 variants were listed and compared
on subjects 1 and 3 alone (classifier, dims, steps, standardisation, warped copies), the best of them is what
stands here (79.6 there at its best strength, the first probe 76.8), and it was scored once. The classifier is
shared, so the other probes changed with it (first scoring: inertial 71.3, swapped 80.0; depth 63.9, swapped
62.3). Baseline and probe are as scored then.

In the second scoring skeleton + inertial aligned with names got 85.9 in both halves, the sum of the probes
85.6, which is why the alignment was looked at again, on subjects 1 and 3: noise was being added to the names'
unit vectors, where it was six times as long as they (text to skeleton R@1 there 79.6 with it, 96.3 without).
29 variants of the recipe without that noise were compared (heads' width and kind, frames, dropout,
augmentation, temperature, batch, epochs, positives, a fused embedding as one more modality). Nearly all fuse
to 89 to 93 there, where two seeds tell no difference below 2 points: the recipe is one of the best and among
the cheapest of them. It was then scored once, with all the tables.

Published figures of this protocol with all eight subjects, of which only 1 to 4 are here (Chen, Jafari,
Kehtarnavaz 2015): inertial 67.2, depth + inertial 79.1.

Chance is 1 in 27 for actions; each row has its own beside it.
"""

import os
import time
from typing import TYPE_CHECKING, Literal

from evaluate.utd_mhad_data import HALVES, Half, Split
from evaluate.utd_mhad_heads import RECIPE, Training, embeddings, settings, variant
from store.cli import resolved, run  # it sets what torch reads when it is loaded, later

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align.config import AlignConfig
    from evaluate.utd_mhad_tables import Material
    from store.bank import Bank

ALL = "actions,heads,fusion,shots,transfer"


def utd_mhad(
    bank: str = "bank",
    seeds: int = 5,
    recipe: str = str(RECIPE),
    check: Literal["test", "training"] = "test",
    modalities: str = "skeleton,inertial,depth",
    tables: str = ALL,
    processes: int | None = None,
) -> int:
    """Score stored and aligned UTD-MHAD features against the baseline; prints the tables and records them.

    Args:
        bank: The bank's directory, with skeleton, inertial, depth and text features of utd-mhad.
        seeds: Alignments to train of each kind; 0 .. seeds - 1.
        recipe: YAML of the alignment, as `python -m align --config` takes it; with text it is the supervised
            one, without text and labels the one on pairs alone.
        check: `test` scores the test subjects; `training` only ever touches subjects 1 and 3: for choosing.
        modalities: Which to score; skeleton and inertial at least.
        tables: Which, with commas: `actions` and retrieval per modality; `heads`; `fusion` of every subset of
            the modalities; `shots`: few labelled clips; `transfer`: classifiers that change modality, and
            nearest neighbours.
        processes: Alignments to train at a time, a core each; None: as many as there are cores.
    """
    asked = resolved(**locals())
    from align.recipe import read_recipe
    from evaluate.utd_mhad_scores import Scores, report
    from evaluate.utd_mhad_tables import TABLES
    from store.bank import Bank
    from store.errors import UnknownNameError

    began = time.monotonic()
    opened, config, wanted = Bank.open(bank), read_recipe(recipe), _listed(tables)
    for name in wanted:
        if name not in TABLES:
            raise UnknownNameError("--tables", "table", name, sorted(TABLES))
    with opened.record_run("evaluate utd-mhad", asked | {"align": config.as_json()}) as record:
        methods = list(dict.fromkeys(method for name in wanted for method in TABLES[name].needs))
        materials = prepare(opened, check, config, _listed(modalities), methods, seeds, processes)
        used = [one for half in materials for split in half.data.values() for one in split.selections]
        record.used(*used)
        for name in wanted:
            table, parts = TABLES[name], []
            for material in materials:
                scores = Scores(material.half.name)
                table.fill(material, scores)
                parts.append(scores)
            report(name, table.title, table.rivals, parts, record)
            if table.note:
                print(f"\n{table.note}")
    _print_saved(opened, used, time.monotonic() - began)
    return 0


def prepare(
    bank: "Bank",
    check: str,
    recipe: "AlignConfig",
    modalities: list[str],
    methods: list[str],
    seeds: int,
    processes: int | None,
) -> "list[Material]":
    """The clips of each half, and all alignments that were asked for.

    Args:
        bank: The bank.
        check: Key of ``HALVES``.
        recipe: Of the alignment.
        modalities: Names.
        methods: See :func:`evaluate.utd_mhad_heads.variant`.
        seeds: Of each method.
        processes: See :func:`utd_mhad`.
    """
    from evaluate.utd_mhad_tables import Material

    halves = HALVES[check]
    data = [_splits(bank, half, recipe, modalities) for half in halves]
    trainings = [
        Training(str(bank.path), half, variant(recipe, modalities, method, seed))
        for half in halves
        for method in methods
        for seed in range(seeds)
    ]
    found = embeddings(trainings, processes or os.cpu_count() or 1)
    aligned = [{method: [next(found) for _ in range(seeds)] for method in methods} for _ in halves]
    return [Material(bank, *parts) for parts in zip(halves, data, aligned, strict=True)]


def _splits(bank: "Bank", half: Half, recipe: "AlignConfig", modalities: list[str]) -> dict[str, Split]:
    own = {name: settings(recipe, name) for name in modalities}
    return {name: Split.of(bank, half, name, one.encoder, one.field) for name, one in own.items()}


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _print_saved(bank: "Bank", used: "Sequence", seconds: float) -> None:
    """What the bank spared this command, and how long the command took."""
    from evaluate.source import encode_seconds_saved, in_seconds

    saved = in_seconds(encode_seconds_saved(bank, used))
    print(f"\nencoding these features took {saved}, once; everything above took {in_seconds(seconds)}")


if __name__ == "__main__":
    from encoders.errors import EncoderError

    run(utd_mhad, expected=(EncoderError,), prog="python -m evaluate.utd_mhad")
