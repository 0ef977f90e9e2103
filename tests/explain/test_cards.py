"""docs/cards is what the registry, the recipes and the measured tables say."""

import re

from lit_opt.commands.generate_cards import CHECKOUT, cards, main
from lit_opt.optim import get_row, list_optimizers
from lit_opt.recipes import get_recipe, list_recipes

FOLDER = CHECKOUT / "docs" / "cards"
PAGES = cards()


def test_the_committed_cards_are_those_that_are_generated():
    committed = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("*.md")}
    assert sorted(committed) == sorted(PAGES)
    old = [name for name, text in PAGES.items() if committed[name] != text]
    assert old == [], "`make cards` writes them"


def test_every_optimizer_and_recipe_has_one():
    wanted = {f"optimizers/{name}.md" for name in list_optimizers()}
    wanted |= {f"recipes/{name.replace('/', '-')}.md" for name in list_recipes()}
    assert set(PAGES) == wanted | {"optimizers/index.md", "recipes/index.md"}


def test_every_value_stands_there_with_its_source():
    for name in list_recipes():
        page = PAGES[f"recipes/{name.replace('/', '-')}.md"].replace("\\|", "|")
        assert [path for path, v in get_recipe(name).items() if v.source.replace("\n", " ") not in page] == [], name
    for name in list_optimizers():
        page, row = PAGES[f"optimizers/{name}.md"].replace("\\|", "|"), get_row(name)
        assert row.rule in page and row.source in page and row.evidence in page
        assert all(f"`{key}`" in page for key in row.hyperparameters)


def test_known_lines():
    assert "8 bytes a parameter" in PAGES["optimizers/adamw.md"]
    assert "0 bytes a parameter" in PAGES["optimizers/natural_gradient.md"]
    assert "**FSDP1, ZeRO1, ZeRO2, ZeRO3**: muon orthogonalises" in PAGES["optimizers/muon.md"]
    assert "| FSDP2 | no (1) |" in PAGES["optimizers/kfac.md"] and "\n1. It needs layers" in PAGES["optimizers/kfac.md"]
    assert "None of ours." in PAGES["optimizers/onebit_adam.md"]
    assert "llm/muon | val_bpb |" in PAGES["recipes/llm-muon.md"]
    assert "| FSDP1 | refused |" in PAGES["recipes/llm-muon.md"] and "(FSDP1)" not in PAGES["recipes/llm-muon.md"]


def test_links_lead_to_files():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path = (FOLDER / name).parent / target
            here = path.resolve()
            known = here.is_relative_to(FOLDER) and here.relative_to(FOLDER).as_posix() in PAGES
            assert known or here.is_file(), f"{name}: {target}"


def test_what_nothing_stands_behind_is_removed(tmp_path):
    for name in ("docs/methods.md", "benchmarks/results/recipe_vs_default.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((CHECKOUT / name).read_text())
    (tmp_path / "docs/cards/recipes").mkdir(parents=True)
    (tmp_path / "docs/cards/recipes/gone.md").write_text("")
    assert main(tmp_path) == 0
    written = {path.relative_to(tmp_path / "docs/cards").as_posix() for path in tmp_path.glob("docs/cards/*/*.md")}
    assert written == set(PAGES)
