/** The picture to start from, and the mask that is painted over it. */

import { Wrong } from "./server.js";

/** The longest side of a picture that is sent. */
const MAX_SIDE = 2048;

const $ = (id) => document.getElementById(id);
const sheet = $("sheet");
const source = $("source");
const view = $("mask");

/** What is sent, as PNG; null without a picture. */
let picture = null;
/** The strokes, in the picture's own pixels. */
const layer = document.createElement("canvas");
let painted = false;
/** Where the brush is, in the picture's own pixels. */
let brush = null;

/** What an edit begins with: `{picture, mask}`, or null. */
export async function started() {
  return picture && { picture, mask: painted ? await mask() : null };
}

/** Takes a picture of any kind that the browser reads, and a mask as {@link started} gives it. */
export async function startFrom(blob, earlier = null) {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Wrong("This is not a picture that the browser can read.", "image");
  });
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  layer.width = Math.max(1, Math.round(bitmap.width * scale));
  layer.height = Math.max(1, Math.round(bitmap.height * scale));
  // Drawn anew: upright whatever its metadata say, and without them.
  const upright = copy((context) => context.drawImage(bitmap, 0, 0, layer.width, layer.height));
  picture = await png(upright);
  if (source.src) URL.revokeObjectURL(source.src);
  source.src = URL.createObjectURL(picture);
  source.classList.toggle("few", layer.width * layer.height <= 256 * 256);
  sheet.style.setProperty("--w", layer.width);
  sheet.style.setProperty("--h", layer.height);
  brush = { x: layer.width / 2, y: layer.height / 2 };
  setPainting(false);
  unmask();
  if (earlier) await takeMask(earlier);
  showPanel();
}

export function startFromNothing() {
  picture = null;
  $("file").value = "";
  showPanel();
}

function showPanel() {
  $("start").hidden = !picture;
  $("drop").hidden = Boolean(picture);
  if (picture) $("start-panel").open = true;
  repaint();
}

function copy(paint) {
  const canvas = document.createElement("canvas");
  canvas.width = layer.width;
  canvas.height = layer.height;
  paint(canvas.getContext("2d"));
  return canvas;
}

function png(canvas) {
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** Opaque where the picture stays, transparent where it is drawn anew. */
function mask() {
  return png(copy((context) => {
    context.fillRect(0, 0, layer.width, layer.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(layer, 0, 0);
  }));
}

async function takeMask(blob) {
  const bitmap = await createImageBitmap(blob);
  const context = layer.getContext("2d");
  context.fillRect(0, 0, layer.width, layer.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(bitmap, 0, 0);
  context.globalCompositeOperation = "source-over";
  painted = true;
  setPainting(true);
}

function unmask() {
  layer.getContext("2d").clearRect(0, 0, layer.width, layer.height);
  painted = false;
  repaint();
}

function setPainting(on) {
  sheet.classList.toggle("painting", on);
  $("paint").setAttribute("aria-pressed", on);
  $("brush-row").hidden = !on;
  view.tabIndex = on ? 0 : -1;
  repaint();
}

/** A stroke from where the brush was. */
function strokeTo(x, y, from = brush) {
  const context = layer.getContext("2d");
  context.lineCap = "round";
  context.lineWidth = 2 * radius();
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(x, y);
  context.stroke();
  brush = { x, y };
  painted = true;
  repaint();
}

function radius() {
  return Math.max(0.5, (Number($("brush").value) / 200) * Math.max(layer.width, layer.height));
}

function repaint() {
  $("unmask").hidden = !painted;
  view.width = view.clientWidth * devicePixelRatio;
  view.height = view.clientHeight * devicePixelRatio;
  if (!picture || !view.width) return;
  const context = view.getContext("2d");
  context.drawImage(layer, 0, 0, view.width, view.height);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = stripes(context);
  context.globalAlpha = 0.75;
  context.fillRect(0, 0, view.width, view.height);
  if (document.activeElement === view) ring(context, view.width / layer.width);
}

/** Of two colours, so that they are seen on any picture. */
function stripes(context) {
  const tile = document.createElement("canvas");
  const side = (tile.width = tile.height = Math.round(8 * devicePixelRatio));
  const paint = tile.getContext("2d");
  const colour = (name) => getComputedStyle(view).getPropertyValue(name);
  paint.fillStyle = colour("--accent");
  paint.fillRect(0, 0, side, side);
  paint.strokeStyle = colour("--on-accent");
  paint.lineWidth = side / 4;
  for (const shift of [-side, 0, side]) {
    paint.moveTo(shift - 1, side + 1);
    paint.lineTo(shift + side + 1, -1);
  }
  paint.stroke();
  return context.createPattern(tile, "repeat");
}

/** Where the brush is, light and dark, so that it is seen on any picture. */
function ring(context, scale) {
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.arc(brush.x * scale, brush.y * scale, radius() * scale, 0, 2 * Math.PI);
    context.stroke();
  }
}

function place(event) {
  const { left, top, width, height } = view.getBoundingClientRect();
  const x = ((event.clientX - left) / width) * layer.width;
  const y = ((event.clientY - top) / height) * layer.height;
  return { x, y };
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  const [dx, dy] = MOVES[event.key] ?? [0, 0];
  if (dx || dy) {
    const to = (at, d, side) => Math.min(side, Math.max(0, at + (d * radius()) / 2));
    brush = { x: to(brush.x, dx, layer.width), y: to(brush.y, dy, layer.height) };
    repaint();
  } else if (event.key === " ") strokeTo(brush.x, brush.y);
  else if (event.key === "Delete" || event.key === "Backspace") unmask();
  else return;
  event.preventDefault();
}

view.addEventListener("pointerdown", (event) => {
  const { x, y } = place(event);
  view.setPointerCapture(event.pointerId);
  strokeTo(x, y, { x, y });
});
view.addEventListener("pointermove", (event) => {
  if (!view.hasPointerCapture(event.pointerId)) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const { x, y } = place(each);
    strokeTo(x, y);
  }
});
view.addEventListener("keydown", onKey);
for (const change of ["focus", "blur"]) view.addEventListener(change, repaint);
new ResizeObserver(repaint).observe(sheet);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

$("paint").addEventListener("click", () => {
  setPainting(!sheet.classList.contains("painting"));
  if (view.tabIndex === 0) view.focus();
});
$("brush").addEventListener("input", repaint);
$("unmask").addEventListener("click", () => {
  unmask();
  $("paint").focus();
});
$("take-away").addEventListener("click", () => {
  startFromNothing();
  $("file").focus();
});
