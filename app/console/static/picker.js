"use strict";

// Dialogs in which one of many things is searched for and picked: `data-open` opens one, `data-pick` picks.
// What is picked goes into the field that `data-into` names, or to whoever listens for `toque:pick`.
(() => {
  let into = "";

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    const closer = event.target.closest("[data-close]");
    const choice = event.target.closest("[data-pick]");
    if (opener) open(document.getElementById(opener.dataset.open), opener.dataset.into ?? "");
    if (closer) closer.closest("dialog").close();
    if (choice) pick(choice);
  });

  function open(dialog, field) {
    into = field;
    dialog.showModal();
    const search = dialog.querySelector('input[type="search"]');
    if (!search) return;
    search.value = "";
    htmx.trigger(search, "open");
    search.focus();
  }

  function pick(choice) {
    const dialog = choice.closest("dialog");
    const { pick: value, label } = choice.dataset;
    dialog.close();
    const field = document.getElementById(into);
    if (!field) {
      dialog.dispatchEvent(new CustomEvent("toque:pick", { bubbles: true, detail: value }));
      return;
    }
    field.value = value;
    const note = document.getElementById(`${into}-picked`);
    if (note) note.textContent = label;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.focus();
  }

  document.addEventListener("keydown", (event) => {
    const dialog = event.target.closest("dialog.picker");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!dialog || !step) return;
    const stops = [...dialog.querySelectorAll('input[type="search"], [data-pick], [data-more]')];
    const next = stops[stops.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
})();
