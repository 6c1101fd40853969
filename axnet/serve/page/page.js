"use strict";
// Takes films that are dropped or chosen, has them read one after the other, and lists them.

const MOST = Number(document.body.dataset.films);
const MEGABYTES = Number(document.body.dataset.megabytes);
const TRIES = 60; // of a film while the server is busy

const films = []; // { file, button, note, state, error }
let working = false;

function say(text) {
  at("status").textContent = text;
}

function take(files) {
  const all = [...files];
  const taken = all.slice(0, MOST);
  if (all.length > MOST) say(`${all.length} files were given, ${MOST} are taken at once: the first ${MOST} are read.`);
  else say("");
  for (const file of taken) {
    const film = { file, state: null, error: "" };
    const item = element("li");
    film.button = element("button", { type: "button" });
    film.note = element("small", {}, "waiting");
    film.button.append(element("span", {}, file.name), film.note);
    film.button.addEventListener("click", () => select(film));
    item.append(film.button);
    at("films").append(item);
    films.push(film);
  }
  at("work").hidden = !films.length;
  readAll();
}

async function readAll() {
  if (working) return;
  working = true;
  try {
    for (let film; (film = films.find(({ file }) => file));) {
      await readOne(film);
      film.file = null; // the page keeps the answer, not the film
      note(film);
      if (film.state && films.includes(film) && (!current || at("film").hidden)) select(film);
    }
  } finally {
    working = false;
  }
  const failed = films.filter(({ error }) => error).length;
  if (!films.length) return;
  say(`${films.length - failed} of ${films.length} films read.${failed ? ` ${films.find(({ error }) => error).error}` : ""}`);
}

function note(film) {
  film.note.classList.toggle("failed", Boolean(film.error));
  if (film.error) film.note.textContent = film.error;
  else if (film.state) {
    const { answer } = film.state;
    const called = answer.findings.filter(({ call }) => call).length;
    if (answer.flags.length) film.note.textContent = "flagged: no call is made";
    else if (answer.calibrated) film.note.textContent = called ? `${called} called positive` : "none called positive";
    else film.note.textContent = "read";
  }
}

async function readOne(film) {
  if (film.file.size > MEGABYTES * 1e6) {
    film.error = `This film has ${(film.file.size / 1e6).toFixed(1)} MB, expected at most ${MEGABYTES} MB.`;
    return;
  }
  film.note.textContent = "reading";
  for (let tried = 0; tried < TRIES && films.includes(film); tried += 1) {
    let response;
    try {
      response = await fetch("film", {
        method: "POST",
        body: film.file,
        headers: { "X-Film-Name": encodeURIComponent(film.file.name), "Content-Type": "application/octet-stream" },
      });
      const answer = await response.json();
      if (response.ok && films.includes(film)) { // else it was removed meanwhile
        film.state = { answer, shown: "" };
        film.state.url = URL.createObjectURL(new Blob([answer.report], { type: "text/html" }));
        delete answer.report;
        resetLevels(film.state);
        return;
      }
      film.error = answer.error;
    } catch {
      film.error = response ? `The server answered ${response.status}.` : "The server does not answer, or the file is gone.";
    }
    if (!response || response.status !== 503) return;
    film.note.textContent = "the server is busy: trying again";
    await new Promise((wake) => setTimeout(wake, 1000 * Number(response.headers.get("Retry-After") || 2)));
    if (tried + 1 < TRIES) film.error = "";
  }
}

function select(film) {
  for (const each of films) each.button.setAttribute("aria-current", String(each === film));
  if (film.state) showFilm(film.state);
  else {
    at("film").hidden = true;
    say(film.error || "This film waits for its turn.");
  }
}

at("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
at("clear").addEventListener("click", () => {
  for (const { state } of films) if (state) URL.revokeObjectURL(state.url);
  films.length = 0;
  current = null;
  at("films").replaceChildren();
  for (const id of ["pixels", "map"]) at(id).removeAttribute("href");
  at("film").hidden = at("work").hidden = true;
  say("");
  at("files").focus();
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
document.addEventListener("dragover", () => at("drop").classList.add("over"));
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  at("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
});
