"""Walk the built site in Chromium: links and anchors lead somewhere, pictures load, nothing scrolls sideways, nobody else is asked.

    make docs-check                                  # needs Debian's chromium and chromium-driver, and selenium
    .venv-docs/bin/python docs/check_site.py site --pages index.html compare.html --pictures /tmp/pictures

Links to other sites are counted and not followed. Exit code 1 with a line for each fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from selenium import webdriver
from selenium.common.exceptions import TimeoutException

WIDTHS = (400, 1200)
PATIENCE = 120  # seconds
# Without these Chromium asks for updates and more by itself.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
# A change of width reaches the page after the call that asks for it: wait for it, for all pictures, and for a frame drawn with both.
LOOK = """
const [width, done] = arguments;
for (const image of document.images) image.loading = "eager";
const arrived = image => image.complete ? 0 : new Promise(ready => { image.onload = image.onerror = ready; });
const frame = () => new Promise(ready => requestAnimationFrame(() => setTimeout(ready)));
(async () => {
  while (!matchMedia(`(width: ${width}px)`).matches) await new Promise(ready => setTimeout(ready, 20));
  await Promise.all([document.fonts.ready, ...[...document.images].map(arrived)]);
  await frame(); await frame();
  const page = document.documentElement;
  done({wide: page.scrollWidth - page.clientWidth,
        broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
        links: [...document.querySelectorAll("a[href]")].map(a => a.href),
        ids: [...document.querySelectorAll("[id]")].map(e => e.id)});
})();
"""


class Quiet(SimpleHTTPRequestHandler):
    """A file server that does not write a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def browser(folder: str) -> webdriver.Chrome:
    """Chromium with a new profile and a record of its requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    chrome.set_script_timeout(PATIENCE)
    return chrome


def requests_of(chrome: webdriver.Chrome) -> set[str]:
    """Addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def walk(site: Path, pages: list[str], pictures: Path | None) -> list[str]:
    """Visit the pages, or all, at every width; returns the faults."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    names = pages or sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    faults: list[str] = []
    links: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as profile:
        chrome = browser(profile)
        try:
            for name in names:
                for width in WIDTHS:
                    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
                    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                    if width == WIDTHS[0]:
                        chrome.get(base + name)
                    try:
                        seen = chrome.execute_async_script(LOOK, width)
                        if seen["wide"] > 0:  # seen once in 130 pages, and gone on a second look
                            time.sleep(1)
                            seen = chrome.execute_async_script(LOOK, width)
                    except TimeoutException:
                        faults.append(f"{name}: not settled after {PATIENCE} s at {width}")
                        continue
                    if seen["wide"] > 0:
                        faults.append(f"{name}: {seen['wide']} pixels too wide at {width}")
                    faults += [f"{name}: picture {picture} does not load" for picture in seen["broken"]]
                    links[name], ids[name] = set(seen["links"]), set(seen["ids"])
                    if pictures is not None:
                        chrome.save_screenshot(str(pictures / f"{name.replace('/', '-')}-{width}.png"))
                foreign = [
                    url
                    for url in requests_of(chrome)
                    if not url.startswith((base, "data:", "blob:", "chrome:", "about:"))
                ]
                faults += [f"{name}: asks {url}" for url in foreign]
                own = [fault for fault in faults if fault.startswith(f"{name}:")]
                print("\n".join(own) or f"{name}: no faults", flush=True)
        finally:
            chrome.quit()
            server.shutdown()
    elsewhere = 0
    for name, targets in links.items():
        for link in sorted(targets):
            if not link.startswith(base):
                elsewhere += link.startswith("http")
                continue
            address, anchor = urldefrag(link.removeprefix(base))
            page = unquote(address) or "index.html"
            page += "index.html" if page.endswith("/") else ""
            if not (site / page).is_file():
                faults.append(f"{name}: {link} leads nowhere")
            elif (
                anchor
                and page in ids
                and name != "404.html"
                and unquote(anchor) not in ids[page] | {"__top", "__search"}
            ):
                faults.append(f"{name}: {page} has no #{anchor}")
    print(
        f"{len(names)} pages at {WIDTHS} pixels, {sum(map(len, links.values())):,} links, {elsewhere} of them to other sites"
    )
    return faults


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for a screenshot of each page and width")
    parser.add_argument("--pages", nargs="+", default=[], help="these alone, such as tutorials/llm.html")
    given = parser.parse_args()
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    faults = walk(given.site, given.pages, given.pictures)
    print("\n".join(faults) or "no faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
