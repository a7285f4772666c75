"use strict";

// A click on a heading sorts its table. Published rows stay below ours, the reference stays last.
function groupsOf(body) {
  const groups = [];
  for (const row of body.rows) {
    if (row.classList.contains("reference")) continue;
    if (row.classList.contains("paper") && groups.length) groups[groups.length - 1].push(row);
    else groups.push([row]);
  }
  return groups;
}

function compare(a, b, column, sign) {
  const [x, y] = [a[0].cells[column], b[0].cells[column]];
  const [u, v] = [x.dataset.v, y.dataset.v];
  if (u !== undefined && v !== undefined) return sign * (Number(u) - Number(v));
  if (u !== undefined) return -1;
  if (v !== undefined) return 1;
  return sign * x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
}

function sortBy(table, heading, column) {
  const up = heading.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0];
  const last = [...body.rows].filter((row) => row.classList.contains("reference"));
  const groups = groupsOf(body).sort((a, b) => compare(a, b, column, up ? 1 : -1));
  body.append(...groups.flat(), ...last);
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sort")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (button) button.onclick = () => sortBy(table, heading, column);
  });
}
