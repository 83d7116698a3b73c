// What the tests share: a browser, and pages that are watched while they are used.

import assert from "node:assert/strict";
import { accessSync, constants, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";

export const URL_OF_SERVER = process.env.TCH_FLUX_URL;

const NAMES = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

function onPath(name) {
  return process.env.PATH.split(delimiter).map((folder) => join(folder, name)).find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export function launch() {
  const executablePath = NAMES.map(onPath).find(Boolean);
  assert(executablePath, "there is no Chromium on the PATH");
  // The sandbox refuses root, which is who runs tests in a container.
  return chromium.launch({ executablePath, chromiumSandbox: process.getuid?.() !== 0 });
}

/** Opens the page; `finish` says whether it behaved. */
export async function open(browser, options = {}, url = URL_OF_SERVER) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const problems = [];
  /** Problems that a test provokes. */
  const expected = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(message.text());
  });
  page.on("request", (request) => {
    const { protocol, host } = new URL(request.url());
    if (!["blob:", "data:"].includes(protocol) && host !== new URL(url).host) problems.push(request.url());
  });
  await page.goto(url);
  const finish = async () => {
    const surprises = problems.filter((problem) => !expected.some((pattern) => pattern.test(problem)));
    await context.close();
    assert.deepEqual(surprises, []);
  };
  return { page, expected, finish };
}

/** Keeps what the page looks like, where somebody wants to look at it. */
export async function shoot(page, name) {
  const folder = process.env.TCH_FLUX_SCREENSHOTS;
  if (folder) await page.screenshot({ path: join(folder, `${name}.png`) });
}

export async function drawn(page) {
  await page.locator("#draw:not([aria-disabled])").waitFor();
  assert(await page.locator("#caption").isVisible(), `no picture: ${await page.locator(".error:visible").allTextContents()}`);
}

export async function draw(page, prompt) {
  await page.fill("#prompt", prompt);
  // Observed from before it begins: a small picture may be there sooner than anything that asks from time to time.
  await page.evaluate(() => {
    window.begun = new Promise((resolve) => {
      new MutationObserver((_, observer) => resolve(observer.disconnect())).observe(document.querySelector("#draw"), {
        attributeFilter: ["aria-disabled"],
      });
    });
  });
  await page.keyboard.press("Control+Enter");
  await page.evaluate(() => window.begun);
}

/** The facts beneath the picture, by their names. */
export function facts(page) {
  return page.locator("#facts div").evaluateAll((pairs) =>
    Object.fromEntries(pairs.map((pair) => [pair.firstChild.textContent, pair.lastChild.textContent])),
  );
}

/** The picture that is shown, as it is downloaded. */
export async function bytes(page) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  return readFileSync(await download.path());
}
