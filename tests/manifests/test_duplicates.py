"""One copy stays, the right one; test sets and their copies go; the order of rows means nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.errors import ManifestError
from prect.manifests.codes import CODES
from prect.manifests.copies import DUPLICATE_SHARE
from prect.manifests.duplicates import Policy, resolve
from prect.manifests.sketches import SKETCH_DTYPE, SKETCH_SIZE, overlaps, unpack
from prect.manifests.sources import SourceRow, to_rows, to_table

Verdicts = dict[str, tuple[str, str, str]]
PLAIN = Policy(precedence=5, one_per_study=False)
NONE: dict[str, Policy] = {}
SCAN = range(0, 100)
"""Patterns of a scan; those of a crop are a part of them."""
EFFECTS = {"warned": "warn", "rejected": "reject", "duplicate": "duplicate", "excluded": "exclude"}


def sketch_of(patterns: Iterable[int]) -> bytes:
    scattered = [(pattern + 1) * 0x9E3779B97F4A7C15 % 2**64 for pattern in patterns]
    return np.array(sorted(scattered)[:SKETCH_SIZE], dtype=SKETCH_DTYPE).tobytes()


def row(case: str, dataset: str = "a", **fields: Any) -> SourceRow:
    """A volume unlike any other, unless ``fields`` say so."""
    unique = f"{dataset}-{case}"
    start = 10_000 + int.from_bytes(hashlib.blake2b(unique.encode(), digest_size=6).digest())
    defaults: dict[str, Any] = {
        "judged": "accepted",
        "format": "dicom",
        "item": f"{unique}/",
        "voxel_digest": unique,
        "sketch": sketch_of(range(start, start + 50)),
        "shape": (512, 512, 100),
        "spacing": (0.8, 0.8, 2.5),
    }
    made = SourceRow(dataset, case, "", "", "", "", f"{case}.x", "/r")
    return replace(made, **(defaults | fields))


def resolved(
    rows: Sequence[SourceRow], excluded: Sequence[str] = (), policies: Mapping[str, Policy] = NONE
) -> dict[str, SourceRow]:
    """Rows by ``dataset/case`` after resolving."""
    tables = {
        name: to_table([r for r in rows if r.dataset == name]) for name in {r.dataset for r in rows}
    }
    found = resolve(tables, {name: policies.get(name, PLAIN) for name in tables}, excluded)
    for name, table in found.items():
        assert table.schema == tables[name].schema
        assert [r.case for r in to_rows(table)] == [r.case for r in rows if r.dataset == name]
    return {f"{r.dataset}/{r.case}": r for table in found.values() for r in to_rows(table)}


def verdicts(
    rows: Sequence[SourceRow], excluded: Sequence[str] = (), policies: Mapping[str, Policy] = NONE
) -> Verdicts:
    """Verdict, code and target of each row; and what holds for every row is checked."""
    found = resolved(rows, excluded, policies)
    for r in found.values():
        if r.code:
            assert EFFECTS[r.verdict] == CODES[r.code].effect
            assert r.reason
        if r.duplicate_of:
            assert r.duplicate_of in r.reason
            assert found[r.duplicate_of].verdict in (
                ("excluded", "rejected")
                if r.code == "leakage.benchmark_copy"
                else ("accepted", "warned")
            )
    return {name: (r.verdict, r.code, r.duplicate_of) for name, r in found.items()}


KEPT = ("accepted", "", "")


def duplicate(evidence: str, of: str) -> tuple[str, str, str]:
    return "duplicate", f"duplicate.{evidence}", of


def excluded_as(code: str, of: str = "") -> tuple[str, str, str]:
    return "excluded", code, of


def test_what_has_no_copy_stays_what_it_was_judged() -> None:
    rows = [
        row("1"),
        row("2", judged="warned", judged_code="x.warned", judged_reason="so so"),
        row("3", judged="rejected", judged_code="x.bad", judged_reason="bad", voxel_digest="a-1"),
        row("4", judged="excluded", judged_code="card.excluded", judged_reason="the card"),
    ]
    stale = [
        replace(r, verdict="duplicate", code="y", reason="z", duplicate_of="a/9") for r in rows
    ]
    for r in resolved(stale).values():
        judged = (r.judged, r.judged_code, r.judged_reason, "")
        assert (r.verdict, r.code, r.reason, r.duplicate_of) == judged


def test_volumes_without_fingerprints_are_no_copies_of_each_other() -> None:
    rows = [row(name, voxel_digest="", sketch=b"") for name in "12"]
    assert set(verdicts(rows).values()) == {KEPT}


def test_the_lower_precedence_stays_then_the_larger_then_the_first_by_name() -> None:
    same = [row("1", "a", voxel_digest="v"), row("1", "b", voxel_digest="v")]
    assert verdicts(same) == {"a/1": KEPT, "b/1": duplicate("voxels", "a/1")}
    preferred = {"b": Policy(1, one_per_study=False)}
    assert verdicts(same, policies=preferred) == {"b/1": KEPT, "a/1": duplicate("voxels", "b/1")}
    crop = row("1", "a", sketch=sketch_of(SCAN[:40]), shape=(300, 300, 100))
    whole = row("9", "b", sketch=sketch_of(SCAN))
    assert verdicts([crop, whole]) == {"b/9": KEPT, "a/1": duplicate("overlap", "b/9")}
    found = verdicts([crop, whole], policies={"a": Policy(1, one_per_study=False)})
    assert found == {"a/1": KEPT, "b/9": duplicate("overlap", "a/1")}


WARNED = {"judged": "warned", "judged_reason": "so so"}
GRAVE = {**WARNED, "judged_code": "nifti.units", "warnings": ("nifti.units",)}
MILD = {**WARNED, "judged_code": "card.rescaled", "warnings": ("card.rescaled",)}


def test_a_copy_with_sound_geometry_stays_whatever_the_precedence_and_size() -> None:
    first = {"a": Policy(0, one_per_study=False)}
    same = [row("1", "a", voxel_digest="v", **GRAVE), row("1", "b", voxel_digest="v", **MILD)]
    found = verdicts(same, policies=first)
    assert found["a/1"] == duplicate("voxels", "b/1")
    assert found["b/1"] == ("warned", "card.rescaled", "")
    both = replace(same[0], judged_code="card.rescaled", warnings=("card.rescaled", "nifti.units"))
    assert verdicts([both, same[1]], policies=first)["a/1"] == duplicate("voxels", "b/1")
    whole = row("1", "a", sketch=sketch_of(SCAN), shape=(512, 512, 300), **GRAVE)
    crop = row("9", "b", sketch=sketch_of(SCAN[:60]))
    assert verdicts([whole, crop], policies=first)["a/1"] == duplicate("overlap", "b/9")


def test_a_remark_that_is_not_grave_counts_after_precedence_and_before_size() -> None:
    mild = row("1", "a", sketch=sketch_of(SCAN), shape=(512, 512, 300), **MILD)
    plain = row("9", "b", sketch=sketch_of(SCAN))
    assert verdicts([mild, plain])["a/1"] == duplicate("overlap", "b/9")
    first = {"a": Policy(0, one_per_study=False)}
    assert verdicts([mild, plain], policies=first)["b/9"] == duplicate("overlap", "a/1")


def test_a_series_is_one_volume_for_each_stack_and_shape() -> None:
    rows = [
        row("1", "lidc", series="s", stack="p", item="x/"),
        row("2", "lidc", series="s", stack="q", item="x/", shape=(512, 512, 90)),
        row("1", "luna", series="s", format="metaimage", shape=(100, 512, 512)),
        row("2", "luna", series="s", format="metaimage", shape=(256, 256, 50)),
        row("3", "luna", series="t", format="metaimage"),
    ]
    found = verdicts(rows)
    assert found.pop("luna/1") == duplicate("series", "lidc/1")
    assert set(found.values()) == {KEPT}


def test_a_file_without_stack_is_not_taken_for_one_of_two_phases() -> None:
    phases = [row(name, "dicom", series="s", stack=name, item="x/") for name in ("p", "q")]
    file = row("1", "files", series="s", format="nifti")
    first = {"files": Policy(0, one_per_study=False)}
    assert set(verdicts([*phases, file], policies=first).values()) == {KEPT}
    told = replace(file, voxel_digest=phases[1].voxel_digest)
    found = verdicts([*phases, told], policies=first)
    assert found == {
        "files/1": KEPT,
        "dicom/p": KEPT,
        "dicom/q": duplicate("voxels", "files/1"),
    }


def test_a_series_scattered_over_folders_is_rejected() -> None:
    halves = [
        row(name, series="s", stack="p", shape=(512, 512, count))
        for name, count in (("1", 50), ("2", 50), ("3", 7))
    ]
    scattered = ("rejected", "selection.scattered_series", "")
    assert set(verdicts(halves).values()) == {scattered}
    assert set(verdicts(halves, ["a"]).values()) == {excluded_as("leakage.benchmark")}
    assert "gather" in CODES["selection.scattered_series"].remedy.lower()
    elsewhere = [replace(h, dataset=f"set{n}", shape=(9, 9, n)) for n, h in enumerate(halves)]
    assert set(verdicts(elsewhere).values()) == {KEPT}


def test_copies_of_two_parts_of_a_scattered_series_are_no_copies_of_each_other() -> None:
    halves = [row(name, series="s", stack="p") for name in "12"]
    files = [row(name, "b", voxel_digest=f"a-{name}", format="nifti") for name in "12"]
    found = verdicts([*halves, *files])
    assert found["b/1"] == found["b/2"] == KEPT
    assert {found["a/1"][1], found["a/2"][1]} == {"selection.scattered_series"}


TOO_SMALL = {"judged": "rejected", "judged_code": "geometry.too_small", "judged_reason": "few"}


@pytest.mark.parametrize("known", [{"study": "y", "stack": "p"}, {"stack": "p"}, {}])
def test_a_tail_too_small_in_another_folder_makes_the_rest_scattered(known: dict[str, Any]) -> None:
    ids = {"series": "s", "patient": "x"}
    rest = row("1", study="y", stack="p", shape=(512, 512, 80), **ids)
    other = row("3", study="y", stack="q", shape=(512, 512, 80), **ids)
    tail = row("2", voxel_digest="", sketch=b"", shape=(), **TOO_SMALL, **ids, **known)
    found = verdicts([rest, tail])
    assert found["a/1"] == ("rejected", "selection.scattered_series", "")
    assert found["a/2"] == ("rejected", "geometry.too_small", "")
    assert (verdicts([other, tail])["a/3"] == KEPT) == ("stack" in known)
    unlikes: list[dict[str, Any]] = [{"patient": "z"}, {"series": "t"}, {"item": rest.item}]
    for unlike in [*unlikes, {"dataset": "b"}]:
        assert verdicts([rest, replace(tail, **unlike)])["a/1"] == KEPT
    assert verdicts([rest, replace(tail, judged_code="content.constant")])["a/1"] == KEPT


def test_a_sample_of_the_slices_elsewhere_does_not_make_a_series_scattered() -> None:
    ids = {"series": "s", "patient": "x", "study": "y", "stack": "p"}
    whole = row("1", sketch=sketch_of(SCAN), **ids)
    sample = row("2", sketch=sketch_of(SCAN[:20]), shape=(512, 512, 9), **TOO_SMALL, **ids)
    assert verdicts([whole, sample])["a/1"] == KEPT


FULL = range(5000, 5000 + SKETCH_SIZE)
UNLIKE = range(9000, 9000 + SKETCH_SIZE)


def test_one_series_id_for_different_patients_loses_no_volume() -> None:
    constant = [row(name, series="s", stack="p", patient=name, study=name) for name in "12"]
    assert set(verdicts(constant).values()) == {KEPT}
    one = replace(constant[0], study="y")
    assert set(verdicts([one, replace(one, case="2", item="x/", study="z")]).values()) == {
        KEPT,
        duplicate("series", "a/1"),
    }


def test_contents_that_contradict_refute_the_same_series() -> None:
    one = row("1", "a", series="s", sketch=sketch_of(FULL))
    other = row("1", "b", series="s", sketch=sketch_of(UNLIKE))
    assert set(verdicts([one, other]).values()) == {KEPT}
    hint = row("1", "b", series="s", sketch=sketch_of([*UNLIKE[:127], FULL[0]]))
    assert verdicts([one, hint])["b/1"] == duplicate("series", "a/1")
    short = replace(other, sketch=sketch_of(UNLIKE[:100]))
    assert verdicts([one, short])["b/1"] == duplicate("series", "a/1")
    assert verdicts([one, replace(other, voxel_digest="a-1")])["b/1"][0] == "duplicate"
    unsure = row("1", "c", series="s", sketch=b"")
    assert set(verdicts([one, other, unsure]).values()) == {KEPT}
    third = row("1", "c", series="s", sketch=sketch_of([*UNLIKE[:127], 1]))
    found = verdicts([one, other, third])
    assert (found["b/1"], found["c/1"]) == (KEPT, duplicate("series", "b/1"))


@pytest.mark.slow
def test_5000_unlike_volumes_of_one_series_id_all_stay() -> None:
    rng = np.random.default_rng(2)
    hashes = np.sort(rng.integers(0, 2**64, (5000, SKETCH_SIZE), dtype=np.uint64), axis=1)
    rows = [row(f"{n:04}", series="s", item="x/", sketch=h.tobytes()) for n, h in enumerate(hashes)]
    found = resolve({"a": to_table(rows)}, {"a": PLAIN}, [])["a"]
    assert set(found["verdict"].to_pylist()) == {"accepted"}


def test_a_series_copied_to_another_folder_is_not_scattered() -> None:
    whole = row("1", series="s", stack="p", sketch=sketch_of(SCAN))
    copy = replace(whole, case="2", item="other/")
    part = replace(copy, case="3", item="third/", voxel_digest="part", sketch=sketch_of(SCAN[:40]))
    part = replace(part, shape=(512, 512, 40))
    assert verdicts([whole, copy, part]) == {
        "a/1": KEPT,
        "a/2": duplicate("series", "a/1"),
        "a/3": duplicate("overlap", "a/1"),
    }
    same_folder = replace(part, item=whole.item, sketch=b"")
    assert set(verdicts([whole, same_folder]).values()) == {KEPT}


def test_the_sentence_of_an_overlap_gives_the_share() -> None:
    whole = row("1", sketch=sketch_of(SCAN))
    crop = row("2", sketch=sketch_of([*SCAN[:30], *range(500, 510)]), shape=(9, 9, 9))
    found = resolved([whole, crop])["a/2"]
    assert (found.code, found.duplicate_of) == ("duplicate.overlap", "a/1")
    assert "75 %" in found.reason
    assert "a/1" in found.reason


def test_a_volume_is_not_dropped_for_a_small_part_that_another_has_too() -> None:
    upper = row("1", sketch=sketch_of(range(100)))
    for common, verdict in ((49, KEPT), (50, duplicate("overlap", "a/1"))):
        lower = row("2", sketch=sketch_of(range(100 - common, 200 - common)))
        assert verdicts([upper, lower]) == {"a/1": KEPT, "a/2": verdict}
        test = replace(upper, dataset="test", voxel_digest="t")
        found = verdicts([test, lower], ["test"])
        assert found["a/2"] == excluded_as("leakage.benchmark_copy", "test/1")


def test_two_crops_of_one_scan_overlap_with_it_and_not_with_each_other() -> None:
    whole = row("1", sketch=sketch_of(SCAN))
    low = row("2", sketch=sketch_of(SCAN[:50]), shape=(512, 512, 50))
    high = row("3", sketch=sketch_of(SCAN[50:]), shape=(512, 512, 50))
    of_whole = duplicate("overlap", "a/1")
    assert verdicts([whole, low, high]) == {"a/1": KEPT, "a/2": of_whole, "a/3": of_whole}
    assert verdicts([low, high]) == {"a/2": KEPT, "a/3": KEPT}


def test_the_copy_of_a_duplicate_points_at_the_one_that_is_kept() -> None:
    rows = [
        row("1", "a", series="s", voxel_digest="v", sketch=b""),
        row("1", "b", series="s", voxel_digest="w", sketch=b""),
        row("1", "c", voxel_digest="w", sketch=b""),
        row("1", "d", sketch=sketch_of(SCAN), shape=(512, 512, 300)),
        row("1", "e", voxel_digest="x", series="t", sketch=sketch_of(SCAN[:40])),
        row("1", "f", voxel_digest="y", series="t", sketch=b""),
    ]
    assert verdicts(rows) == {
        "a/1": KEPT,
        "b/1": duplicate("series", "a/1"),
        "c/1": duplicate("series", "a/1"),
        "d/1": KEPT,
        "e/1": duplicate("overlap", "d/1"),
        "f/1": duplicate("overlap", "d/1"),
    }


def test_when_the_kept_copy_goes_the_other_returns() -> None:
    rows = [row("1", "a", voxel_digest="v"), row("1", "b", voxel_digest="v"), row("2", "b")]
    assert verdicts(rows)["b/1"] == duplicate("voxels", "a/1")
    assert verdicts(rows[1:])["b/1"] == KEPT
    gone = replace(rows[0], judged="rejected", judged_code="x.bad", judged_reason="bad")
    assert resolved([gone, *rows[1:]])["b/1"].verdict == "accepted"


STUDY = {"patient": "p", "study": "s"}
ONE_PER_STUDY = {"a": Policy(5, one_per_study=True)}


def test_one_volume_of_a_study_is_kept_where_the_card_asks() -> None:
    rows = [
        row("1", kind="original", shape=(512, 512, 100), **STUDY),
        row("2", kind="original", shape=(512, 512, 200), spacing=(0.8, 0.8, 1.5), **STUDY),
        row("3", kind="original", shape=(512, 512, 200), spacing=(0.8, 0.8, 1.25), **STUDY),
        row("4", kind="derived", shape=(512, 512, 900), **STUDY),
        row("5", kind="original", patient="p", study="t"),
        row("6", kind="original", patient="q", study="s"),
        row("7", kind="original"),
        row("8", kind="original"),
    ]
    assert set(verdicts(rows).values()) == {KEPT}
    found = verdicts(rows, policies=ONE_PER_STUDY)
    assert {name for name, verdict in found.items() if verdict == KEPT} == {
        "a/3", "a/5", "a/6", "a/7", "a/8"
    }  # fmt: skip
    assert found["a/1"] == excluded_as("selection.other_reconstruction")
    assert "a/3" in resolved(rows, policies=ONE_PER_STUDY)["a/1"].reason


def test_a_copy_of_the_volume_chosen_in_a_study_is_called_a_duplicate() -> None:
    rows = [
        row("1", voxel_digest="v", **STUDY),
        row("2", voxel_digest="v", **STUDY),
        row("3", shape=(512, 512, 50), **STUDY),
        row("9", "b", voxel_digest="v"),
        row("8", "b", voxel_digest="a-3"),
    ]
    assert verdicts(rows, policies=ONE_PER_STUDY) == {
        "a/1": KEPT,
        "a/2": duplicate("voxels", "a/1"),
        "a/3": excluded_as("selection.other_reconstruction"),
        "b/9": duplicate("voxels", "a/1"),
        "b/8": KEPT,
    }


def test_a_reformat_yields_to_an_original_of_its_study() -> None:
    reformat = row("1", kind="reformat", shape=(512, 512, 400), **STUDY)
    original = row("2", kind="original", shape=(512, 512, 60), **STUDY)
    assert verdicts([reformat]) == {"a/1": KEPT}
    found = verdicts([reformat, original])
    assert found == {"a/1": excluded_as("selection.reformat"), "a/2": KEPT}
    unusable = replace(original, judged="rejected", judged_code="x.bad", judged_reason="bad")
    assert resolved([reformat, unusable])["a/1"].verdict == "accepted"


BENCHMARK = [
    row("1", "test", sketch=sketch_of(SCAN), split="test", patient="p"),
    row("2", "test", split="training", patient="p"),
    row("3", "test", split="training", patient="q"),
    row("4", "test", split="test", series="s", patient="r"),
    row("5", "test", split="test"),
    row("6", "test", split="training"),
]
COPIES = [
    row("1", "other", voxel_digest="test-1"),
    row("2", "other", sketch=sketch_of(SCAN[:60])),
    row("3", "other", series="s", voxel_digest="z"),
    row("4", "other", voxel_digest="test-3"),
    row("5", "other", patient="p"),
]


def test_a_benchmark_and_its_copies_are_kept_out_whatever_their_precedence() -> None:
    first = {"other": Policy(0, one_per_study=False)}
    out = excluded_as("leakage.benchmark")
    assert verdicts([*BENCHMARK, *COPIES], ["test"], first) == {
        **{f"test/{case}": out for case in "123456"},
        "other/1": excluded_as("leakage.benchmark_copy", "test/1"),
        "other/2": excluded_as("leakage.benchmark_copy", "test/1"),
        "other/3": excluded_as("leakage.benchmark_copy", "test/4"),
        "other/4": excluded_as("leakage.benchmark_copy", "test/3"),
        "other/5": KEPT,
    }


def test_of_a_split_the_copies_and_the_patients_are_kept_out() -> None:
    first = {"test": Policy(0, one_per_study=False)}
    found = verdicts([*BENCHMARK, *COPIES], ["test:test"], first)
    assert found["test/1"] == found["test/4"] == excluded_as("leakage.benchmark")
    assert found["test/2"] == excluded_as("leakage.benchmark_patient")
    assert found["test/3"] == found["test/6"] == KEPT
    assert found["other/2"] == excluded_as("leakage.benchmark_copy", "test/1")
    assert found["other/4"] == duplicate("voxels", "test/3")
    assert found["other/5"] == KEPT


UNFIT = {"judged": "rejected", "judged_code": "content.constant", "judged_reason": "odd values"}


@pytest.mark.parametrize(
    "own",
    [UNFIT, {"judged": "excluded", "judged_code": "card.excluded", "judged_reason": "the card"}],
)
def test_copies_of_benchmark_volumes_that_are_not_usable_are_kept_out(own: dict[str, Any]) -> None:
    benchmark = [replace(r, **own) for r in BENCHMARK]
    found = verdicts([*benchmark, *COPIES], ["test"])
    assert {found[f"test/{case}"] for case in "123456"} == {(own["judged"], own["judged_code"], "")}
    for case, of in (("1", "1"), ("2", "1"), ("3", "4"), ("4", "3")):
        assert found[f"other/{case}"] == excluded_as("leakage.benchmark_copy", f"test/{of}")
    assert found["other/5"] == KEPT
    assert set(verdicts([*benchmark, *COPIES[2:]]).values()) == {
        (own["judged"], own["judged_code"], ""),
        KEPT,
    }
    split = verdicts([*benchmark[:1], *BENCHMARK[1:], *COPIES], ["test:test"])
    assert split["test/2"] == excluded_as("leakage.benchmark_patient")
    assert split["other/1"] == excluded_as("leakage.benchmark_copy", "test/1")


def test_the_series_of_a_benchmark_volume_that_could_not_be_read_is_kept_out() -> None:
    unread = row("1", "test", series="s", voxel_digest="", sketch=b"", shape=(), stack="p", **UNFIT)
    rows = [
        unread,
        row("1", "b", series="s"),
        row("2", "b", series="s", stack="q", shape=(512, 512, 90)),
        row("3", "b", series="t"),
    ]
    found = resolved(rows, ["test"])
    assert found["b/1"].code == "leakage.benchmark_copy"
    assert "the same series as test/1, whose shape" in found["b/1"].reason
    assert found["b/2"].code == found["b/3"].code == ""
    assert {r.code for name, r in resolved(rows).items() if name != "test/1"} == {""}


def test_other_scans_of_the_patient_of_a_copy_are_kept_out() -> None:
    rows = [
        row("1", "test", voxel_digest="v"),
        row("1", "b", voxel_digest="v", patient="p"),
        row("2", "b", patient="p"),
        row("3", "b", patient="q"),
        row("4", "c", patient="p"),
    ]
    found = resolved(rows, ["test"])
    assert found["b/2"].code == "leakage.benchmark_patient"
    assert "b/1, a copy of a volume of a test set" in found["b/2"].reason
    assert found["b/3"].code == found["c/4"].code == ""


def test_the_copy_of_a_copy_of_a_benchmark_is_kept_out() -> None:
    rows = [
        row("1", "test", voxel_digest="v", sketch=b""),
        row("1", "b", voxel_digest="v", series="s", sketch=b""),
        row("1", "c", voxel_digest="w", series="s", sketch=b""),
    ]
    found = verdicts(rows, ["test"])
    assert found["b/1"] == found["c/1"] == excluded_as("leakage.benchmark_copy", "test/1")


def test_a_benchmark_that_is_not_ingested_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ManifestError, match="'BTCV' is not in the workspace: ingest it first"):
        resolved(BENCHMARK, ["BTCV"])
    with pytest.raises(ManifestError, match="no split 'val', only test, training"):
        resolved(BENCHMARK, ["test:val"])
    with pytest.raises(ManifestError, match="was not ingested with a list"):
        resolved(COPIES, ["other:val"])


def test_columns_that_play_no_part_may_be_absent_and_tables_empty() -> None:
    table = to_table([row("1", voxel_digest="v"), row("2", voxel_digest="v")])
    slim = table.drop_columns(["root", "members", "state", "rules"])
    tables = {"a": slim, "empty": slim.slice(0, 0)}
    found = resolve(tables, {"a": PLAIN, "empty": PLAIN}, [])
    assert found["a"]["code"].to_pylist() == ["", "duplicate.voxels"]
    assert found["a"].schema == slim.schema
    assert len(found["empty"]) == 0
    assert resolve({}, {}, []) == {}


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[SourceRow], dict[str, Policy], list[str]]:
    """A few volumes that share digests, series, studies and content in all ways."""
    few = st.integers(0, 3).map(str)
    maybe = st.sampled_from(["", "", "1", "2"])
    rows = []
    for case in range(draw(st.integers(1, 12))):
        begin, count = draw(st.tuples(st.integers(0, 20), st.integers(0, 20)))
        codes = st.sampled_from(["", "geometry.too_small"])
        fields = {
            "judged": draw(st.sampled_from(["accepted", "accepted", "warned", "rejected"])),
            "judged_code": draw(codes),
            "warnings": draw(st.sampled_from([(), ("nifti.units",)])),
            "format": draw(st.sampled_from(["dicom", "nifti"])),
            "series": draw(maybe),
            "stack": draw(maybe),
            "patient": draw(maybe),
            "study": draw(maybe),
            "split": draw(st.sampled_from(["", "test"])),
            "kind": draw(st.sampled_from(["", "original", "reformat", "derived"])),
            "item": draw(few),
            "sketch": sketch_of(range(begin * 10, (begin + count) * 10)),
            "shape": (10, 10, draw(st.integers(8, 10))),
        }
        if draw(st.booleans()):
            fields["voxel_digest"] = draw(few)
        rows.append(row(f"{case:02}", draw(st.sampled_from("abc")), **fields))
    policies = {
        name: Policy(draw(st.integers(0, 1)), one_per_study=draw(st.booleans())) for name in "abc"
    }
    excluded = [n for n in draw(st.sampled_from([[], ["a"], ["b:test"]])) if has_benchmark(rows, n)]
    return rows, policies, excluded


def has_benchmark(rows: Sequence[SourceRow], name: str) -> bool:
    dataset, _, split = name.partition(":")
    return any(r.dataset == dataset and split in ("", r.split) for r in rows)


def rank(r: SourceRow, policies: Mapping[str, Policy]) -> tuple[bool, int, bool]:
    return "nifti.units" in r.warnings, policies[r.dataset].precedence, r.judged == "warned"


@settings(deadline=None, max_examples=300)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_outcome_holds_together_and_does_not_depend_on_order(
    world: tuple[list[SourceRow], dict[str, Policy], list[str]], random: Any
) -> None:
    rows, policies, excluded = world
    found = resolved(rows, excluded, policies)
    shuffled = random.sample(rows, len(rows))
    assert resolved(shuffled, excluded, policies) == found
    assert resolved(list(found.values()), excluded, policies) == found

    used = [r for r in found.values() if r.verdict in ("accepted", "warned")]
    digests = [r.voxel_digest for r in used]
    assert len(set(digests)) == len(digests)
    sketches = unpack(pa.chunked_array([[r.sketch for r in used]], pa.binary()))
    assert (overlaps(sketches).share < DUPLICATE_SHARE).all()
    studies: dict[tuple[str, str, str], list[SourceRow]] = defaultdict(list)
    for r in used:
        assert (r.verdict, r.code, r.reason) == (r.judged, r.judged_code, r.judged_reason)
        assert not has_benchmark([r], excluded[0] if excluded else "nothing")
        studies[r.dataset, r.patient, r.study].append(r)
    for (dataset, _, study), volumes in studies.items():
        assert not (study and policies[dataset].one_per_study and len(volumes) > 1)
    for r in found.values():
        if r.code.startswith("duplicate."):
            assert found[r.duplicate_of].verdict in ("accepted", "warned")
            kept = found[r.duplicate_of]
            assert rank(kept, policies) <= rank(r, policies)
        elif r.code == "leakage.benchmark_copy":
            assert has_benchmark([found[r.duplicate_of]], excluded[0])
        else:
            assert r.duplicate_of == ""


def test_20000_volumes_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    count = 20_000
    hashes = np.sort(rng.integers(0, 2**64, (count, 128), dtype=np.uint64), axis=1)
    rows = [row(f"{n:05}", sketch=hashes[n].tobytes()) for n in range(count)]
    rows[500] = replace(rows[500], voxel_digest=rows[123].voxel_digest)
    rows[900] = replace(rows[900], sketch=rows[321].sketch)
    table = to_table(rows)
    found = resolve({"a": table}, {"a": PLAIN}, [])["a"]
    targets = zip(found["case"].to_pylist(), found["duplicate_of"].to_pylist(), strict=True)
    assert {case: of for case, of in targets if of} == {"00500": "a/00123", "00900": "a/00321"}
    assert pa.types.is_string(found["verdict"].type)
