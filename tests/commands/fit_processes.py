"""Run by test_fit_processes.py: `lit-opt fit` in two processes, as a user types it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lit_opt.cli import main

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    args = ["fit", "--config", "llm", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    args += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    args += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    args += [f"--trainer.logger.init_args.save_dir={folder / 'runs'}"]
    args += ["--model.layers=1", "--model.width=16", "--model.heads=2", "--model.mlp_width=32"]
    code = main(args)
    (folder / f"code.{os.environ.get('LOCAL_RANK', 0)}").write_text(str(code))
    sys.exit(code)
