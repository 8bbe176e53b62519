"use strict";
// Hover works without this script. It adds: values on touch, other lengths, and other orders of heads.
for (const figure of document.querySelectorAll("figure")) {
  const readout = figure.querySelector(".readout");
  const show = (event) => {
    const marked = event.target.closest("svg *");
    const title = marked && (marked.querySelector(":scope > title") || marked.parentNode.querySelector(":scope > title"));
    if (title) readout.textContent = title.textContent;
  };
  figure.addEventListener("pointerover", show);
  figure.addEventListener("click", show);
}

for (const figure of document.querySelectorAll("figure.heat-map")) {
  const svg = figure.querySelector("svg");
  const rows = [...svg.querySelectorAll(".row")].map((row) => [...row.children]);
  const places = rows.length ? rows[0].map((cell) => cell.getAttribute("x")) : [];
  const [order, length] = ["order", "length"].map((name) => figure.querySelector(`select[name=${name}]`));
  const at = () => length ? Number(length.value) : 0;
  // The last word of a cell's title is its value; padding has none and goes last.
  const value = (cell) => Number(cell.textContent.split(" ").pop()) || -1;

  const arrange = () => {
    for (const cells of rows) {
      const sorted = [...cells];
      if (order.value === "placed") sorted.sort((a, b) => a.dataset.p - b.dataset.p);
      if (order.value === "sorted") sorted.sort((a, b) => value(b) - value(a));
      sorted.forEach((cell, index) => cell.setAttribute("x", places[index]));
    }
    svg.classList.toggle("placed", order.value === "placed");
    svg.classList.toggle("moved", order.value !== "model");
  };
  const recolour = () => {
    for (const cell of rows.flat()) {
      if (!cell.dataset.c) continue;
      cell.setAttribute("class", `c${cell.dataset.c.split(" ")[at()]}`);
      const title = cell.querySelector("title");
      title.textContent = title.textContent.replace(/[^ ]+$/, cell.dataset.v.split(" ")[at()]);
    }
    arrange();
  };
  order.addEventListener("change", arrange);
  if (length) length.addEventListener("change", recolour);
  // A browser may keep a choice over a reload.
  recolour();
  figure.querySelector(".controls").hidden = false;
}
