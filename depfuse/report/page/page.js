"use strict";

// Sort a table by the column whose button is pressed: numbers from the highest, texts from A, and the other way round
// when it is pressed again. Cells without a number come last.
function sort(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const numbers = head.classList.contains("number"), before = head.getAttribute("aria-sort");
  const first = numbers ? "descending" : "ascending", other = numbers ? "ascending" : "descending";
  const order = before === first ? other : first;
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(body.rows, row => {
    const cell = row.cells[column], value = cell.dataset.value;
    return { row, key: numbers ? (value === undefined ? null : Number(value)) : cell.textContent };
  });
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * (numbers ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true }));
  });
  body.append(...rows.map(item => item.row));
}

// Show the rows that hold every word, and the details of their runs.
function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean), shown = new Set();
  for (const row of document.querySelectorAll("tr[data-run]")) {
    row.text ??= row.textContent.toLowerCase();
    row.hidden = !words.every(word => row.text.includes(word));
    if (!row.hidden) shown.add(row.dataset.run);
  }
  const runs = document.querySelectorAll("details.run");
  for (const run of runs) run.hidden = !shown.has(run.id);
  document.getElementById("shown").textContent = words.length ? `${shown.size} of ${runs.length} runs` : "";
}

// Show the rows of the table after a field that hold every word.
function narrow(field) {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const bar = field.closest(".trials"), rows = Array.from(bar.nextElementSibling.querySelectorAll("tbody tr"));
  for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  const shown = rows.filter(row => !row.hidden).length;
  bar.querySelector("[role=status]").textContent = words.length ? `${shown} of ${rows.length} trials` : "";
}

// Open the details that the address leads to.
function reveal() {
  const run = document.getElementById(location.hash.slice(1));
  if (!(run instanceof HTMLDetailsElement)) return;
  run.open = true;
  run.firstElementChild.focus({ preventScroll: true });
  run.scrollIntoView();
}

for (const button of document.querySelectorAll("table.sortable th button"))
  button.addEventListener("click", () => sort(button.parentElement));
const field = document.getElementById("filter");
field.addEventListener("input", () => filter(field.value));
filter(field.value);
for (const own of document.querySelectorAll(".trials input")) {
  own.addEventListener("input", () => narrow(own));
  narrow(own);
}
addEventListener("hashchange", reveal);
reveal();
