"""The parts of ./dev bench web.

Each part is a module with

    measure(lab, options) -> {"rows": [...], ...}   what was measured, in figures for --json
    arguments(parser)                               its own options, if it has any

and a row is made by row() here; all rows become one table.
"""


def row(what, ours, unit, theirs=None, against="", target=None, ratio=None):
    """One line: ours, in the unit; theirs, of what it is compared with; the ratio or, without
    a comparison, the figure itself must reach the target."""
    if ratio is None and theirs:
        ratio = ours / theirs
    reached = ratio if ratio is not None else ours
    return {"what": what, "ours": ours, "unit": unit, "theirs": theirs, "against": against,
            "ratio": ratio, "target": target, "met": target is None or reached >= target}


def table(rows):
    """Lines for people."""
    lines = [f"{'':<42} {'ours':>10} {'other':>10} {'':<11} {'ratio':>6} {'target':>7}"]
    for item in rows:
        theirs = f"{item['theirs']:>10,.0f}" if item["theirs"] is not None else " " * 10
        ratio = f"{item['ratio']:>6.2f}" if item["ratio"] is not None else " " * 6
        target = "" if item["target"] is None else f"{item['target']:>7,g}"
        note = "" if item["met"] else "  MISSED"
        lines.append(f"{item['what']:<42} {item['ours']:>10,.0f} {theirs} {item['unit']:<11} "
                     f"{ratio} {target:>7}{note}")
    return lines
