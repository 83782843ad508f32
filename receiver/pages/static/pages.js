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

// What refreshes itself has new times.
new MutationObserver(() => showLocalTimes(document)).observe(document.body, { childList: true, subtree: true });
showLocalTimes(document);
