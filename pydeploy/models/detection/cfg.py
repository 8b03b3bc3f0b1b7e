"""The cfg dialect of SSD backbones: blocks in brackets, one layer each, read with line numbers and written back.

    [convolutional]   filters size stride pad, batch_normalize, bias, dilation, activation      pad is in pixels
    [depthwise]       the same; as many filters as channels come in
    [maxpool]         size stride pad ceil_mode
    [shortcut]        from (-2 = the layer before the one before), activation

Any layer may be a feature map of the detector: ``feature=linear`` or ``feature=l2_norm``, in the order of ``feature_idx``.
``backbone=1`` marks the last layer that weights of a classifier fill. Where any layer says ``quantization=1``, only those that
do are quantized. What follows a ``#`` is a comment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydeploy.errors import ConfigError, DataError, nearest

ACTIVATIONS = ("relu", "relu6", "leaky", "h_swish", "linear")
FEATURES = ("no", "linear", "l2_norm")
_EVERY = ("feature", "feature_idx", "backbone")
_LAYER = (
    "batch_normalize",
    "filters",
    "size",
    "stride",
    "pad",
    "activation",
    "dilation",
    "bias",
    "quantization",
    *_EVERY,
)
KEYS: Mapping[str, tuple[str, ...]] = {
    "convolutional": _LAYER,
    "depthwise": _LAYER,
    "maxpool": ("size", "stride", "pad", "ceil_mode", *_EVERY),
    "shortcut": ("from", "activation", *_EVERY),
}
"""What each kind of block may say."""
WORDS = {"activation": ACTIVATIONS, "feature": FEATURES}
DEFAULTS: Mapping[str, str | int] = {
    "batch_normalize": 0, "size": 1, "stride": 1, "pad": 0, "activation": "linear", "dilation": 1, "bias": 1, "quantization": 0,
    "feature": "no", "feature_idx": 0, "backbone": 0, "ceil_mode": 0,
}  # fmt: skip
LEAST = {"filters": 1, "size": 1, "stride": 1, "dilation": 1, "pad": 0, "feature_idx": 0}
SWITCHES = ("batch_normalize", "bias", "quantization", "backbone", "ceil_mode")


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: its kind, what the file says of it, and where."""

    kind: str
    given: Mapping[str, str | int]
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)
    """Of the keys."""

    def number(self, key: str) -> int:
        """A whole number."""
        return int(self.given.get(key, DEFAULTS.get(key, 0)))

    def word(self, key: str) -> str:
        """A word, such as the activation."""
        return str(self.given.get(key, DEFAULTS[key]))


@dataclass(frozen=True, slots=True)
class Cfg:
    """All blocks of a file."""

    blocks: tuple[Block, ...]
    source: str

    @property
    def features(self) -> tuple[int, ...]:
        """Numbers of the blocks that are feature maps, in their order."""
        found = [n for n, block in enumerate(self.blocks) if block.word("feature") != "no"]
        return tuple(sorted(found, key=lambda n: (self.blocks[n].number("feature_idx"), n)))

    @property
    def pretrained(self) -> int:
        """Number of the blocks that weights of a classifier fill."""
        return next((n + 1 for n, block in enumerate(self.blocks) if block.number("backbone")), 0)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers with weights, as an `SSD` names them, that INT8 leaves alone: none where no block asks for ``quantization``."""
        wanted = {n for n, block in enumerate(self.blocks) if block.number("quantization")}
        layers = [n for n, block in enumerate(self.blocks) if block.kind in ("convolutional", "depthwise")]
        return tuple(f"backbone.layers.{n}.0" for n in layers if wanted and n not in wanted)

    def widened(self, filters: Mapping[int, int]) -> Cfg:
        """With other numbers of filters, by the number of the block."""
        changed = (replace(block, given={**block.given, "filters": filters[n]}) if n in filters else block
                   for n, block in enumerate(self.blocks))  # fmt: skip
        return replace(self, blocks=tuple(changed))

    def first(self, levels: int) -> Cfg:
        """Up to the last one of the first `levels` feature maps; the others are none any more."""
        kept = set(self.features[:levels])
        blocks = [
            block
            if n in kept or block.word("feature") == "no"
            else replace(block, given={**block.given, "feature": "no"})
            for n, block in enumerate(self.blocks[: max(kept) + 1])
        ]
        return replace(self, blocks=tuple(blocks))

    def text(self) -> str:
        """The file: what `parse` reads."""
        return "\n".join(f"[{block.kind}]\n" + "".join(f"{key}={value}\n" for key, value in block.given.items())
                         for block in self.blocks)  # fmt: skip


def read(path: Path) -> Cfg:
    """The blocks of a file; raises `DataError` where there is none, `ConfigError` with the line that is wrong."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DataError(f"{path} cannot be read: {reason}; expected a cfg file of an SSD backbone") from None


def parse(text: str, source: str) -> Cfg:
    """The blocks of a text that is called `source` in errors; raises `ConfigError` with the line that is wrong."""
    blocks = tuple(_blocks(text, source))
    if not blocks:
        raise ConfigError(f"{source} has no blocks; expected [convolutional] and the like")
    for number, block in enumerate(blocks):
        _check(block, number, source)
    made = Cfg(blocks, source)
    if not made.features:
        raise ConfigError(f"{source}: no block is a feature map; give 'feature=linear' to those that the heads read")
    places = [blocks[n].number("feature_idx") for n in made.features if "feature_idx" in blocks[n].given]
    if len(set(places)) < len(places) or (places and len(places) < len(made.features)):
        raise ConfigError(f"{source}: 'feature_idx' must be given for all feature maps, each another one, got {places}")
    if list(made.features) != sorted(made.features):
        raise ConfigError(f"{source}: feature maps must come in the order of 'feature_idx', got blocks {made.features}")
    return made


def _blocks(text: str, source: str) -> Iterator[Block]:
    kind, start = "", 0
    given: dict[str, str | int] = {}
    lines: dict[str, int] = {}
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.partition("#")[0].strip()
        if line.startswith("["):
            if kind:
                yield Block(kind, given, start, lines)
            kind, start, given, lines = line[1:].removesuffix("]").strip(), number, {}, {}
            if not line.endswith("]") or kind not in KEYS:
                raise ConfigError(f"{source}, line {number}: unknown section {line}{nearest(kind, KEYS)}")
        elif line:
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not kind:
                raise ConfigError(
                    f"{source}, line {number}: expected {'KEY=VALUE' if kind else 'a section such as [convolutional]'}, got '{line}'"
                )
            if key in given:
                raise ConfigError(f"{source}, line {number}: '{key}' is given twice in this section")
            given[key], lines[key] = _value(kind, key, value, f"{source}, line {number}"), number
    if kind:
        yield Block(kind, given, start, lines)


def _value(kind: str, key: str, value: str, where: str) -> str | int:
    if key not in KEYS[kind]:
        raise ConfigError(f"{where}: [{kind}] has no key '{key}'{nearest(key, KEYS[kind])}")
    if key in WORDS:
        if value not in WORDS[key]:
            raise ConfigError(f"{where}: unknown {key} '{value}'{nearest(value, WORDS[key])}")
        return value
    try:
        number = int(value)
    except ValueError:
        raise ConfigError(f"{where}: '{key}' must be a whole number, got '{value}'") from None
    if key in SWITCHES and number not in (0, 1):
        raise ConfigError(f"{where}: '{key}' must be 0 or 1, got {number}")
    if number < LEAST.get(key, number):
        raise ConfigError(f"{where}: '{key}' must be at least {LEAST[key]}, got {number}")
    return number


def _check(block: Block, number: int, source: str) -> None:
    """What a block says in the light of its place."""
    where = f"{source}, line {block.line}"
    if block.kind == "convolutional" and "filters" not in block.given:
        raise ConfigError(f"{where}: [convolutional] needs 'filters'")
    if block.kind == "shortcut":
        back = block.number("from")
        at = f"{source}, line {block.lines.get('from', block.line)}"
        if not -number <= back <= -2:
            raise ConfigError(f"{at}: 'from' counts back from the layer, -2 to {-number} here, got {back}")
    if block.kind == "maxpool" and 2 * block.number("pad") > block.number("size"):
        raise ConfigError(f"{where}: 'pad' of a [maxpool] may be half its size at most")
