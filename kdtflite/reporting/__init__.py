"""The results of a run, as a page, a terminal table and plots.

    write_html(report, "report.html")       # one self-contained page
    render_table(report)                    # a rich table for the terminal
    plot_accuracy_versus_size(report["models"])  # matplotlib axes, for notebooks

`schema.Report` documents the report, which is a plain dict as read from `report.json`.
"""

import lazy_loader

# Names and their modules stand in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
