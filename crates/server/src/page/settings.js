/** The settings of the form as the server describes them in `/openapi.json`. */

import { ask } from "./server.js";

/** The groups whose fields the form has: the others are about pictures that it does not send. */
const GROUPS = ["Prompt", "Sampling"];

/** The fields of edits, or of generations where there are no edits, by their names. */
export async function describedFields() {
  const { components } = await (await ask("openapi.json")).json();
  const { Edit, Generation } = components.schemas;
  return { ...Generation?.properties, ...Edit.properties };
}

/** Gives an input the bounds and the words of a field. */
export function describe(input, field) {
  input.title = field.description;
  if (input.tagName === "SELECT" && field.enum) {
    const { value } = input;
    input.replaceChildren(choice("", "Model’s own"), ...choices(field));
    input.value = value;
  } else if (input.type === "number") {
    if (field.minimum !== undefined) input.min = field.minimum;
    if (field.maximum !== undefined) input.max = field.maximum;
  }
}

/** An input, with its label, for each field that the form does not have yet; in order, by the fields' names. */
export function inputsOf(fields, known) {
  const isMissing = ([name, field]) => GROUPS.includes(field["x-group"]) && !known.includes(name);
  return Object.entries(fields).filter(isMissing).map(([name, field]) => {
    const input = inputOf(field);
    input.id = `field-${name}`;
    const label = document.createElement("label");
    label.htmlFor = input.id;
    label.textContent = name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
    describe(input, field);
    return { name, label, input };
  });
}

function inputOf(field) {
  const types = [field.type].flat();
  if (types.includes("boolean")) {
    const select = document.createElement("select");
    select.replaceChildren(choice("", "Server’s own"), choice("true", "Yes"), choice("false", "No"));
    return select;
  }
  if (field.enum) return document.createElement("select");
  const input = document.createElement("input");
  // A seed may have more digits than a number of this language.
  const isNumber = types.includes("number") || (types.includes("integer") && field.maximum <= Number.MAX_SAFE_INTEGER);
  input.type = isNumber ? "number" : "text";
  input.step = types.includes("integer") ? "1" : "any";
  input.autocomplete = "off";
  return input;
}

function choice(value, text) {
  const option = document.createElement("option");
  [option.value, option.textContent] = [value, text];
  return option;
}

function choices(field) {
  const about = field["x-enum-descriptions"] ?? [];
  return field.enum.filter((name) => name !== null).map((name, place) => {
    const option = choice(name, name);
    option.title = about[place] ?? "";
    return option;
  });
}

/** The value of an input, as a request has it; `undefined` where nothing is said. */
export function valueOf(input, field) {
  const text = input.value.trim();
  if (text === "") return undefined;
  const types = [field.type].flat();
  if (types.includes("boolean")) return text === "true";
  if (input.type === "number") return Number(text);
  if (types.includes("integer")) {
    const number = Number(text);
    return Number.isSafeInteger(number) ? number : text;
  }
  if (field.anyOf || types.includes("array")) {
    const items = text.split(",").map((item) => (item.trim() ? Number(item) : NaN));
    if (items.some(Number.isNaN)) return text;
    return items.length === 1 && field.anyOf ? items[0] : items;
  }
  return text;
}
