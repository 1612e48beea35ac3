// One set of the study, or its first or last page. Choices stay in the browser until stored.

const find = (selector) => document.querySelector(selector);
const task = find("#task");
const cards = [...document.querySelectorAll(".card")];

// Forms are sent as JSON; the next page follows once the server has stored them.
addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const body = JSON.stringify(form.id === "choice" ? { ranking: best } : Object.fromEntries(new FormData(form)));
  const request = { method: "POST", headers: { "content-type": "application/json" }, body };
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  const response = await fetch(form.action, { ...request, signal: AbortSignal.timeout(20000) }).catch(() => null);
  if (response?.ok) {
    localStorage.clear();
    return location.assign(form.dataset.next);
  }
  const reason = response ? await response.text() : "the server cannot be reached";
  find("#notice").textContent = `Not stored: ${reason}. Please press the button again.`;
  button.disabled = false;
});
addEventListener("pageshow", (event) => event.persisted && location.reload());

// The ranking: tokens of the best three results, "" for a free place.

const WORDS = ["the best", "second best", "third best"];
let best = [];

function draw() {
  localStorage[task.dataset.set] = best.join();
  for (const card of cards) {
    const { result } = card.dataset;
    const place = best.indexOf(result);
    const pick = card.querySelector(".pick");
    card.dataset.place = place + 1 || "";
    pick.ariaPressed = String(place >= 0);
    pick.ariaLabel = `Result ${card.dataset.letter}: ${WORDS[place] ?? "not chosen"}`;
    pick.onclick = () => put(result, place >= 0 ? -1 : best.indexOf(""));
  }
  for (const [place, slot] of document.querySelectorAll(".slot").entries()) {
    const card = cards.find(({ dataset }) => dataset.result === best[place]);
    slot.disabled = !card;
    slot.ariaLabel = `${WORDS[place]}: ${card ? `result ${card.dataset.letter}; free this place` : "still free"}`;
    slot.replaceChildren(card?.querySelector("img").cloneNode() ?? place + 1);
    slot.onclick = () => put(best[place], -1);
  }
  const free = best.indexOf("");
  find("#confirm").disabled = free >= 0;
  find("#question").textContent = free >= 0
    ? `Which result is ${WORDS[free]}?`
    : "Three are chosen: confirm them, or click one of them again to free its place";
}

// Moves a result to a place, from 0, swapping with the result there; -1 or its current place frees it.
function put(result, place) {
  const old = best.indexOf(result);
  if (old >= 0) best[old] = (place !== old && best[place]) || "";
  if (place >= 0 && place !== old) best[place] = result;
  draw();
}

// All pictures show the same part: x and y go from 0, left and top, to 1.

const zoom = find("#zoom");
const view = { zoom: 1, x: 0.5, y: 0.35 };

function look(change) {
  for (const [name, value] of Object.entries(change)) {
    const [low, high] = name === "zoom" ? [1, 8] : [0, 1];
    view[name] = Math.max(low, Math.min(high, value));
    task.style.setProperty(`--${name}`, view[name]);
  }
  zoom.value = view.zoom;
  task.classList.toggle("zoomed", view.zoom > 1);
}

const toggleZoom = () => look({ zoom: view.zoom > 1 ? 1 : 3 });

function onPointer(event) {
  const frame = event.target.closest?.(".frame");
  if (!frame) return;
  const box = frame.getBoundingClientRect();
  look({ x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
  if (event.pointerType === "mouse") frame.closest(".pick")?.focus({ preventScroll: true });
}

// Keys act on the focused result.
const active = () => document.activeElement.closest(".card") ?? cards[0];
const step = (x, y) => (event) => {
  const row = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
  if (event.shiftKey) look({ x: view.x + (0.4 * x) / view.zoom, y: view.y + (0.4 * y) / view.zoom });
  else cards[cards.indexOf(active()) + x + y * row]?.querySelector(".pick").focus();
};
const KEYS = {
  ArrowLeft: step(-1, 0), ArrowRight: step(1, 0), ArrowUp: step(0, -1), ArrowDown: step(0, 1),
  "+": () => look({ zoom: view.zoom + 1 }), "-": () => look({ zoom: view.zoom - 1 }), z: toggleZoom,
  b: () => find("#other").click(), Enter: () => find("#confirm").click(),
};
for (const key of "0123") KEYS[key] = () => put(active().dataset.result, key - 1);

function onKey(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const native = /Enter|Arrow/.test(key) && event.target.closest?.("input, summary, a, button:not(.pick)");
  if (!KEYS[key] || native || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith("Arrow")) KEYS[key](event);
}

async function begin() {
  history.replaceState(null, "", `?set=${task.dataset.number}`); // for the browser's Back
  // All results appear together, or the first one would be looked at longest.
  await Promise.all([...document.images].map((image) => image.decode()));
  find("#grid").classList.remove("waiting");
  best = (localStorage[task.dataset.set] ?? task.dataset.ranking).split(",");
  draw();
  for (const type of ["pointerdown", "pointermove"]) addEventListener(type, onPointer);
  for (const element of document.querySelectorAll(".loupe, #source")) element.onclick = toggleZoom;
  zoom.oninput = () => look({ zoom: Number(zoom.value) });
  addEventListener("keydown", onKey);
  cards[0].querySelector(".pick").focus({ preventScroll: true });
  // Preload the pictures of the next set.
  for (const token of task.dataset.ahead.split(" ").filter(Boolean)) new Image().src = `pictures/${token}.webp`;
}
if (task) begin().catch(() => (find("#notice").textContent = "A picture could not be loaded. Please load the page again."));
