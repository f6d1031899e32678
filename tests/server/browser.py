"""A real browser for tests of the page: Debian's Chromium, without a window, driven by Selenium."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

PACKAGES = "chromium and chromium-driver"


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    """A browser; its log has what pages complain of, breaches of the content security policy too."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        reason = f"the page is not looked at: this machine has no Chromium (the packages {PACKAGES})"
        warnings.warn(reason, stacklevel=1)  # a skip alone is a letter among thousands
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1440,1000"):
        options.add_argument(switch)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to begin as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.set_page_load_timeout(30)
    started.set_script_timeout(30)
    yield started
    started.quit()
