"""`tpp`: variants, probes, the effect formula, the injection control and bad tables."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.ablation import Ablation
from saebench_recovery.tasks import tpp
from saebench_recovery.tasks.tpp import TargetedProbe
from scipy.optimize import minimize
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.registry import create
from saebench_recovery.schema import Row
from saebench_recovery.scoring.check.task_examples import Splits, check_examples
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.side_effects import side_effects
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.selection.probes import PENALTY, logistic
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.organism import world
from tests.journal import score
from tests.tiny import SITES, shared_target, tiny_target

SITE = Site.parse(SITES[0])
CLASSES = ("abc", "def", "ghi", "jkl")  # each with letters of its own


def rows(count: int = 60) -> list[dict[str, str]]:
    drawn = random.Random(0)
    return [
        {"text": "".join(drawn.choices(label + " xyz", k=drawn.randint(10, 30))), "label": label}
        for label in CLASSES
        for _ in range(count)
    ]


def table(folder: Path, lines: Sequence[dict[str, str]]) -> str:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return table(tmp_path_factory.mktemp("tpp"), rows())


def variants(data: str, **settings: Any) -> list[TargetedProbe]:
    made = create("task", "tpp", {"data": data, "texts": 16, "selection_texts": 24, **settings})
    assert isinstance(made, TargetedProbe)
    return [v for v in made.variants() if isinstance(v, TargetedProbe)]


def fitted(data: str, **settings: Any) -> TargetedProbe:
    first = variants(data, **settings)[0]
    first.fit(shared_target("gpt2"), SITE)
    return first


def run(task: TargetedProbe, active: DefendedModel, examples: Sequence[Example]) -> Output:
    (output,) = outputs(examples, active, task)
    return output


def ablated(task: TargetedProbe, latents: int = 4) -> Setting:
    target = shared_target("gpt2")
    defense = Ablation(Ablation.Config(latents=latents, site=SITES[0]))
    defense.fit(target, task)
    return Setting(target, task, defense, Orthogonal(), RunSpec())


def test_one_variant_per_class(data: str) -> None:
    made = variants(data)
    assert [v.label for v in made] == [f"tpp/{label}" for label in CLASSES]
    assert len(variants(data, label="def")) == 1
    professions = [f"tpp/{p}" for p in world.load("biographies")["professions"]]
    assert [v.label for v in variants("biographies")] == professions


def test_variants_share_their_probes(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(tpp, "fit_probes", lambda *given: fits.append(given))
    for variant in variants(data):
        variant.fit(shared_target("gpt2"), SITE)
    assert len(fits) == 1
    variant.fit(shared_target("gpt2"), Site.parse(SITES[1]))
    assert len(fits) == 2


def test_an_unknown_class_is_refused(data: str) -> None:
    with pytest.raises(UserError, match=r"no class 'dfe'; did you mean 'def'\?"):
        variants(data, label="dfe")


@pytest.mark.parametrize("source", ["table", "biographies"])
def test_splits_share_no_text(data: str, source: str) -> None:
    for variant in variants(data if source == "table" else source):
        selection, evaluation = (variant._texts(s) for s in ("selection", "evaluation"))
        assert list(selection) == list(evaluation)
        chosen, attacked = (
            {value for texts in of.values() for text in texts for value in text if value}
            for of in (selection, evaluation)
        )
        assert not chosen & attacked  # neither texts nor source items
        assert [len(texts) for texts in evaluation.values()] == [16] * len(evaluation)
        assert [len(texts) for texts in selection.values()] == [24] * len(selection)


def test_texts_with_the_same_start_stand_in_one_split(tmp_path: Path) -> None:
    """A context cuts them to the same tokens."""
    start = "a" * 100
    lines = [*rows(20), *({"text": f"{start}{i}", "label": "abc"} for i in range(20))]
    splits = [variants(table(tmp_path, lines))[0]._texts(s) for s in ("selection", "evaluation")]
    assert sum(text.startswith(start) for texts in splits for text, _ in texts["abc"]) == 1


@pytest.mark.parametrize("limit", [32, 64, 136])
def test_biographies_that_say_nearly_the_same_are_one_source_item(limit: int) -> None:
    target = load_target("organism", "cpu")
    made = create("task", "tpp", target.preset.tasks["tpp"].task)
    assert isinstance(made, TargetedProbe)
    for variant in made.variants():
        examples = variant.examples(target, "evaluation")[:limit]
        selection, retain = (variant.examples(target, s) for s in ("selection", "retain"))
        splits: Splits = {"selection": selection, "evaluation": examples, "retain": retain}
        assert list(check_examples(target, variant, splits)) == []
        assert len({example.cluster for example in examples}) < len(examples)


def test_the_probes_read_the_mean_over_content_tokens_and_generalise(data: str) -> None:
    task, target = fitted(data), shared_target("gpt2")
    examples = task.examples(target, "evaluation")
    output = run(task, DefendedModel(target, None), examples)
    model: Any = target.model
    for example, logit in zip(examples, task.objective(output), strict=True):
        ids = torch.tensor([example.prompt])
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        pooled_D = states[SITE.layer + 1][0, 1:].mean(0)
        expected = pooled_D @ task._probes.weight_DK[:, 0] + task._probes.bias_K[0]
        torch.testing.assert_close(logit, expected, atol=1e-4, rtol=1e-4)
    assert task.behaviour(output).float().mean() > 0.8


def test_the_logistic_regression_is_the_optimum() -> None:
    drawn = torch.Generator().manual_seed(0)
    x_ED = torch.randn(40, 3, generator=drawn, dtype=torch.float64) * torch.tensor([1, 100, 0.01])
    class_E = torch.arange(40) % 8 // 6  # six to two
    weight_DK, bias_K = logistic(x_ED, class_E, 2)
    unit_ED = ((x_ED - x_ED.mean(0)) / x_ED.std(0)).numpy()
    truth = class_E.numpy() == 1
    share = torch.where(class_E == 1, 0.5 / truth.sum(), 0.5 / (~truth).sum()).double()

    def loss(given: Any) -> float:
        logit = torch.from_numpy(unit_ED @ given[:3] + given[3])
        sign = torch.from_numpy(2.0 * truth - 1)
        each = torch.nn.functional.softplus(-sign * logit)
        return float(each @ share) + PENALTY / 2 * float(given[:3] @ given[:3])

    best = minimize(loss, [0.0] * 4, method="BFGS", options={"gtol": 1e-8}).x
    expected = unit_ED @ best[:3] + best[3]
    found = (x_ED @ weight_DK + bias_K)[:, 1]
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_the_effect_of_a_latent(data: str) -> None:
    """relu(mean activation difference) times probe weight along the decoder, text by text."""
    task, target = fitted(data), shared_target("gpt2")
    dictionary, model = target.dictionary(SITE), target.model

    def mean(label: str) -> Tensor:
        means = []
        for text, _ in task._texts("selection")[label]:
            ids = torch.tensor([target.encode(text)])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
            means.append(dictionary.encode(states[SITE.layer + 1][0, 1:]).mean(0))
        return torch.stack(means).mean(0)

    gap_M = mean("abc") - torch.stack([mean(label) for label in CLASSES[1:]]).mean(0)
    along_M = dictionary.decoder_MD @ task._probes.weight_DK[:, 0]
    score_M = task.attribution(target, SITE)
    torch.testing.assert_close(score_M, gap_M.relu() * along_M, atol=1e-4, rtol=1e-3)
    assert (score_M > 0).any()


def test_the_perturbed_tokens(data: str) -> None:
    example = fitted(data).examples(shared_target("gpt2"), "evaluation")[0]
    assert fitted(data).positions(example) == tuple(range(1, len(example.prompt)))
    assert fitted(data, positions="readout").positions(example) == (len(example.prompt) - 1,)


def test_the_wrong_class_is_neither_right_nor_shown(data: str) -> None:
    task, target = fitted(data), shared_target("gpt2")
    setting = ablated(task)
    _, flips = valid_flips(setting, task.examples(target, "evaluation"))
    assert flips
    for flip in flips:
        (own,), (wrong,) = flip.example.candidates[0], flip.wrong.candidates[0]
        assert (own, wrong != own) == (0, True)
        assert sorted(flip.wrong.candidates) == sorted(flip.example.candidates)
        defended = run(task, setting.active, [flip.wrong])
        assert task.objective(defended) <= 0
        assert task.objective(defended) == task._logits(defended)[0, wrong]


def test_fidelity_counts_every_probe(data: str) -> None:
    task, target = fitted(data), shared_target("gpt2")
    clean = run(task, DefendedModel(target, None), task.examples(target, "evaluation"))
    assert (task.fidelity(clean, clean) == 1).all()
    probability_EK = task._logits(clean).sigmoid()
    for k in range(len(CLASSES)):
        weight_D = task._probes.weight_DK[:, k]
        assert clean.pooled_ED is not None
        shifted_ED = clean.pooled_ED - 100 * weight_D / weight_D.square().sum()
        moved = Output(clean.examples, clean.scores_EC, pooled_ED=shifted_ED)
        assert (task.fidelity(moved, clean) <= 1 - probability_EK[:, k] + 1e-5).all()


def test_the_tpp_score_is_the_intended_less_the_unintended_drop(data: str) -> None:
    task = fitted(data)
    target, setting = shared_target("gpt2"), ablated(task)
    found = side_effects(setting).figures

    def accuracies(active: DefendedModel) -> list[float]:
        said = torch.stack(
            [
                (task._logits(run(task, active, of_class)) > 0).double().mean(0)
                for of_class in task._examples(target, "evaluation")
            ]
        )
        K = len(CLASSES)
        rest = [[float(said[j, k]) for j in range(K) if j != k] for k in range(K)]
        return [(float(said[k, k]) + 1 - sum(rest[k]) / (K - 1)) / 2 for k in range(K)]

    clean, defended = accuracies(setting.bare), accuracies(setting.active)
    drops = [c - d for c, d in zip(clean, defended, strict=True)]
    assert found["probe_accuracy"] == pytest.approx(clean[0])
    assert found["worst_probe_accuracy"] == pytest.approx(min(clean))
    assert found["tpp_score"] == pytest.approx(drops[0] - sum(drops[1:]) / 3)
    assert found["intended_drop"] == pytest.approx(drops[0])
    assert found["probe_accuracy"] > 0.8


@cache
def scored(data: str) -> Row:
    target = tiny_target("gpt2")
    target.preset.tasks["tpp"] = target.preset.tasks["tiny"]
    defense, attack = Ablation(Ablation.Config(latents=3)), Orthogonal()
    spec = RunSpec(target="organism", defense="ablation", attack="orthogonal", tasks=("tpp",))
    return score(target, variants(data)[0], defense, attack, spec).row


def test_a_row(data: str) -> None:
    row = scored(data)
    assert row.task == "tpp/abc"
    assert row.examples.valid > 5
    assert row.controls.nothing.k == 0
    assert row.recovery.k > 0
    moved = row.drift["perturbed"].linf.max
    assert moved is not None
    assert moved < 1e-4
    assert set(row.figures) == {"probes_as_clean"}
    assert row.side_effects.figures["intended_drop"] > 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": f"t{i}", "label": "a"} for i in range(9)], r"has the labels \['a'\]: tpp needs"),
        ([{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(9)], r"labels \['a', 'b'\]"),
        ([*rows(9), {"text": "t", "label": "z"}], "too few texts with the label 'z'"),
        ([*rows(9), {"text": "", "label": "z"}], "row 37: text: is empty"),
        ([{"text": "t", "class": "z"}], "row 1: no column 'label'"),
    ],
)
def test_bad_tables(tmp_path: Path, lines: list[dict[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        variants(table(tmp_path, lines))
    assert "\n" not in str(caught.value)


def test_a_data_set_with_classes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `LabHC/bias_in_bios`: other column names, numbers for classes, other classes left out."""
    sets = world.load("tpp")
    numbers = {name: number for number, name in sets["bias-in-bios-1"]["classes"].items()}
    lines = [
        {"hard_text": f"{name} {i}", "profession": number}
        for name, number in {**numbers, "nurse": "13"}.items()
        for i in range(30)
    ]
    (tmp_path / "folder").mkdir()
    table(tmp_path / "folder", lines)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    local = {**sets["bias-in-bios-1"], "source": str(tmp_path / "folder")}
    monkeypatch.setattr(world, "load", lambda name: {"bias-in-bios-1": local})
    made = variants("bias-in-bios-1")
    assert [v.config.label for v in made] == sorted(numbers)
    texts = made[0]._texts("evaluation")
    assert all(text.split()[0] == label for label in texts for text, _ in texts[label])
