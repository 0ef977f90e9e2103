"""Clipping, SAM, averages and hints: what the Trainer and its callbacks have to do with it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm.optim import Lamb
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lit_opt import EMA, Recipe
from tests.preflight.setups import CNN, LM, TOTAL, Denoiser, by_role, cnn, cosine, ids, llm, run, schedule, the, vit

# ---- clipping


def test_no_clipping_for_a_language_model():
    found = the(llm(trainer={"clip": 0.0}), "no-clipping")
    assert found.level == "warning" and "gradient_clip_val=1" in found.fix
    assert "no-clipping" not in ids(llm(trainer={"clip": 0.0, "own_clipping": True}))
    assert "no-clipping" not in ids(llm(trainer={"clip": 0.0}, setting="llm/finetune"))
    assert "no-clipping" not in ids(vit())


def test_a_module_that_clips_by_hand_is_silent():
    class Clips(LM):
        def on_before_optimizer_step(self, optimizer):
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    assert "no-clipping" not in ids(llm(module=Clips(), trainer={"clip": 0.0}))


def lamb(**options):
    module = LM()
    optimizer = Lamb(by_role(module, "llm"), lr=5e-3, **options)
    return module, optimizer, schedule(optimizer, cosine(TOTAL, 5000))


def test_clipping_in_front_of_an_optimizer_that_clips():
    module, optimizer, schedulers = lamb()
    found = the(run(module, optimizer, schedulers, trainer={"clip": 0.5}, batch=16_384), "clipping-twice")
    assert found.level == "warning"
    assert (
        "Trainer(gradient_clip_val) 0.5" in found.evidence
        and "max_grad_norm=1 limits the global norm" in found.evidence
    )
    assert "clipping-twice" not in ids(run(module, optimizer, schedulers, batch=16_384))
    module, optimizer, schedulers = lamb(max_grad_norm=None)
    assert "clipping-twice" not in ids(run(module, optimizer, schedulers, trainer={"clip": 0.5}, batch=16_384))


def test_clipping_with_lars():
    from timm.optim import Lars

    module = CNN()
    optimizer = Lars(by_role(module, "cnn"), lr=4.8, momentum=0.9)
    found = the(run(module, optimizer, trainer={"clip": 1.0}, batch=16_384), "clipping-twice")
    assert found.level == "warning" and "trust ratio divides by the gradient's norm" in found.evidence


def test_clipping_with_adafactor_is_a_note():
    module = LM()
    optimizer = torch.optim.Adafactor(module.parameters(), lr=1e-3)
    assert the(run(module, optimizer, trainer={"clip": 1.0}), "clipping-twice").level == "note"


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_fused_and_clipping_under_mixed_precision(precision):
    module = LM()
    fused = torch.optim.AdamW(by_role(module, "llm"), lr=3e-4, fused=True)
    found = the(run(module, fused, trainer={"clip": 1.0, "precision": precision}), "fused-clipping")
    assert found.level == "error" and f"gradient_clip_val 1, precision {precision!r}, fused=True" in found.evidence
    for other in ({"clip": 0.0, "precision": precision}, {"clip": 1.0, "precision": "32-true"}):
        assert "fused-clipping" not in ids(run(module, fused, trainer=other))
    plain = torch.optim.AdamW(by_role(module, "llm"), lr=3e-4)
    assert "fused-clipping" not in ids(run(module, plain, trainer={"clip": 1.0, "precision": precision}))


def test_lightning_does_raise_for_fused_and_clipping():
    """The fault is real in the installed version."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    module = LM()
    fused = torch.optim.AdamW(module.parameters(), lr=3e-4, fused=True)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        MixedPrecision("bf16-mixed", "cpu").clip_gradients(fused, 1.0)


# ---- SAM


class SAM(torch.optim.Optimizer):
    """davda54's, as far as it matters here."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self):
        """Ascend."""

    def second_step(self):
        """Descend."""

    def step(self, closure=None):
        """Both."""


def sam(**trainer):
    module = CNN()
    optimizer = SAM(by_role(module, "cnn"), torch.optim.SGD, lr=0.1, momentum=0.9)
    return cnn(module=module, optimizer=optimizer, trainer=trainer)


def test_sam_with_accumulation():
    found = the(sam(accumulation=4), "sam-accumulation")
    assert found.level == "error"
    assert "accumulate_grad_batches=4" in found.message and "its gradient is 1.2 times as long" in found.evidence
    assert ids(sam()) == []
    assert "sam-accumulation" not in ids(cnn(trainer={"accumulation": 4}))


def test_sam_under_16_mixed():
    assert the(sam(precision="16-mixed"), "sam-precision").level == "error"
    assert ids(sam(precision="bf16-mixed")) == []
    assert "sam-precision" not in ids(cnn(trainer={"precision": "16-mixed"}))


# ---- averages


def diffusion(*callbacks, module=None, setting="diffusion", total=TOTAL):
    module = module or Denoiser()
    optimizer = torch.optim.AdamW(by_role(module, "diffusion"), lr=1e-4)
    constant = schedule(optimizer, lambda step: min(1.0, (step + 1) / 500))
    return run(module, optimizer, constant, setting, callbacks=callbacks, total=total)


def test_diffusion_without_averages():
    found = the(diffusion(), "ema-missing")
    assert found.level == "warning"
    assert diffusion(EMA(decay=0.9999)).findings == ()
    assert ids(diffusion(setting="diffusion/finetune")) == []
    assert "ema-missing" not in ids(vit())


def test_an_average_that_remembers_too_much():
    found = the(diffusion(EMA(decay=0.9999, warmup=False), total=20_000), "ema-window")
    assert found.level == "warning"
    assert "half of its weight lies in the last 6,932 of 20,000 steps: 35 % of the run" in found.evidence
    assert "the first weights still hold 14 %" in found.evidence  # 0.9999 ** 20,000
    assert "decay=0.9995" in found.fix  # half of it in 1,386 steps
    # The warm-up keeps the window at 7.4 % of the run, whatever the decay.
    assert "ema-window" not in ids(diffusion(EMA(decay=0.9999), total=20_000))
    assert "ema-window" not in ids(diffusion(EMA(decay=0.999, warmup=False), total=20_000))


def test_an_average_that_is_the_initial_weights():
    found = the(diffusion(EMA(decay=0.9999, warmup=False), total=1000), "ema-window")
    assert found.level == "error" and "after 1,000 updates they still hold 90 % of the average" in found.evidence


def test_an_average_that_never_begins():
    found = the(diffusion(EMA(decay=0.9, start_step=5000), total=1000), "ema-window")
    assert found.level == "error" and "it starts at step 5,000, the run has 1,000" in found.evidence


def test_lightnings_own_average_is_read():
    """Its decay is kept in a closure only."""
    report = diffusion(EMAWeightAveraging(decay=0.9999), total=20_000)
    found = the(report, "ema-window")
    assert found.message == "EMAWeightAveraging(decay=0.9999) averages over too much of the run."
    assert "ema-unused" not in ids(report) and "ema-missing" not in ids(report)
    every = the(diffusion(EMAWeightAveraging(decay=0.999, update_every_n_steps=10), total=20_000), "ema-window")
    assert "6,930 of 20,000 steps" in every.evidence


class KeepsAverage(Denoiser):
    """Averages by hand, and evaluates the raw weights."""

    def __init__(self):
        super().__init__()
        self.ema = AveragedModel(nn.Linear(2, 2), multi_avg_fn=get_ema_multi_avg_fn(0.9999))
        self.ema.requires_grad_(False)

    def on_train_batch_end(self, *args):
        self.ema.update_parameters(self.conv_in)

    def validation_step(self, batch, batch_idx):
        return self.conv_in(batch)


class UsesAverage(KeepsAverage):
    """Evaluates with the averages, through a method of its own."""

    def validation_step(self, batch, batch_idx):
        return self.denoise(batch)

    def denoise(self, x):
        return self.ema(x)


def test_an_average_that_no_evaluation_uses():
    found = the(diffusion(module=KeepsAverage()), "ema-unused")
    assert found.level == "warning" and "self.ema (AveragedModel, decay=0.9999)" in found.message
    assert ids(diffusion(module=UsesAverage())) == []


def test_a_teacher_is_no_average():
    class Student(Denoiser):
        def __init__(self):
            super().__init__()
            self.teacher = AveragedModel(nn.Linear(2, 2))
            self.teacher.requires_grad_(False)

    assert "ema-unused" not in ids(diffusion(module=Student()))


def test_diffusers_and_timms_copies_are_read():
    from diffusers.training_utils import EMAModel
    from timm.utils import ModelEmaV3

    class Holds(Denoiser):
        def __init__(self, ema):
            super().__init__()
            self.average = ema

        def sample(self):
            return self.average

    inner = nn.Linear(2, 2)
    assert ids(diffusion(module=Holds(EMAModel(inner.parameters(), decay=0.9999)), total=20_000)) == []
    timm = ModelEmaV3(inner, decay=0.9999)
    timm.requires_grad_(False)
    assert "ema-window" in ids(diffusion(module=Holds(timm), total=20_000))


# ---- hints


def test_precision():
    found = the(llm(trainer={"accelerator": "cuda", "precision": "32-true"}), "precision-hint")
    assert found.level == "note" and "precision '32-true' on cuda" in found.evidence
    assert "precision-hint" not in ids(llm(trainer={"accelerator": "cuda", "precision": "bf16-mixed"}))
    assert "precision-hint" not in ids(llm())  # on a CPU it would be slower


def test_label_smoothing():
    class Plain(CNN):
        def __init__(self, smoothing):
            super().__init__()
            self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing)

    found = the(cnn(module=Plain(0.0)), "label-smoothing-hint")
    assert found.level == "note" and "self.loss is CrossEntropyLoss(label_smoothing=0.0)" in found.evidence
    assert ids(cnn(module=Plain(0.1))) == []


def test_label_smoothing_in_code():
    class InCode(CNN):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.fc(batch[0]), batch[1])

    class Smooths(CNN):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.fc(batch[0]), batch[1], label_smoothing=0.1)

    assert "label-smoothing-hint" in ids(cnn(module=InCode()))
    assert "label-smoothing-hint" not in ids(cnn(module=Smooths()))


def test_memory_format():
    gpu = {"accelerator": "cuda", "precision": "bf16-mixed"}
    found = the(cnn(trainer=gpu), "channels-last-hint")
    assert found.evidence == "2 of 2 kernels are not channels_last"
    assert "channels-last-hint" not in ids(cnn(module=CNN().to(memory_format=torch.channels_last), trainer=gpu))
    assert "channels-last-hint" not in ids(cnn())


def test_every_recipe_brings_what_is_missing():
    """The recipe of diffusion owns an average."""
    module = Denoiser()
    recipe = Recipe("diffusion")
    optimizer, _ = recipe.configure(module, total_steps=TOTAL, global_batch=256)
    report = run(module, optimizer, setting="diffusion", callbacks=[recipe])
    assert "ema-missing" not in ids(report)
