"use strict";

// Tables: a click, or Enter on the heading's button, sorts; once more turns the order; what has no value stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const first = heading.dataset.first;
    const before = heading.getAttribute("aria-sort");
    const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const key = (row) => row.cells[column].dataset.sort;
    const isNumber = first === "descending";
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows).sort((one, other) => {
      const a = key(one), b = key(other);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    body.append(...rows);
  });
}

// Figures: drawn when they come near the screen, and again in the other colours when the ground turns dark or light.
const isDark = window.matchMedia("(prefers-color-scheme: dark)");
const isTouched = window.matchMedia("(pointer: coarse)").matches;
const darkColours = JSON.parse(document.getElementById("dark-colours").textContent);
function recoloured(value) {
  if (Array.isArray(value)) return value.map(recoloured);
  if (value === null || typeof value !== "object") return value;
  const copy = {};
  for (const [key, part] of Object.entries(value)) {
    const isColour = typeof part === "string" && key.endsWith("color") && part in darkColours;
    copy[key] = isColour ? darkColours[part] : recoloured(part);
  }
  return copy;
}

function draw(place) {
  let figure = JSON.parse(place.querySelector("script").textContent);
  if (isDark.matches) figure = recoloured(figure);
  const layout = figure.layout;
  const names = figure.data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name);
  layout.showlegend = layout.showlegend !== false && names.length > 1;
  if (layout.showlegend) { // above the figure, with room for all its lines
    const entryWidth = 50 + 7.5 * Math.max(...names.map((name) => name.length));
    const lines = Math.ceil(names.length / Math.max(1, Math.floor(place.clientWidth / entryWidth)));
    layout.legend.maxheight = 22 * lines + 10;
    layout.height += 22 * (lines - 1);
  }
  layout.hoverlabel.bgcolor = isDark.matches ? "#333333" : "#ffffff";
  if (isTouched) layout.dragmode = false; // a finger scrolls the page
  return Plotly.react(place.querySelector(".plot"), figure.data, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: isTouched ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    scrollZoom: false,
  }).then(() => place.setAttribute("data-drawn", ""));
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "600px" });
const places = document.querySelectorAll("figure.chart");
for (const place of places) seen.observe(place);

function drawAll(which) {
  for (const place of places) {
    if (place.hasAttribute("data-drawn") === which) {
      seen.unobserve(place);
      draw(place);
    }
  }
}
isDark.addEventListener("change", () => drawAll(true));
window.addEventListener("beforeprint", () => drawAll(false));
