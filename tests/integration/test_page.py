"""The web page in a real browser, with real builds behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SHOTS = os.environ.get("NIXERY_TEST_SCREENSHOTS")
"""Where pictures of the pages are kept, for whoever wants to look at them."""


@pytest.fixture(scope="module")
def browser(require, tmp_path_factory):
    """A headless Chromium."""
    require("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1400",
    ):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def registry(nix, debian_packages, serving, tmp_path_factory):
    """A registry of real programs, with an index of their names."""
    folder = tmp_path_factory.mktemp("page")
    words = [word for pair in nix.options.items() for word in ("--nix-option", *pair)]
    command = [sys.executable, "-m", "nixery_core", "index", "--source", str(debian_packages), "--progress", "none"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **nix.environment}
    subprocess.run(
        [*command, "--output", folder / "index.json", "--nix-store", nix.store, *words],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    options = ["--source", str(debian_packages), "--index", str(folder / "index.json"), "--patience", "1"]
    with serving(folder, *options) as server:
        server.wait()
        yield server


@pytest.fixture(autouse=True)
def quiet_browser(browser, registry):
    """Whatever a test does: nothing is refused or missing, and no other host is asked for anything."""
    browser.get_log("browser")
    browser.get_log("performance")
    yield
    assert [line["message"] for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    asked = set()
    for line in browser.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add("/".join(message["params"]["request"]["url"].split("/")[:3]))
    assert asked <= {registry.url}


def shot(browser, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(f"{SHOTS}/{name}.png")
    assert len(browser.get_screenshot_as_png()) > 10_000


def status(registry, path):
    try:
        registry.get(path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def until(browser, condition, seconds=60):
    return WebDriverWait(browser, seconds, 0.1, [StaleElementReferenceException]).until(lambda _: condition())


def text(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


class TestComposing:
    def test_from_names_to_a_picture_with_the_keyboard(self, browser, registry):
        """Type, complete, add, ask for the layers: all with the keyboard, until the picture is there."""
        browser.get(registry.url + "/")
        browser.switch_to.active_element.send_keys(Keys.TAB)
        assert browser.switch_to.active_element.text == "Skip to the content"
        add = browser.find_element(By.ID, "add")
        add.send_keys("pyth")
        until(browser, lambda: browser.execute_script("return document.getElementById('names').options.length") > 0)
        names = browser.execute_script("return [...document.getElementById('names').options].map(o => o.value)")
        assert names[0] == "python3"
        add.send_keys("on3", Keys.ENTER)
        until(browser, lambda: "docker pull" in text(browser, ".result"))
        browser.find_element(By.ID, "add").send_keys("git", Keys.ENTER)
        image = f"docker pull {registry.address}/python3/git:latest"
        until(browser, lambda: text(browser, ".commands code") == image)
        shot(browser, "compose")
        browser.find_element(By.CSS_SELECTOR, ".planning button").send_keys(Keys.ENTER)
        # the first plan has Nix build all of it
        until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "svg.treemap"), seconds=240)
        tiles = browser.find_elements(By.CSS_SELECTOR, "svg.treemap .tile")
        rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        assert len(tiles) == len(rows) > 20
        assert text(browser, "h1") == "Layers of python3/git:latest"
        assert browser.find_element(By.CSS_SELECTOR, "svg.treemap").get_attribute("role") == "img"
        shot(browser, "plan")

    def test_the_command_is_copied(self, browser, registry):
        """The button copies the command, or selects it where the browser gives no clipboard, and says so."""
        browser.get(registry.url + "/?p=git")
        button = browser.find_element(By.CSS_SELECTOR, "[data-copy]")
        button.click()
        until(browser, lambda: button.text in ("Copied", "Selected"))
        assert browser.find_element(By.CSS_SELECTOR, "p[role=status]").get_attribute("textContent")

    def test_every_control_has_a_name_and_a_visible_focus(self, browser, registry):
        """Tab reaches each control; it has a name for those who hear it, and an outline for those who see it."""
        browser.get(registry.url + "/?p=git&p=jq")
        seen = set()
        for _ in range(40):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            found = browser.switch_to.active_element
            if found.tag_name == "body" or found.id in seen:
                break
            seen.add(found.id)
            assert found.accessible_name, found.get_attribute("outerHTML")
            assert found.value_of_css_property("outline-style") != "none", found.get_attribute("outerHTML")
        assert len(seen) > 12

    def test_contrast(self, browser, registry):
        """Every text has the contrast that WCAG asks for at level AA, in the light and in the dark."""
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            for path in ("/?p=git&shell=1&add=a!", "/ui/builds"):
                browser.get(registry.url + path)
                assert browser.execute_script(CONTRAST) == [], scheme
            shot(browser, f"builds-{scheme}")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def test_narrow_windows(self, browser, registry):
        """On a telephone nothing is wider than the window."""
        size = {"width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(registry.url + "/?p=git&p=python3&shell=1")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        shot(browser, "narrow")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


class TestBuilds:
    def test_a_build_is_followed_live(self, browser, registry):
        """A build that a client starts shows on the open page, runs, and ends, without a reload."""
        browser.get(registry.url + "/ui/builds")
        browser.execute_script("window.unloaded = false; addEventListener('pagehide', () => { unloaded = true; })")
        with pytest.raises(urllib.error.HTTPError, match="429"):
            registry.get("/v2/slow/manifests/latest")
        until(browser, lambda: "running" in text(browser, ".live"))
        assert browser.find_elements(By.CSS_SELECTOR, ".live progress")
        shot(browser, "running")
        browser.find_element(By.CSS_SELECTOR, ".switch input").click()
        before = text(browser, ".live")
        time.sleep(2.5)
        assert text(browser, ".live") == before
        browser.find_element(By.CSS_SELECTOR, ".switch input").click()
        browser.execute_script("document.activeElement.blur()")
        until(browser, lambda: "slow:latest" in text(browser, ".live") and text(browser, ".live") != before)
        assert browser.execute_script("return window.unloaded") is False

    def test_a_failure_shows_its_log(self, browser, registry):
        """What a builder printed before it failed can be read on the front page, as text."""
        until(browser, lambda: status(registry, "/v2/failing/manifests/latest") == 422)
        browser.get(registry.url + "/")
        summary = browser.find_element(By.CSS_SELECTOR, ".failures summary")
        summary.send_keys(Keys.ENTER)
        log = until(browser, lambda: text(browser, ".failures .log"))
        assert "failing-1.0.drv" in log
        shot(browser, "failure")


class TestWithoutScripts:
    def test_everything_works(self, browser, registry):
        """Without scripts: names are found by a button, a plan is asked for, and followed by a link."""
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            browser.get(registry.url + "/?p=jq")
            browser.find_element(By.ID, "add").send_keys("gzi")
            browser.find_element(By.NAME, "find").click()
            until(browser, lambda: browser.find_elements(By.LINK_TEXT, "gzip"))[0].click()
            until(browser, lambda: f"{registry.address}/jq/gzip:latest" in text(browser, ".commands"))
            browser.find_element(By.CSS_SELECTOR, ".planning button").click()
            deadline = time.monotonic() + 240
            while not browser.find_elements(By.CSS_SELECTOR, "svg.treemap"):
                assert time.monotonic() < deadline
                for link in browser.find_elements(By.LINK_TEXT, "Look again"):
                    link.click()
                time.sleep(0.2)
            shot(browser, "without-scripts")
        finally:
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# each text node against the first ground behind it that is not transparent; WCAG 2, "relative luminance"
CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] > 0.5) return colour;
  }
  return [255, 255, 255];
};
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.offsetParent || element.closest("option")) continue;
  const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
}
return poor;
"""
