"use strict";

// Times are written in UTC; a browser shows those of its own zone, with UTC on hover.
function showLocalTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]:not([title])")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.title = element.textContent;
    element.textContent = moment.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
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

function enhance() {
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

// A page that nobody sees is not refreshed: each refresh makes the server read its numbers again.
document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});

// While a refresh fails, a page keeps what it has, and says so.
function showStale(isStale) {
  document.getElementById("stale").hidden = !isStale;
}
document.addEventListener("htmx:response:error", () => showStale(true));
document.addEventListener("htmx:error", () => showStale(true));
document.addEventListener("htmx:after:swap", () => showStale(false));

addEventListener("resize", () => focusScrollers(document));
enhance();
