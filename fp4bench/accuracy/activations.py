"""Real activations: what the linear layers of a model see while it reads a text."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fp4bench.accuracy.sources import ACTIVATIONS, Size, Source, first_of_each, model_name
from fp4bench.errors import BenchError, UsageError

SENTENCES = Path(__file__).with_name("sentences.txt")
TOKENS = 512  # of a layer: enough to tell recipes apart, few enough for a large model's memory


class Layer(NamedTuple):
    """A linear layer: its input [tokens, K] and its weight [N, K], float32."""

    name: str
    x: Tensor
    w: Tensor


def activations_of(folder: Path, text: Path, size: Size) -> list[Source]:
    """The inputs of a Hugging Face folder's linear layers on `text`, met by the layers' weights.

    Raises UsageError for a text without words, BenchError for what cannot be read or run.
    """
    layers = [((len(one.w), one.w.shape[1]), one) for one in capture(folder, lines_of(text))]
    name = f"{model_name(folder)} on {text.name}"

    def made(layer: Layer) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: (layer.x, layer.w)

    return [
        Source(ACTIVATIONS, made(layer), name, layer.name)
        for _, layer in (layers if size.every else first_of_each(layers))
    ]


def lines_of(text: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    try:
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise BenchError(f"cannot read the text {text}: {why}") from error
    if not any(lines):
        raise UsageError(f"--text needs a line that is not blank, but {text} has none")
    return [line for line in lines if line]


def capture(folder: Path, lines: list[str]) -> list[Layer]:
    """Run the model over one line after the other, up to TOKENS tokens, unpadded."""
    tokenizer, model = _load(folder)
    seen: dict[str, list[Tensor]] = {}
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    for name, part in linear.items():
        part.register_forward_pre_hook(_keep(seen.setdefault(name, [])))
    count = 0
    try:
        with torch.no_grad():
            for line in lines:
                tokens = tokenizer(line, return_tensors="pt", truncation=True, max_length=TOKENS)
                model(**tokens)
                count += tokens["input_ids"].numel()
                if count >= TOKENS:
                    break
    except Exception as error:  # whatever a model's own code raises
        raise BenchError(f"{folder} cannot read the text: {_first_line(error)}") from error
    layers = [
        Layer(name, torch.cat(parts)[:TOKENS], linear[name].weight.detach())
        for name, parts in seen.items()
        if parts
    ]
    if not layers:
        raise BenchError(f"activations are those of nn.Linear layers, but {folder} runs none")
    return layers


def _load(folder: Path) -> tuple[Any, Any]:
    with _quiet():
        try:
            transformers: Any = importlib.import_module("transformers")  # slow, and an extra
        except ImportError as error:
            raise BenchError(
                "activations are captured through transformers, which is not installed; "
                "pip install 'fp4bench[activations]'"
            ) from error
        transformers.logging.disable_progress_bar()
        if not (folder / "config.json").is_file():  # or it would be looked for on the network
            raise BenchError(f"a model folder holds a config.json, but {folder} has none")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
        except Exception as error:  # whatever it finds wrong with a folder
            raise BenchError(f"transformers cannot load {folder}: {_first_line(error)}") from error
    return tokenizer, model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the packages that transformers imports where it finds them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _keep(parts: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parts.append(inputs[0].detach().flatten(0, -2).float())

    return hook


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
