"""``python -m tl_lightning``: one model, no study. Nothing here waits for torch before it is needed."""

from __future__ import annotations

import sys

from tl_lightning.errors import UserError, unknown_name

COMMANDS = ("fit", "validate", "test", "predict")
HELP = """\
usage: python -m tl_lightning {fit,validate,test,predict} [flags]

Fine-tune one model for classification, detection or segmentation, and use it.

  fit        train; the checkpoint of the best epoch and TensorBoard curves go to logs/fit/version_N
  validate   evaluate a checkpoint on the validation part
  test       evaluate a checkpoint on the test part
  predict    write predictions.csv for the test part, or for a folder of images: --data.predict_dir FOLDER

examples:
  python -m tl_lightning fit                                      EfficientNet-Lite0 on solar cells (ELPV)
  python -m tl_lightning fit --config configs/fit_elpv.yaml --trainer.max_epochs 3
  python -m tl_lightning fit --data.name imagefolder --data.data_dir my_images --model.backbone resnet18
  python -m tl_lightning fit --config configs/fit_detection.yaml
  python -m tl_lightning test --ckpt_path logs/fit/version_0/checkpoints/best.ckpt
  python -m tl_lightning predict --ckpt_path logs/fit/version_0/checkpoints/best.ckpt --data.predict_dir photos

A checkpoint knows its model and its data; flags override them. Every flag: python -m tl_lightning fit --help,
those of a model or a data module: --model.help DetectionModule, --data.help DenseDataModule.
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong command, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0 if argv else 2)
    try:
        if argv[0] not in COMMANDS:
            raise unknown_name("command", argv[0], COMMANDS)
        from tl_lightning.command.cli import run

        run(argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
