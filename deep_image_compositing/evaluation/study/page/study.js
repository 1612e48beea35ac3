// One set of the study, or its first or last page. What a person chooses stands in the page itself,
// as data-place of the results; it is sent at once, and sent again until the server has it.

const ORDER = ["first", "second", "third"];
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];
const find = (selector) => document.querySelector(selector);
const task = find("#task");
const cards = [...document.querySelectorAll(".card")];
const chosen = () => ORDER.map((_, i) => cards.find((card) => card.dataset.place === `${i + 1}`));
const clamp = (value, low = 0, high = 1) => Math.max(low, Math.min(high, value));
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Talking to the server

function notice(text) {
  find("#notice").textContent = text;
  find("#notice").hidden = !text;
}

// Goes on trying while the server cannot be reached, or cannot store.
async function send(path, body) {
  const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  for (let wait = 500; ; wait = Math.min(2 * wait, 5000)) {
    const response = await fetch(path, { ...request, signal: AbortSignal.timeout(20000) }).catch(() => null);
    if (response?.ok) return notice("");
    if (response?.status >= 400 && response.status < 500) {
      notice(`Something went wrong: ${await response.text()}. Please load the page again.`);
      throw new Error(response.statusText);
    }
    notice("The server cannot be reached. Your choice is kept here, and sent as soon as it answers.");
    await pause(wait);
  }
}

// One request at a time, in the order of the clicks; of choices that wait, only the last is sent.
let waiting = null;
let sending = null;
function save(confirmed) {
  waiting = { ranking: chosen().map((card) => card?.dataset.result ?? null), confirmed };
  sending ??= (async () => {
    task.ariaBusy = "true";
    try {
      for (let body = waiting; body; body = waiting) {
        waiting = null;
        await send(`sets/${task.dataset.set}`, body);
      }
    } finally {
      sending = null;
      task.ariaBusy = "false";
    }
  })();
  return sending;
}

addEventListener("beforeunload", (event) => sending && event.preventDefault());
addEventListener("pageshow", (event) => event.persisted && location.reload());

find("#join")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  await send("join", { name: find("#name").value.trim() });
  location.assign(".");
});
find("#leave")?.addEventListener("click", async () => {
  await send("leave", {});
  location.assign(".");
});
find("#back")?.addEventListener("click", async (event) => {
  event.preventDefault();
  await sending;
  location.assign(find("#back").href);
});

// Choosing

let busy = true; // while pictures are loaded, and while an answer is on its way
let active = null; // the result that keys mean

function activate(card) {
  active?.classList.remove("active");
  active = card;
  active.classList.add("active");
}

function draw() {
  const best = chosen();
  const letter = (card) => card.querySelector("b").textContent;
  for (const card of cards) {
    const pick = card.querySelector(".pick");
    pick.ariaPressed = String(best.includes(card));
    pick.ariaLabel = `Result ${letter(card)}: ${ORDER[best.indexOf(card)] ?? "not chosen"}`;
  }
  for (const [place, slot] of document.querySelectorAll(".slot").entries()) {
    const card = best[place];
    slot.disabled = !card;
    slot.ariaLabel = `${ORDER[place]}: ${card ? `result ${letter(card)}; free this place` : "still free"}`;
    slot.replaceChildren(card ? card.querySelector("img").cloneNode() : place + 1);
    slot.onclick = () => put(card, "");
  }
  const free = best.indexOf(undefined);
  const which = ["the best", "second best", "third best"][free];
  find("#question").textContent = which
    ? `Which result is ${which}?`
    : "Three are chosen: confirm them, or click one of them again to free its place";
  find("#confirm").disabled = busy || free >= 0;
}

// Gives a result a place, "1" to "3", or none, ""; who has the place gets the one that it had.
function put(card, place) {
  if (busy || card.dataset.place === place) return;
  const other = place && cards.find((each) => each.dataset.place === place);
  if (other) other.dataset.place = card.dataset.place;
  card.dataset.place = place;
  save(false);
  draw();
}

// Gives it the best place that is free, or frees the one that it has.
function choose(card) {
  activate(card);
  const free = chosen().indexOf(undefined);
  if (card.dataset.place) put(card, "");
  else if (free >= 0) put(card, `${free + 1}`);
}

async function confirm() {
  if (busy || chosen().includes(undefined)) return;
  busy = true;
  draw();
  await save(true);
  location.assign(`?set=${Number(task.dataset.number) + 1}`);
}

function toggleBackground() {
  const [photograph, background] = find("#source").children;
  [photograph.hidden, background.hidden] = [background.hidden, photograph.hidden];
  find("#other").ariaPressed = String(photograph.hidden);
}

// Zoom: all pictures show the same part. x and y, from 0 to 1, are the point that stays where it is
// while zooming; so 0 is the left or top end, 1 the right or bottom end.

const view = { zoom: 1, last: 3, x: 0.5, y: 0.35 };
let pointer = null; // where the mouse is on a picture, from 0 to 1
let drag = null; // the picture that is dragged, and where the pointer was
let dragged = false; // whether it has moved, so that it is no click

function look(zoom, x = view.x, y = view.y) {
  Object.assign(view, { zoom, last: zoom > 1 ? zoom : view.last, x: clamp(x), y: clamp(y) });
  for (const name of ["zoom", "x", "y"]) task.style.setProperty(`--${name}`, view[name]);
  task.classList.toggle("zoomed", zoom > 1);
  find("#zoom").ariaPressed = String(zoom > 1);
  find("#factor").textContent = `${zoom}×`;
}

const toggleZoom = () => (view.zoom > 1 ? look(1) : look(view.last, pointer?.x, pointer?.y));
const stepZoom = (step) => look(ZOOMS[clamp(ZOOMS.indexOf(view.zoom) + step, 0, ZOOMS.length - 1)]);

function place(event, frame) {
  const box = frame.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

function pan(event) {
  const now = place(event, drag.frame);
  const beyond = view.zoom - 1;
  if (drag.frame.id === "map") {
    look(view.zoom, (now.x * view.zoom - 0.5) / beyond, (now.y * view.zoom - 0.5) / beyond);
  } else if (dragged || Math.hypot(event.clientX - drag.clientX, event.clientY - drag.clientY) > 5) {
    look(view.zoom, view.x - (now.x - drag.x) / beyond, view.y - (now.y - drag.y) / beyond);
    Object.assign(drag, now);
    dragged = true;
  }
}

function listen() {
  addEventListener("pointerdown", (event) => {
    const frame = event.target.closest("#map, .frame");
    const starts = frame && view.zoom > 1 && event.isPrimary && event.button === 0;
    drag = starts ? { frame, clientX: event.clientX, clientY: event.clientY, ...place(event, frame) } : null;
    dragged = false;
    if (frame?.id === "map") pan(event);
  });
  addEventListener("pointermove", (event) => {
    const frame = event.pointerType === "mouse" && event.target.closest?.(".frame");
    pointer = frame ? place(event, frame) : null;
    if (drag && event.buttons) pan(event);
  });
  addEventListener("pointercancel", () => (drag = null));
  find("#source").addEventListener("click", (event) => {
    if (dragged || event.target.closest("#map")) return;
    pointer = place(event, find("#source"));
    toggleZoom();
  });
  for (const card of cards) {
    card.querySelector(".pick").addEventListener("click", (event) => {
      if (!dragged || event.detail === 0) choose(card); // 0: by a key or a reading aid
    });
    card.querySelector(".pick").addEventListener("focus", () => activate(card));
    card.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && activate(card));
    card.querySelector(".loupe").addEventListener("click", toggleZoom);
  }
  const clicks = { "#zoom": toggleZoom, "#other": toggleBackground, "#confirm": confirm };
  for (const [id, deed] of Object.entries(clicks)) find(id).addEventListener("click", deed);
  find("#less").addEventListener("click", () => stepZoom(-1));
  find("#more").addEventListener("click", () => stepZoom(1));
  addEventListener("keydown", onKey);
  // A button is clicked when the space bar comes up again; on results it has zoomed already.
  addEventListener("keyup", (event) => event.key === " " && event.target.closest?.(".pick") && event.preventDefault());
}

// Keys

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
  const onResult = !event.target.closest?.("button:not(.pick), summary, a");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat && !(key in STEPS)) {
    if (onResult) event.preventDefault();
    return;
  }
  if (key in STEPS) {
    const [x, y] = STEPS[key];
    if (event.shiftKey) look(view.zoom, view.x + (0.4 * x) / view.zoom, view.y + (0.4 * y) / view.zoom);
    else {
      const row = cards.findIndex((card) => card.offsetTop !== cards[0].offsetTop);
      const next = cards[cards.indexOf(active) + x + y * (row < 0 ? cards.length : row)];
      next?.querySelector(".pick").focus();
    }
  } else if (["1", "2", "3"].includes(key)) put(active, active.dataset.place === key ? "" : key);
  else if (key === "0") put(active, "");
  else if (key === "z" || (key === " " && onResult) || (key === "Escape" && view.zoom > 1)) toggleZoom();
  else if (key === "+" || key === "=") stepZoom(1);
  else if (key === "-") stepZoom(-1);
  else if (key === "b") toggleBackground();
  else if (key === "Enter" && onResult) confirm();
  else return;
  event.preventDefault();
}

// All results appear together: one that came first would be looked at longest.
async function load(image) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await image.decode();
    } catch {
      if (tries > 1) notice("A picture cannot be loaded yet; trying again.");
      await pause(Math.min(500 * tries, 5000));
      image.src = image.src;
    }
  }
}

if (task) {
  history.replaceState(null, "", `?set=${task.dataset.number}`); // so that the browser's Back finds it
  listen();
  look(1);
  await Promise.all([...document.images].map(load));
  notice("");
  busy = false;
  find("#grid").classList.remove("waiting");
  draw();
  cards[0].querySelector(".pick").focus({ preventScroll: true });
  // The pictures of the next set come while this one is looked at.
  for (const token of task.dataset.ahead.split(" ").filter(Boolean)) new Image().src = `pictures/${token}.webp`;
}
