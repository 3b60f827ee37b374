"""The demo's page: one HTML file that stands by itself, with the plots inside, for desks and for phones."""

import base64
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from converters.plain import plain_lines
from coordinator.demo.files import adapter_name
from coordinator.demo.result import DemoResult, DeviceResult, Sample
from coordinator.demo.shown.plot import DESK, PHONE, device_colours, draw_plot


def write_page(result: DemoResult, folder: Path) -> None:
    """Draws the plots and writes `index.html` around them."""
    desk, phone = folder / "plot.png", folder / "plot-phone.png"
    draw_plot(result, desk, DESK)
    draw_plot(result, phone, PHONE)
    page = render_page(result, desk.read_bytes(), phone.read_bytes(), folder)
    (folder / "index.html").write_text(page, "utf-8")


def render_page(result: DemoResult, plot: bytes, plot_for_phones: bytes, folder: Path) -> str:
    """Returns a run as HTML.

    Args:
        result: What the run came to.
        plot: PNG bytes, for wide windows.
        plot_for_phones: The same for narrow ones.
        folder: Where the adapters were exported to, for the commands at the end.
    """
    colours = device_colours(result)
    template = Template(resources.files("coordinator.demo.shown").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        headline=_headline(result),
        verdict=_shown(result.verdict),
        bars=_bars(result),
        rows="".join(_row(device, colours[device.device_id]) for device in result.devices),
        samples="".join(_sample(sample) for sample in result.samples),
        plot=_data_url(plot),
        plot_for_phones=_data_url(plot_for_phones),
        notes="".join(f"<li>{_shown(note)}</li>" for note in result.notes),
        num_devices=len(result.devices),
        num_versions=len(result.versions) - 1,
        num_updates=len(result.updates),
        seconds=f"{result.seconds:.0f}",
        adapters="\n".join(_shown(_adapter(form, folder)) for form in result.forms),
        folder=_shown(str(folder)),
    )


def _shown(text: str) -> str:
    """Escapes a text for a page: what is markup there, and what is not printable."""
    return escape(plain_lines(text))


def _data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _adapter(form: str, folder: Path) -> str:
    users = {"peft": "PEFT and transformers", "mlx": "mlx-lm", "gguf": "llama.cpp, as --lora"}
    return f"{folder}/{adapter_name(form):<12}    # for {users[form]}"


def _headline(result: DemoResult) -> str:
    return f"{100 * result.best_alone.alone.exact:.3g}% alone, {100 * result.fleet.exact:.3g}% together"


def _bars(result: DemoResult) -> str:
    colours = device_colours(result)
    rows = [("before", "base model", result.base.exact, "var(--faint)")]
    rows += [
        (device.device_id, "alone", device.alone.exact, colours[device.device_id])
        for device in result.devices
    ]
    rows.append(("fleet", "together", result.fleet.exact, "var(--ink)"))
    return "".join(
        f'<div class="bar"><span class="name">{_shown(name)} <small>{what}</small></span>'
        f'<span class="track"><span class="fill" style="width:{share:.1%};background:{colour}"></span></span>'
        f'<span class="share">{share:.1%}</span></div>'
        for name, what, share, colour in rows
    )


def _row(device: DeviceResult, colour: str) -> str:
    cells = {
        "is asked for": _shown(device.kind),
        "backend": _shown(device.backend),
        "pace": "full speed" if device.slowdown == 1 else f"{device.slowdown:g} x slower",
    }
    numbers = {
        "updates": str(device.updates),
        "mean staleness": f"{device.mean_staleness:.1f}",
        "weight": f"{device.weight_share:.0%}",
        "before": f"{device.before.exact:.1%}",
        "alone": f"{device.alone.exact:.1%}",
        "with the fleet": f"<b>{device.fleet.exact:.1%}</b>",
    }
    return (
        f'<tr><td class="name"><i style="background:{colour}"></i><b>{_shown(device.device_id)}</b></td>'
        + "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
        + "".join(f'<td class="n" data-label="{label}">{cell}</td>' for label, cell in numbers.items())
        + "</tr>"
    )


def _sample(sample: Sample) -> str:
    right = "right" if sample.fleet == sample.expected else "wrong"
    return (
        f"<tr><td>{_shown(sample.prompt.strip())}</td>"
        f'<td data-label="before"><code>{_shown(_first_line(sample.base))}</code></td>'
        f'<td class="{right}" data-label="with the fleet">'
        f"<code>{_shown(_first_line(sample.fleet))}</code></td></tr>"
    )


def _first_line(text: str) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= 48 else line[:47] + "…"
