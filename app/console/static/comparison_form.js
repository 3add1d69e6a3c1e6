"use strict";

// Candidates that come and go on the form of a new comparison.
(() => {
  const form = document.getElementById("comparison");
  const list = document.getElementById("candidate-list");

  document.addEventListener("click", (event) => {
    const add = event.target.closest("[data-add]");
    const remove = event.target.closest("[data-remove]");
    if (remove) {
      remove.closest("fieldset").remove();
      document.getElementById("candidates-title").focus();
    }
    if (add) {
      const query = new URLSearchParams({ type: add.dataset.add, place: form.dataset.next++ });
      htmx.ajax("GET", `/console/comparisons/new/candidate?${query}`, { source: list, target: list, swap: "beforeend" });
    }
  });

  list.addEventListener("htmx:load", (event) => {
    const isElsewhere = document.activeElement !== document.body && !document.activeElement.closest("[data-add]");
    if (isElsewhere) return; // somebody types in another field by now
    event.detail.elt.querySelector("input:not([type=hidden]), textarea, select").focus();
  });
})();
