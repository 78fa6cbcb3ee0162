"""report: a run's results as a file, with charts where the format has them."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchfleet_controller.commands import UsageError, store_of
from benchfleet_controller.commands.answers import report_data
from benchfleet_controller.commands.comparing import price_of
from benchfleet_controller.report import ReportError, render_report, write_report, write_text, write_whole
from benchfleet_controller.report.exports import markdown_cell
from benchfleet_controller.store import Store, TooManyRequests

if TYPE_CHECKING:
    from benchfleet_controller.report.html import HtmlReport

EXIT_DONE = 0


def report(options: argparse.Namespace) -> int:
    """Write a run's report."""
    store = store_of(options)
    run_id = store.resolve_run(options.run)
    target: Path = options.output
    ending = target.suffix.lower()
    if options.charts and ending != ".md":
        raise UsageError("--charts is for Markdown (.md); a page (.html) has its charts inside")
    if ending == ".parquet":
        write_whole(target, lambda path: store.write_parquet(path, [run_id]), force=options.force)
    elif ending == ".html":
        text = html_of(store, run_id, options.goodput, price_of(options))
        write_whole(target, lambda path: write_text(path, text), force=options.force)
    elif options.charts:
        _write_with_charts(store, run_id, target, options)
    else:
        data = report_data(store, run_id, goodput=options.goodput, price_per_kwh=price_of(options))
        write_report(target, data, force=options.force)
    print(target)
    return EXIT_DONE


def html_of(store: Store, run_id: str, goodput: str | None = None, price_per_kwh: float | None = None) -> str:
    """The page of a run. Raises `ReportError` without the libraries that draw it."""
    from benchfleet_controller.report.html import render_html

    try:
        return render_html(_drawable(store, run_id, goodput, price_per_kwh))
    except ImportError as error:
        raise _missing(error) from None


def _write_with_charts(store: Store, run_id: str, target: Path, options: argparse.Namespace) -> None:
    """Markdown and, in a folder beside it, its charts: the folder appears whole, and before the text that shows it."""
    from benchfleet_controller.report.html import chart_images

    folder = target.with_name(f"{target.stem}-charts")
    if folder.exists() and not options.force:
        raise ReportError(f"{folder} exists: use --force to replace its charts or name another file")
    data = _drawable(store, run_id, options.goodput, price_of(options))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{folder.name}.") as temporary:
        drawn_in = Path(temporary) / "charts"
        try:
            drawn = chart_images(data, drawn_in, options.charts)
        except ImportError as error:
            raise _missing(error) from None
        lines = [f"![{markdown_cell(caption)}]({folder.name}/{path.name})\n" for caption, path in drawn]
        text = render_report(data.report, ".md") + "\n## Charts\n\n" + "\n".join(lines)
        if folder.exists():
            folder.rename(Path(temporary) / "earlier")
        drawn_in.rename(folder)
    write_whole(target, lambda path: write_text(path, text), force=options.force)


def _drawable(store: Store, run_id: str, goodput: str | None, price_per_kwh: float | None) -> HtmlReport:
    try:
        from benchfleet_controller.report.html import HtmlReport
    except ImportError as error:
        raise _missing(error) from None
    data = report_data(store, run_id, goodput=goodput, price_per_kwh=price_per_kwh)
    try:
        found = data.outliers or store.outliers([run_id])
    except TooManyRequests:  # the page says that it looked for none
        found = ()
    return HtmlReport(data, store.timeline(run_id), found)


def _missing(error: ImportError) -> ReportError:
    return ReportError(f"charts need more libraries ({error}); run: pip install 'benchfleet[report]'")
