/** What this browser has drawn: kept in it, newest first, within bounds. */

const MAX_KEPT = 100;
const MAX_BYTES = 256 * 1024 * 1024;
const THUMB = 160;
const STORE = "pictures";

const strip = document.getElementById("strip");
const database = open().catch(() => null);

/** The entries that are kept, newest first. */
const kept = [];
let onChoose = () => {};

function open() {
  return new Promise((done, failed) => {
    const request = indexedDB.open("tch-flux", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

/** Does something with the store. A browser that keeps nothing keeps the pictures until the page is left. */
async function stored(action) {
  const opened = await database;
  if (!opened) return undefined;
  return new Promise((done) => {
    const transaction = opened.transaction(STORE, "readwrite");
    const request = action(transaction.objectStore(STORE));
    transaction.oncomplete = () => done(request.result);
    transaction.onabort = () => done(undefined);
  });
}

/** Shows what is kept; `choose` hears of the entry that the user wants to see. */
export async function openHistory(choose) {
  onChoose = choose;
  for (const entry of (await stored((store) => store.getAll())) ?? []) showFirst(entry);
}

/** Keeps a picture, and forgets the oldest ones beyond the bounds. */
export async function keep(entry) {
  entry.id = Math.max(Date.now(), (kept[0]?.id ?? 0) + 1);
  entry.thumb = await thumbOf(entry.picture);
  showFirst(entry);
  await stored((store) => store.put(entry));
  let bytes = 0;
  const beyond = kept.filter((each, i) => {
    bytes += each.picture.size + (each.start?.picture.size ?? 0);
    return i > 0 && (i >= MAX_KEPT || bytes > MAX_BYTES);
  });
  for (const each of beyond) await forget(each);
}

/** Deletes one. */
export async function forget(entry) {
  const i = kept.indexOf(entry);
  if (i < 0) return;
  kept.splice(i, 1);
  const [item] = strip.children[i].getElementsByTagName("img");
  URL.revokeObjectURL(item.src);
  strip.children[i].remove();
  settle();
  await stored((store) => store.delete(entry.id));
}

/** Deletes all. */
export async function forgetAll() {
  await stored((store) => store.clear());
  while (kept.length) await forget(kept[0]);
}

/** Marks the entry that is shown. */
export function mark(entry) {
  for (const [i, button] of buttons().entries()) {
    if (kept[i] === entry) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  settle();
}

function buttons() {
  return [...strip.querySelectorAll("button")];
}

function showFirst(entry) {
  kept.unshift(entry);
  const image = new Image();
  image.src = URL.createObjectURL(entry.thumb);
  image.alt = `${entry.request.prompt}, ${entry.facts.size}, seed ${entry.request.seed}`;
  const button = document.createElement("button");
  button.type = "button";
  button.title = entry.request.prompt;
  button.append(image);
  button.addEventListener("click", () => onChoose(entry));
  const item = document.createElement("li");
  item.append(button);
  strip.prepend(item);
  settle();
}

/** One of the pictures is reached with Tab, the others from it with the arrows. */
function settle() {
  document.getElementById("history").hidden = kept.length === 0;
  const reached = strip.querySelector("[aria-current]") ?? strip.querySelector("button");
  for (const button of buttons()) button.tabIndex = button === reached ? 0 : -1;
}

async function thumbOf(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(1, THUMB / Math.min(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width * scale;
  canvas.height = bitmap.height * scale;
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

strip.addEventListener("keydown", (event) => {
  const all = buttons();
  const at = all.indexOf(document.activeElement);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
  if (!all[to]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
});
