// What a page can do beyond HTML: window, zoom, keys, reading time, and sending a form over a connection that breaks.
// Without this script every question can still be answered and saved.
"use strict";

const $ = (id) => document.getElementById(id);
const form = $("questions");
const frame = $("frame");

// ---- Window in Hounsfield units: the image is stored with one wide window; an SVG filter maps a part of it to grey.
const view = { lower: Number(frame.dataset.lower), upper: Number(frame.dataset.upper), inverted: false, zoom: 1 };
const stored = { lower: view.lower, upper: view.upper };
const presets = [...document.querySelectorAll("[data-window]")];

function showWindow() {
  const range = view.upper - view.lower;
  const slope = (stored.upper - stored.lower) / range;
  const intercept = (stored.lower - view.lower) / range;
  for (const channel of document.querySelectorAll("#hu-filter feComponentTransfer > *")) {
    channel.setAttribute("slope", view.inverted ? -slope : slope);
    channel.setAttribute("intercept", view.inverted ? 1 - intercept : intercept);
  }
  $("image").style.filter = "url(#hu-filter)";
  $("invert").setAttribute("aria-pressed", String(view.inverted));
  for (const preset of presets) {
    preset.setAttribute("aria-pressed", String(isWindow(preset)));
  }
  if (document.activeElement !== $("level") && document.activeElement !== $("width")) {
    $("level").value = Math.round((view.upper + view.lower) / 2);
    $("width").value = Math.round(range);
  }
}

function isWindow(preset) {
  const [lower, upper] = preset.dataset.window.split(" ").map(Number);
  return lower === view.lower && upper === view.upper;
}

function setWindow(lower, upper) {
  if (!(upper - lower >= 1)) return;
  view.lower = lower;
  view.upper = upper;
  showWindow();
}

function nextWindow() {
  const index = presets.findIndex(isWindow);
  setWindow(...presets[(index + 1) % presets.length].dataset.window.split(" ").map(Number));
}

function invert() {
  view.inverted = !view.inverted;
  showWindow();
}

function zoom(factor) {
  const before = view.zoom;
  view.zoom = factor === 0 ? 1 : Math.min(8, Math.max(1, view.zoom * factor));
  const centre = [frame.scrollLeft + frame.clientWidth / 2, frame.scrollTop + frame.clientHeight / 2];
  $("image").style.setProperty("--zoom", view.zoom);
  const grown = view.zoom / before;
  frame.scrollTo(centre[0] * grown - frame.clientWidth / 2, centre[1] * grown - frame.clientHeight / 2);
}

const tools = { "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0), w: nextWindow, i: invert };
frame.addEventListener("keydown", (event) => {
  const tool = tools[event.key.toLowerCase()];
  if (!tool || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  tool();
});
$("zoom-in").addEventListener("click", tools["+"]);
$("zoom-out").addEventListener("click", tools["-"]);
$("zoom-fit").addEventListener("click", tools[0]);
$("invert").addEventListener("click", invert);
for (const preset of presets) {
  preset.addEventListener("click", () => setWindow(...preset.dataset.window.split(" ").map(Number)));
}
for (const name of ["level", "width"]) {
  $(name).addEventListener("input", () => {
    const [level, width] = [Number($("level").value), Number($("width").value)];
    setWindow(level - width / 2, level + width / 2);
  });
}
$("tools").hidden = false;
showWindow();

// ---- Without its image nothing can be judged.
function showMissing() {
  $("image-missing").hidden = $("image").naturalWidth > 0;
  $("save").disabled = !$("image-missing").hidden;
}
$("image").addEventListener("error", showMissing);
if ($("image").complete) showMissing();

// ---- Digits choose within the group that has the focus, and go on to the next one.
form.addEventListener("keydown", (event) => {
  const group = event.target.closest("fieldset");
  if (!group || !/^[0-9]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  const options = [...group.querySelectorAll("input")];
  const chosen = event.key === "0" ? options.find((option) => option.value === "none") : options[Number(event.key) - 1];
  if (!chosen || (event.key !== "0" && chosen.value === "none")) return;
  event.preventDefault();
  chosen.checked = true;
  chosen.dispatchEvent(new Event("change", { bubbles: true }));
  const groups = [...form.querySelectorAll("fieldset")];
  const next = groups[groups.indexOf(group) + 1];
  (next ? next.querySelector("input:checked") || next.querySelector("input") : $("comment")).focus();
});

// ---- Reading time: how long the page has been on the screen.
const clock = { total: Number(form.elements.visible_ms.value) || 0, since: document.hidden ? null : performance.now() };
document.addEventListener("visibilitychange", () => {
  if (document.hidden && clock.since !== null) clock.total += performance.now() - clock.since;
  clock.since = document.hidden ? null : performance.now();
});
const visibleTime = () => Math.round(clock.total + (clock.since === null ? 0 : performance.now() - clock.since));

// ---- A draft survives a reload, a change of language and a browser that was closed by mistake (in this tab).
const draftName = `draft:${form.getAttribute("action")}`;
const answers = () =>
  Object.fromEntries([...new FormData(form)].filter(([name]) => !["submission", "on_revision", "visible_ms"].includes(name)));

function keepDraft() {
  try {
    const draft = { revision: form.elements.on_revision.value, visible: visibleTime(), answers: answers() };
    sessionStorage.setItem(draftName, JSON.stringify(draft));
  } catch {
    // Storage may be full or forbidden; the form itself still holds everything.
  }
}

function restoreDraft() {
  let draft = null;
  try {
    draft = JSON.parse(sessionStorage.getItem(draftName));
  } catch {
    return;
  }
  if (!draft || draft.revision !== form.elements.on_revision.value || $("errors")) return;
  for (const [name, value] of Object.entries(draft.answers)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  clock.total = Math.max(clock.total, draft.visible);
}

form.addEventListener("change", keepDraft);
form.addEventListener("input", keepDraft);
restoreDraft();
if ($("errors")) $("errors").focus();

// ---- Sending: until the server has confirmed, the page stays. One form counts once, however often it is sent.
let sending = false;
let timer = null;

async function send() {
  if (sending) return;
  clearTimeout(timer);
  sending = true;
  keepDraft();
  form.elements.visible_ms.value = visibleTime();
  $("save").disabled = true;
  $("state").textContent = $("text-sending").textContent;
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(15000),
    });
    if (response.status >= 500) throw new Error(String(response.status));
    if (response.ok) {
      const { next } = await response.json();
      sessionStorage.removeItem(draftName);
      location.assign(next);
    } else {
      form.submit(); // The server has something to say (an answer is missing, another tab was faster): show its page.
    }
  } catch {
    sending = false;
    $("save").disabled = false;
    $("state").textContent = $("text-offline").textContent;
    $("retry").hidden = false;
    timer = setTimeout(send, 3000);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("retry").addEventListener("click", send);
window.addEventListener("online", () => timer && send());
window.addEventListener("pageshow", (event) => {
  // Back to a page that was kept in memory: it may be sent again.
  if (event.persisted) {
    sending = false;
    $("save").disabled = false;
    $("state").textContent = "";
  }
});
