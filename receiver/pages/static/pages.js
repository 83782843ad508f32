"use strict";

// Times are written in UTC; a browser shows those of its own zone, with UTC on hover.
function showLocalTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]:not([title])")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.title = element.textContent;
    element.textContent = moment.toLocaleString(undefined, { dateStyle: "short", timeStyle: "hour" in element.dataset ? "short" : "medium" });
  }
}

// On a phone the rows of a table are blocks, and each value needs the heading of its column.
function labelCells(root) {
  for (const table of root.querySelectorAll(".table table")) {
    if (!table.tHead) continue;
    const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    table.dataset.stack = "";
    for (const cell of table.querySelectorAll("tbody td:not([data-label])")) {
      cell.dataset.label = labels[cell.cellIndex] ?? "";
    }
  }
}

// What scrolls sideways must be reachable by keys.
function focusScrollers(root) {
  for (const element of root.querySelectorAll(".table, pre")) {
    element.toggleAttribute("tabindex", element.scrollWidth > element.clientWidth);
    if (element.hasAttribute("tabindex")) element.tabIndex = 0;
  }
}

// With scripts a step of long work follows the step before by itself; the button is for the time after an error, and
// after a search was stopped.
let isStopped = false;
function showButtons(root) {
  for (const button of root.querySelectorAll("[data-go-on]")) button.hidden = !(isStopped || "error" in button.dataset);
  const canStop = !isStopped && root.querySelector("[data-go-on]:not([data-error])");
  for (const button of root.querySelectorAll("[data-stop]")) button.hidden = !canStop;
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-go-on], [data-stop]");
  if (!button) return;
  isStopped = "stop" in button.dataset;
  showButtons(document);
  if (!isStopped) return;
  const step = document.querySelector("[data-go-on]");
  step?.dispatchEvent(new Event("htmx:abort"));
  step?.focus();
}, { capture: true });

function enhance() {
  showButtons(document);
  showLocalTimes(document);
  labelCells(document);
  focusScrollers(document);
}

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Cannot copy here: select the text instead";
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy], button[data-copy-address]");
  if (!button) return;
  const source = button.dataset.copy ? document.getElementById(button.dataset.copy) : null;
  copy(button, source ? source.textContent : location.href);
});

// What refreshes itself has new times: a refresh removes the title and changes the text of the element.
new MutationObserver(enhance).observe(document.body, {
  childList: true, subtree: true, attributeFilter: ["datetime", "title"],
});

// A page that nobody sees is not refreshed: each refresh makes the server read its numbers again. Its work goes on.
document.addEventListener("htmx:before:request", (event) => {
  const isStep = event.target.matches("form, [data-go-on]");
  if (isStep ? isStopped : document.hidden) event.preventDefault();
});

// While a refresh fails, a page keeps what it has, and says so.
function showStale(isStale) {
  document.getElementById("stale").hidden = !isStale;
  for (const button of document.querySelectorAll("[data-go-on]")) {
    button.toggleAttribute("data-error", isStale);
  }
  showButtons(document);
}
document.addEventListener("htmx:response:error", () => showStale(true));
document.addEventListener("htmx:error", () => showStale(true));
// htmx reports a swap for an error, too, although it swaps nothing.
document.addEventListener("htmx:after:swap", (event) => {
  if (!(event.detail.ctx?.response?.status >= 400)) showStale(false);
});

// Escape closes what was opened around the focus, which stays on its summary.
document.addEventListener("keydown", (event) => {
  const details = event.key === "Escape" ? document.activeElement?.closest("details[open]") : null;
  if (!details) return;
  details.open = false;
  details.querySelector("summary").focus();
});

addEventListener("resize", () => focusScrollers(document));
enhance();
