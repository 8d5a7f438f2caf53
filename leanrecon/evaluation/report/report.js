"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const grid = $("cards");
  const cards = Array.from(grid.children, (element, at) => ({
    element,
    at,
    fold: element.dataset.fold || "",
    scores: element.dataset.scores.split(",").map((text) => (text === "" ? null : Number(text))),
    text: (element.dataset.stimulus + "\n" + element.querySelector(".stimulus").textContent + "\n" +
      (element.querySelector(".caption")?.textContent ?? "")).toLowerCase(),
  }));
  const [score, order, least, find, fold] = ["score", "order", "least", "find", "fold"].map($);
  const chosenStyle = document.head.appendChild(document.createElement("style"));
  let ends = [0, 0];

  const chosen = () => ({ i: Number(score.value), ...score.selectedOptions[0].dataset });
  const write = (value) =>
    (chosen().percent === "1" ? (100 * value).toFixed(0) + " %" : value.toFixed(3)).replace("-", "−");

  // The slider runs from letting everything through to letting only the best through, whichever way is better.
  function limit() {
    const share = Number(least.value) / 100;
    return chosen().lower === "1" ? ends[1] - share * (ends[1] - ends[0]) : ends[0] + share * (ends[1] - ends[0]);
  }

  function choose() {
    const { i, lower } = chosen();
    const values = cards.map((card) => card.scores[i]).filter((value) => value !== null);
    ends = [Math.min(...values), Math.max(...values)];
    least.value = 0;
    $("bound").textContent = lower === "1" ? "At most" : "At least";
    chosenStyle.textContent =
      `.scores [data-i="${i}"] { display: inline !important; order: -1; color: var(--accent); }` +
      `.scores [data-i="${i}"] b { color: var(--accent); }`;
  }

  function sort() {
    const way = order.value;
    const sign = score && (chosen().lower === "1") === (way === "best") ? 1 : -1;
    const i = score ? chosen().i : 0;
    const compare = (a, b) => {
      if (way === "row") return a.at - b.at;
      if (way === "back") return b.at - a.at;
      const [x, y] = [a.scores[i], b.scores[i]];
      if (x === null || y === null) return (x === null) - (y === null) || a.at - b.at; // rows without a score come last
      return sign * (x - y) || a.at - b.at;
    };
    grid.append(...cards.slice().sort(compare).map((card) => card.element));
  }

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const bounded = score && Number(least.value) > 0;
    const i = score ? chosen().i : 0;
    const bound = score ? limit() : 0;
    const sign = score && chosen().lower === "1" ? -1 : 1;
    let shown = 0;
    for (const card of cards) {
      const value = card.scores[i];
      const fits =
        words.every((word) => card.text.includes(word)) &&
        (!fold || !fold.value || card.fold === fold.value) &&
        (!bounded || (value !== null && sign * (value - bound) >= -1e-9));
      card.element.hidden = !fits;
      shown += fits;
    }
    $("count").textContent = `${shown} of ${cards.length} shown`;
    $("nothing").hidden = shown > 0;
    if (score) {
      $("limit").textContent = write(bound);
      least.setAttribute("aria-valuetext", write(bound));
    }
  }

  function size() {
    const value = document.querySelector('input[name="size"]:checked').value;
    grid.style.setProperty("--thumb", { S: "5rem", M: "8.75rem", L: "14rem" }[value]);
  }

  if (score) {
    score.addEventListener("change", () => { choose(); sort(); filter(); });
    least.addEventListener("input", filter);
    choose();
  }
  order.addEventListener("change", sort);
  find.addEventListener("input", filter);
  if (fold) fold.addEventListener("change", filter);
  for (const radio of document.getElementsByName("size")) radio.addEventListener("change", size);
  $("reset").addEventListener("click", () => {
    find.value = "";
    if (fold) fold.value = "";
    if (least) least.value = 0;
    filter();
    find.focus();
  });
  // Tables wider than the page say that they scroll, until they have been scrolled to their end.
  for (const table of document.querySelectorAll(".scroll")) {
    const hint = table.previousElementSibling;
    if (!hint?.classList.contains("hint")) continue;
    const look = () => {
      const more = table.scrollWidth - table.clientWidth - table.scrollLeft > 2;
      hint.classList.toggle("needed", more);
      hint.classList.toggle("idle", !more);
    };
    new ResizeObserver(look).observe(table);
    new ResizeObserver(look).observe(table.firstElementChild);
    table.addEventListener("scroll", look, { passive: true });
    look();
  }

  sort(); // browsers restore the controls of a page that is loaded again
  size();
  filter();
  $("controls").hidden = false;
})();
