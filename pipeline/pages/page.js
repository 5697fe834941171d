"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: a click on a heading sorts, numbers from the largest, names from A.
for (const button of all("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table");
    const isNumber = heading.classList.contains("number");
    const first = isNumber ? "descending" : "ascending", other = isNumber ? "ascending" : "descending";
    const order = heading.ariaSort === first ? other : first, sign = order === "ascending" ? 1 : -1;
    all("th[aria-sort]", table).forEach((sorted) => sorted.removeAttribute("aria-sort"));
    heading.ariaSort = order;
    const value = (row) => row.cells[heading.cellIndex];
    const compare = isNumber
      ? (a, b) => (value(a)?.dataset.value ?? -1) - (value(b)?.dataset.value ?? -1)
      : (a, b) => value(a).textContent.localeCompare(value(b).textContent, undefined, { numeric: true });
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => sign * compare(a, b)));
  });
}

// Previews: play while pointed at or focused by keyboard; a tap, a click or Enter switches.
const calm = matchMedia("(prefers-reduced-motion: reduce)");
for (const button of all(".play")) {
  const video = button.querySelector("video");
  const play = (on) => {
    button.classList.toggle("playing", on);
    on ? video.play().catch(() => {}) : video.pause();
  };
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !calm.matches && play(true));
  button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && play(false));
  button.addEventListener("focus", () => button.matches(":focus-visible") && !calm.matches && play(true));
  button.addEventListener("blur", () => play(false));
  button.addEventListener("click", () => play(video.paused));
}

// Gallery: filtered by its form, a page of clips at a time.
const form = document.forms.filter, more = document.getElementById("more"), PAGE = 24;
let most = PAGE;
const show = () => {
  const fits = (card) => all("select", form).every(({ name, value }) => !value || card.dataset[name] === value);
  const found = all(".card").filter(fits), shown = new Set(found.slice(0, most));
  all(".card").forEach((card) => (card.hidden = !shown.has(card)));
  form.querySelector("output").textContent = `${shown.size} of ${found.length} clips`;
  more.hidden = found.length <= most;
};
const filter = (values) => {
  all("select", form).forEach((select) => (select.value = values[select.name] ?? ""));
  most = PAGE;
  show();
};
form.addEventListener("change", () => { most = PAGE; show(); });
form.addEventListener("reset", (event) => { event.preventDefault(); filter({}); });
more.addEventListener("click", () => { most += PAGE; show(); });
const go = ({ label, predicted }) => {
  filter({ label, predicted });
  form.closest("section").scrollIntoView();
};
for (const button of all(".pairs button")) button.addEventListener("click", () => go(button.dataset));
filter({ kind: "mistakes" });
if (!all(".card:not([hidden])").length) filter({});

// Confusion matrix: a cell is read out when pointed at or reached by arrow keys.
const matrix = document.getElementById("matrix");
if (matrix) {
  const cells = all(".cell", matrix);
  let at = -1;
  const point = (number) => {
    if (!cells[number]) return;
    cells[at]?.classList.remove("at");
    at = number;
    cells[at].classList.add("at");
    document.getElementById("cell").textContent = cells[at].dataset.text;
  };
  const row = (step) => cells.findIndex((cell) => +cell.dataset.row === +(cells[at]?.dataset.row ?? -step) + step);
  const keys = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => row(1), ArrowUp: () => row(-1) };
  matrix.addEventListener("pointerover", (event) => point(cells.indexOf(event.target.closest(".cell"))));
  matrix.addEventListener("click", (event) => {
    point(cells.indexOf(event.target.closest(".cell")));
    if (event.target.closest(".cell")) go(cells[at].dataset);
  });
  matrix.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && cells[at]) go(cells[at].dataset);
    if (!keys[event.key]) return;
    event.preventDefault();
    point(keys[event.key]());
  });
}

// Charts: the values of the nearest epoch, or of the bar pointed at.
for (const chart of all(".chart")) {
  const output = chart.querySelector("output"), points = all("circle", chart);
  chart.querySelector("svg").addEventListener("pointermove", (event) => {
    if (event.target.dataset.text && !points.length) output.textContent = event.target.dataset.text;
    if (!points.length) return;
    const distance = (circle) => Math.abs(circle.getBoundingClientRect().x - event.clientX);
    const { epoch } = points.reduce((a, b) => (distance(b) < distance(a) ? b : a)).dataset;
    points.forEach((circle) => circle.classList.toggle("at", circle.dataset.epoch === epoch));
    const texts = points.filter((circle) => circle.dataset.epoch === epoch).map((circle) => circle.dataset.text);
    output.textContent = `Epoch ${epoch}: ${texts.join(", ")}`;
  });
}
