"""Check a report page in headless Chromium: accessibility by axe-core, at desktop and phone width, and printing.

    python tests/check_page.py PAGE [CHROMIUM]

Prints what axe-core finds; exit code 1 if something is serious or critical, if the page is wider than a phone, loads
anything from elsewhere or exceeds 5 MB, or if it can't be printed.
"""

import html
import json
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

WIDTHS = {"desktop": 1280, "phone": 390}
MAX_BYTES = 5_000_000
RUN_AXE = """<script>%s</script><script>axe.run().then(found => {
  const width = document.documentElement.scrollWidth;
  const listed = found.violations.map(v => ({impact: v.impact, help: v.help, nodes: v.nodes.length,
                                             first: v.nodes[0].html.slice(0, 200)}));
  parent.postMessage(JSON.stringify({width, passes: found.passes.length, violations: listed}), '*');
});</script></body>"""
# a frame, because Chromium's own window has at least 500 pixels
FRAME = """<body><iframe src="page.html" width="%d" height="2000" style="border: 0"></iframe>
<script>onmessage = event => { document.body.innerText = 'AXE' + event.data + 'AXE'; }</script></body>"""


def chromium(program: str, *flags: str) -> str:
    """Run headless Chromium and return its standard output."""
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def main() -> int:
    page, *program = sys.argv[1:]
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    text, browser = Path(page).read_text(encoding="utf-8"), program[0] if program else "chromium"
    faults = [f"{page} has {size} bytes" for size in [len(text.encode())] if size > MAX_BYTES]
    faults += [f"{page} loads {url}" for url in re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', text)]
    with tempfile.TemporaryDirectory() as folder:
        copy, printed = Path(folder) / "page.html", Path(folder) / "page.pdf"
        copy.write_text(text.replace("</body>", RUN_AXE % axe), encoding="utf-8")
        for name, width in WIDTHS.items():
            frame = Path(folder) / f"{name}.html"
            frame.write_text(FRAME % width, encoding="utf-8")
            found = read_result(chromium(browser, "--window-size=1400,2000", "--dump-dom", frame.as_uri()))
            print(f"{name}, {width} pixels: {found['passes']} rules pass, {len(found['violations'])} don't")
            for fault in found["violations"]:
                print(f"  {fault['impact']}: {fault['help']} ({fault['nodes']} times, first {fault['first']})")
            faults += [fault["help"] for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
            if found["width"] > width:
                faults.append(f"{page} is {found['width']} pixels wide in a window of {width}")
        chromium(browser, "--no-pdf-header-footer", f"--print-to-pdf={printed}", Path(page).resolve().as_uri())
        pages = len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))
        print(f"printed: {pages} pages")
        if not pages:
            faults.append("nothing was printed")
    print("\n".join(f"FAULT: {fault}" for fault in faults) or f"{page}: nothing serious")
    return 1 if faults else 0


def read_result(document: str) -> dict:
    """The result that RUN_AXE wrote into the page."""
    found = re.search(r"AXE(\{.*\})AXE", document, re.DOTALL)
    if not found:
        raise SystemExit("axe-core did not finish")
    return json.loads(html.unescape(found[1]))


if __name__ == "__main__":
    sys.exit(main())
