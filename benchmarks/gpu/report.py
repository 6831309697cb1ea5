"""The report in words: short Markdown tables of what was measured and how each stage ended."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = Sequence[str]


def report_text(report: dict[str, Any]) -> str:
    """All tables for which there is something; a measurement that failed is left out."""
    measured = report["measured"]
    parts = [_machine(report), _stages(report["stages"])]
    parts += [f"failed: {name}, {why}" for name, why in measured.get("failed", {}).items()]
    parts += [f"no time was left: {what}" for what in measured.get("left_out", ())]
    if measured.get("ceilings"):
        (ceilings,) = measured["ceilings"]
        parts.append(_ceilings(ceilings))
        for name, table in (("attention", _attention), ("import", _imports), ("step", _steps)):
            if measured.get(name):
                parts.append(table(measured[name], ceilings))
    return "\n\n".join(parts)


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"] or {}
    device = (machine.get("device") or {}).get("name", "no NVIDIA GPU")
    lines = [
        f"{device}, driver {machine.get('driver')}, torch {machine.get('torch')}, "
        f"Python {machine.get('python')}, commit {machine.get('commit')}, {report['date']}",
        f"`{report['command']}`",
    ]
    if report["dry_run"]:
        lines.append("DRY RUN on a CPU over the kernels' host form: the times say nothing.")
    lines += [f"missing: {name}" for name in machine.get("missing", ())]
    lines += [f"not installed: {name}" for name in machine.get("absent", ())]
    return "\n".join(lines)


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = [
        (s["name"], s["ended"], f"{s['seconds']:.0f} of {s['limit_seconds']:.0f}", _reason(s))
        for s in stages
    ]
    return markdown(("stage", "ended", "seconds", ""), rows)


def _reason(stage: dict[str, Any]) -> str:
    """The stage's last words; of measurements that went well, none: they are in the tables."""
    lines = [line for line in stage["detail"].splitlines() if line.strip()]
    if not lines or (stage["ended"], stage["name"]) == ("ok", "measurements"):
        return ""
    return lines[-1].strip("= ").replace("|", "/")[:160]


def _ceilings(ceilings: dict[str, Any]) -> str:
    host = ceilings["host_copy_bytes_per_second"]
    words = (
        f"Ceilings: copy {ceilings['copy_bytes_per_second'] / 1e9:.0f} GB/s, {ceilings['dtype']} "
        f"matmul {ceilings['matmul_flops_per_second'] / 1e12:.1f} TFLOP/s"
    )
    return words + (f", from pinned host {host / 1e9:.1f} GB/s." if host else ".")


def _attention(steps: list[dict[str, Any]], ceilings: dict[str, Any]) -> str:
    rows = []
    for step in steps:
        sdpa = step["seconds"].get("sdpa", {}).get("median")
        for name, timing in step["seconds"].items():
            seconds = timing["median"]
            difference = step["max_difference_to_sdpa"].get(name)
            rows.append(
                (
                    step["step"],
                    name,
                    spread(timing),
                    f"{step['bytes'] / seconds / 1e9:.0f}",
                    f"{step['flops'] / seconds / 1e12:.2f}",
                    f"{limit_seconds(step, ceilings) / seconds:.0%}",
                    "" if sdpa is None else f"{sdpa / seconds:.2f}",
                    "" if difference is None else f"{difference:.1e}",
                )
            )
    columns = ("step", "form", "µs", "GB/s", "TFLOP/s", "of limit", "sdpa / this", "max difference")
    return "One layer's attention\n\n" + markdown(columns, rows)


def limit_seconds(step: dict[str, Any], ceilings: dict[str, Any]) -> float:
    """The time that the needed bytes or operations take at the measured ceiling, the longer."""
    return max(
        step["bytes"] / ceilings["copy_bytes_per_second"],
        step["flops"] / ceilings["matmul_flops_per_second"],
    )


def _imports(imports: list[dict[str, Any]], ceilings: dict[str, Any]) -> str:
    rows = []
    for one in imports:
        moved = one["bytes_read"] + one["bytes_written"]
        rows.append((one["source"], spread(one["seconds"]), f"{_rate(one, moved):.1f}"))
    tokens = imports[0]["tokens"]
    return f"Import of {tokens} tokens, all layers\n\n" + markdown(("source", "µs", "GB/s"), rows)


def _rate(one: dict[str, Any], moved: int) -> float:
    """GB/s; what crosses the bus counts once, as in the ceiling of that."""
    counted = one["bytes_read"] if "runner" in one["source"] else moved
    return float(counted / one["seconds"]["median"] / 1e9)


def _steps(steps: list[dict[str, Any]], ceilings: dict[str, Any]) -> str:
    rows = [
        (
            step["step"],
            str(step["num_layers"]),
            spread(step["device_seconds"], 1e3),
            spread(step["runner_seconds"], 1e3),
            spread(step["host_seconds"], 1e3),
            f"{step['flops'] / step['device_seconds']['median'] / 1e12:.1f}",
            f"{step['weight_bytes'] / step['device_seconds']['median'] / 1e9:.0f}",
        )
        for step in steps
    ]
    columns = ("step", "layers", "device ms", "runner ms", "call ms", "TFLOP/s", "weights GB/s")
    return "A whole step\n\n" + markdown(columns, rows)


def spread(timing: dict[str, Any], scale: float = 1e6) -> str:
    low, median, high = (timing[name] * scale for name in ("low", "median", "high"))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def markdown(columns: Row, rows: Iterable[Row]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
