"""Cards: the catalogue against the facts about the sources, and cards as files."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prect.errors import ConfigError, WorkspaceError
from prect.manifests.cards import (
    Card,
    FixedRescale,
    Layout,
    RescaleTable,
    Sort,
    card_text,
    catalogue,
    find_card,
    generic_card,
    load_card,
    near_names,
    template,
    write_card,
)
from prect.manifests.globs import check_glob, matches
from prect.workspace import check_name

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260"

# Name in the table of sources, count of the paper, region, recipe.
SOURCES = [
    ("BTCV", 24, "abdomen", "abdomen"),
    ("FLARE23", 4000, "abdomen", "abdomen"),
    ("LiTS", None, "abdomen", "abdomen"),
    ("MSD Pancreas", None, "abdomen", "abdomen"),
    ("KiTS", None, "abdomen", "abdomen"),
    ("HealthyCT", None, "abdomen", "abdomen"),
    ("WORD", 120, "abdomen", "abdomen"),
    ("AMOS22", 300, "abdomen", "abdomen"),
    ("DeepLesion", 1618, "mixed", "head-neck"),
    ("PANORAMA", 2238, "abdomen", "abdomen"),
    ("AbdomenAtlas 1.0", 5195, "abdomen", "abdomen"),
    ("TCIA-Covid19", 722, "chest", "chest"),
    ("LUNA16", 843, "chest", "chest"),
    ("STOIC21", 2000, "chest", "chest"),
    ("LIDC-IDRI", 1018, "chest", "chest"),
    ("MELA", 770, "chest", "chest"),
    ("StonyBrook COVID-19-NY-SBU", 2316, "chest", "chest"),
    ("CT-RATE", 47149, "chest", "chest"),
    ("NLST", 84830, "chest", "chest"),
    ("HNSCC", 1071, "head-neck", "head-neck"),
    ("OPC-Radiomics", 606, "head-neck", "head-neck"),
    ("HeadNeckCT (Head-Neck-PET-CT)", 504, "head-neck", "head-neck"),
    ("QIN-HEADNECK", 892, "head-neck", "head-neck"),
    ("TCGA-HNSC", 1274, "head-neck", "head-neck"),
    ("TotalSegmentator", 1203, "mixed", "head-neck"),
    ("CT Colonography", 1730, "abdomen", "head-neck"),
]
# Name in the table of the distributed tree, its folder, files of the folder, count of its lists.
TREE = [
    ("BTCV", "BTCV", ["imagesTr/img0001.nii.gz"], 30),
    ("FLARE22", "Flare22", ["imagesTr/FLARE22_Tr_0001_0000.nii.gz"], None),
    ("FLARE23", "Flare23", ["imagesTr2200/1-500/FLARE23_0001_0000.nii.gz"], 4000),
    ("AMOS22", "Amos2022", ["imagesTr/amos_0001.nii.gz", "imagesVa/amos_0500.nii.gz"], None),
    ("WORD", "WORD", [f"images{split}/word_0002.nii.gz" for split in ("Tr", "Val", "Ts")], 150),
    (
        "DeepLesion (ULS23)",
        "DeepLesion",
        ["ULS23_DeepLesion3D/images/000010_02_02_100_lesion_01.nii.gz"],
        1618,
    ),
    ("PANORAMA", "PANORAMA", ["images/100000_00001_0000.nii.gz"], 2229),
    ("AbdomenAtlas", "AbdomenAtlasMini1.0", ["BDMAP_00000001/ct.nii.gz"], 5194),
    ("LiTS", "Dataset003_Liver", ["imagesTr/liver_114_0000.nii.gz"], 201),
    ("MSD Pancreas", "Dataset007_Pancreas", ["imagesTr/pancreas_290_0000.nii.gz"], 420),
    ("KiTS23", "Dataset220_KiTS2023", ["imagesTr/case_00000_0000.nii.gz"], 489),
    (
        "HealthyCT",
        "HealthyCT/healthy_ct",
        [
            "CT/kidney_ct/0.nii.gz",
            "CT/04_LiTS/img/liver_1.nii.gz",
            "CT/02_TCIA_Pancreas-CT/img/PANCREAS_0001.nii.gz",
        ],
        340,
    ),
    ("LUNA16", "Luna16-jx", [f"subset_0/{UID}.nii.gz"], 888),
    ("TCIA-Covid19", "TCIAcovid19", ["data/volume-covid19-A-0269.nii.gz"], 771),
    ("STOIC21", "stoic21", ["nii_gz/9994.nii.gz"], 2000),
    ("LIDC-IDRI", "LIDC_convert_v1", ["00002.nii.gz"], 589),
    ("StonyBrook", "StonyBrookChestCT_v1", ["00001.nii.gz"], 2316),
    ("MELA", "MELA", ["mela_0001.nii.gz"], 770),
    ("CT-RATE", "CT-RATE/dataset/train", ["train_1/train_1_a/train_1_a_1.nii.gz"], None),
    ("NLST", "NLST_convert_v1", ["0.nii.gz", "84829.nii.gz"], None),
    ("HNSCC", "HNSCC_convert_v1", ["00001.nii.gz"], 1071),
    ("QIN-HEADNECK", "QIN_convert_v1", ["00000.nii.gz"], 892),
    ("HeadNeckCT", "HNPC_convert_v1", ["00000.nii.gz"], 384),
    ("TCGA-HNSC", "TCGA-HNSC_convert_v1", ["00012.nii.gz"], 762),
    ("OPC-Radiomics", None, ["00000.nii.gz"], 606),
    ("TotalSegmentator", "Totalsegmentator_dataset", ["s1405/ct.nii.gz"], 1203),
    ("CT Colonography", "CT_COLONOGRAPHY_converted_v1", ["00000.nii.gz"], 1730),
]
BENCHMARKS = {"BTCV", "WORD", "AMOS22", "TotalSegmentator"}
APPROVED_FIRST = {"WORD", "NLST", "CT-RATE"}


def card_of(name: str) -> Card:
    card = find_card(name)
    assert card is not None, name
    return card


def squeezed(name: str) -> str:
    return re.sub(r"\W|_", "", name).casefold()


def labels_of(image: str) -> list[str]:
    """Where the label maps of an image usually lie."""
    folder, _, file = image.rpartition("/")
    stem = file.removesuffix(".nii.gz").removesuffix("_0000")
    return [
        f"labels/{file}",
        f"labelsTr/{stem}.nii.gz",
        f"{folder}/label/{file}".lstrip("/"),
        f"{folder}/segmentations/liver.nii.gz".lstrip("/"),
        f"{folder}/{stem}_seg.nii.gz".lstrip("/"),
        *(
            f"{folder.replace(word, 'labels')}/{file}"
            for word in ("images", "img")
            if word in folder
        ),
    ]


@pytest.mark.parametrize(("name", "paper", "region", "recipe"), SOURCES)
def test_every_source_has_a_card(name: str, paper: int | None, region: str, recipe: str) -> None:
    card = card_of(name)
    assert (card.volumes.paper, card.region, card.recipe) == (paper, region, recipe)
    assert card.benchmark == (card.name in BENCHMARKS)
    assert card.title
    assert card.download
    assert card.format != "any"
    assert card.licence.name
    assert card.precedence < generic_card("x").precedence
    if card.name in APPROVED_FIRST:
        assert card.licence.approval


@pytest.mark.parametrize(("name", "folder", "images", "listed"), TREE)
def test_the_distributed_tree_is_known(
    name: str, folder: str | None, images: list[str], listed: int | None, tmp_path: Path
) -> None:
    card = card_of(name)
    assert card.volumes.listed == listed
    assert card.expected == (listed if listed is not None else card.volumes.paper)
    assert card.prect160k is not None
    assert card.prect160k.folders == (() if folder is None else (folder,))
    for image in images:
        assert card.prect160k.takes(image), image
        assert card.sort_of(image) is Sort.IMAGE, image
        for label in labels_of(image):
            assert card.sort_of(label) in (Sort.LABEL, Sort.UNLISTED), label
        assert card.sort_of(f"cache/{image}") is Sort.UNLISTED
    assert card.folder_under(tmp_path) is None
    if folder is not None:
        (tmp_path / folder).mkdir(parents=True)
        assert card.folder_under(tmp_path) == tmp_path / folder


def test_the_catalogue_is_in_the_order_of_the_sources() -> None:
    names = [card.name for card in catalogue()]
    assert len(names) == len(set(names)) == 27
    order = [card_of(name).name for name, *_ in SOURCES]
    assert [name for name in names if name in order] == order
    assert set(names) == {card_of(name).name for name, *_ in (*SOURCES, *TREE)}


def test_names_and_folders_are_told_apart() -> None:
    for card in catalogue():
        check_name(card.name, "dataset")
        for spelling in (card.name, card.name.lower(), *card.aliases):
            assert card_of(spelling) is card, spelling
    keys = Counter(
        key for card in catalogue() for key in {squeezed(n) for n in (card.name, *card.aliases)}
    )
    assert max(keys.values()) == 1
    folders = [
        Path(folder)
        for card in catalogue()
        for folder in {folder for layout in card.layouts for folder in layout.folders}
    ]
    assert len(folders) == len(set(folders))
    assert not any(one in other.parents for one in folders for other in folders)
    assert not any("cache" in folder.parts for folder in folders)


def test_copies_are_ranked() -> None:
    for card in catalogue():
        for name in card.overlaps:
            other = card_of(name)
            assert other.name == name
            assert card.name in other.overlaps
            assert card.precedence != other.precedence
    rank = {card.name: card.precedence for card in catalogue()}
    assert rank["LIDC-IDRI"] < rank["LUNA16"]
    originals = ["BTCV", "LiTS", "KiTS23", "MSD-Pancreas", "AMOS22", "WORD", "TotalSegmentator"]
    derived = ["AbdomenAtlas", "FLARE22", "FLARE23", "HealthyCT", "DeepLesion"]
    assert max(rank[name] for name in originals) < min(rank[name] for name in derived)
    assert {card.name for card in catalogue() if card.one_per_study} == {"NLST", "StonyBrook"}


def test_nothing_unsure_is_called_verified() -> None:
    for card in catalogue():
        assert card.homepage.url is None or card.homepage.url.startswith(("http://", "https://"))
        assert not (card.homepage.verified and card.homepage.url is None)
        assert not (card.licence.verified and card.licence.name == "unknown")


@pytest.mark.parametrize(
    ("number", "sort"),
    [
        ("0001", Sort.IMAGE),
        ("0499", Sort.IMAGE),
        ("0500", Sort.IMAGE),
        ("0501", Sort.EXCLUDED),
        ("0510", Sort.EXCLUDED),
        ("0600", Sort.EXCLUDED),
        ("0999", Sort.EXCLUDED),
        ("1000", Sort.EXCLUDED),
    ],
)
def test_magnetic_resonance_of_amos_is_left_out(number: str, sort: Sort) -> None:
    card = card_of("AMOS22")
    for folder in ("imagesTr", "imagesVa", "imagesTs"):
        path = f"{folder}/amos_{number}.nii.gz"
        assert card.sort_of(path) is sort
        rule = card.exclusion(path)
        assert (rule is not None and "magnetic" in rule.reason) == (sort is Sort.EXCLUDED)
    assert card.sort_of(f"labelsTr/amos_{number}.nii.gz") is Sort.LABEL


@pytest.mark.parametrize(
    ("name", "path", "patient"),
    [
        ("TotalSegmentator", "s1405/ct.nii.gz", "s1405"),
        ("CT-RATE", "train_1/train_1_a/train_1_a_2.nii.gz", "train_1"),
        ("PANORAMA", "images/100000_00001_0000.nii.gz", "100000"),
        ("DeepLesion", "ULS23_DeepLesion3D/images/000010_02_02_100_lesion_01.nii.gz", "000010"),
        ("DeepLesion", "Images_nifti/000010_02_02_088-112.nii.gz", "000010"),
        ("TCIA-Covid19", "data/volume-covid19-A-0269.nii.gz", "A-0269"),
        ("AbdomenAtlas", "BDMAP_00000001/ct.nii.gz", "BDMAP_00000001"),
        ("STOIC21", "data/mha/9994.mha", "9994"),
        ("STOIC21", "nii_gz/9994.nii.gz", "9994"),
        ("MSD-Pancreas", "imagesTr/pancreas_290.nii.gz", "pancreas_290"),
        ("MSD-Pancreas", "imagesTr/pancreas_290_0000.nii.gz", "pancreas_290"),
        ("LiTS", "test-volume-1.nii", "test-volume-1"),
        ("LiTS", "Training Batch 1/volume-1.nii", "volume-1"),
        ("KiTS23", "case_00000/imaging.nii.gz", "case_00000"),
        ("AMOS22", "imagesVa/amos_0008.nii.gz", "amos_0008"),
        ("FLARE23", "imagesTr2200/1-500/FLARE23_0001_0000.nii.gz", "FLARE23_0001"),
        ("NLST", "NLST/100002/1-001.dcm", ""),
        ("LIDC-IDRI", "00002.nii.gz", ""),
    ],
)
def test_paths_tell_the_patient(name: str, path: str, patient: str) -> None:
    assert card_of(name).patient_of(path) == patient


def test_file_names_of_luna16_are_the_series_of_lidc() -> None:
    card = card_of("LUNA16")
    assert card.series_of(f"subset_0/{UID}.nii.gz") == UID
    assert card.series_of(f"subset0/{UID}.mhd") == UID
    assert card.series_of("subset0/list.mhd") == ""
    assert card.sort_of(f"subset0/{UID}.mhd") is Sort.IMAGE
    assert card.sort_of(f"seg-lungs-LUNA16/{UID}.mhd") is Sort.LABEL
    assert card_of("LIDC-IDRI").series_of(f"{UID}.nii.gz") == ""


@pytest.mark.parametrize(
    ("name", "path", "sort"),
    [
        ("LIDC-IDRI", "LIDC-IDRI-0001/01-01-2000/3000566/1-001.dcm", Sort.IMAGE),
        ("LIDC-IDRI", "LIDC-IDRI-0001/01-01-2000/3000566/", Sort.IMAGE),
        ("LIDC-IDRI", "LIDC-IDRI-0001/nodule.nii.gz", Sort.UNLISTED),
        ("TCIA-Covid19", "series/1-001", Sort.IMAGE),
        ("BTCV", "Training/img/img0001.nii.gz", Sort.IMAGE),
        ("BTCV", "Training/label/label0001.nii.gz", Sort.LABEL),
        ("BTCV", "Testing/img/img0061.nii.gz", Sort.UNLISTED),
        ("BTCV", "imagesTr/series/1-001.dcm", Sort.UNLISTED),
        ("LiTS", "Training Batch 2/volume-28.nii", Sort.IMAGE),
        ("LiTS", "Training Batch 2/segmentation-28.nii", Sort.LABEL),
        ("KiTS23", "case_00000/imaging.nii.gz", Sort.IMAGE),
        ("KiTS23", "case_00000/segmentation.nii.gz", Sort.LABEL),
        ("TotalSegmentator", "s0011/segmentations/liver.nii.gz", Sort.LABEL),
        ("AbdomenAtlas", "BDMAP_00000001/combined_labels.nii.gz", Sort.LABEL),
        ("FLARE23", "labelsTr2200/FLARE23_0001.nii.gz", Sort.LABEL),
        ("FLARE23", "validation/FLARE23Ts_0001_0000.nii.gz", Sort.UNLISTED),
        ("PANORAMA", "panorama_labels/100000_00001.nii.gz", Sort.LABEL),
        ("HealthyCT", "CT/04_LiTS/label/liver_1.nii.gz", Sort.LABEL),
        ("STOIC21", "data/mha/9994.mha", Sort.IMAGE),
    ],
)
def test_originals_are_known(name: str, path: str, sort: Sort) -> None:
    assert card_of(name).sort_of(path) is sort


def test_pinned_facts() -> None:
    assert card_of("LiTS").limits.unit_spacing == "reject"
    rate = card_of("CT-RATE")
    assert rate.version == "v2"
    assert rate.rescale is None
    own = rate.notes[rate.notes.index("  version: v1") : rate.notes.index("The names")]
    table = Card.model_validate({"name": "CT-RATE-v1"} | yaml.safe_load(own)).rescale
    assert isinstance(table, RescaleTable)
    assert table.slope == "RescaleSlope"
    assert card_of("OPC-Radiomics").notes
    assert near_names("FLAER23")[0] == "FLARE23"
    assert near_names("nothing like it at all") == []
    assert find_card("nothing like it at all") is None
    assert find_card("") is None


def test_expected_counts() -> None:
    lidc = card_of("LIDC-IDRI")
    assert lidc.is_expected(589)
    assert lidc.is_expected(1018)
    assert not lidc.is_expected(600)
    assert generic_card("x").is_expected(7)


def test_a_generic_card_takes_everything() -> None:
    card = generic_card("mine")
    for path in ("a.nii.gz", "labels/a_seg.nii.gz", "x/y/", "./", "IM0001", "b.nrrd"):
        assert card.sort_of(path) is Sort.IMAGE
    assert card.takes_dicom
    assert card.patient_of("a.nii.gz") == card.series_of("a.nii.gz") == ""
    with pytest.raises(WorkspaceError, match="cannot be used"):
        generic_card("../up")


def test_the_digest_follows_what_changes_a_judgement() -> None:
    card = card_of("BTCV")
    same = {"title": "another", "precedence": 3, "notes": "n", "benchmark": False}
    assert card.model_copy(update=same).digest_of_rules == card.digest_of_rules
    moved = card.original.model_copy(update={"folders": ("elsewhere",)})
    assert card.model_copy(update={"original": moved}).digest_of_rules == card.digest_of_rules
    digests = {card.digest_of_rules}
    for update in (
        {"limits": card.limits.model_copy(update={"min_voxels": 17})},
        {"rescale": FixedRescale(intercept=-1024, reason="r")},
        {"rescale": FixedRescale(intercept=-1000, reason="r")},
        {"patient": "(?P<patient>a)"},
        {"series": "(?P<series>a)"},
        {"original": Layout()},
        {"prect160k": None},
        {"excluded": card_of("AMOS22").excluded},
    ):
        digests.add(card.model_copy(update=update).digest_of_rules)
    assert len(digests) == 9
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)


@pytest.mark.parametrize("card", [*catalogue(), generic_card("x")], ids=lambda card: str(card.name))
def test_a_card_survives_being_written(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "manifests" / "card.yaml"
    write_card(path, card)
    again = load_card(path)
    assert again == card
    assert again.digest_of_rules == card.digest_of_rules
    assert pickle.loads(pickle.dumps(card)) == card
    assert list(yaml.safe_load(path.read_text("utf-8"))) == list(Card.model_fields)


# YAML takes the line ends of Unicode for its own; they are to be met often.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x85\u2028\u2029\n\r \t:#-'\""),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@example(text="a\x85b", version="1.0")
@example(text="a\u2028b\nc", version="1.0")
@example(text="\u2029", version="1.0")
@given(text=TEXT, version=st.sampled_from(["1.0", "2", "no", "null", "1e3", "0x1", "12:30", "~"]))
def test_any_text_survives_being_written(text: str, version: str) -> None:
    card = Card(name="x", title=text, notes=f"{text}\n{text}", version=version, aliases=(text,))
    assert Card.model_validate(yaml.safe_load(card_text(card))) == card


def test_a_card_whose_text_holds_every_line_end_survives_its_file(tmp_path: Path) -> None:
    text = "one\ntwo\x85three\u2028four\u2029 five\r\nsix"
    card = Card(name="x", title=text, notes=text, aliases=(text, "plain"))
    path = tmp_path / "card.yaml"
    write_card(path, card)
    assert load_card(path) == card
    assert load_card(path).notes == text


def test_the_template_loads_as_it_stands(tmp_path: Path) -> None:
    for name in ("mine", "2", "no", "1e3", "null"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(template(name))
        assert load_card(path) == Card(name=name, title=name)
    keys = set(yaml.safe_load(template("x")))
    assert keys == set(Card.model_fields)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        template("a/b")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("name: a\nlimit: {}\n", ["line 2", "limit: unknown key", "did you mean limits?"]),
        ("name: a\nlimits:\n  min_voxel: 3\n", ["line 3", "did you mean limits.min_voxels?"]),
        ("name: a\nmin_voxels: 3\n", ["line 2", "did you mean limits.min_voxels?"]),
        (
            "name: a\nvolumes: {paper: -1}\n",
            ["volumes.paper", "greater than or equal to 0, not -1"],
        ),
        ("title: a\n", ["name: the key is missing"]),
        ("name: a b\n", ["line 1, name", "'a b' cannot be used"]),
        ("name: a\nversion: 1.0\n", ["line 2, version: must be text, not 1.0; write it in quotes"]),
        ("name: a\nregion: no\n", ["region: must be text, not False; write it in quotes"]),
        ("name: a\naliases: b\n", ["aliases: must be a list, not 'b'; write [\"b\"]"]),
        ("name: a\nlimits:\n", ["limits: must hold keys and values"]),
        (
            "name: a\nlimits: {min_spacing_mm: 30}\n",
            ["min_spacing_mm must lie below max_spacing_mm"],
        ),
        ("name: a\nname: b\n", ["line 2: the key 'name' stands twice"]),
        ("name: a\nlimits: {min_voxels: 1, min_voxels: 2}\n", ["line 2", "stands twice"]),
        ("name: [a\n", ["line 2"]),
        ("name: a\nreleased: 2024-13-45\n", ["is not YAML"]),
        ("- name\n", ["must hold keys and values"]),
        ("", ["must hold keys and values"]),
        ("name: a\nrecipe: brain\n", ["recipe", "'abdomen', 'chest' or 'head-neck', not 'brain'"]),
        ("name: a\npatient: '(?P<pat>x)'\n", ["line 2, patient", "lacks the group (?P<patient>"]),
        ("name: a\nseries: '(['\n", ["line 2, series", "is no regular expression"]),
        ("name: a\noriginal: {images: ['**/a']}\n", ["original.images.0", "is no pattern"]),
        ("name: a\noriginal: {images: ['/a']}\n", ["is no pattern"]),
        ("name: a\noriginal: {images: ['../a']}\n", ["is no pattern"]),
        ("name: a\noriginal: {images: ['[z-a]']}\n", ["its brackets hold no set"]),
        ("name: a\noriginal: {folders: [../b]}\n", ["original.folders.0", "below --root"]),
        ("name: a\noriginal: {folders: [x/cache]}\n", ["hold pickles"]),
        (
            "name: a\nexcluded:\n- match: a\n  reson: b\n",
            ["line 4, excluded.0.reson", "mean exclu"],
        ),
        ("name: a\nrescale: {slope: 0, reason: r}\n", ["rescale.slope", "a slope of 0"]),
        ("name: a\nrescale: {slop: 1, reason: r}\n", ["did you mean rescale.slope?"]),
        (
            "name: a\nrescale: {table: t, key: k, reason: r}\n",
            ["rescale.slope: the key is missing"],
        ),
        ("name: a\nlimits: {max_gap_mm: .nan}\n", ["limits.max_gap_mm"]),
        ("name: a\noverlaps: [a]\n", ["cannot overlap itself"]),
    ],
)
def test_a_wrong_card_is_told_what_is_wrong(
    text: str, sentences: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_card(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for sentence in sentences:
        assert sentence in message


def test_a_file_that_is_no_card_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_card(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_card(tmp_path / "latin.yaml")
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="line 1"):
        load_card(tmp_path / "code.yaml")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.nii.gz", "a/b/c.nii.gz", True),
        ("b/*.nii.gz", "a/b/c.nii.gz", True),
        ("a/*.nii.gz", "a/b/c.nii.gz", False),
        ("b/c*", "xb/c.nii.gz", False),
        ("c.nii", "c.nii.gz", False),
        ("[0-9]?.nii", "12.nii", True),
        ("[!0-9]*.nii", "1.nii", False),
        ("[!a]b", "x/b", False),
        ("a.b", "axb", False),
        ("a(1)+[.nii", "a(1)+[.nii", True),
    ],
)
def test_patterns_hold_from_the_right(pattern: str, path: str, expected: bool) -> None:
    assert matches((check_glob(pattern),), path) is expected


def test_a_folder_far_above_does_not_make_an_image_a_label() -> None:
    card = find_card("MSD Pancreas")
    assert card is not None
    path = "Medical_Segmentation_Decathlon/Task07_Pancreas/imagesTr/pancreas_001.nii.gz"
    assert card.sort_of(path) is Sort.IMAGE
    assert card.sort_of(path.replace("imagesTr", "labelsTr")) is Sort.LABEL
    assert card.sort_of(path.replace("001", "001_seg")) is Sort.LABEL
