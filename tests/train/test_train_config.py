"""Configuration: layers, overrides, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prect.errors import ConfigError
from prect.manifests.cards import catalogue
from prect.train.architectures import NETWORKS
from prect.train.config import load_config, parse_config, presets
from prect.train.recipes import recipe
from prect.train.schedule import learning_rate


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid(name: str) -> None:
    config = load_config(name)
    assert config.run.name == name


def test_published_settings_of_voco_b() -> None:
    config = load_config("voco-b")
    assert config.network.feature_size == 48
    assert config.objective.projector_width == 1024
    assert (config.optim.lr, config.optim.weight_decay, config.optim.amsgrad) == (1e-4, 0.01, True)
    assert config.optim.warmup_steps == 5000
    assert (config.crops.bases, config.crops.random, config.crops.size) == (9, 2, (64, 64, 64))


def test_layers_override_each_other(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.5\n[run]\nseed = 9\n")
    config = load_config(
        "demo", file, ["data.datasets=['a', \"b\"]", "run.name=mine", "run.seed=11"]
    )
    assert config.optim.lr == 0.5
    assert config.optim.warmup_steps == load_config("demo").optim.warmup_steps
    assert config.data.datasets == ("a", "b")
    assert (config.run.name, config.run.seed) == ("mine", 11)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("view.grid=[96, 96, 64]", (96, 96, 64)),
        ("view.window=[-1000, 500.5]", (-1000.0, 500.5)),
    ],
)
def test_override_values_are_toml(override: str, value: object) -> None:
    view = load_config("demo", overrides=[override]).view
    assert value in (view.grid, view.window)


def test_config_of_a_run_can_be_given_again(tmp_path: Path) -> None:
    config = load_config("tiny", overrides=["run.seed=4"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(file=file) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.datsets=['x']", r"data\.datsets: unknown setting; did you mean data\.datasets\?"),
        ("optimm.lr=1", r"optimm: unknown setting; did you mean optim\?"),
        ("train.lr=1", r"train\.lr: unknown setting; did you mean optim\.lr\?"),
        ("optim.lr=fast", r"optim\.lr: .*number"),
        ("optim.lr=-1", r"optim\.lr: .*greater than 0"),
        ("optim.lr", "section.key=value"),
        ("optim=3", "optim: "),
        ("run=3", "run: "),
        ("run.seed.x=3", r"run\.seed: "),
        ("view.grid=[64, 72, 24]", "3 bases of 24 voxels need 72 along x, view.grid has 64"),
        ("crops.margin=[0, 40, 0]", "no room along y"),
        ("crops.size=[24, 24, 20]", "multiples of 8"),
        ("view.kind=box", "spacing"),
        ("view.window=[250, -175]", "must rise"),
        ("crops.base_grid=[1, 1, 1]", "two bases at least"),
    ],
)
def test_bad_settings_are_refused_by_their_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo", overrides=[override])


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean voco-b"):
        load_config("voco_b")


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file=tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("= 3")
    with pytest.raises(ConfigError, match="is not valid"):
        load_config(file=bad)


def test_configuration_is_frozen_and_complete() -> None:
    config = load_config("demo")
    assert parse_config(config.model_dump(mode="json")) == config
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 3


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    optim = load_config("voco-b").optim
    rates = [learning_rate(step, optim) for step in (0, 2499, 4999, 5000, 127_500, 249_999)]
    assert rates == pytest.approx([2e-8, 5e-5, 1e-4, 1e-4, 5e-5, 0], abs=1e-9)


def test_voco_b_shows_what_its_recipe_says() -> None:
    config, shown = load_config("voco-b"), recipe("v2-global")
    assert (config.view, config.crops, config.augment) == (shown.view, shown.crops, shown.augment)


def test_recipe_replaces_sections_and_leaves_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "v2-chest"\n[view]\nalign = true\n[optim]\nlr = 0.5\n')
    config = load_config("voco-b", file, ["view.foreground=0.2"])
    chest = recipe("v2-chest").view
    assert config.view == chest.model_copy(update={"align": True, "foreground": 0.2})
    assert config.optim.lr == 0.5
    assert config.optim.warmup_steps == 5000
    # What is set beside a recipe holds, wherever the recipe stands.
    sets = ["view.align=true", "recipe=v2-abdomen"]
    for overrides in (sets, sets[::-1]):
        view = load_config("voco-b", file, overrides).view
        assert view == recipe("v2-abdomen").view.model_copy(update={"align": True})


def test_file_may_begin_from_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "voco-b"\n[optim]\nlr = 0.5\n')
    config, base = load_config(file=file), load_config("voco-b")
    assert config.run.name == "mine"
    assert config.network == base.network
    assert config.optim == base.optim.model_copy(update={"lr": 0.5})


def test_mix_of_version_2_knows_every_data_set_of_the_catalogue() -> None:
    config = load_config("voco-b-mix")
    named = {"abdomen": ("v2-abdomen", 8), "head-neck": ("v2-global", 8), "chest": ("v2-chest", 1)}
    cards = {card.name: card.recipe for card in catalogue() if card.recipe}
    assert set(config.data.recipes) == set(cards)
    for name, card_recipe in cards.items():
        shown, weight = named[card_recipe]
        assert config.data.recipes[name] == shown
        assert config.data.weights.get(name, 1) == weight


def test_preset_keeps_what_it_says_of_the_data_sets_in_use() -> None:
    sets = ["data.datasets=['BTCV', 'LUNA16', 'mine']"]
    config = load_config("voco-b-mix", overrides=sets)
    assert config.data.weights == {"BTCV": 8}
    assert config.data.recipes == {"BTCV": "v2-abdomen", "LUNA16": "v2-chest"}
    assert config.view_of("BTCV").spacing == (1.5, 1.5, 1.5)
    assert config.view_of("mine") == config.view
    with pytest.raises(ConfigError, match=r"data\.weights names LUNA, .*did you mean LUNA16"):
        load_config("voco-b-mix", overrides=[*sets, "data.weights.LUNA=2"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=v2-chst"], r"recipe 'v2-chst' does not exist.*did you mean v2-chest"),
        (["recipe=3"], "recipe: must be the name of a recipe, not 3"),
        (["data.recipes.a=v2-abdomn"], "did you mean v2-abdomen"),
        (["data.recipes.a=v1"], r"data\.recipes\.a: the grid of v1 is \(384, 384, 96\)"),
        (["recipe=patch", "data.recipes.a=patches"], r"view\.patches 4, the run has 1"),
        (
            ["recipe=v2-abdomen", "view.patches=2", "data.recipes.a=v2-global"],
            "whole volumes, which have one place only",
        ),
        (["data.weights.a=0"], r"data\.weights\.a: .*greater than 0"),
        (["data.datasets=['a']", "data.weights.b=2"], r"data\.weights names b, which"),
        (["view.align=true"], "kind 'whole' has align"),
        (["view.foreground=0.5"], "kind 'whole' has foreground"),
        (["view.patches=2", "view.align=true"], "kind 'whole' has align or patches"),
        (["view.foreground=1.5"], r"view\.foreground: .*less than or equal to 1"),
        (["crops.resize=[60, 64, 64]"], r"crops of .60, 64, 64. voxels .*multiples of 32"),
        (["data.prefetch_mib=0"], r"data\.prefetch_mib: "),
        (["data.max_damaged=1.1"], r"data\.max_damaged: "),
        (["data.on_damage=skip"], r"data\.on_damage: .*quarantine"),
    ],
)
def test_bad_sources_and_views_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("voco-b", overrides=overrides)


def test_network_by_name(tmp_path: Path) -> None:
    assert load_config("voco-b", overrides=["network=voco-l"]).network == NETWORKS["voco-l"]
    file = tmp_path / "mine.toml"
    file.write_text('preset = "voco-b"\nnetwork = "voco-h"\n[optim]\nlr = 0.5\n')
    assert load_config(file=file).network == NETWORKS["voco-h"]
    # What is set beside a name refines it, wherever the name stands; so does a later layer.
    refined = NETWORKS["voco-l"].model_copy(update={"crops_at_once": 2})
    sets = ["network=voco-l", "network.crops_at_once=2"]
    for overrides in (sets, sets[::-1], ["network.name=voco-l", sets[1]]):
        assert load_config("voco-b", file, overrides).network == refined
    file.write_text('[network]\nname = "voco-l"\ncrops_at_once = 2\n')
    assert load_config("tiny", file).network == refined
    assert load_config("tiny", file, ["network=tiny"]).network == NETWORKS["tiny"]


@pytest.mark.parametrize("size", ["l", "h"])
def test_larger_presets_are_voco_b_with_another_network(size: str) -> None:
    config, base = load_config(f"voco-{size}"), load_config("voco-b")
    assert config.network == NETWORKS[f"voco-{size}"]
    assert config.network.checkpointing
    assert config.train.precision == "auto"
    same = ("view", "crops", "augment", "objective", "optim")
    assert all(getattr(config, section) == getattr(base, section) for section in same)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=voco-x", r"network 'voco-x' does not exist; there are .*; did you mean voco-"),
        ("network=vocol", "did you mean voco-l"),
        ("network.name=tny", "did you mean tiny"),
        ("network=swin_unetr", "'swin_unetr' does not exist; there are voco-b"),
        ("network=3", "network: "),
        ("network.weights=3", r"network\.weights: "),
        ("network.crops_at_once=-1", r"network\.crops_at_once: "),
    ],
)
def test_bad_networks_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("voco-b", overrides=[override])
