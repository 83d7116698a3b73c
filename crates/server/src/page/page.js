/** The form, the drawing, and the picture. */

import { forget, forgetAll, keep, mark, openHistory } from "./history.js";
import { ask, events, pictureOf, recipeOf, useKey, Wrong } from "./server.js";
import { describe, describedFields, inputsOf, valueOf } from "./settings.js";
import { started, startFrom, startFromNothing } from "./start.js";

const $ = (id) => document.getElementById(id);

/** The fields of a request, by their names in the dialect. */
const FIELDS = {
  prompt: $("prompt"),
  size: $("size"),
  n: $("n"),
  num_inference_steps: $("steps"),
  guidance_scale: $("guidance"),
  sampler: $("sampler"),
  seed: $("seed"),
  negative_prompt: $("negative"),
  true_cfg_scale: $("cfg"),
  image: $("file"),
  mask: $("paint"),
  strength: $("strength"),
  key: $("key"),
};
const NUMBERS = ["n", "num_inference_steps", "guidance_scale", "true_cfg_scale"];
const PARTIAL_IMAGES = 3;
/** Fields that the form has under another name, or in another form. */
const OTHERWISE = ["literal"];
/** The fields that the form has made of the server's description, with their inputs. */
const more = new Map();
let strengthCounts = true;

let model = null;
/** Stops the request that is under way. */
let underway = null;
/** The entry of the history that is on the stage. */
let shown = null;

// ---------------------------------------------------------------- the form

/** The fields of a request; what is left open is not named. */
function readForm() {
  const request = { prompt: FIELDS.prompt.value.trim(), size: FIELDS.size.value };
  if (!request.prompt) throw new Wrong("Describe the picture first", "prompt");
  if (request.size === "own") request.size = `${$("width").value}x${$("height").value}`;
  for (const name of NUMBERS) {
    if (FIELDS[name].validity.badInput) throw new Wrong("This is not a number", name);
    if (FIELDS[name].value !== "") request[name] = Number(FIELDS[name].value);
  }
  if (FIELDS.sampler.value) request.sampler = FIELDS.sampler.value;
  if ($("weights").checked) request.literal = false;
  for (const [name, { input, field }] of more) {
    if (input.validity.badInput) throw new Wrong("This is not a number", name);
    const value = valueOf(input, field);
    if (value !== undefined) request[name] = value;
  }
  request.negative_prompt = FIELDS.negative_prompt.value.trim();
  if (!request.negative_prompt) {
    delete request.negative_prompt;
    delete request.true_cfg_scale;
  }
  if ($("random").checked) FIELDS.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  request.seed = FIELDS.seed.value.trim();
  if (!/^-?\d+$/.test(request.seed)) throw new Wrong("A seed is a whole number", "seed");
  return request;
}

function writeForm(request) {
  FIELDS.prompt.value = request.prompt;
  $("weights").checked = request.literal === false;
  const listed = [...FIELDS.size.options].some((option) => option.value === request.size);
  FIELDS.size.value = listed ? request.size : "own";
  if (!listed) [$("width").value, $("height").value] = request.size.split("x");
  for (const name of NUMBERS) FIELDS[name].value = request[name] ?? FIELDS[name].defaultValue;
  FIELDS.sampler.value = request.sampler ?? "";
  for (const [name, { input }] of more) input.value = request[name] ?? "";
  $("more-panel").open ||= [...more.keys()].some((name) => request[name] !== undefined);
  FIELDS.negative_prompt.value = request.negative_prompt ?? "";
  $("negative-panel").open = Boolean(request.negative_prompt);
  FIELDS.strength.value = request.strength ?? FIELDS.strength.defaultValue;
  FIELDS.seed.value = request.seed;
  $("random").checked = false;
  followForm();
}

/** Shows what belongs to the choices made. */
function followForm() {
  $("own-size").hidden = FIELDS.size.value !== "own";
  FIELDS.seed.disabled = $("random").checked;
  $("strength-shown").value = Number(FIELDS.strength.value).toFixed(2);
}

// ---------------------------------------------------------------- what is wrong

function showError(error) {
  if (!(error instanceof Wrong)) console.error(error);
  const message = error instanceof Wrong ? error.message : "Something went wrong on this page.";
  if (error.status === 401) $("key-panel").hidden = false;
  const input = FIELDS[error.field];
  if (!input) {
    $("failure").textContent = message;
    $("failure").hidden = false;
    return;
  }
  const note = document.createElement("p");
  note.className = "error";
  note.id = "wrong";
  note.setAttribute("role", "alert");
  // The server knows the fields by their names in the dialect, of which some are words of the language, too.
  const name = new RegExp(error.field.includes("_") ? error.field : `^${error.field}(?= must)`, "i");
  note.textContent = message.replace(name, input.labels?.[0]?.textContent ?? error.field);
  const marked = input.value === "own" ? [$("width"), $("height")] : [input];
  (marked[0].closest(".row") ?? marked[0].closest(".field").lastElementChild).after(note);
  const panel = input.closest("details");
  if (panel) panel.open = true;
  for (const each of marked) {
    each.setAttribute("aria-invalid", "true");
    each.setAttribute("aria-errormessage", note.id);
  }
  marked[0].focus();
}

function forgetErrors() {
  $("failure").hidden = true;
  $("wrong")?.remove();
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-errormessage");
  }
}

/** Tells those who hear the page. */
function say(text) {
  $("live").textContent = text;
}

// ---------------------------------------------------------------- drawing

function post(request, start, signal) {
  const fields = { ...request, stream: true, partial_images: PARTIAL_IMAGES, output_format: "png" };
  if (model) fields.model = model;
  if (!start) {
    const { seed, ...others } = fields;
    // A seed may have more digits than a number of this language.
    const body = `${JSON.stringify(others).slice(0, -1)},"seed":${BigInt(seed)}}`;
    const headers = { "content-type": "application/json" };
    return ask("v1/images/generations", { method: "POST", headers, body, signal });
  }
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("image", start.picture, "picture.png");
  if (start.mask) body.append("mask", start.mask, "mask.png");
  return ask("v1/images/edits", { method: "POST", body, signal });
}

async function draw() {
  if (underway) return;
  forgetErrors();
  underway = new AbortController();
  try {
    const request = readForm();
    const start = await started();
    if (start && strengthCounts) request.strength = Number(FIELDS.strength.value);
    begin(request);
    const entry = await follow(await post(request, start, underway.signal), request, start);
    end();
    show(entry);
    say(`The picture is ready: ${entry.facts.size}, seed ${entry.request.seed}`);
  } catch (error) {
    end();
    show(shown);
    if (error.name === "AbortError") say("Cancelled");
    else showError(error);
  }
  underway = null;
}

/** Shows and keeps what the server sends; the first of the pictures that it drew. */
async function follow(response, request, start) {
  const since = performance.now();
  let first = null;
  let drawn = 0;
  for await (const event of events(response)) {
    if (!event.type) advance(event);
    else if (event.type.endsWith(".partial_image")) preview(event);
    else {
      const picture = pictureOf(event);
      const seconds = (performance.now() - since) / 1000;
      const entry = await entryOf(picture, event, request, start, seconds, drawn++);
      await keep(entry);
      first ??= entry;
    }
  }
  if (!first) throw new Wrong("The connection to the server was lost");
  return first;
}

async function entryOf(picture, event, request, start, seconds, index) {
  const { steps, guidance } = await recipeOf(picture);
  const seed = String(BigInt(request.seed) + BigInt(event.image_index ?? index));
  return {
    picture,
    start,
    request: { ...request, n: 1, seed },
    facts: { model, seconds, size: event.size, steps, guidance, warnings: event.warnings },
  };
}

let clock = null;

function begin(request) {
  clock = null;
  $("caption").hidden = true;
  $("empty").hidden = true;
  $("picture").hidden = true;
  $("progress").hidden = false;
  $("bar").removeAttribute("value");
  $("phase").textContent = "Sending";
  $("left").textContent = "";
  $("cancel").hidden = false;
  $("draw").setAttribute("aria-disabled", "true");
  $("draw-word").textContent = "Drawing";
  if (request.size !== "auto") frame(...request.size.split("x"));
  $("stage").scrollIntoView({ block: "nearest" });
  say("Drawing");
}

function end() {
  $("progress").hidden = true;
  if (document.activeElement === $("cancel")) $("draw").focus();
  $("cancel").hidden = true;
  $("draw").removeAttribute("aria-disabled");
  $("draw-word").textContent = "Draw";
  document.title = "tch-flux";
}

function advance({ queued, step, steps, image, images }) {
  if (queued !== undefined) {
    $("phase").textContent = queued ? `Waiting, ${queued} before this one` : "Next in line";
    say($("phase").textContent);
    return;
  }
  const [done, all] = [image * steps + step, images * steps];
  $("bar").value = done / all;
  const which = images > 1 ? `Picture ${image + 1} of ${images}, step` : "Step";
  $("phase").textContent = done === all ? "Finishing" : `${which} ${step} of ${steps}`;
  clock ??= { since: performance.now(), done };
  const each = (performance.now() - clock.since) / 1000 / (done - clock.done);
  const left = Math.round(each * (all - done));
  $("left").textContent = left >= 2 && left < Infinity ? `about ${left} s left` : "";
  document.title = `${Math.floor((100 * done) / all)} % – tch-flux`;
  if (done === Math.ceil(all / 2)) say("Half of it is drawn");
}

function preview(event) {
  const [width, height] = event.size.split("x");
  frame(width, height);
  put(pictureOf(event), "A preview of the picture");
  $("picture").classList.remove("few");
}

// ---------------------------------------------------------------- the stage

function frame(width, height) {
  $("frame").classList.remove("vacant");
  $("frame").style.setProperty("--w", width);
  $("frame").style.setProperty("--h", height);
}

function put(blob, alt) {
  const image = $("picture");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.alt = alt;
  image.hidden = false;
}

function show(entry) {
  shown = entry;
  mark(entry);
  $("caption").hidden = !entry;
  $("picture").hidden = !entry;
  $("empty").hidden = Boolean(entry);
  if (!entry) {
    frame(1024, 1024);
    $("frame").classList.add("vacant");
    return;
  }
  const { request, facts } = entry;
  const [width, height] = facts.size.split("x");
  frame(width, height);
  put(entry.picture, request.prompt);
  $("picture").classList.toggle("few", width * height <= 256 * 256);
  $("said").textContent = request.prompt;
  $("facts").replaceChildren(...factsOf(entry));
  $("download").href = $("picture").src;
  $("download").download = fileName(request);
}

function factsOf({ request, facts, start }) {
  const named = {
    Size: facts.size.replace("x", " × "),
    Seed: request.seed,
    Steps: facts.steps ?? request.num_inference_steps,
    Guidance: facts.guidance ?? request.guidance_scale,
    Sampler: request.sampler,
    Strength: start && request.strength,
    Without: request.negative_prompt,
    Time: `${facts.seconds.toFixed(1)} s`,
    Model: facts.model,
    Note: facts.warnings?.join("; "),
  };
  return Object.entries(named).filter(([, value]) => value != null).map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    [pair.firstChild.textContent, pair.lastChild.textContent] = [name, value];
    return pair;
  });
}

function fileName({ prompt, seed }) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.join("-").slice(0, 60).replace(/-$/, "")}-${seed}.png`;
}

/** An entry of the history, with the request that drew it. */
async function choose(entry) {
  if (underway) return;
  forgetErrors();
  writeForm(entry.request);
  show(entry);
  if (entry.start) await startFrom(entry.start.picture, entry.start.mask);
  else startFromNothing();
}

// ---------------------------------------------------------------- the beginning

async function findModel() {
  try {
    const answer = await ask("v1/models");
    model = (await answer.json()).data[0].id;
    $("model").textContent = model;
    $("key-panel").hidden = true;
    describeForm(await describedFields());
  } catch (error) {
    $("model").textContent = error.status === 401 ? "needs a key" : "waiting for the server";
    if (error.status === 401) askForKey();
    else setTimeout(findModel, 2000);
  }
}

/** Gives the form the bounds and the further settings that the server describes. */
function describeForm(fields) {
  for (const [name, input] of Object.entries(FIELDS)) {
    if (fields[name] && !more.has(name)) describe(input, fields[name]);
  }
  strengthCounts = Boolean(fields.strength) && (fields.as?.default ?? "start") === "start";
  $("strength-row").hidden = !strengthCounts;
  if (more.size) return;
  for (const { name, label, input } of inputsOf(fields, [...Object.keys(FIELDS), ...OTHERWISE])) {
    const row = document.createElement("div");
    row.className = "field";
    row.append(label, input);
    $("more").append(row);
    more.set(name, { input, field: fields[name] });
    FIELDS[name] = input;
  }
  $("more-panel").hidden = more.size === 0;
}

function askForKey() {
  $("key-panel").hidden = false;
  FIELDS.key.focus();
}

async function takeKey() {
  useKey(FIELDS.key.value.trim());
  forgetErrors();
  await findModel();
  if (model) FIELDS.prompt.focus();
  else showError(new Wrong("The server does not know this key", "key"));
}

async function takeFile(file) {
  forgetErrors();
  try {
    await startFrom(file);
  } catch (error) {
    showError(error);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("form").addEventListener("input", followForm);
$("cancel").addEventListener("click", () => underway?.abort());
$("key-use").addEventListener("click", takeKey);
FIELDS.key.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  takeKey();
});
document.addEventListener("keydown", (event) => {
  if ($("ask").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
  if (event.key === "Escape") underway?.abort();
});

FIELDS.image.addEventListener("change", () => FIELDS.image.files[0] && takeFile(FIELDS.image.files[0]));
document.addEventListener("dragover", (event) => event.preventDefault());
for (const way of ["drop", "paste"]) {
  document.addEventListener(way, (event) => {
    const file = [...(event.dataTransfer ?? event.clipboardData).files].find(({ type }) => type.startsWith("image/"));
    if (file || way === "drop") event.preventDefault();
    if (file) takeFile(file);
  });
}

$("restart").addEventListener("click", async () => {
  await takeFile(shown.picture);
  $("start-panel").scrollIntoView({ block: "nearest" });
  FIELDS.prompt.focus({ preventScroll: true });
});
$("remove").addEventListener("click", () => {
  forget(shown);
  show(null);
  FIELDS.prompt.focus();
});
$("clear").addEventListener("click", () => $("ask").showModal());
$("ask").addEventListener("close", async () => {
  if ($("ask").returnValue !== "yes") return;
  await forgetAll();
  show(null);
  FIELDS.prompt.focus();
});

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("shortcut").textContent = "⌘ ↵";
show(null);
followForm();
findModel();
openHistory(choose);
