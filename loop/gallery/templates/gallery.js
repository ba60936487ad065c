"use strict";
(() => {
  const list = document.getElementById("records");
  const form = document.getElementById("filters");
  if (!list || !form) return;

  const rows = [...list.children].map((row, place) => {
    const card = row.firstElementChild;
    const data = card.dataset;
    return {
      row, card, place,
      text: data.text,
      type: data.type,
      verdicts: data.verdict.split(" "),
      reasons: data.reasons.split(" "),
      confidence: data.confidence === "" ? null : Number(data.confidence),
      changed: Number(data.changed),
    };
  });
  const fields = form.elements;
  const known = (compare) => (one, other) =>
    (one.confidence === null) - (other.confidence === null) || compare(one, other) || one.place - other.place;
  const orders = {
    "": (one, other) => one.place - other.place,
    sure: known((one, other) => other.confidence - one.confidence),
    unsure: known((one, other) => one.confidence - other.confidence),
    changed: (one, other) => other.changed - one.changed || one.place - other.place,
  };
  let visible = rows;
  let order = "";

  function apply() {
    const text = fields.text.value.trim().toLowerCase();
    const verdict = fields.verdict.value, reason = fields.reason.value, type = fields.type.value;
    const matches = (one) =>
      (!verdict || one.verdicts.includes(verdict)) && (!reason || one.reasons.includes(reason)) &&
      (!type || one.type === type) && (!text || one.text.includes(text));
    if (fields.sort.value !== order) {
      order = fields.sort.value;
      list.append(...rows.sort(orders[order]).map((one) => one.row));
    }
    for (const one of rows) one.row.hidden = !matches(one);
    visible = rows.filter((one) => !one.row.hidden);
    document.getElementById("count").value = visible.length === rows.length ? `${rows.length}` : `${visible.length} of ${rows.length}`;
    document.getElementById("nothing").hidden = visible.length > 0;
    for (const one of rows) one.card.tabIndex = -1;
    if (visible.length) visible[0].card.tabIndex = 0;
    for (const chip of document.querySelectorAll("[data-reason]"))
      chip.setAttribute("aria-pressed", String(chip.dataset.reason === reason));
  }

  function focused() {
    return visible.findIndex((one) => one.card.contains(document.activeElement));
  }

  function move(step) {
    if (!visible.length) return;
    const from = focused();
    const to = from < 0 ? (step > 0 ? firstInView() : 0) : Math.min(visible.length - 1, Math.max(0, from + step));
    for (const one of visible) one.card.tabIndex = -1;
    visible[to].card.tabIndex = 0;
    visible[to].card.focus();
  }

  function firstInView() {
    const found = visible.findIndex((one) => one.card.getBoundingClientRect().bottom > form.getBoundingClientRect().bottom);
    return Math.max(0, found);
  }

  function clear() {
    form.reset();
    apply();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target, writes = target.matches("input, select, textarea");
    if (event.key === "Escape" && (writes || visible.length < rows.length)) {
      clear();
      if (writes) target.blur();
    } else if (writes) {
      if (event.key === "Enter" && target === fields.text) { event.preventDefault(); target.blur(); move(1); }
    } else if (event.key === "/") {
      event.preventDefault();
      fields.text.focus();
    } else if (event.key === "j" || event.key === "k") {
      event.preventDefault();
      move(event.key === "j" ? 1 : -1);
    } else if (["ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"].includes(event.key) && target.matches(".card")) {
      event.preventDefault();
      move(event.key === "ArrowDown" || event.key === "ArrowRight" ? 1 : -1);
    } else if (event.key === "o" || (event.key === "Enter" && target.matches(".card"))) {
      const place = focused();
      if (place < 0) return;
      const details = visible[place].card.querySelector("details");
      details.open = !details.open;
    }
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  document.querySelector("[data-clear]").addEventListener("click", clear);
  for (const chip of document.querySelectorAll("[data-reason]"))
    chip.addEventListener("click", () => {
      const name = chip.dataset.reason;
      if (![...fields.reason.options].some((option) => option.value === name)) return;
      fields.reason.value = fields.reason.value === name ? "" : name;
      apply();
      form.scrollIntoView({ block: "start" });
    });
  form.hidden = false;
  apply();
})();
