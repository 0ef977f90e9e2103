"""What `lit-opt --help` and the help of the verbs say."""

from __future__ import annotations

HELP = """\
lit-opt: optimizer recipes for PyTorch Lightning.

Begin:
  lit-opt new                         starter projects, a line each
  lit-opt new llm my-project          write one: model, data, config, test
  lit-opt choose --config mine.yaml   which recipe fits this model, and why

Look:
  lit-opt list                        recipes and optimizers
  lit-opt explain llm                 each value: number, range, source
  lit-opt explain llm --lr 1e-3       your value beside the recipe's
  lit-opt explain adamw               an optimizer: rule, keywords, values

Before a run, without a GPU:
  lit-opt plan --config llm           parameters, schedule, memory, values
  lit-opt plan --config mine.yaml --devices 8 --strategy fsdp2
  lit-opt check --config mine.yaml    what is misconfigured; exit code for CI
  lit-opt transfer check --config mine.yaml   do values of a small model hold

Train, with a YAML file or the name of a shipped one:
  lit-opt fit --config llm            a small language model, two minutes
  lit-opt fit --config llm --recipe.lr=1e-3 --trainer.max_steps=100
  lit-opt fit --config mine.yaml --ckpt_path=last.ckpt
  lit-opt validate | test | predict   the same config, without training

Prove:
  lit-opt compare --config mine.yaml --arms llm,llm/muon --budget-steps 2000
                                      a fair comparison on your own model

Tune small, train large:
  lit-opt sweep --config small.yaml --param lr --target large.yaml ...
                                      tuned there, written as YAML for here

Keep:
  lit-opt export-ema last.ckpt out.pt   averaged weights of a checkpoint

Watch:
  lit-opt spirals                     optimizers on two spirals: PNG and GIF

In Python, one line:
  Trainer(max_steps=10_000, callbacks=[Recipe("llm")]).fit(model, data)

`lit-opt VERB --help` explains a verb. `lit-opt --version` prints the version.
Exit codes: 0 done, 1 findings of `check`, 2 something to mend (a message says
what), 130 interrupted.

Shipped: {configs}"""

EXPLAIN_EXAMPLES = """\
examples:
  lit-opt explain cnn --batch-size 1024 --total-steps 9000
  lit-opt explain llm --parameters 124000000 --batch-tokens 524288
  lit-opt explain llm --optimizer adamw --lr 1e-3 --weight-decay 0.05
  lit-opt explain vit --format yaml > recipe.yaml     a section for your own config
  lit-opt explain lamb                                an optimizer"""

LIST_EXAMPLES = """\
examples:
  lit-opt list
  lit-opt list | grep vit             piped: one line each
  lit-opt list --strategies           every recipe on DDP, FSDP, ..., and what to use where it is refused
  lit-opt list --format json"""

CHOOSE_EXAMPLES = """\
All other arguments are those of `lit-opt fit`; the config needs no recipe. When it is not sure, it says so.

examples:
  lit-opt choose --config mine.yaml
  lit-opt choose --model=my_package.MyModel --data=my_package.MyData --trainer.max_steps=10000
  lit-opt choose --config mine.yaml --format json"""

TRANSFER_EXAMPLES = """\
The config has recipe.transfer with a base (class_path, init_args); what differs between base and model grows in step. The
small model is trained for a few steps at several widths, with the transfer and without it, on the first batch of the data.
Near 0 are slopes of what transfers. Exit code 1: some slope is farther than 0.1 from 0.

examples:
  lit-opt transfer check --config mine.yaml
  lit-opt transfer check --config mine.yaml --factors 1,2,4,8 --seeds 5 --plot check.png"""

NEW_EXAMPLES = """\
examples:
  lit-opt new                       the settings, a line each
  lit-opt new cnn my-project        write model.py, data.py, config.yaml, train.py, a test and a README
  cd my-project && lit-opt fit --config config.yaml"""

EXPORT_EXAMPLES = """\
examples:
  lit-opt export-ema last.ckpt weights.pt
  lit-opt export-ema last.ckpt weights.safetensors --safetensors"""

SPIRALS_EXAMPLES = """\
All points are one batch, the rate falls linearly to zero, all start from the same weights. It is a toy: who is first
here says nothing of real models. For those there is `lit-opt compare`, and for the same picture of your own run
`lit_opt.TrajectoryCallback`.

examples:
  lit-opt spirals
  lit-opt spirals --optimizers adamw,muon,soap --steps 400 --out pictures
  lit-opt spirals --optimizers adamw --lr adamw=0.003 --seed 1"""
