"use strict";

// An answer token by token: how probable each was, and what else was likely in its place.
const tokenView = (() => {
  const LEVELS = [[0.9, "sure", "90 % or more"], [0.5, "likely", "50 % or more"], [0.1, "unsure", "10 % or more"], [0, "unlikely", "less"]];
  const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
  const level = (logprob) => LEVELS.find(([least]) => Math.exp(logprob) >= least)[1];

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  /** A token as it can be seen: white space by signs. */
  const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

  /** Shows tokens in `root` and, of the one that is looked at, the alternatives in `detail`. */
  function create(root, detail) {
    const decoder = new TextDecoder();
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Tokens with their probabilities; move with the arrow keys");

    function show(token, said) {
      root.querySelector(".is-shown")?.classList.remove("is-shown");
      token.classList.add("is-shown");
      const rows = said.top_logprobs.some((each) => each.token === said.token)
        ? said.top_logprobs : [said, ...said.top_logprobs];
      const list = element("ol", undefined, "alternatives");
      for (const each of rows) {
        const row = element("li");
        const meter = element("meter");
        meter.value = Math.exp(each.logprob);
        meter.setAttribute("aria-label", "Probability");
        row.append(element("code", visible(each.token)), meter, element("span", percent(each.logprob), "number"));
        if (each.token === said.token) row.classList.add("is-chosen");
        list.append(row);
      }
      const head = element("p");
      head.append(element("code", visible(said.token)), ` ${percent(said.logprob)} `,
        element("span", `log-probability ${said.logprob.toFixed(3)}`, "note"));
      detail.replaceChildren(head, list);
    }

    function add(said) {
      const text = said.bytes ? decoder.decode(new Uint8Array(said.bytes), { stream: true }) : said.token;
      const token = element("span", text || "·", `token token-${level(said.logprob)}`);
      token.setAttribute("role", "button");
      token.setAttribute("aria-label", `${visible(said.token)}, ${percent(said.logprob)}`);
      token.tabIndex = root.childElementCount ? -1 : 0;
      token.addEventListener("focus", () => show(token, said));
      token.addEventListener("pointerenter", () => show(token, said));
      token.addEventListener("click", () => token.focus());
      root.append(token);
    }

    root.addEventListener("keydown", (event) => {
      const at = event.target;
      const to = {
        ArrowRight: at.nextElementSibling, ArrowDown: at.nextElementSibling,
        ArrowLeft: at.previousElementSibling, ArrowUp: at.previousElementSibling,
        Home: root.firstElementChild, End: root.lastElementChild,
      }[event.key];
      if (!to) return;
      event.preventDefault();
      at.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });

    return { add };
  }

  return { create };
})();
