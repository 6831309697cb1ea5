"""What a built plan is made of: its layers, as TensorRT names them, and what they say in short."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

ATTENTION = (
    "LegoLinkAttention",
    "PackedLegoLinkAttention",
    "ScoredAttention",
    "PackedScoredAttention",
)
_FEW_BITS = ("FP8", "Int4")
# What stands in the list and puts nothing on a stream.
_NOTHING = ("NoOp", "Constant", "shape_call")
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{}]*?), [^{}]*?Dimensions: \[(?P<shape>[^\]]*)\]"
    r"[^{}]*?Datatype: (?P<dtype>\w+), Format: (?P<format>[^{}]*?) \}"
)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_POOL = re.compile(r"\bpool(_out)?_\d+\b")
_REGION = re.compile(r"_myl(\d+)_\d+$")
_GENERATED = re.compile(r"__myl_([A-Za-z0-9]+)_myl")


@dataclass(frozen=True)
class LayerTensor:
    """One that a layer reads or gives, in TensorRT's own words for its type and format."""

    name: str
    shape: str
    dtype: str
    format: str


@dataclass(frozen=True)
class PlanLayer:
    """One layer of a plan; `plugin` is "" where it is none, `tactic` where TensorRT names none.

    weights: the types of its constants, of those that TensorRT's log names.
    """

    name: str
    kind: str
    plugin: str
    tactic: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    weights: tuple[str, ...] = ()

    @property
    def profile(self) -> int | None:
        """The number of its profile where a name tells: that of the layer, or of what it reads."""
        names = (self.name, *(tensor.name for tensor in (*self.inputs, *self.outputs)))
        match = next((match for name in names if (match := _PROFILE.search(name))), None)
        return int(match[1]) if match else 0 if self.plugin else None

    @property
    def runs(self) -> bool:
        """Whether something is put on a stream for it."""
        return self.kind not in _NOTHING

    @property
    def region(self) -> str:
        """The number of the fused region that it is a kernel of, "" where it is of none."""
        match = _REGION.search(self.name)
        return match[1] if match else ""

    @property
    def word(self) -> str:
        """What it does in a word: a generated kernel's operations, else the layer's kind."""
        match = _GENERATED.search(self.name)
        return self.plugin or (match[1] if match else self.kind)

    @property
    def copies_pool(self) -> bool:
        """Whether it moves a pool: any layer that reads or gives one and is no plugin of ours."""
        tensors = (*self.inputs, *self.outputs)
        return self.runs and not self.plugin and any(_POOL.search(t.name) for t in tensors)


def layers_from_log(messages: Iterable[str]) -> tuple[PlanLayer, ...]:
    """The layers of the one message that lists them, which a builder logs at its most verbose."""
    listed = next((text for text in messages if text.startswith("Layers:")), "")
    lines = listed.partition("\n\n")[0].splitlines()
    return tuple(_layer(match) for line in lines if (match := _LAYER.match(line)))


def layers_from_inspector(text: str) -> tuple[PlanLayer, ...]:
    """The layers of what an engine's inspector says as JSON; those it gives no more than a name
    of have the kind "unknown"."""
    return tuple(_inspected(each) for each in json.loads(text).get("Layers", []))


def short_words(layers: Sequence[PlanLayer], profiles: Sequence[str]) -> list[str]:
    """A line for each profile: its layers by kind, and what runs between two attentions."""
    return [
        f"profile {name}: {_profile_words(layers, number, alone=len(profiles) == 1)}"
        for number, name in enumerate(profiles)
        if layers
    ]


def layers_report(source: str, lines: Sequence[str], layers: Sequence[PlanLayer]) -> str:
    """The file of a plan's layers, as JSON: who named them, the short words, all of them."""
    content = {"source": source, "profiles": lines, "layers": [asdict(each) for each in layers]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _layer(match: "re.Match[str]") -> PlanLayer:
    rest = match["rest"]
    before, _, after = rest.partition("Outputs: [")
    inputs, _, constants = before.partition("Constants: [")
    outputs, _, last = after.partition("}], ")
    plugin = re.search(r"PluginType: (\w+)", last)
    tactic = re.search(r"Tactic(?:Name|Value): ([^,]*)", last)
    return PlanLayer(
        match["name"],
        match["kind"],
        plugin[1] if plugin else "",
        tactic[1] if tactic else "",
        # Constants are weights, not what the step moves.
        tuple(_tensors(inputs)),
        tuple(_tensors(outputs + "}")),
        tuple(dict.fromkeys(tensor.dtype for tensor in _tensors(constants))),
    )


def _tensors(text: str) -> Iterator[LayerTensor]:
    for match in _TENSOR.finditer(text):
        yield LayerTensor(match["name"], match["shape"], match["dtype"], match["format"])


def _inspected(layer: Any) -> PlanLayer:
    if not isinstance(layer, dict):
        return PlanLayer(str(layer), "unknown", "", "", (), ())
    return PlanLayer(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "unknown")),
        str(layer.get("PluginType", "")),
        str(layer.get("TacticName") or layer.get("TacticValue") or ""),
        tuple(map(_inspected_tensor, layer.get("Inputs", []))),
        tuple(map(_inspected_tensor, layer.get("Outputs", []))),
    )


def _inspected_tensor(tensor: dict[str, Any]) -> LayerTensor:
    shape = ",".join(map(str, tensor.get("Dimensions", [])))
    kind, form = str(tensor.get("Datatype", "")), str(tensor.get("Format/Datatype", ""))
    return LayerTensor(str(tensor.get("Name", "")), shape, kind, str(tensor.get("Format", form)))


def _of_profile(layers: Sequence[PlanLayer], number: int) -> Iterator[PlanLayer]:
    """A profile's layers from its first attention to its last, for names between tell nothing."""
    at = [i for i, each in enumerate(layers) if each.plugin and each.profile == number]
    yield from layers[at[0] : at[-1] + 1] if at else ()


def _profile_words(layers: Sequence[PlanLayer], number: int, *, alone: bool) -> str:
    own = list(_of_profile(layers, number))
    plugins = Counter(layer.plugin for layer in own if layer.plugin)
    between = Counter(map(_kernels, _between(own)))
    copies = [layer.name for layer in own if layer.copies_pool]
    pools = f"copies of pools: {', '.join(copies)}" if copies else "no copy of a pool"
    counts = ", ".join(f"{count} {name}" for name, count in sorted(plugins.items()))
    # All layers are a lone profile's, also those before its first attention.
    readers = layers if alone else own
    few = Counter(kind for layer in readers for kind in layer.weights if kind in _FEW_BITS)
    counts += "".join(f", {n} kernels read {kind} weights" for kind, n in sorted(few.items()))
    runs = "; ".join(f"{count} times {words}" for words, count in between.most_common())
    return f"{counts}; between two attentions {runs or 'nothing'}; {pools}"


def _between(layers: Sequence[PlanLayer]) -> list[list[PlanLayer]]:
    groups = groupby(layers, key=lambda layer: layer.plugin in ATTENTION)
    inner = [list(group) for is_attention, group in groups if not is_attention]
    # What stands before the first attention is the head's.
    return inner if layers and layers[0].plugin in ATTENTION else inner[1:]


def _kernels(layers: Sequence[PlanLayer]) -> str:
    running = [layer for layer in layers if layer.runs]
    regions = {layer.region for layer in running} - {""}
    words = " ".join(layer.word for layer in running)
    plural = "" if len(regions) == 1 else "s"
    return f"{len(running)} kernels of {len(regions)} fused region{plural} ({words})"
