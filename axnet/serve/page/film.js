"use strict";
// Shows one answered film: its picture with what lies over it, and what was found.

const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function drawing(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function percent(value) {
  return `${(100 * value).toFixed(1)}%`;
}

const CALLS = new Map([[true, "positive"], [false, "negative"], [null, "–"]]);

// state: { answer, window, level, shown (a finding or ""), url (of the report) }
let current = null;

function showFilm(state) {
  current = state;
  const { answer } = state;
  const size = { width: answer.width, height: answer.height };
  at("picture").setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  for (const [id, href] of [["pixels", answer.film], ["map", null]]) {
    for (const [key, value] of Object.entries(size)) at(id).setAttribute(key, value);
    if (href) at(id).setAttribute("href", href);
  }
  at("name").textContent = answer.name;
  at("flags").hidden = !answer.flags.length;
  at("flags").textContent = answer.flags.length ? `No call is made: ${answer.flags.join("; ")}.` : "";
  at("ratio").textContent = `Cardiothoracic ratio ${answer.ctr === null ? "unknown" : answer.ctr.toFixed(2)}`;
  at("report").href = state.url;
  at("report").download = `${answer.name.replace(/\.(png|jpe?g|dcm|dicom)$/i, "")}-report.html`;
  drawOrgans(answer);
  listFindings(state);
  showMap();
  setLevels();
  at("film").hidden = false;
}

function drawOrgans(answer) {
  const line = Math.max(answer.width, answer.height) / 300;
  at("organs").setAttribute("transform", `scale(${answer.scale})`);
  at("widths").setAttribute("transform", `scale(${answer.scale})`);
  at("organs").replaceChildren(...answer.organs.map(({ colour, path }) =>
    drawing("path", { d: path, stroke: colour, "stroke-width": line / answer.scale })));
  at("widths").replaceChildren(...answer.widths.lines.flatMap(([first, last, row]) => {
    const tick = (3 * line) / answer.scale;
    const d = `M${first} ${row}H${last}M${first} ${row - tick}v${2 * tick}M${last} ${row - tick}v${2 * tick}`;
    return [drawing("path", { d, fill: "none", stroke: answer.widths.colour, "stroke-width": line / answer.scale })];
  }));
  const names = new Map(answer.organs.map(({ name, colour }) => [name.replace(/^(left|right) lung$/, "lungs"), colour]));
  if (answer.widths.lines.length) names.set("widths of heart and thorax", answer.widths.colour);
  at("organ-key").replaceChildren(...[...names].map(([name, colour]) => {
    const span = element("span", {}, name);
    span.style.borderColor = colour;
    return span;
  }));
}

function listFindings(state) {
  const choice = (value, label) => {
    const input = element("input", { type: "radio", name: "finding", value });
    input.checked = state.shown === value;
    input.addEventListener("change", () => { state.shown = value; showMap(); });
    const wrapped = element("label");
    wrapped.append(input, element("span", {}, label));
    return wrapped;
  };
  const rows = state.answer.findings.map(({ name, probability, call, map }) => {
    const row = element("tr", { class: call ? "positive" : "other" });
    const head = element("th", { scope: "row" });
    head.append(map ? choice(name, name.replaceAll("_", " ")) : element("span", {}, name.replaceAll("_", " ")));
    const bar = element("td", { class: "bar" });
    const frame = drawing("svg", { "aria-hidden": "true" });
    frame.append(drawing("rect", { width: `${100 * probability}%`, height: "100%" }));
    bar.append(frame);
    row.append(head, element("td", { class: "value" }, percent(probability)), bar,
      element("td", { class: "call" }, CALLS.get(call)));
    return row;
  });
  if (state.answer.findings.some(({ map }) => map)) {
    const row = element("tr");
    const head = element("th", { scope: "row", colspan: 4 });
    head.append(choice("", "No map"));
    row.append(head);
    rows.push(row);
  }
  at("findings").replaceChildren(...rows);
}

function showMap() {
  const chosen = current.answer.findings.find(({ name }) => name === current.shown);
  if (chosen && chosen.map) at("map").setAttribute("href", chosen.map);
  else at("map").removeAttribute("href");
  at("map").style.display = chosen && chosen.map ? "" : "none";
  at("scale").hidden = !(chosen && chosen.map);
  if (chosen && chosen.map) at("peak").textContent = chosen.peak.toFixed(2);
}

function setLevels() {
  const { window: width, level } = current;
  at("window").value = width;
  at("level").value = level;
  document.querySelector("output[for=window]").value = Math.round(width);
  document.querySelector("output[for=level]").value = Math.round(level);
  for (const channel of document.querySelectorAll("#levels feComponentTransfer > *")) {
    channel.setAttribute("slope", 255 / width);
    channel.setAttribute("intercept", 0.5 - level / width);
  }
}

function resetLevels(state) {
  const [black, white] = state.answer.window;
  state.window = Math.max(2, white - black);
  state.level = (black + white) / 2;
}

for (const name of ["window", "level"]) {
  at(name).addEventListener("input", () => { current[name] = Number(at(name).value); setLevels(); });
}
at("reset").addEventListener("click", () => { resetLevels(current); setLevels(); });
for (const layer of ["organs", "widths"]) {
  at(`show-${layer}`).addEventListener("change", (event) => {
    at(layer).style.display = event.target.checked ? "" : "none";
  });
}
