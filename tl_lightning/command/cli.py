"""Lightning's command line for the modules and data modules of this package."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import tl_lightning.callbacks  # noqa: F401 - their names can then stand in YAML without a path
from tl_lightning.backbones import check_image_size, input_spec
from tl_lightning.command.predictions import PredictionWriter, checked_output
from tl_lightning.command.record import Record, WriteRecord, read_record
from tl_lightning.data import DenseDataModule, TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.tasks import DetectionModule, SegmentationModule, TaskModule, TransferModule

_DENSE = {DetectionModule: "detection", SegmentationModule: "segmentation"}
_SELECTED_BY = {TransferModule: "val/accuracy", DetectionModule: "val/map", SegmentationModule: "val/miou"}
_MODEL = {
    "class_path": "tl_lightning.tasks.TransferModule",
    "init_args": {"backbone": "efficientnet_lite0", "weights": "IMAGENET1K_V1"},
}


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as a mistake of the user."""
        raise UserError(_one_line(message))


class ModelCLI(LightningCLI):
    """Fit, validate, test or predict with one model.

    A checkpoint holds the settings of its model and data; they are the defaults of the commands that take it.

    Args:
        argv: The command and its flags.
    """

    def __init__(self, argv: list[str]) -> None:
        self.wanted = argv[0]
        self.model_flag = _flag(argv, "--model") or _flag(argv, "--model.class_path") or ""
        checkpoint = _flag(argv, "--ckpt_path")
        self.record = read_record(checkpoint) if checkpoint else None
        super().__init__(
            TaskModule,
            pl.LightningDataModule,
            save_config_callback=None if self.wanted != "fit" else SaveConfigCallback,
            trainer_defaults={"max_epochs": 10, "log_every_n_steps": 10, "enable_model_summary": False},
            seed_everything_default=0,
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=argv,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that is asked for: to build the parsers of all would take four times as long."""
        never = {"model", "datamodule", "weights_only", "return_predictions"}
        return {self.wanted: never | {"train_dataloaders", "val_dataloaders", "dataloaders"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--output", default="predictions.csv", help="The table to write.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults, and take the number of classes from the data."""
        data = DenseDataModule if _dense_task(self.model_flag) else TransferDataModule
        parser.set_defaults({"model": _MODEL, "data": {"class_path": f"tl_lightning.data.{data.__name__}"}})
        if self.record is not None:
            parser.set_defaults(self.record.settings())
        parser.link_arguments(
            "data", "model.init_args.num_classes", compute_fn=self._number_of_classes, apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags; what the parser trips over, a picture given as YAML for one, is a mistake of the user.

        The flags are read twice: the first time tells the classes, whose own defaults then hold the second time.
        """
        try:
            first = parser.parse_args([token for token in args if not token.startswith("--print_config")])
            self._parser(self.wanted).set_defaults(self._defaults(first[self.wanted]))
            self.config = parser.parse_args(args)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_one_line(str(error)) or type(error).__name__) from error

    def _defaults(self, config: Any) -> dict[str, Any]:
        """Return the defaults for the classes that were asked for; a dense model gets dense data."""
        found = {} if self.record is None else self.record.settings()
        model, data = config.model.class_path, config.data.class_path
        if _dense_task(model) and _is(data, TransferDataModule):
            data = f"tl_lightning.data.{DenseDataModule.__name__}"
        defaults = {"model": {**_MODEL, "class_path": model}, "data": {"class_path": data}}
        return {key: found[key] if _same(found.get(key), value) else value for key, value in defaults.items()}

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the record has been read already, and flags come before it."""

    def before_instantiate_classes(self) -> None:
        """Refuse what could not run, before anything is loaded."""
        config = self.config[self.wanted]
        if self.wanted != "fit" and not config.ckpt_path:
            raise UserError(
                f"{self.wanted} needs the checkpoint of a fit: --ckpt_path logs/fit/version_N/checkpoints/best.ckpt"
            )
        if config.ckpt_path and self.record is None:
            self.record = read_record(config.ckpt_path)
        if self.wanted == "predict":
            checked_output(config.output)
        _match_data_to_model(config)
        if config.ckpt_path:
            _leave_out_weights(config.model.init_args)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what Lightning refuses is a mistake of the user."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise _mistake_behind(error) or error from None
        backbone = self.model.hparams.get("backbone")
        if isinstance(self.model, TransferModule) and isinstance(backbone, str):
            check_image_size(backbone, self.datamodule.image_size, self.model.hparams["weights"])

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer: curves and the best epoch's checkpoint where it fits, the table where it predicts."""
        config = self._get(self.config_init, "trainer")
        config.callbacks = list(config.callbacks or [])
        if config.logger in (None, True):
            root = config.default_root_dir or "logs"
            config.logger = TensorBoardLogger(root, "fit", default_hp_metric=False) if self.wanted == "fit" else False
        if self.wanted == "fit":
            config.callbacks += self._checkpoints(config)
        if self.wanted == "predict":
            images = self.datamodule.predicted_images()
            config.callbacks.append(PredictionWriter(self.config[self.wanted].output, self._class_names(), images))
        return super().instantiate_trainer(**kwargs)

    def _checkpoints(self, config: Any) -> list[pl.Callback]:
        """Return the callbacks that write checkpoints, unless there are none to be, or others."""
        plain = yaml.safe_load(self._parser(self.wanted).dump(self.config[self.wanted]))
        record = WriteRecord(Record(plain["model"], plain["data"], list(self.datamodule.class_names)))
        found = any(isinstance(callback, Checkpoint) for callback in config.callbacks)
        if found or config.enable_checkpointing is False or config.fast_dev_run:
            return [record]
        monitor = next(name for kind, name in _SELECTED_BY.items() if isinstance(self.model, kind))
        best = ModelCheckpoint(
            monitor=monitor, mode="max", filename="best", save_last=True, enable_version_counter=False
        )
        return [record, best]

    def _number_of_classes(self, data: pl.LightningDataModule) -> int:
        """Return the number of classes of the data, or of the checkpoint where the data have no labels."""
        if self.record is not None and getattr(data, "predict_dir", None):
            data.setup("predict")
            return len(self.record.class_names)
        data.prepare_data()
        data.setup("fit")
        names = list(data.class_names)  # type: ignore[attr-defined]
        if self.record is not None and names != self.record.class_names:
            raise UserError(
                f"the checkpoint knows the classes {_listed(self.record.class_names)}, the data have {_listed(names)}"
            )
        return len(names)

    def _class_names(self) -> list[str]:
        return self.record.class_names if self.record is not None else list(self.datamodule.class_names)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Load checkpoints without running code in them, and do not keep what the table holds."""
        arguments = {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}
        return arguments | ({"return_predictions": False} if subcommand == "predict" else {})

    def after_fit(self) -> None:
        """Say where the best checkpoint is."""
        best = self.trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.best_model_path and self.trainer.is_global_zero:
            path = Path(best.best_model_path)
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            print(f"best {best.monitor}: {float(best.best_model_score or 0):.4f}, checkpoint {shown}")


def run(argv: list[str]) -> None:
    """Run a command.

    Raises:
        UserError: The command or its data are wrong.
    """
    _quiet()
    try:
        ModelCLI(argv)
    except MisconfigurationException as error:
        raise UserError(_one_line(str(error))) from error
    except RuntimeError as error:
        if "loading state_dict" in str(error):
            raise UserError(f"the checkpoint does not fit the model: {_one_line(str(error))[:300]}") from error
        raise


def _match_data_to_model(config: Any) -> None:
    """Refuse a model and data of different tasks; data that can serve either task serve the model's."""
    task, data = _dense_task(config.model.class_path), config.data.class_path
    if task and _is(data, TransferDataModule):
        raise UserError(f"a model for {task} needs images with boxes or masks: --data DenseDataModule")
    if not task and _is(data, DenseDataModule):
        raise UserError("DenseDataModule serves boxes or masks: --model DetectionModule or --model SegmentationModule")
    if task and config.data.init_args.get("task") is None:
        config.data.init_args.task = task


def _dense_task(class_path: str) -> str | None:
    return next((task for kind, task in _DENSE.items() if _is(class_path, kind)), None)


def _is(class_path: str, kind: type) -> bool:
    return class_path.rpartition(".")[2] == kind.__name__


def _same(known: Any, wanted: dict[str, Any]) -> bool:
    """Whether settings of a checkpoint are of the class that is asked for."""
    return known is not None and known["class_path"].rpartition(".")[2] == wanted["class_path"].rpartition(".")[2]


def _leave_out_weights(arguments: Any) -> None:
    """Do not fetch weights that the checkpoint replaces, where the model is the same without them."""
    backbone, weights = arguments.get("backbone"), arguments.get("weights", "none")
    if isinstance(backbone, str) and weights != "none" and input_spec(backbone, weights) == input_spec(backbone):
        arguments.weights = "none"


def _flag(argv: list[str], name: str) -> str | None:
    """Return the value of a flag, the last one where it is given twice."""
    found = None
    for token, following in zip(argv, [*argv[1:], ""], strict=True):
        if token.startswith(f"{name}="):
            found = token.partition("=")[2]
        elif token == name:
            found = following
    return found or None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _mistake_behind(error: BaseException) -> UserError | None:
    """Return the mistake of the user that an error while building stands for.

    jsonargparse wraps what is raised in a linked argument, and fails itself where it cannot print the data module.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MisconfigurationException | ValueError | TypeError | ImportError):
        return UserError(_one_line(str(error)))
    return None


def _one_line(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    text = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(lines))
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*?\] Errors: ", "", text)
    text = re.sub(r" Expected a NoneType\b| Given value type: \S+| Given value: NestedArg\(.*?\)", "", text)
    return re.sub(r'[Pp]arser key "([\w.]+)":?', r"--\1:", text)


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics|torchvision|jsonargparse)\b.*")
