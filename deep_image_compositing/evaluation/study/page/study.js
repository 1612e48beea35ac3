// The page of the study: the first page, one set after another, the last page.
// The server keeps all answers; this file keeps only what is on the screen. What a person does is
// sent at once, and sent again until the server has it.

const PLACES = ["first", "second", "third"];
const ZOOMS = [1.5, 2, 3, 4, 6, 8];
const byId = (id) => document.getElementById(id);
const letter = (index) => (index < 26 ? String.fromCharCode(65 + index) : String(index + 1));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

let study = null; // what the server says of the study and the person
let current = null; // the set on the screen
let position = 0; // its place in the person's order
let active = 0; // the result that keys mean
let busy = false; // an answer is on its way

// ---------------------------------------------------------------- talking to the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, method = "GET", body = undefined) {
  const response = await fetch(`api/${path}`, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: body === undefined ? {} : { "content-type": "application/json" },
    signal: AbortSignal.timeout(20000),
  });
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  if (response.status >= 500) throw new Error(content.error);
  throw new Refused(response.status, content.error || response.statusText);
}

// Like ask, but goes on trying while the server cannot be reached.
async function insist(...request) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 5000)) {
    try {
      const content = await ask(...request);
      notice("");
      return content;
    } catch (error) {
      if (error instanceof Refused) throw error;
      notice("The server cannot be reached. Your choice is kept here, and sent as soon as it answers.");
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function say(text) {
  byId("spoken").textContent = text;
}

// One request at a time, in the order of the clicks; of drafts that wait, only the last is sent.
const outbox = {
  draft: null,
  running: null,
  save(set, ranking) {
    this.draft = { set, ranking: [...ranking] };
    byId("slots").setAttribute("aria-busy", "true");
    this.running ??= this.run();
  },
  async run() {
    try {
      while (this.draft) {
        const { set, ranking } = this.draft;
        this.draft = null;
        await insist(`sets/${set}/draft`, "PUT", { ranking });
      }
    } catch (error) {
      failed(error);
    } finally {
      this.running = null;
      byId("slots").removeAttribute("aria-busy");
    }
  },
  async flush() {
    while (this.running) await this.running;
  },
};

// A reload must not lose what waits for the server.
addEventListener("beforeunload", (event) => {
  if (outbox.running || busy) event.preventDefault();
});

function failed(error) {
  if (error.status === 401) {
    notice("This browser is not known any more. Please begin again.");
    study.person = null;
    show("intro");
  } else {
    notice(`Something went wrong: ${error.message}. Please load the page again.`);
  }
}

// ---------------------------------------------------------------- pages

function show(name) {
  for (const id of ["intro", "task", "end"]) byId(id).hidden = id !== name;
  if (name !== "task") {
    current = null;
    scrollTo(0, 0);
  }
  if (name === "end") byId("end").querySelector("h1").focus();
}

async function start() {
  study = await insist("study");
  if (!study.person) {
    byId("intro-sets").textContent = `${plural(study.sets, "set")} of ${plural(study.results, "result")}`;
    byId("own-intro").hidden = !study.intro;
    byId("our-intro").hidden = Boolean(study.intro);
    byId("own-intro").replaceChildren(
      ...(study.intro || []).map((text) => Object.assign(document.createElement("p"), { textContent: text })),
    );
    show("intro");
    return;
  }
  await go(wanted());
}

const firstOpen = () => {
  const found = study.person.sets.findIndex((set) => !set.answered);
  return found < 0 ? study.person.sets.length : found;
};

// Where the address says; never beyond the first set that is open.
function wanted() {
  const said = /^#(\d+)$/.exec(location.hash);
  return said ? Math.max(0, Math.min(Number(said[1]) - 1, firstOpen())) : firstOpen();
}

async function go(where) {
  position = where;
  const hash = `#${where + 1}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
  if (where >= study.person.sets.length) {
    show("end");
    return;
  }
  try {
    await load(study.person.sets[where].id);
  } catch (error) {
    failed(error);
  }
}

addEventListener("popstate", () => {
  if (study?.person && !busy) outbox.flush().then(() => go(wanted()));
});

byId("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    await insist("people", "POST", { name: byId("name").value.trim() });
    notice("");
    await start();
  } catch (error) {
    failed(error);
  }
  button.disabled = false;
});

byId("again").addEventListener("click", () => go(0));
byId("leave").addEventListener("click", async () => {
  await insist("leave", "POST", {});
  history.replaceState(null, "", location.pathname);
  byId("name").value = "";
  await start();
});
byId("back").addEventListener("click", () => move(position - 1));

async function move(where) {
  if (busy || where < 0) return;
  await outbox.flush();
  await go(where);
}

// ---------------------------------------------------------------- a set

async function load(id) {
  const set = await insist(`sets/${id}`);
  current = { ...set, ranking: set.draft, ready: false };
  active = 0;
  zoomTo(1);
  show("task");
  const task = byId("task");
  task.style.setProperty("--aspect", `${set.width} / ${set.height}`);
  task.style.setProperty("--ratio", set.width / set.height);
  byId("where").textContent = `Set ${position + 1} of ${study.person.sets.length}`;
  byId("progress").max = study.person.sets.length;
  byId("progress").value = study.person.sets.filter((each) => each.answered).length;
  byId("back").disabled = position === 0;
  showBackground(false);
  byId("map-picture").src = set.foreground;
  byId("grid").replaceChildren(...set.results.map(card));
  draw();
  scrollTo(0, 0);
  await pictures(set);
  if (current?.id !== id) return;
  current.ready = true;
  draw();
  focusOn(0, { preventScroll: true });
  ahead();
}

function card(result, index) {
  const item = document.createElement("li");
  item.className = "card";
  item.dataset.result = result.id;
  item.innerHTML = `
    <button class="pick" type="button"><span class="frame"><img alt="" draggable="false"></span></button>
    <div class="below"><span class="letter"></span><button class="loupe" type="button">Zoom</button></div>`;
  item.querySelector(".letter").textContent = letter(index);
  item.querySelector(".loupe").setAttribute("aria-label", `Zoom, result ${letter(index)}`);
  const pick = item.querySelector(".pick");
  pick.addEventListener("click", (event) => {
    if (!gesture.moved || event.detail === 0) choose(index); // 0: by a key or a reading aid
  });
  pick.addEventListener("focus", () => setActive(index));
  item.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") setActive(index);
  });
  item.querySelector(".loupe").addEventListener("click", toggleZoom);
  pannable(pick);
  return item;
}

// All results appear together: one that came first would be looked at longest.
async function pictures(set) {
  const images = [...byId("grid").querySelectorAll(".frame img")];
  const all = [[byId("source-picture"), set.foreground], ...images.map((image, i) => [image, set.results[i].url])];
  let done = 0;
  const status = byId("loading");
  const progress = () => {
    status.textContent = `Loading pictures: ${done} of ${all.length}`;
  };
  progress();
  status.hidden = false;
  byId("grid").style.visibility = "hidden";
  await Promise.all(
    all.map(async ([image, url]) => {
      for (let tries = 0; current?.id === set.id; tries += 1) {
        image.src = tries ? `${url}?${tries}` : url;
        try {
          await image.decode();
          break;
        } catch {
          if (tries > 1) notice("A picture cannot be loaded yet; trying again.");
          await new Promise((resolve) => setTimeout(resolve, Math.min(500 * (tries + 1), 5000)));
        }
      }
      done += 1;
      progress();
    }),
  );
  if (current?.id !== set.id) return;
  notice("");
  status.hidden = true;
  byId("grid").style.visibility = "";
}

// The pictures of the next set come while this one is looked at.
function ahead() {
  const next = study.person.sets[position + 1];
  if (!next) return;
  ask(`sets/${next.id}`)
    .then((set) => {
      for (const url of [set.foreground, set.background, ...set.results.map((result) => result.url)]) {
        new Image().src = url;
      }
    })
    .catch(() => {});
}

const cards = () => [...byId("grid").children];
const chosen = (index) => current.ranking.indexOf(current.results[index].id);
const complete = () => current.ranking.every((id) => id !== null);

function draw() {
  for (const [index, item] of cards().entries()) {
    const place = chosen(index);
    item.classList.toggle("chosen", place >= 0);
    item.classList.toggle("active", index === active);
    const pick = item.querySelector(".pick");
    pick.tabIndex = index === active ? 0 : -1;
    pick.setAttribute("aria-pressed", String(place >= 0));
    pick.setAttribute("aria-label", `Result ${letter(index)}: ${place >= 0 ? PLACES[place] : "not chosen"}`);
    item.querySelector(".badge")?.remove();
    if (place >= 0) pick.append(badge(place));
  }
  byId("slots").replaceChildren(
    ...current.ranking.map((id, place) => {
      const item = document.createElement("li");
      const slot = item.appendChild(document.createElement("button"));
      slot.type = "button";
      slot.className = "slot";
      const index = current.results.findIndex((result) => result.id === id);
      if (index < 0) {
        slot.textContent = place + 1;
        slot.disabled = true;
        slot.setAttribute("aria-label", `${PLACES[place]}: still free`);
      } else {
        slot.classList.add("taken");
        slot.setAttribute("aria-label", `${PLACES[place]}: result ${letter(index)}; free this place`);
        slot.append(Object.assign(new Image(), { src: current.results[index].url, alt: "" }), badge(place));
        slot.addEventListener("click", () => choose(index));
      }
      return item;
    }),
  );
  const free = current.ranking.indexOf(null);
  byId("question").textContent =
    free < 0 ? "Three are chosen: confirm them" : `Which result is ${["the best", "second best", "third best"][free]}?`;
  byId("confirm").disabled = !complete() || busy || !current.ready;
  byId("confirm").textContent = busy ? "Storing…" : "Confirm";
}

function badge(place) {
  const mark = document.createElement("span");
  mark.className = "badge";
  mark.textContent = place + 1;
  mark.setAttribute("aria-hidden", "true");
  return mark;
}

// A click: gives the best place that is free, or frees the one it has.
function choose(index) {
  if (!current?.ready || busy) return;
  setActive(index);
  const place = chosen(index);
  const free = current.ranking.indexOf(null);
  if (place >= 0) put(index, null);
  else if (free >= 0) put(index, free);
  else {
    byId("question").textContent = "Three are chosen: click one of them again to free its place";
    say(byId("question").textContent);
  }
}

// A key: gives just this place; who had it gets the one that becomes free, if any.
function put(index, place) {
  if (!current?.ready || busy) return;
  const id = current.results[index].id;
  const before = chosen(index);
  if (place === null && before < 0) return;
  const ranking = [...current.ranking];
  if (before >= 0) ranking[before] = null;
  if (place !== null && place !== before) {
    if (before >= 0) ranking[before] = ranking[place];
    ranking[place] = id;
  }
  current.ranking = ranking;
  outbox.save(current.id, ranking);
  draw();
  const now = chosen(index);
  say(`Result ${letter(index)} is ${now >= 0 ? PLACES[now] : "not chosen"}.`);
}

async function confirm() {
  if (!current?.ready || busy) return;
  if (!complete()) {
    say("Choose three results first.");
    return;
  }
  busy = true;
  draw();
  const { id, ranking } = current;
  try {
    await outbox.flush();
    await insist(`sets/${id}/answer`, "PUT", { ranking });
    study.person.sets.find((set) => set.id === id).answered = true;
  } catch (error) {
    busy = false;
    failed(error);
    return;
  }
  busy = false;
  await go(Math.min(position + 1, firstOpen()));
}
byId("confirm").addEventListener("click", confirm);

function showBackground(on) {
  const source = byId("source-picture");
  source.src = on ? current.background : current.foreground;
  source.alt = on ? "The new background" : "The photograph that the subject was cut out of";
  byId("source-name").textContent = on ? "The new background" : "The photograph";
  byId("other").textContent = on ? "Photograph" : "New background";
  byId("other").setAttribute("aria-pressed", String(on));
}
byId("other").addEventListener("click", () => toggleBackground());
const toggleBackground = () => showBackground(byId("other").getAttribute("aria-pressed") !== "true");

// ---------------------------------------------------------------- zoom: one place for all pictures

// x and y, from 0 to 1, are the point of the picture that stays where it is while zooming; so
// they also say which part is shown: 0 the left or top end, 1 the right or bottom end.
const view = { zoom: 1, last: 3, x: 0.5, y: 0.35, pointer: null };
const clamp = (value) => Math.max(0, Math.min(1, value));

function zoomTo(zoom, x = view.x, y = view.y) {
  Object.assign(view, { zoom, x: clamp(x), y: clamp(y) });
  if (zoom > 1) view.last = zoom;
  const task = byId("task");
  task.style.setProperty("--zoom", zoom);
  task.style.setProperty("--x", view.x);
  task.style.setProperty("--y", view.y);
  task.classList.toggle("zoomed", zoom > 1);
  byId("zoom").textContent = zoom > 1 ? "Zoom out" : "Zoom in";
  byId("zoom").setAttribute("aria-pressed", String(zoom > 1));
  byId("zoom-factor").textContent = `${zoom}×`;
  byId("zoom-in").disabled = zoom === 1 || zoom === ZOOMS.at(-1);
  byId("zoom-out").disabled = zoom === 1;
}

function toggleZoom() {
  smoothly();
  if (view.zoom > 1) zoomTo(1);
  else if (view.pointer) zoomTo(view.last, view.pointer.x, view.pointer.y);
  else zoomTo(view.last);
}

function stepZoom(step) {
  if (view.zoom === 1) {
    if (step > 0) toggleZoom();
    return;
  }
  smoothly();
  const next = ZOOMS.indexOf(view.zoom) + step;
  zoomTo(next < 0 ? 1 : ZOOMS[Math.min(next, ZOOMS.length - 1)]);
}

function smoothly() {
  const task = byId("task");
  task.classList.add("zooming");
  setTimeout(() => task.classList.remove("zooming"), 200);
}

byId("zoom").addEventListener("click", () => {
  view.pointer = null;
  toggleZoom();
});
byId("zoom-in").addEventListener("click", () => stepZoom(1));
byId("zoom-out").addEventListener("click", () => stepZoom(-1));

const place = (event, box) => ({
  x: clamp((event.clientX - box.left) / box.width),
  y: clamp((event.clientY - box.top) / box.height),
});

const gesture = { id: null, moved: false, x: 0, y: 0 };

// Dragging moves the part that all pictures show. A click that did not move is left to others.
function pannable(element) {
  const frame = element.querySelector(".frame") || element;
  element.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") view.pointer = place(event, frame.getBoundingClientRect());
    if (gesture.id !== event.pointerId) return;
    const [dx, dy] = [event.clientX - gesture.x, event.clientY - gesture.y];
    if (!gesture.moved && Math.hypot(dx, dy) < 6) return;
    if (!gesture.moved) {
      gesture.moved = true;
      element.setPointerCapture(event.pointerId);
      byId("task").classList.add("dragging");
    }
    gesture.x = event.clientX;
    gesture.y = event.clientY;
    const box = frame.getBoundingClientRect();
    const beyond = view.zoom - 1;
    zoomTo(view.zoom, view.x - dx / (box.width * beyond), view.y - dy / (box.height * beyond));
  });
  element.addEventListener("pointerdown", (event) => {
    gesture.moved = false;
    gesture.id = view.zoom > 1 && event.isPrimary && event.button === 0 ? event.pointerId : null;
    gesture.x = event.clientX;
    gesture.y = event.clientY;
  });
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, () => {
      gesture.id = null;
      byId("task").classList.remove("dragging");
    });
  }
  element.addEventListener("pointerleave", () => {
    if (gesture.id === null) view.pointer = null;
  });
}

const source = byId("source");
pannable(source);
source.addEventListener("click", (event) => {
  if (gesture.moved || event.target.closest("#map")) return;
  view.pointer = place(event, source.getBoundingClientRect());
  toggleZoom();
  if (event.pointerType !== "mouse") view.pointer = null;
});

// The small map: the part that is shown follows the pointer.
const map = byId("map");
function follow(event) {
  const { x, y } = place(event, map.getBoundingClientRect());
  const middle = (at) => (at - 0.5 / view.zoom) / (1 - 1 / view.zoom);
  zoomTo(view.zoom, middle(x), middle(y));
}
map.addEventListener("pointerdown", (event) => {
  event.stopPropagation();
  map.setPointerCapture(event.pointerId);
  follow(event);
});
map.addEventListener("pointermove", (event) => {
  event.stopPropagation();
  if (map.hasPointerCapture(event.pointerId)) follow(event);
});

// ---------------------------------------------------------------- keys

function setActive(index) {
  active = index;
  for (const [i, item] of cards().entries()) {
    item.classList.toggle("active", i === index);
    item.querySelector(".pick").tabIndex = i === index ? 0 : -1;
  }
}

function focusOn(index, options) {
  setActive(index);
  cards()[index].querySelector(".pick").focus(options);
}

function columns() {
  const tops = cards().map((item) => item.offsetTop);
  const next = tops.findIndex((top) => top !== tops[0]);
  return next < 0 ? tops.length : next;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

addEventListener("keydown", (event) => {
  if (!current?.ready || event.ctrlKey || event.metaKey || event.altKey) return;
  const control = event.target.closest?.("button, summary, input, a");
  const onResult = !control || control.matches(".pick");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in STEPS) {
    const [x, y] = STEPS[key];
    if (event.shiftKey) {
      zoomTo(view.zoom, view.x + (0.4 * x) / view.zoom, view.y + (0.4 * y) / view.zoom);
    } else {
      const next = active + x + y * columns();
      if (next >= 0 && next < current.results.length) focusOn(next);
      cards()[active].scrollIntoView({ block: "nearest" });
    }
  } else if (event.repeat) {
    if (onResult && (key === " " || key === "Enter")) event.preventDefault();
    return;
  } else if (key === "1" || key === "2" || key === "3") {
    put(active, chosen(active) === Number(key) - 1 ? null : Number(key) - 1);
  } else if (key === "0") put(active, null);
  else if (key === "z" || (key === " " && onResult)) toggleZoom();
  else if (key === "Escape" && view.zoom > 1) toggleZoom();
  else if (key === "+" || key === "=") stepZoom(1);
  else if (key === "-") stepZoom(-1);
  else if (key === "b") toggleBackground();
  else if (key === "Enter" && onResult) confirm();
  else return;
  event.preventDefault();
});
// A button is clicked when the space bar comes up again; on results it has zoomed already.
addEventListener("keyup", (event) => {
  if (event.key === " " && event.target.closest?.(".pick")) event.preventDefault();
});

start();
