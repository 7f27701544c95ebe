# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.recipe.config import (
    FSDPConfig,
    MixedPrecisionConfig,
    RegimeSection,
    TrainerSection,
)
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from tests.common import (
    EOS_IDX,
    SEPARATOR_IDX,
    assert_close,
    assert_equal,
    create_tiny_lm,
    create_tiny_model,
    device,
    get_embedding,
)
from tests.number_codec import NumberCodec
from tests.unit.criteria.cases import compute_grads, create_batch
from tests.unit.criteria.cases import create_criterion as create_given_criterion
from tests.unit.criteria.cases import create_sharp_model
from warmup_plugin.composition import register_warmup_plugin
from warmup_plugin.config_values import create_value_converter
from warmup_plugin.criteria import (
    Criterion,
    CriterionContext,
    CriterionSection,
    ObjectiveSection,
    SamplerSection,
    WarmupSection,
    register_criterion,
)
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.setup import (
    create_criterion,
    find_trainer_errors,
    setup_model,
)
from warmup_plugin.criteria.sft import SftCriterion, create_sft_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.scorable import ScorableTransformer, ScorableTransformerLM
from warmup_plugin.objectives import best_loss
from warmup_plugin.sampling.samplers import StochasticBeamSampler
from warmup_plugin.tokenizers.codec import TextCodec

CODEC = NumberCodec(reads_prompts=False)


@dataclass(kw_only=True)
class MineConfig(Validatable):
    weight: float = 1.0

    @override
    def validate(self) -> ValidationResult:
        return ValidationResult()


@dataclass
class Spy:
    """Remembers what the criterion ``mine`` was created with."""

    contexts: list[CriterionContext] = field(default_factory=list)

    configs: list[MineConfig] = field(default_factory=list)

    def __call__(self, context: CriterionContext, config: MineConfig) -> Criterion:
        self.contexts.append(context)

        self.configs.append(config)

        return create_sft_criterion(context)


def create_context(
    model: Module | None = None,
    *,
    criterion: CriterionSection | None = None,
    warmup: WarmupSection | None = None,
    trainer: TrainerSection | None = None,
    reference: Module | None = None,
    has_checkpoint: bool = False,
    spy: Spy | None = None,
    spy_writes_warmups: bool = True,
    **sections: object,
) -> RecipeContext:
    """Creates that of a recipe of somebody else, whose config has these sections."""
    container = DependencyContainer()

    register_warmup_plugin(container)

    register_criterion(
        container, "mine", MineConfig, spy or Spy(), writes_warmups=spy_writes_warmups
    )

    def create_manager(resolver: Any) -> ComponentManager:
        return _StandardComponentManager(resolver, create_value_converter())

    container.register(ComponentManager, create_manager)

    container.register_instance(TrainerSection, trainer or TrainerSection())

    container.register_instance(
        RegimeSection, RegimeSection(publish_metrics_every_n_steps=7)
    )

    container.register_instance(cast(Any, TextCodec), CODEC)

    if reference is not None:
        container.register_instance(Module, reference, key="reference_model")

    config = SimpleNamespace(
        criterion=criterion or CriterionSection(name="warmup"),
        warmup=warmup or WarmupSection(),
        **sections,
    )

    class Context:
        resolver = container
        gangs = create_fake_gangs(device)

        def get_config_as(self, kls: type[object]) -> object:
            return config

        def get_checkpoint_manager(self) -> object:
            return SimpleNamespace(has_checkpoint=lambda: has_checkpoint)

        def get_model(self, section_name: str = "model") -> Module | None:
            if section_name == "model":
                return model

            return container.resolve(Module, key=section_name)

        def get_data_parallel_model(self) -> Module | None:
            return model

    return cast(RecipeContext, Context())


def get_separator_and_eos(model: Any) -> tuple[Tensor, Tensor]:
    weight = get_embedding(model)

    return weight[SEPARATOR_IDX], weight[EOS_IDX]


class TestSetupModel:
    def test_separator_begins_as_eos(self) -> None:
        model = create_tiny_model()

        assert setup_model(create_context(), model) is model

        assert_equal(*get_separator_and_eos(model))

        assert isinstance(model, ScorableTransformer)

    @pytest.mark.parametrize(
        "options",
        [
            # A resumed run has learned it.
            {"has_checkpoint": True},
            {"criterion": CriterionSection(name="sft")},
            {"warmup": WarmupSection(separator_init="none")},
            {"criterion": CriterionSection(name="mine"), "spy_writes_warmups": False},
        ],
        ids=["checkpoint", "sft", "none", "own criterion"],
    )
    def test_separator_is_left_alone(self, options: dict[str, Any]) -> None:
        model = create_tiny_model()

        expected = get_embedding(model)[SEPARATOR_IDX].clone()

        setup_model(create_context(**options), model)

        assert_equal(get_separator_and_eos(model)[0], expected)

    def test_criterion_of_own_may_score_rows(self) -> None:
        model = create_tiny_model()

        context = create_context(
            criterion=CriterionSection(name="mine"), spy_writes_warmups=False
        )

        setup_model(context, model)

        assert isinstance(model, ScorableTransformer)

    @pytest.mark.parametrize(
        "model,kls",
        [
            (create_tiny_model(), ScorableTransformer),
            (create_tiny_lm(), ScorableTransformerLM),
        ],
        ids=["encoder-decoder", "decoder-only"],
    )
    def test_plain_training_scores_rows(self, model: Module, kls: type[Module]) -> None:
        setup_model(create_context(criterion=CriterionSection(name="sft")), model)

        assert isinstance(model, kls)

    @pytest.mark.parametrize(
        "criterion,trainer,message",
        [
            (
                "sft",
                TrainerSection(data_parallelism="fsdp", fsdp=FSDPConfig(version="v1")),
                "`trainer.fsdp.version` must be `v2`",
            ),
            (
                "warmup",
                TrainerSection(
                    mixed_precision=MixedPrecisionConfig(dtype=torch.float16)
                ),
                "`trainer.mixed_precision.dtype` must be `bfloat16`",
            ),
        ],
    )
    def test_trainer_of_other_recipe_is_refused(
        self, criterion: str, trainer: TrainerSection, message: str
    ) -> None:
        context = create_context(
            criterion=CriterionSection(name=criterion), trainer=trainer
        )

        with pytest.raises(WarmupError, match=message):
            setup_model(context, create_tiny_model())

    def test_shared_encoder_is_refused_with_fsdp(self) -> None:
        trainer = TrainerSection(data_parallelism="fsdp")

        warmup = WarmupSection(share_encoder=True)

        def find_errors(criterion: str) -> list[str]:
            section = CriterionSection(name=criterion)

            return list(find_trainer_errors(trainer, section, warmup))

        [error] = find_errors("warmup")

        assert error.startswith("`warmup.share_encoder` must be false")

        # Which does not read it.
        assert find_errors("sft") == []

    def test_config_without_section_is_refused(self) -> None:
        context = create_context()

        config = cast(Any, context.get_config_as(object))

        del config.criterion

        with pytest.raises(
            WarmupError, match="give it a field `criterion: CriterionSection`."
        ):
            setup_model(context, create_tiny_model())


class TestCreateCriterion:
    def test_every_setting_acts(self) -> None:
        spy = Spy()

        model, reference = create_tiny_model(), create_tiny_model(seed=7)

        warmup = WarmupSection(
            objective=ObjectiveSection(name="best"),
            sampler=SamplerSection(name="stochastic_beam"),
            kl_weight=0.1,
        )

        context = create_context(
            model,
            criterion=CriterionSection(
                name="mine", label_smoothing=0.2, config={"weight": 0.5}
            ),
            warmup=warmup,
            reference=reference,
            reference_model=object(),
            spy=spy,
        )

        criterion = create_criterion(context, plain_directions={"en-de"})

        assert isinstance(criterion, SftCriterion)

        assert spy.configs == [MineConfig(weight=0.5)]

        [given] = spy.contexts

        assert given.objective is best_loss
        assert isinstance(given.sampler, StochasticBeamSampler)
        assert given.label_smoothing == 0.2
        assert given.warmup is warmup
        assert given.layout == CODEC.layout
        assert given.plain_directions == {"en-de"}
        assert given.publish_every_n_steps == 7
        assert given.model.module is given.dp_model is model
        assert given.reference is not None
        assert given.reference.module is reference

        # It is the model before training, whose separator was prepared as well.
        assert_equal(*get_separator_and_eos(reference))

    @pytest.mark.parametrize("init,reference_init", [("eos", "none"), ("none", "eos")])
    def test_reference_is_prepared_apart(self, init: str, reference_init: str) -> None:
        model, reference = create_tiny_model(), create_tiny_model(seed=7)

        old = [get_embedding(m)[SEPARATOR_IDX].clone() for m in (model, reference)]

        context = create_context(
            model,
            warmup=WarmupSection(
                kl_weight=0.1,
                separator_init=init,
                reference_separator_init=reference_init,
            ),
            reference=reference,
            reference_model=object(),
        )

        setup_model(context, model)

        create_criterion(context)

        for m, row, i in zip((model, reference), old, (init, reference_init)):
            separator, eos = get_separator_and_eos(m)

            assert_equal(separator, eos if i == "eos" else row)

    @pytest.mark.parametrize("kind", ["transformer", "llama"])
    def test_gradient_is_that_of_objective(self, kind: str) -> None:
        keep = KeepSection(name="all")

        expected = compute_grads(
            model := create_sharp_model(kind),
            create_given_criterion(model, objective=best_loss, keep=keep, sft_weight=2),
            create_batch(),
        )

        def compute(objective: str) -> Tensor:
            model = create_sharp_model(kind)

            context = create_context(
                model,
                criterion=CriterionSection(name="warmup", label_smoothing=0.0),
                warmup=WarmupSection(
                    objective=ObjectiveSection(name=objective),
                    keep=keep,
                    sft_weight=2,
                    separator_init="none",
                ),
            )

            setup_model(context, model)

            model.train()

            return compute_grads(model, create_criterion(context), create_batch())

        assert_close(compute("best"), expected)

        assert not compute("marginal").allclose(expected)

    def test_criterion_has_default_settings(self) -> None:
        spy = Spy()

        context = create_context(
            create_tiny_model(), criterion=CriterionSection(name="mine"), spy=spy
        )

        create_criterion(context)

        assert spy.configs == [MineConfig()]

        assert spy.contexts[0].reference is None

    def test_bad_setting_is_refused(self) -> None:
        context = create_context(
            create_tiny_model(),
            criterion=CriterionSection(name="mine", config={"nope": 1}),
        )

        with pytest.raises(StructureError):
            create_criterion(context)

    def test_unknown_name_is_one_sentence(self) -> None:
        context = create_context(
            create_tiny_model(), criterion=CriterionSection(name="nope")
        )

        with pytest.raises(
            RecipeError,
            match=r"^`criterion.name` is `nope`, which is not registered; use `sft`, `warmup`, `mrt` or one that your own package registers.$",
        ):
            create_criterion(context)

    def test_model_of_smaller_vocabulary_is_refused(self) -> None:
        context = create_context(create_tiny_model(vocab_size=7))

        with pytest.raises(
            WarmupError, match="has 7 output tokens, but the tokenizer 8; set"
        ):
            create_criterion(context)

    @pytest.mark.parametrize(
        "options,message",
        [
            ({}, "there is no model to hold the warmups near to"),
            ({"reference_model": object()}, "the recipe loads no reference model"),
            (
                {
                    "reference_model": object(),
                    "reference": create_tiny_model(vocab_size=7),
                },
                "`reference_model` has 7 output tokens, but the tokenizer 8",
            ),
        ],
        ids=["none", "not loaded", "small"],
    )
    def test_bad_reference_model_is_refused(
        self, options: dict[str, Any], message: str
    ) -> None:
        warmup = WarmupSection(kl_weight=0.1)

        context = create_context(create_tiny_model(), warmup=warmup, **options)

        with pytest.raises(WarmupError, match=message):
            create_criterion(context)


class TestCriterionSection:
    def test_own_criterion_says_whether_it_writes_warmups(self) -> None:
        for writes_warmups in (True, False):
            context = create_context(spy_writes_warmups=writes_warmups)

            section = CriterionSection(name="mine")

            section.structure(context.resolver)

            assert section.config == MineConfig()

            assert section.writes_warmups == writes_warmups

    @pytest.mark.parametrize("name", ["sft", "warmup"])
    def test_record_of_our_criteria_stays_as_it_was(self, name: str) -> None:
        section = CriterionSection(name=name)

        section.structure(create_context().resolver)

        assert section.writes_warmups is None
