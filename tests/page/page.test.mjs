// The server's page in a real browser. TCH_FLUX_URL is a server with the small model; TCH_FLUX_KEYED_URL one that wants
// TCH_FLUX_KEY. tests/clients.rs starts both.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { bytes, draw, drawn, facts, launch, open, shoot, URL_OF_SERVER } from "./browser.mjs";

const CIRCLE = "a red circle on a blue background";
const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** What takes the small model long enough to be watched. */
async function drawSlowly(page) {
  await page.selectOption("#size", "512x512");
  await page.fill("#steps", "100");
  await draw(page, CIRCLE);
}

async function stepping(page) {
  await page.locator("#phase", { hasText: /^Step \d+ of 100$/ }).waitFor();
}

async function setSeed(page, seed) {
  await page.uncheck("#random");
  await page.fill("#seed", String(seed));
}

test("draws a picture, shows it forming, and says how it was drawn", async () => {
  const { page, finish } = await open(browser);
  assert.notEqual(await page.locator("#model").textContent(), "");
  const previews = page.evaluate(
    () =>
      new Promise((done) => {
        const seen = new Set();
        const picture = document.getElementById("picture");
        new MutationObserver(() => picture.alt.startsWith("A preview") && seen.add(picture.src)).observe(picture, {
          attributes: true,
        });
        new MutationObserver(() => done(seen.size)).observe(document.getElementById("facts"), { childList: true });
      }),
  );
  await page.fill("#steps", "20");
  await page.selectOption("#size", "512x512");
  await draw(page, CIRCLE);
  await page.locator("#progress").waitFor();
  await drawn(page);
  assert.equal(await previews, 3);
  const { Size, Seed, Steps, Time, Model } = await facts(page);
  assert.deepEqual([Size, Steps], ["512 × 512", "20"]);
  assert.match(Seed, /^\d+$/);
  assert.match(Time, /^\d+\.\d s$/);
  assert.equal(Model, await page.locator("#model").textContent());
  assert.equal(await page.locator("#picture").getAttribute("alt"), CIRCLE);
  assert.equal(await page.locator("#picture").evaluate((picture) => picture.naturalWidth), 512);
  assert.match(await page.locator("#live").textContent(), /ready: 512x512/);
  await shoot(page, "light");
  await finish();
});

test("says which step it is at", async () => {
  const { page, finish } = await open(browser);
  await drawSlowly(page);
  await stepping(page);
  const value = await page.locator("#bar").evaluate((bar) => bar.value);
  assert(value > 0 && value < 1, `${value}`);
  assert.match(await page.title(), /^\d+ % – tch-flux$/);
  await page.locator("#picture:visible").waitFor();
  await shoot(page, "drawing");
  await page.click("#cancel");
  await page.locator("#progress").waitFor({ state: "hidden" });
  await finish();
});

test("says how many wait before it", async () => {
  // All pages are open before anything is drawn: opening them may take longer than the slow picture.
  const [first, second, third] = [await open(browser), await open(browser), await open(browser)];
  await drawSlowly(first.page);
  await stepping(first.page);
  await draw(second.page, CIRCLE);
  await second.page.locator("#phase", { hasText: "Next in line" }).waitFor();
  await draw(third.page, CIRCLE);
  await third.page.locator("#phase", { hasText: "Waiting, 1 before this one" }).waitFor();
  await first.page.click("#cancel");
  for (const { page } of [second, third]) await drawn(page);
  for (const { finish } of [first, second, third]) await finish();
});

test("what is left open is the model's own, and shown", async () => {
  const { page, finish } = await open(browser);
  await draw(page, CIRCLE);
  await drawn(page);
  const { Size, Steps } = await facts(page);
  assert.deepEqual([Size, Steps], ["64 × 64", "4"]);
  await finish();
});

test("a cancelled picture makes room for the next", async () => {
  const { page, finish } = await open(browser);
  await draw(page, CIRCLE);
  await drawn(page);
  const before = await page.locator("#picture").getAttribute("src");
  await drawSlowly(page);
  await stepping(page);
  await page.keyboard.press("Escape");
  await page.locator("#progress").waitFor({ state: "hidden" });
  assert.equal(await page.locator("#live").textContent(), "Cancelled");
  assert.equal(await page.locator(".error:visible").count(), 0);
  assert.notEqual(await page.locator("#picture").getAttribute("src"), before, "shown anew");
  assert.deepEqual((await facts(page)).Size, "64 × 64", "what was there before");
  await page.selectOption("#size", "auto");
  await page.fill("#steps", "");
  await draw(page, CIRCLE);
  await drawn(page);
  await finish();
});

test("the same seed draws the same picture, another one another", async () => {
  const { page, finish } = await open(browser);
  const pictures = [];
  for (const seed of [7, 7, 8]) {
    await setSeed(page, seed);
    await draw(page, CIRCLE);
    await drawn(page);
    pictures.push(await bytes(page));
  }
  assert.deepEqual(pictures[0], pictures[1]);
  assert.notDeepEqual(pictures[0], pictures[2]);
  await finish();
});

test("seeds beyond a double's digits arrive whole", async () => {
  const { page, finish } = await open(browser);
  const seed = "18446744073709551615";
  await setSeed(page, seed);
  await draw(page, CIRCLE);
  await drawn(page);
  assert.equal((await facts(page)).Seed, seed);
  const png = (await bytes(page)).toString("latin1");
  assert(png.includes(`"seed":${seed}`), "as the picture itself says");
  await finish();
});

test("several pictures count on from the seed", async () => {
  const { page, finish } = await open(browser);
  await page.fill("#n", "3");
  await setSeed(page, 40);
  await draw(page, CIRCLE);
  await drawn(page);
  const seeds = await page.locator("#strip img").evaluateAll((images) => images.map((image) => image.alt.match(/seed (\d+)/)[1]));
  assert.deepEqual(seeds, ["42", "41", "40"]);
  assert.equal((await facts(page)).Seed, "40");
  const third = page.locator("#strip button").first();
  await third.click();
  const one = await bytes(page);
  await page.fill("#n", "1");
  await draw(page, CIRCLE);
  await drawn(page);
  assert.deepEqual(await bytes(page), one, "the third of three is the one with its seed alone");
  await finish();
});

test("downloads a PNG with a name that says what it is", async () => {
  const { page, finish } = await open(browser);
  await setSeed(page, 3);
  await draw(page, "Ein Kreis, über 9 Wellen: «blau»!");
  await drawn(page);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  assert.equal(download.suggestedFilename(), "ein-kreis-über-9-wellen-blau-3.png");
  const png = readFileSync(await download.path());
  assert.equal(png.subarray(1, 4).toString(), "PNG");
  await finish();
});

test("the history outlives a reload, gives the request back, and can be cleared", async () => {
  const { page, finish } = await open(browser);
  await page.fill("#steps", "2");
  await page.fill("#guidance", "1.5");
  await page.selectOption("#size", "own");
  await page.fill("#width", "80");
  await page.fill("#height", "64");
  await setSeed(page, 5);
  await draw(page, CIRCLE);
  await drawn(page);
  const picture = await bytes(page);
  await setSeed(page, 6);
  await draw(page, "a green square");
  await drawn(page);
  await page.reload();
  await page.locator("#strip button").nth(1).click();
  assert.deepEqual(await bytes(page), picture);
  const values = await page.evaluate(() =>
    ["prompt", "steps", "guidance", "size", "width", "height", "seed"].map((id) => document.getElementById(id).value),
  );
  assert.deepEqual(values, [CIRCLE, "2", "1.5", "own", "80", "64", "5"]);
  assert.equal(await page.locator("#random").isChecked(), false);
  await shoot(page, "history");
  await page.click("#clear");
  await page.getByRole("button", { name: "Keep them" }).click();
  assert.equal(await page.locator("#strip button").count(), 2);
  await page.click("#clear");
  await shoot(page, "clear");
  await page.getByRole("button", { name: "Delete all" }).click();
  await page.locator("#history").waitFor({ state: "hidden" });
  await page.reload();
  await page.waitForTimeout(300);
  assert.equal(await page.locator("#strip button").count(), 0);
  await finish();
});

test("one picture can be removed", async () => {
  const { page, finish } = await open(browser);
  for (const prompt of [CIRCLE, "a green square"]) {
    await draw(page, prompt);
    await drawn(page);
  }
  await page.click("#remove");
  assert.equal(await page.locator("#strip button").count(), 1);
  await page.reload();
  await page.locator("#strip button").first().click();
  assert.equal(await page.locator("#said").textContent(), CIRCLE);
  await finish();
});

test("the history is bounded", async () => {
  const { page, finish } = await open(browser);
  await page.evaluate(async () => {
    const { keep } = await import("./history.js");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 16;
    canvas.getContext("2d").fillRect(0, 0, 16, 16);
    const picture = await new Promise((done) => canvas.toBlob(done));
    for (let seed = 0; seed < 103; seed++) {
      await keep({ picture, start: null, request: { prompt: "p", size: "auto", seed }, facts: { size: "16x16", seconds: 0 } });
    }
  });
  await page.reload();
  await page.locator("#strip button").first().waitFor();
  const kept = await page.locator("#strip img").evaluateAll((images) => images.map((image) => image.alt));
  assert.equal(kept.length, 100);
  assert.match(kept[0], /seed 102$/);
  await finish();
});

test("the server's words stand at the field that they are about", async () => {
  const { page, expected, finish } = await open(browser);
  expected.push(/400 \(Bad Request\)/);
  await page.selectOption("#size", "own");
  await page.fill("#width", "1000");
  await page.fill("#prompt", CIRCLE);
  await page.keyboard.press("Control+Enter");
  const note = page.locator("#own-size .error");
  await note.waitFor();
  assert.match(await note.textContent(), /16/);
  assert.equal(await page.locator("#width").getAttribute("aria-invalid"), "true");
  assert.equal(await page.evaluate(() => document.activeElement.id), "width");
  await shoot(page, "error");
  await page.fill("#width", "64");
  await page.fill("#height", "64");
  for (const [id, value] of [["steps", "1000000000"], ["guidance", "31"], ["n", "11"]]) {
    const usual = await page.inputValue(`#${id}`);
    await page.fill(`#${id}`, value);
    await page.keyboard.press("Control+Enter");
    await page.locator(`#${id}[aria-errormessage="wrong"]`).waitFor();
    assert.equal(await page.locator("[aria-invalid]").count(), 1, id);
    assert.match(await page.locator("#wrong").textContent(), /^[A-Z]/, "in the page's words");
    await page.fill(`#${id}`, usual);
  }
  await setSeed(page, "18446744073709551616");
  await page.keyboard.press("Control+Enter");
  await page.locator("#seed[aria-errormessage]").waitFor();
  await setSeed(page, "1");
  await page.keyboard.press("Control+Enter");
  await page.locator("#wrong").waitFor({ state: "detached" });
  await drawn(page);
  assert.equal(await page.locator("[aria-invalid]").count(), 0);
  await finish();
});

test("what the form cannot mean is said before the server is asked", async () => {
  const { page, finish } = await open(browser);
  page.on("request", (request) => assert.notEqual(request.method(), "POST"));
  await page.keyboard.press("Control+Enter");
  await page.getByText("Describe the picture first.").waitFor();
  await page.fill("#prompt", CIRCLE);
  await setSeed(page, "seven");
  await page.keyboard.press("Control+Enter");
  await page.getByText("A seed is a whole number.").waitFor();
  await finish();
});

test("a server that is gone, busy or failing is told in words", async () => {
  const { page, expected, finish } = await open(browser);
  expected.push(/ERR_FAILED/, /429/);
  const answer = async (reply, words) => {
    await page.route("**/v1/images/generations", reply, { times: 1 });
    await page.fill("#prompt", CIRCLE);
    await page.keyboard.press("Control+Enter");
    await page.locator("#failure", { hasText: words }).waitFor();
    assert.equal(await page.locator("#progress").isVisible(), false);
  };
  await answer((route) => route.abort(), "The server cannot be reached.");
  const error = (message) => JSON.stringify({ error: { message, type: "server_error", param: null, code: null } });
  await answer(
    (route) => route.fulfill({ status: 429, headers: { "retry-after": "7" }, body: error("The queue is full") }),
    "The queue is full. Try again in 7 s.",
  );
  const stream = (body) => (route) => route.fulfill({ contentType: "text/event-stream", body });
  await answer(stream(`data: ${error("Out of memory")}\n\n`), "Out of memory.");
  await answer(stream(": keep-alive\n\n"), "The connection to the server was lost.");
  await draw(page, CIRCLE);
  await drawn(page);
  await finish();
});

test("asks for the key where the server does, and keeps it no longer than the tab", async () => {
  const { page, expected, finish } = await open(browser, {}, process.env.TCH_FLUX_KEYED_URL);
  expected.push(/401 \(Unauthorized\)/);
  await page.locator("#key").waitFor();
  await shoot(page, "key");
  await page.fill("#key", "wrong");
  await page.keyboard.press("Enter");
  await page.getByText("The server does not know this key.").waitFor();
  await page.fill("#key", process.env.TCH_FLUX_KEY);
  await page.keyboard.press("Enter");
  await page.locator("#key-panel").waitFor({ state: "hidden" });
  await draw(page, CIRCLE);
  await drawn(page);
  await page.reload();
  await draw(page, CIRCLE);
  await drawn(page);
  const kept = await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]);
  assert.deepEqual(kept, [1, 0, ""]);
  await finish();
});

test("no key is asked for where there is none", async () => {
  const { page, finish } = await open(browser);
  await draw(page, CIRCLE);
  await drawn(page);
  assert.equal(await page.locator("#key").isVisible(), false);
  await finish();
});

test("starts from a picture, and draws only what is painted over", async () => {
  const { page, finish } = await open(browser);
  await setSeed(page, 1);
  await draw(page, CIRCLE);
  await drawn(page);
  const before = await bytes(page);
  await page.click("#restart");
  await page.locator("#source").waitFor();
  await page.click("#paint");
  const box = await page.locator("#mask").boundingBox();
  await page.mouse.move(box.x + 0.1 * box.width, box.y + 0.1 * box.height);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.3 * box.width, box.y + 0.3 * box.height, { steps: 5 });
  await page.mouse.up();
  await shoot(page, "mask");
  await page.locator("#strength").fill("1");
  await setSeed(page, 2);
  const [request] = await Promise.all([
    page.waitForRequest("**/v1/images/edits"),
    draw(page, "a green square on a white background"),
  ]);
  assert.match(request.headers()["content-type"], /^multipart\/form-data; boundary=/);
  await drawn(page);
  const { Strength, Size } = await facts(page);
  assert.deepEqual([Strength, Size], ["1", "64 × 64"]);
  const now = await bytes(page);
  const changed = await page.evaluate(
    async (pictures) => {
      const context = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
      const [before, now] = await Promise.all(pictures.map((png) => createImageBitmap(new Blob([new Uint8Array(png)]))));
      const pixels = (bitmap, side) => {
        context.drawImage(bitmap, 0, 0);
        return context.getImageData(side, side, 16, 16).data;
      };
      const mean = (side) => {
        const [old, fresh] = [pixels(before, side), pixels(now, side)];
        return old.reduce((sum, value, i) => sum + Math.abs(value - fresh[i]), 0) / old.length;
      };
      return { painted: mean(6), kept: mean(44) };
    },
    [[...before], [...now]],
  );
  assert(changed.painted > 4 * changed.kept, JSON.stringify(changed));
  await page.reload();
  await page.locator("#strip button").first().click();
  await page.locator("#source").waitFor();
  assert.equal(await page.locator("#unmask").isVisible(), true, "the mask is given back, too");
  await finish();
});

test("takes a picture from a file, and says so where it is none", async () => {
  const { page, finish } = await open(browser);
  await draw(page, CIRCLE);
  await drawn(page);
  const buffer = await bytes(page);
  await page.click("#start-panel summary");
  await page.setInputFiles("#file", { name: "notes.png", mimeType: "image/png", buffer: Buffer.from("no picture") });
  await page.getByText("This is not a picture that the browser can read.").waitFor();
  await page.setInputFiles("#file", { name: "circle.png", mimeType: "image/png", buffer });
  await page.locator("#source").waitFor();
  await draw(page, CIRCLE);
  await drawn(page);
  assert.equal((await facts(page)).Strength, "0.6");
  await page.click("#take-away");
  await draw(page, CIRCLE);
  await drawn(page);
  assert.equal((await facts(page)).Strength, undefined);
  await finish();
});

test("the sampler is the model's own until one is chosen; then it is sent, shown, and comes back from the history", async () => {
  const { page, finish } = await open(browser);
  const [plain] = await Promise.all([page.waitForRequest("**/v1/images/generations"), draw(page, CIRCLE)]);
  assert.ok(!("sampler" in plain.postDataJSON()), "the model's folder may ask for another than Euler");
  await drawn(page);
  assert.equal((await facts(page)).Sampler, undefined);
  await page.selectOption("#sampler", "heun");
  const [request] = await Promise.all([page.waitForRequest("**/v1/images/generations"), draw(page, CIRCLE)]);
  assert.equal(request.postDataJSON().sampler, "heun");
  await drawn(page);
  assert.equal((await facts(page)).Sampler, "heun");
  await page.selectOption("#sampler", "euler");
  await page.locator("#strip button").first().click();
  assert.equal(await page.inputValue("#sampler"), "heun");
  await page.locator("#strip button").last().click();
  assert.equal(await page.inputValue("#sampler"), "");
  await finish();
});

test("what the server describes beside the form's own fields can be set, is sent, and comes back from the history", async () => {
  const { page, expected, finish } = await open(browser);
  expected.push(/400/);
  await page.click("#more-panel summary");
  assert.equal(await page.getAttribute("#field-max_sequence_length", "max"), "512");
  assert.equal(await page.getAttribute("#steps", "max"), "100");
  await page.fill("#field-max_sequence_length", "64");
  await page.fill("#field-shift", "0.5,1");
  await page.fill("#field-variation_seed", "7");
  await page.fill("#field-variation_strength", "0.25");
  await page.selectOption("#field-schedule", "shifted");
  await page.selectOption("#field-legacy_noise", "true");
  const [request] = await Promise.all([page.waitForRequest("**/v1/images/generations"), draw(page, CIRCLE)]);
  const { max_sequence_length, shift, schedule, legacy_noise, cache, variation_seed } = request.postDataJSON();
  assert.deepEqual([max_sequence_length, shift, schedule, legacy_noise, cache], [64, [0.5, 1], "shifted", true, undefined]);
  assert.equal(variation_seed, 7);
  await drawn(page);
  await page.fill("#field-max_sequence_length", "");
  await page.fill("#field-shift", "1,");
  await draw(page, CIRCLE);
  await page.locator("#wrong").waitFor();
  assert.match(await page.textContent("#wrong"), /^Shift must be/);
  await page.locator("#strip button").first().click();
  assert.equal(await page.inputValue("#field-max_sequence_length"), "64");
  assert.equal(await page.inputValue("#field-shift"), "0.5,1");
  assert.equal(await page.inputValue("#field-legacy_noise"), "true");
  await finish();
});

test("prompts have weights only where the box is checked", async () => {
  const { page, finish } = await open(browser);
  const sent = async (prompt) => {
    const [request] = await Promise.all([page.waitForRequest("**/v1/images/generations"), draw(page, prompt)]);
    await drawn(page);
    return request.postDataJSON().literal;
  };
  assert.equal(await sent("a red circle on a blue background (aspect ratio 16:9)"), undefined);
  assert.equal((await facts(page)).Note, undefined);
  await page.check("#weights");
  assert.equal(await sent("a red circle on a blue background (aspect ratio 16:9)"), false);
  assert.match((await facts(page)).Note, /weight of 9/);
  await page.locator("#strip button").last().click();
  assert.equal(await page.locator("#weights").isChecked(), false);
  await page.locator("#strip button").first().click();
  assert.equal(await page.locator("#weights").isChecked(), true);
  await finish();
});

test("a negative prompt is sent with its weight", async () => {
  const { page, finish } = await open(browser);
  await page.click("#negative-panel summary");
  await page.fill("#negative", "green");
  const [request] = await Promise.all([page.waitForRequest("**/v1/images/generations"), draw(page, CIRCLE)]);
  const { negative_prompt, true_cfg_scale } = request.postDataJSON();
  assert.deepEqual([negative_prompt, true_cfg_scale], ["green", 4]);
  await drawn(page);
  assert.equal((await facts(page)).Without, "green");
  await finish();
});

test("needs nothing but the keyboard", async () => {
  const { page, finish } = await open(browser);
  const press = (...keys) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
  assert.equal(await focused(), "prompt");
  await page.keyboard.type(CIRCLE);
  const order = [];
  for (let i = 0; i < 10; i++) {
    await press("Tab");
    order.push(await focused());
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, "none", `${order.at(-1)} shows its focus`);
  }
  assert.deepEqual(order, ["size", "n", "steps", "guidance", "sampler", "random", "Negative prompt", "More settings", "Picture to start from", "draw"]);
  await press("Control+Enter");
  await drawn(page);
  await page.focus("#draw");
  await press("Enter");
  await page.locator("#strip button").nth(1).waitFor();
  await drawn(page);
  await press("Tab", "Tab");
  await press("ArrowRight", "Enter");
  assert.equal(await page.locator("#strip button").nth(1).getAttribute("aria-current"), "true");
  await press("Home", "Enter");
  assert.equal(await page.locator("#strip button").first().getAttribute("aria-current"), "true");
  await page.focus("#restart");
  await press("Enter");
  await page.locator("#source").waitFor();
  await page.focus("#paint");
  await press("Space");
  assert.equal(await focused(), "mask");
  await press("ArrowLeft", "ArrowUp", "Space");
  assert.equal(await page.locator("#unmask").isVisible(), true);
  await press("Delete");
  assert.equal(await page.locator("#unmask").isVisible(), false);
  await page.focus("#clear");
  await press("Enter");
  assert.equal(await focused(), "Keep them");
  await press("Escape");
  assert.equal(await page.locator("#ask").evaluate((dialog) => dialog.open), false);
  assert.equal(await focused(), "clear");
  await finish();
});

test("every control has a name", async () => {
  const { page, finish } = await open(browser);
  await draw(page, CIRCLE);
  await drawn(page);
  await page.click("#restart");
  for (const panel of ["#negative-panel", "#start-panel"]) await page.locator(panel).evaluate((details) => (details.open = true));
  await page.click("#paint");
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, a, input, textarea, select, canvas, progress, img")]
      .filter((control) => control.checkVisibility())
      .filter(
        (control) =>
          !control.labels?.length &&
          !control.getAttribute("aria-label") &&
          !control.getAttribute("alt") &&
          !control.textContent.trim() &&
          !control.querySelector("img[alt]"),
      )
      .map((control) => control.outerHTML),
  );
  assert.deepEqual(nameless, []);
  await finish();
});

test("fits a phone, and every target a finger", async () => {
  const { page, finish } = await open(browser, PHONE);
  await shoot(page, "phone-empty");
  await draw(page, CIRCLE);
  await drawn(page);
  await shoot(page, "phone");
  await page.tap("#restart");
  await page.locator("#source").waitFor();
  await page.locator("#negative-panel").evaluate((details) => (details.open = true));
  await page.tap("#paint");
  const box = await page.locator("#mask").boundingBox();
  await page.touchscreen.tap(box.x + box.width / 2, box.y + box.height / 2);
  assert.equal(await page.locator("#unmask").isVisible(), true);
  await page.selectOption("#size", "own");
  await shoot(page, "phone-mask");
  assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
  const small = await page.evaluate(() =>
    [...document.querySelectorAll("button, a, input, textarea, select, summary, label.check, label.drop")]
      .filter((target) => target.checkVisibility() && !target.closest("label.check:not(:scope)") && !target.classList.contains("unseen"))
      .map((target) => [target.id || target.textContent.trim(), target.getBoundingClientRect()])
      .filter(([, { width, height }]) => width < 44 || height < 44)
      .map(([name, { width, height }]) => `${name}: ${width} × ${height}`),
  );
  assert.deepEqual(small, []);
  const zoomed = await page.evaluate(() =>
    [...document.querySelectorAll("input:not([type=range], [type=checkbox], [type=file]), textarea, select")]
      .filter((field) => parseFloat(getComputedStyle(field).fontSize) < 16)
      .map((field) => field.id),
  );
  assert.deepEqual(zoomed, [], "a phone zooms into fields of smaller letters");
  const bottom = await page.locator("#draw").evaluate((button) => button.getBoundingClientRect().bottom);
  assert(bottom <= 740, "Draw is within reach");
  await finish();
});

/** The texts whose contrast with what is behind them is less than 4.5. */
function faint() {
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const over = (front, back) => {
    const alpha = front[3] ?? 1;
    return [0, 1, 2].map((i) => front[i] * alpha + back[i] * (1 - alpha));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    return over(channels(getComputedStyle(element).backgroundColor), ground(element.parentElement));
  };
  const opacity = (element) => (element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1);
  const texts = [...document.querySelectorAll("body *")].filter(
    (element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()),
  );
  return texts
    .map((element) => {
      const back = ground(element);
      const front = over([...channels(getComputedStyle(element).color).slice(0, 3), opacity(element)], back);
      const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
      return [element.textContent.trim().slice(0, 30), ((high + 0.05) / (low + 0.05)).toFixed(2)];
    })
    .filter(([, contrast]) => contrast < 4.5);
}

for (const colorScheme of ["light", "dark"]) {
  test(`every text is readable in the ${colorScheme}`, async () => {
    // Colours that fade into one another are no colours of the page.
    const { page, expected, finish } = await open(browser, { colorScheme, reducedMotion: "reduce" });
    expected.push(/400 \(Bad Request\)/);
    const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/)[0]);
    assert.equal(paper > 128, colorScheme === "light");
    await shoot(page, `${colorScheme}-empty`);
    assert.deepEqual(await page.evaluate(faint), []);
    await drawSlowly(page);
    await stepping(page);
    assert.deepEqual(await page.evaluate(faint), []);
    await page.keyboard.press("Escape");
    await page.locator("#draw:not([aria-disabled])").waitFor();
    await page.selectOption("#size", "auto");
    await page.fill("#steps", "");
    await draw(page, CIRCLE);
    await drawn(page);
    await page.click("#negative-panel summary");
    await page.click("#restart");
    await page.click("#paint");
    await page.fill("#steps", "101");
    await page.keyboard.press("Control+Enter");
    await page.locator(".error").first().waitFor();
    await shoot(page, `${colorScheme}-all`);
    assert.deepEqual(await page.evaluate(faint), []);
    await page.click("#clear");
    assert.deepEqual(await page.evaluate(faint), []);
    await finish();
  });
}

test("nothing moves for those who want it still", async () => {
  const { page, finish } = await open(browser, { reducedMotion: "reduce" });
  await drawSlowly(page);
  await stepping(page);
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
  await page.keyboard.press("Escape");
  await finish();
});

test("runs nothing that did not come from its own server as a file", async () => {
  const { page, expected, finish } = await open(browser);
  expected.push(/Content Security Policy/);
  const held = await page.evaluate(async () => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
    document.body.setAttribute("style", "color: rgb(1, 2, 3)");
    const elsewhere = await fetch("http://127.0.0.2:9/").then(() => "fetched", () => "refused");
    return { ran: window.ran, colour: getComputedStyle(document.body).color, elsewhere };
  });
  assert.notEqual(held.colour, "rgb(1, 2, 3)");
  assert.deepEqual([held.ran, held.elsewhere], [undefined, "refused"]);
  const headers = (await page.request.get(URL_OF_SERVER)).headers();
  assert.match(headers["content-security-policy"], /default-src 'none'.*frame-ancestors 'none'/);
  assert.doesNotMatch(headers["content-security-policy"], /unsafe/);
  assert.equal(headers["x-content-type-options"], "nosniff");
  await finish();
});

test("a prompt is text, whatever it looks like", async () => {
  const { page, finish } = await open(browser);
  const prompt = `<img src=x onerror="window.ran = true"> "a" & 'b'`;
  await draw(page, prompt);
  await drawn(page);
  await page.reload();
  await page.locator("#strip button").first().click();
  assert.equal(await page.locator("#said").textContent(), prompt);
  assert.equal(await page.evaluate(() => window.ran), undefined);
  await finish();
});
