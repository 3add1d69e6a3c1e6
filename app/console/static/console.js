"use strict";

// What every page needs: times in the reader's zone, copying, and what becomes of requests and the connection.
// Pages' own scripts use `toque.csrfToken` and `toque.fetch`, and `toque.onLoad` for parts that come later.
const toque = (() => {
  const SENT_MILLISECONDS = 30_000; // after which no answer is expected any more
  const csrfToken = document.querySelector('meta[name="csrf-token"]')?.content ?? "";
  const thisYear = new Date().getFullYear();
  const short = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  const withYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  const local = (at) => (at.getFullYear() === thisYear ? short : withYear).format(at);

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
      element.textContent = local(at);
      element.title = whole.format(at);
    }
    for (const element of root.querySelectorAll("[data-time-inside]")) { // where no <time> can stand
      const iso = element.dataset.timeInside;
      const utc = `${iso.slice(0, 10)} ${iso.slice(11, 16)} UTC`;
      const text = element.textContent;
      const place = text.lastIndexOf(utc);
      if (place >= 0) element.textContent = text.slice(0, place) + local(new Date(iso)) + text.slice(place + utc.length);
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

  /**
   * An EventSource that rests while nobody sees the page: over HTTP/1.1 all tabs share six connections, and a
   * seventh tab would wait for ever. When it wakes, the server tells of everything once more.
   */
  class RestingEventSource extends EventTarget {
    #url;
    #source = null;
    #names = new Set();
    #isOver = false;

    constructor(url) {
      super();
      this.#url = url;
      document.addEventListener("visibilitychange", () => (document.hidden ? this.#rest() : this.#wake()));
      if (!document.hidden) this.#wake();
    }

    get readyState() {
      return this.#isOver ? EventSource.CLOSED : (this.#source?.readyState ?? EventSource.CONNECTING);
    }

    addEventListener(name, listener) {
      super.addEventListener(name, listener);
      if (!this.#names.has(name)) {
        this.#names.add(name);
        this.#pass(name);
      }
    }

    close() {
      this.#isOver = true;
      this.#rest();
    }

    #pass(name) {
      this.#source?.addEventListener(name, (event) => this.dispatchEvent(new MessageEvent(name, { data: event.data })));
    }

    #wake() {
      if (this.#isOver || this.#source) return;
      this.#source = new EventSource(this.#url);
      this.#source.onopen = (event) => this.onopen?.(event);
      this.#source.onerror = (event) => {
        if (this.#source?.readyState === EventSource.CLOSED) this.close(); // who uses it makes another one
        this.onerror?.(event);
      };
      for (const name of this.#names) this.#pass(name);
    }

    #rest() {
      this.#source?.close();
      this.#source = null;
    }
  }
  htmx.createEventSource = (url) => new RestingEventSource(url);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });

  /** Returns the parts of a name that a selection has, in their order. */
  function partsIn(selection, name) {
    const selected = selection.getRangeAt(0);
    return [...name.children].filter((part) => selected.intersectsNode(part)).map((part) => {
      const range = document.createRange();
      range.selectNodeContents(part);
      if (part.contains(selected.startContainer)) range.setStart(selected.startContainer, selected.startOffset);
      if (part.contains(selected.endContainer)) range.setEnd(selected.endContainer, selected.endOffset);
      return range.toString();
    }).filter(Boolean);
  }

  // Browsers would copy each part of a name on a line of its own.
  document.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (!selection.rangeCount) return;
    const seen = selection.toString();
    let text = seen;
    for (const name of document.querySelectorAll(".name")) {
      const parts = selection.containsNode(name, true) ? partsIn(selection, name) : [];
      if (parts.length > 1) text = text.replace(parts.join("\n"), () => parts.join(""));
    }
    if (text === seen) return;
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  });

  const isUpdate = (event) => event.detail.requestConfig.triggeringEvent?.type.startsWith("sse:") ?? false;
  const nameOf = (element) => [
    element.tagName, element.id, element.name, element.getAttribute("href"), element.ariaLabel, element.textContent.trim(),
  ].join("|");

  /** Returns the parts of the page that an update replaces. */
  function replacedBy({ target, requestConfig }) {
    const besides = requestConfig.elt.getAttribute("hx-select-oob");
    return [target, ...(besides ? document.querySelectorAll(besides) : [])];
  }

  /** Returns what puts the focus, opened details and the place in wide tables back into parts that were put in anew. */
  function keepPlace(parts) {
    const focused = parts.some((part) => part.contains(document.activeElement)) ? nameOf(document.activeElement) : null;
    const opened = parts.flatMap((part) => [...part.querySelectorAll("details[open] > summary")].map(nameOf));
    const scrolled = new Map(parts.map((part) => [part.id, [...part.querySelectorAll(".table")].map((table) => table.scrollLeft)]));
    return (root) => {
      const tables = root.querySelectorAll(".table");
      scrolled.get(root.id)?.forEach((left, place) => { if (left && tables[place]) tables[place].scrollLeft = left; });
      for (const summary of root.querySelectorAll("details > summary")) {
        if (opened.includes(nameOf(summary))) summary.parentElement.open = true;
      }
      if (focused && document.activeElement === document.body) {
        const again = root.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]");
        [...again].find((element) => nameOf(element) === focused)?.focus({ preventScroll: true });
      }
    };
  }

  // A click is lost if what was pressed is replaced before it is let go, so updates wait meanwhile.
  let isPressed = false;
  const waiting = new Map(); // the news that elements are to be told again
  function release() {
    if (!isPressed) return;
    setTimeout(() => { // after the click
      isPressed = false;
      for (const [element, news] of waiting) htmx.trigger(element, news);
      waiting.clear();
    });
  }
  addEventListener("pointerdown", (event) => { isPressed = event.button === 0; }, true);
  addEventListener("keydown", (event) => { if (event.key === " ") isPressed = true; }, true);
  for (const name of ["pointerup", "pointercancel", "keyup", "blur"]) addEventListener(name, release, true);
  addEventListener("pointermove", (event) => { if (!event.buttons) release(); }, true); // let go over a scroll bar

  // What is sent once more before the answer has come, as by a double click, nobody means twice.
  let sent = new WeakMap(); // when a form was sent
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented || form.getAttribute("method") !== "post") return;
    if (event.timeStamp - (sent.get(form) ?? -Infinity) < SENT_MILLISECONDS) event.preventDefault();
    else sent.set(form, event.timeStamp);
  });
  addEventListener("pageshow", () => { sent = new WeakMap(); }); // somebody has come back to it

  const places = new WeakMap();
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (!isUpdate(event)) return;
    const { xhr, requestConfig } = event.detail;
    if (isPressed) {
      event.detail.shouldSwap = false;
      waiting.set(requestConfig.elt, requestConfig.triggeringEvent.type);
    } else {
      places.set(xhr, keepPlace(replacedBy(event.detail)));
    }
  });
  document.addEventListener("htmx:afterSwap", (event) => places.get(event.detail.xhr)?.(event.target));
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["x-csrf-token"] = csrfToken;
    event.detail.path = event.detail.path.split("#")[0]; // else htmx would scroll there with each update
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (!isUpdate(event)) document.getElementById("alerts").replaceChildren();
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (isUpdate(event)) return; // the lost connection is told already
    const alert = document.createElement("div");
    alert.className = "alert alert-bad";
    alert.textContent = "Toque could not be reached. Try again.";
    document.getElementById("alerts").replaceChildren(alert);
  });
  document.addEventListener("htmx:sseError", () => { document.getElementById("connection").hidden = false; });
  document.addEventListener("htmx:sseOpen", () => { document.getElementById("connection").hidden = true; });

  /** Calls a function with the page, and with each part of it that is put in later. */
  function onLoad(prepare) {
    document.addEventListener("DOMContentLoaded", () => prepare(document.body));
    document.addEventListener("htmx:load", (event) => prepare(event.detail.elt));
  }

  // On a small screen the sections stand in a row, which shows the page's own.
  const section = document.querySelector(".side nav [aria-current]");
  if (section) {
    const row = section.closest("nav");
    row.scrollLeft = section.offsetLeft - (row.clientWidth - section.offsetWidth) / 2;
  }

  onLoad(showLocalTimes);
  return { csrfToken, fetch: fetchAsSession, announce, onLoad };
})();
