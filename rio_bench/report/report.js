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
const SMALL = 600; // pixels; below it a legend has a line an entry

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
  const entries = figure.data.filter((trace) => trace.showlegend !== false).length;
  const hasLegend = layout.showlegend !== false && entries > 1;
  layout.showlegend = hasLegend;
  if (hasLegend && !layout.yaxis.fixedrange) layout.height += 20 * (place.clientWidth < SMALL ? entries : entries / 3);
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
