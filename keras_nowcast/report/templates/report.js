// Sorts the table of runs and compares two of them. A cell carries its value in data-v, empty if
// it was not measured; empty cells stay last in both directions.
"use strict";

const body = document.querySelector("#runs tbody");
const heads = document.querySelectorAll("#runs th");

heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.v;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const number = x - y;
      return (up ? 1 : -1) * (isNaN(number) ? x.localeCompare(y) : number);
    };
    [...body.rows].sort(compare).forEach(row => body.append(row));
  });
});

const comparison = document.querySelector("#compare");

if (comparison) {
  const { notMeasured, estimateMark } = comparison.dataset;
  const [first, second] = comparison.querySelectorAll("select");

  const increase = (a, b) => {
    if (!a || !b) return notMeasured;
    const percent = 100 * (b / a - 1);
    const digits = Math.abs(percent) < 100 ? 2 : 0;
    const shown = percent.toLocaleString("en", {
      minimumFractionDigits: digits, maximumFractionDigits: digits });
    return (percent < 0 ? "" : "+") + shown + "%";
  };

  const show = () => {
    const [a, b] = [first, second].map(each => each.selectedOptions[0].dataset);
    const alike = a.source === b.source;
    let energy = alike ? increase(a.energy, b.energy) : notMeasured + " with one kind of sensor";
    if (alike && a.energy && b.energy && (a.estimate || b.estimate)) energy += estimateMark;
    comparison.querySelector("output").textContent =
      "trainable parameters " + increase(a.parameters, b.parameters) +
      ", time " + increase(a.time, b.time) + ", energy " + energy +
      ", skill " + increase(a.skill, b.skill);
  };

  [first, second].forEach(each => each.addEventListener("change", show));
  show();
}
