"use strict";

// Tables: a click on a header sorts by it; a second one turns the order around.
function valueOf(text) {
  const number = parseFloat(text.replace(/,/g, "").replace(/−/g, "-"));
  return Number.isNaN(number) ? null : number;
}

function compare(first, second) {
  const [a, b] = [valueOf(first), valueOf(second)];
  if (a !== null && b !== null) return a - b;
  return first.localeCompare(second);
}

function sortBy(head, column) {
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const missing = (text) => text === "" || text === "–";
  const rows = [...body.rows].sort((one, other) => {
    const [first, second] = [one, other].map((row) => row.cells[column].textContent.trim());
    if (missing(first) || missing(second)) return missing(first) - missing(second);
    return down ? compare(second, first) : compare(first, second);
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll(".table table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", () => sortBy(head, column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(head, column); });
  });
}

// The latent map: a network's name and figures where it is pointed at, and the line between two that are chosen.
// Lines: what each point is, and its accuracy.
const tip = document.getElementById("tip");

function showTip(dot) {
  const name = document.createElement("b");
  name.textContent = dot.dataset.name;
  tip.replaceChildren(name, dot.dataset.text);
  tip.hidden = false;
  const place = dot.getBoundingClientRect();
  const left = Math.min(place.right + 8, window.innerWidth - tip.offsetWidth - 8);
  const above = place.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above < 8 ? place.bottom + 8 : above}px`;
}

for (const each of document.querySelectorAll(".dot, .mark")) {
  for (const kind of ["mouseenter", "focus"]) each.addEventListener(kind, () => showTip(each));
  for (const kind of ["mouseleave", "blur"]) each.addEventListener(kind, () => { tip.hidden = true; });
}

function lineBetween(first, second) {
  const wanted = [first, second].sort().join("\n");
  return [...document.querySelectorAll("figure[data-start]")].find(
    (figure) => [figure.dataset.start, figure.dataset.end].sort().join("\n") === wanted,
  );
}

function showLine(panel, svg, chosen) {
  for (const line of svg.querySelectorAll(".between")) line.remove();
  panel.replaceChildren();
  panel.hidden = chosen.length === 0;
  if (chosen.length === 0) return;
  const words = document.createElement("p");
  panel.append(words);
  const [first, second] = chosen.map((dot) => dot.dataset.name);
  if (chosen.length === 1) {
    words.textContent = `${first}: ${chosen[0].dataset.text}. Choose a second network.`;
    return;
  }
  const line = document.createElementNS(svg.namespaceURI, "line");
  line.setAttribute("class", "between");
  chosen.forEach((dot, index) => {
    line.setAttribute(`x${index + 1}`, dot.getAttribute("cx"));
    line.setAttribute(`y${index + 1}`, dot.getAttribute("cy"));
  });
  svg.insertBefore(line, svg.querySelector(".dot"));
  const figure = lineBetween(first, second);
  if (figure) {
    words.textContent = `The line from ${figure.dataset.start} to ${figure.dataset.end}`;
    panel.append(figure.querySelector("svg").cloneNode(true));
  } else {
    const command = document.createElement("code");
    const quoted = [first, second].map((name) => (/[^\w./:-]/.test(name) ? `'${name.replaceAll("'", "'\\''")}'` : name));
    command.textContent = `netspace interpolate --from ${quoted[0]} --to ${quoted[1]} --run ${panel.dataset.run}`;
    words.append(`No line between ${first} and ${second} was computed: `, command, " makes one.");
  }
}

for (const figure of document.querySelectorAll("figure")) {
  const dots = [...figure.querySelectorAll(".dot")];
  if (dots.length === 0) continue;
  let chosen = [];
  figure.querySelector(".hint").hidden = false;
  const choose = (dot) => {
    if (chosen.includes(dot)) chosen = chosen.filter((other) => other !== dot);
    else chosen = [...(chosen.length === 2 ? [] : chosen), dot];
    for (const other of dots) other.classList.toggle("chosen", chosen.includes(other));
    showLine(figure.querySelector(".line"), figure.querySelector("svg"), chosen);
  };
  for (const dot of dots) {
    dot.addEventListener("click", () => choose(dot));
    dot.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(dot); });
  }
}
