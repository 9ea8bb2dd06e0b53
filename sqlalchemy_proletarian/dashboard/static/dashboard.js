"use strict";

// Times in the zone of the viewer, with UTC as title.
function localTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]:not([data-relative])")) {
    const at = new Date(element.dateTime);
    if (!isNaN(at)) {
      element.textContent = at.toLocaleString(undefined, {
        year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
      });
    }
  }
}

function rows() {
  return [...document.querySelectorAll("main tbody tr")];
}

function go(step) {
  const all = rows();
  if (!all.length) return;
  const before = all.findIndex((row) => row.classList.contains("current"));
  const next = all[Math.min(all.length - 1, Math.max(0, before + step))];
  all.forEach((row) => row.classList.remove("current"));
  next.classList.add("current");
  const link = next.querySelector("a, button");
  if (link) link.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea, dialog")) return;
  const current = document.querySelector("tr.current");
  if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "x" && current) {
    const box = current.querySelector("input[type=checkbox]");
    if (box) box.checked = !box.checked;
  } else if (event.key === "/") {
    const search = document.getElementById("search");
    if (!search) return;
    search.focus();
    search.select();
  } else if (event.key === "?") document.getElementById("keys").showModal();
  else return;
  event.preventDefault();
});

document.addEventListener("change", (event) => {
  if (event.target.id !== "all") return;
  for (const box of document.querySelectorAll("tbody input[type=checkbox]")) box.checked = event.target.checked;
});

// A hidden page does not ask the database, and a page that somebody uses does not change below them.
document.addEventListener("htmx:beforeRequest", (event) => {
  const busy = event.target.contains(document.activeElement) && document.activeElement !== document.body;
  if (document.hidden || busy) event.preventDefault();
});
document.addEventListener("htmx:afterSwap", () => localTimes(document));
document.addEventListener("DOMContentLoaded", () => localTimes(document));
localTimes(document);
