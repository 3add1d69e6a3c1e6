"use strict";

// What every page needs: times in the reader's zone, copying, and what becomes of requests and the connection.
// Pages' own scripts use `toque.csrfToken` and `toque.fetch`, and `toque.onLoad` for parts that come later.
const toque = (() => {
  const csrfToken = document.querySelector('meta[name="csrf-token"]')?.content ?? "";
  const thisYear = new Date().getFullYear();
  const short = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  const withYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  /** Calls the API or the console on behalf of this session. */
  function fetchAsSession(path, options = {}) {
    const headers = new Headers(options.headers);
    headers.set("x-csrf-token", csrfToken);
    return fetch(path, { ...options, headers, credentials: "same-origin" });
  }

  function showLocalTimes(root) {
    const inside = root.querySelectorAll("time[data-local]");
    for (const element of root.matches("time[data-local]") ? [root, ...inside] : inside) {
      const at = new Date(element.dateTime);
      element.textContent = (at.getFullYear() === thisYear ? short : withYear).format(at);
      element.title = whole.format(at);
    }
  }

  function announce(text) {
    document.getElementById("announcements").textContent = text;
  }

  async function copy(button) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch { // a page that did not come over TLS may not use the clipboard
      const area = document.createElement("textarea");
      area.value = button.dataset.copy;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.classList.add("is-copied");
    announce("Copied");
    setTimeout(() => button.classList.remove("is-copied"), 1500);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["x-csrf-token"] = csrfToken;
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    const isUpdate = event.detail.requestConfig.triggeringEvent?.type.startsWith("sse:");
    if (!isUpdate) document.getElementById("alerts").replaceChildren();
  });
  document.addEventListener("htmx:sseError", () => { document.getElementById("connection").hidden = false; });
  document.addEventListener("htmx:sseOpen", () => { document.getElementById("connection").hidden = true; });

  /** Calls a function with the page, and with each part of it that is put in later. */
  function onLoad(prepare) {
    document.addEventListener("DOMContentLoaded", () => prepare(document.body));
    document.addEventListener("htmx:load", (event) => prepare(event.detail.elt));
  }

  onLoad(showLocalTimes);
  return { csrfToken, fetch: fetchAsSession, announce, onLoad };
})();
