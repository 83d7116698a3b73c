/** The server as this page sees it. */

const KEY = "tch-flux-key";

/** What is wrong, in words, and with which field. */
export class Wrong extends Error {
  constructor(message, field, status) {
    const sentence = message.replace(/^[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));
    super(/[.!?]$/.test(sentence) ? sentence : `${sentence}.`);
    this.field = field;
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** An answer that is no refusal. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { ...options.headers, authorization: `Bearer ${key}` } : options.headers;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Wrong("The server cannot be reached.");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wrong = told(body?.error ?? { message: `The server answered ${response.status}.` }, response.status);
  const wait = Number(response.headers.get("retry-after"));
  if (wait > 0) wrong.message += ` Try again in ${wait} s.`;
  throw wrong;
}

function told(error, status) {
  return new Wrong(error.message, status === 401 ? "key" : error.param?.replace(/\[.*/, ""), status);
}

/**
 * The events of a stream, in order. Those with a `type` are the dialect's; the others are comments, in which this server
 * says how far it is: `{queued}` or `{step, steps, image, images}`.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Wrong("The connection to the server was lost.");
    });
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const found = /^(?:data)?: ?(\{.*)$/.exec(line);
      if (!found) continue;
      const event = JSON.parse(found[1]);
      if (event.error) throw told(event.error);
      yield event;
    }
  }
}

/** The picture of an event. */
export function pictureOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: `image/${event.output_format}` });
}

/** The request as it was drawn, with nothing left open, as the PNG tells it; empty where it does not. */
export async function recipeOf(png) {
  const bytes = new DataView(await png.arrayBuffer());
  const text = (from, length) => new TextDecoder().decode(new Uint8Array(bytes.buffer, from, length));
  for (let at = 8; at + 12 <= bytes.byteLength; at += 12 + bytes.getUint32(at)) {
    const chunk = text(at + 4, 4);
    const content = text(at + 8, /^[ti]..t$/i.test(chunk) ? bytes.getUint32(at) : 0);
    if (content.startsWith("tch-flux\0")) return JSON.parse(content.slice(content.indexOf("{")));
  }
  return {};
}
