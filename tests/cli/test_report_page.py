"""The report in a browser: nothing logged, nothing loaded, every panel drawn, legible, in light and dark, on a phone.

DROPLESS_SCREENSHOTS=FOLDER keeps a picture of each page for people to look at.
"""

import json
import os
import pathlib
import re
import select
import subprocess
import sys
import unittest

from browser import CHROMIUM, Browser
from command import BINARY, CommandTest

VIEWS = {
    "light": {},
    "dark": {"dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
    "dark phone": {"width": 320, "height": 640, "phone": True, "dark": True},
}
CHARTS = [
    "Training loss, the router’s losses included", "Cross-entropy, nats per token", "Load-balancing loss",
    "Tokens per second", "Learning rate", "Gradient norm", "Share of the tokens that an expert gets",
    "Entropy of the expert load (1: even)", "Entropy of the router (1: undecided, 0: certain)",
]  # fmt: skip
# Texts of one picture that lie over one another or reach out of it.
COLLISIONS = """[...document.querySelectorAll('svg.chart')].flatMap(picture => {
  const outer = picture.getBoundingClientRect();
  const boxes = [...picture.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const out = boxes.filter(([, b]) => b.left < outer.left - 1 || b.right > outer.right + 1 || b.top < outer.top - 1 || b.bottom > outer.bottom + 1);
  const over = boxes.filter(([, a], i) => boxes.some(([, b], k) => k < i && a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2));
  return [...out, ...over].map(([text]) => `${picture.getAttribute('aria-label')}: ${text}`);
})"""
# Of every chart: title, curves and the fewest points of one, labels of both axes.
DRAWN = """[...document.querySelectorAll('svg.chart')].map(picture => ({
  title: picture.getAttribute('aria-label'),
  curves: picture.querySelectorAll('.curve').length,
  points: Math.min(...[...picture.querySelectorAll('.curve')].map(c => c.getAttribute('d').split('L').length)),
  broken: /NaN|Infinity|undefined/.test(picture.outerHTML),
  across: picture.querySelectorAll('text[text-anchor=middle]').length,
  up: picture.querySelectorAll('text[text-anchor=end]').length - 1,
}))"""
# The luminance contrast of the page's text with what lies behind it.
CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const card = light(getComputedStyle(document.querySelector('.card')).backgroundColor);
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const texts = [...document.querySelectorAll('.card h3, .legend, .chart text, .note, pre')];
  return {dark: card < 0.2, least: Math.min(...texts.map(t => contrast(light(getComputedStyle(t)[t.matches('text') ? 'fill' : 'color']), card)))};
})()"""


class ReportPageTest(CommandTest):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        super().setUp()
        self.write_data()
        self.write_config()

    def open(self, page: str, view: str):
        url = page if "://" in page else (self.folder / page).as_uri()
        opened = self.browser.open(url, **VIEWS[view])
        self.addCleanup(opened.close)
        return opened

    def keep(self, page, name: str):
        if folder := os.environ.get("DROPLESS_SCREENSHOTS"):
            (pathlib.Path(folder) / f"{name}.png").write_bytes(page.screenshot())

    def check(self, page):
        self.assertEqual(page.complaints(), [])
        self.assertEqual(page.requests(), [])
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), page.evaluate("innerWidth"))
        self.assertEqual(page.evaluate(COLLISIONS), [])
        for chart in page.evaluate(DRAWN):
            self.assertGreater(chart["points"], 1, chart)
            self.assertGreaterEqual(chart["across"], 3, chart)
            self.assertGreaterEqual(chart["up"], 2, chart)
            self.assertFalse(chart["broken"], chart)

    def train_with_samples(self):
        self.check_command("train", "config.yaml")
        # As the generate_callback writes them.
        with (self.folder / "run/samples.jsonl").open("w") as file:
            for step in (10, 20, 40):
                for prompt in ("Once", "def <b>"):
                    file.write(json.dumps({"step": step, "prompt": prompt, "text": f" text </script> {step}"}) + "\n")
        self.check_command("report", "run")

    def test_one_run(self):
        self.train_with_samples()
        for view in VIEWS:
            with self.subTest(view):
                page = self.open("run/report.html", view)
                self.keep(page, f"one run, {view}")
                self.check(page)
                charts = {chart["title"]: chart for chart in page.evaluate(DRAWN)}
                self.assertEqual([title for title in CHARTS if title not in charts], [])
                self.assertEqual(charts["Cross-entropy, nats per token"]["curves"], 2)
                self.assertEqual(charts["Share of the tokens that an expert gets"]["curves"], 4)
                contrast = page.evaluate(CONTRAST)
                self.assertEqual(contrast["dark"], "dark" in view)
                self.assertGreaterEqual(contrast["least"], 4.5)  # WCAG AA
                # Two layers of four experts, each map of several colours.
                colours = page.evaluate(
                    "[...document.querySelectorAll('canvas')].map(c => new Set(new Uint32Array("
                    "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
                )
                self.assertEqual(len(colours), 2)
                self.assertGreater(min(colours), 2)

    def test_controls(self):
        self.train_with_samples()
        page = self.open("run/report.html", "light")
        curve = "document.querySelector('.curve').getAttribute('d')"
        change = "(() => {{ const e = document.getElementById('{}'); e.{} = {}; e.dispatchEvent(new Event('{}')); }})()"
        drawn = [page.evaluate(curve)]
        for control in [("smooth", "value", 0, "input"), ("log", "checked", "true", "change"), ("axis", "value", "'tokens'", "change")]:
            page.evaluate(change.format(*control))
            drawn.append(page.evaluate(curve))
            self.check(page)
        # Tokens grow with steps: the same curve, but for the labels below it.
        self.assertEqual(len(set(drawn[:3])), 3)
        self.assertIn("tokens", page.evaluate("document.querySelector('.chart .unit').textContent"))
        self.assertEqual(page.evaluate("document.querySelectorAll('pre')[0].textContent"), "Once text </script> 40")
        page.evaluate("(() => { const s = document.querySelector('[aria-label=\"step of the samples\"]'); s.value = 0; s.dispatchEvent(new Event('input')); })()")
        self.assertEqual(page.evaluate("document.querySelectorAll('pre')[1].textContent"), "def <b> text </script> 10")
        page.evaluate("document.querySelector('#more').open = true")
        page.wait("document.querySelectorAll('#more svg.chart').length > 0")
        self.check(page)

    def test_several_runs(self):
        for k in range(3):
            self.check_command("train", "config.yaml", f"save_folder=run-{k}", f"seed={k}", f"max_duration={20 + 10 * k}ba", "eval_interval=5ba")
        self.check_command("report", "run-0", "run-1", "run-2", "--out", "all.html")
        for view in VIEWS:
            with self.subTest(view):
                page = self.open("all.html", view)
                self.keep(page, f"several runs, {view}")
                self.check(page)
                charts = {chart["title"]: chart for chart in page.evaluate(DRAWN)}
                self.assertEqual(charts["Training cross-entropy, nats per token"]["curves"], 3)
                self.assertEqual(charts["Evaluation cross-entropy, nats per token"]["curves"], 3)
                self.assertEqual(page.evaluate("[...document.querySelectorAll('#summary td:first-child')].map(t => t.textContent)"), ["run-0", "run-1", "run-2"])
                differing = page.evaluate("[...document.querySelectorAll('pre .differs')].map(line => line.textContent)")
                self.assertEqual(differing, ["seed: 0", "max_duration: 20ba", "save_folder: run-0"])

    def test_a_run_that_failed_and_one_without_figures(self):
        result = self.run_command("train", "config.yaml", "optimizer.lr=1e30", "algorithms=null", "eval_first=true")
        self.assertEqual(result.returncode, 1, result.stderr)
        page = self.open("run/report.html", "light")
        self.keep(page, "failed run")
        self.assertEqual(page.complaints(), [])
        self.assertRegex(page.evaluate("document.querySelector('#summary p.bad').textContent"), "the (loss|gradient norm) of step")
        self.assertEqual(page.evaluate(COLLISIONS), [])  # a learning rate of 1e30 included
        labels = page.evaluate(
            "[...document.querySelectorAll('svg.chart')].map(p => [...p.querySelectorAll('text[text-anchor=end]')].map(t => t.textContent))"
        )
        for chart in labels:
            self.assertEqual(len(chart), len(set(chart)), chart)

    def test_the_page_of_a_server_goes_on_by_itself(self):
        process = subprocess.Popen(
            [BINARY, "train", "config.yaml", "--serve", "0", "max_duration=20000ba", "save_interval=0ba", "progress_bar=false"],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        address = None
        while not address and select.select([process.stderr], [], [], 60)[0]:
            address = re.search(r"http://\S+", process.stderr.readline())
        self.assertIsNotNone(address)
        page = self.open(address[0], "light")
        steps = "+document.querySelector('#summary td:nth-child(2)').textContent.replace(' k', 'e3')"
        page.wait(f"({steps}) >= 1")
        before = page.evaluate(steps)
        page.evaluate("(() => { const e = document.getElementById('smooth'); e.value = 5; e.dispatchEvent(new Event('input')); })()")
        page.wait(f"({steps}) > {before}")
        page.wait(f"({steps}) >= 20 && document.querySelectorAll('svg.chart').length >= 9")
        self.assertEqual(page.evaluate("document.getElementById('smooth-value').textContent"), "5.0 %")
        self.assertEqual(page.complaints(), [])
        self.assertEqual(set(page.requests()), {address[0] + "data.json"})
        self.keep(page, "live")
        process.terminate()
        self.assertEqual(process.wait(timeout=60), 0)
        page.wait("document.getElementById('live').textContent.startsWith('no answer')")


if __name__ == "__main__":
    if CHROMIUM is None:
        print("no Chromium: apt-get install chromium (./dev test --nightly installs it)")
        sys.exit(1 if os.environ.get("DROPLESS_NIGHTLY") else 77)
    unittest.main()
