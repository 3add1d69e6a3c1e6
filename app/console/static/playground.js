"use strict";

// The playground: one conversation, and a column for each model that is asked.
(() => {
  const MOST = 4;
  const form = document.getElementById("question");
  const columns = document.getElementById("columns");
  const turns = document.getElementById("turns");
  const current = new WeakMap(); // what fills a column now; an earlier answer that is broken off does no more
  let asking = null;

  const column = (inside) => inside.closest(".column");
  const part = (of, name) => of.querySelector(`[data-part="${name}"]`);

  // The conversation

  function addTurn(role, text = "") {
    const turn = document.getElementById("turn").content.cloneNode(true).firstElementChild;
    turn.querySelector("select").value = role;
    turn.querySelector("textarea").value = text;
    turns.append(turn);
    numberTurns();
    return turn;
  }

  function numberTurns() {
    [...turns.children].forEach((turn, place) => {
      turn.querySelector("select").setAttribute("aria-label", `Who speaks in turn ${place + 1}`);
      turn.querySelector("textarea").setAttribute("aria-label", turns.children.length === 1 ? "Question" : `Turn ${place + 1}`);
      turn.querySelector("[data-do]").hidden = turns.children.length === 1;
    });
  }

  function request(model) {
    const field = (name) => form.elements[name];
    const number = (name) => (field(name).value === "" ? undefined : Number(field(name).value));
    const system = field("system").value;
    const said = [...turns.children].map((turn) => ({
      role: turn.querySelector("select").value, content: turn.querySelector("textarea").value,
    }));
    return {
      model,
      messages: system ? [{ role: "system", content: system }, ...said] : said,
      temperature: number("temperature"),
      max_completion_tokens: number("max_tokens"),
      seed: number("seed"),
      ...(field("logprobs").checked ? { logprobs: true, top_logprobs: 5 } : {}),
    };
  }

  // The models

  function nameModels() {
    const models = [...columns.children].map((each) => each.dataset.model);
    const query = new URLSearchParams(models.map((model) => ["model", model]));
    history.replaceState(null, "", models.length ? `?${query}` : location.pathname);
    document.getElementById("add").hidden = models.length >= MOST;
    document.getElementById("nobody").hidden = models.length > 0;
    form.querySelector('[type="submit"]').disabled = models.length === 0;
  }

  document.addEventListener("toque:pick", (event) => {
    const query = new URLSearchParams({ model: event.detail });
    htmx.ajax("GET", `/console/playground/column?${query}`, { source: columns, target: columns, swap: "beforeend" });
  });

  // Models can be picked faster than their columns come.
  columns.addEventListener("htmx:load", (event) => {
    const added = event.detail.elt;
    const { model } = added.dataset;
    const isThere = [...columns.children].some((each) => each !== added && each.dataset.model === model);
    if (isThere || columns.children.length > MOST) added.remove();
    else toque.announce(`${model} will be asked.`);
    nameModels();
  });

  // Asking

  async function askOne(at, signal) {
    const model = at.dataset.model;
    const answer = begin(at);
    current.set(at, answer);
    try {
      await chatStream.ask(request(model), signal, {
        begin: (served) => { if (served && served !== model) showAlias(at, answer, model, served); },
        chunk: (chunk) => answer.take(chunk),
      });
      answer.end();
    } catch (error) {
      if (current.get(at) !== answer) return;
      const isStopped = error.name === "AbortError";
      answer.end(isStopped ? "stopped" : "broken off");
      if (!isStopped) fail(at, error);
    }
  }

  function fail(at, error) {
    const problem = part(at, "problem");
    problem.hidden = false;
    problem.querySelector("span").textContent = error.message;
    if (!(error instanceof chatStream.ChatError)) throw error;
  }

  /** Empties a column, and returns what fills it. */
  function begin(at) {
    const text = part(at, "text");
    const thoughts = part(at, "thoughts");
    const detail = part(at, "detail");
    for (const each of [text, detail, part(at, "figures"), thoughts.querySelector("p")]) each.replaceChildren();
    for (const name of ["problem", "thoughts", "served", "done", "detail"]) part(at, name).hidden = true;
    text.removeAttribute("role");
    text.removeAttribute("aria-label");
    at.setAttribute("aria-busy", "true");
    const view = form.elements.logprobs.checked ? tokenView.create(text, detail) : null;
    detail.hidden = !view;
    if (view) detail.textContent = "Point at a token, or move to it with the Tab and arrow keys.";
    const started = performance.now();
    let first = 0, last = 0, whole = "", usage = null, reason = null;

    function take(chunk) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) return;
      reason = choice.finish_reason ?? reason;
      const thought = choice.delta.reasoning ?? choice.delta.reasoning_content;
      if (thought || choice.delta.content) { last = performance.now(); first ||= last; }
      if (thought) { thoughts.hidden = false; thoughts.querySelector("p").append(thought); }
      whole += choice.delta.content ?? "";
      if (view) for (const said of choice.logprobs?.content ?? []) view.add(said);
      if (choice.delta.content && (!view || !choice.logprobs?.content)) text.append(choice.delta.content);
    }

    function end(how) {
      at.setAttribute("aria-busy", "false");
      at.dataset.answer = whole;
      part(at, "copy").dataset.copy = whole;
      part(at, "done").hidden = false;
      for (const name of ["continue", "copy"]) part(at, name).hidden = !whole;
      part(at, "figures").hidden = how && !first;
      detail.hidden = !view || !first;
      if (!whole && !how) text.textContent = "(an empty answer)";
      const seconds = (last - first) / 1000;
      const tokens = usage?.completion_tokens;
      const ends = { length: "cut off at the maximum", stop: "complete" };
      showFigures(part(at, "figures"), [
        ["First token", first ? `${((first - started) / 1000).toFixed(2)} s` : "–"],
        ["Tokens", tokens === undefined ? "–" : `${tokens}`],
        ["Tokens a second", tokens > 1 && seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) : "–"],
        ["Ended", how ?? ends[reason] ?? reason ?? "–"],
      ]);
    }

    return { take, end };
  }

  function showFigures(list, figures) {
    list.replaceChildren(...figures.map(([label, value]) => {
      const pair = document.createElement("div");
      for (const [name, text] of [["dt", label], ["dd", value]]) {
        pair.append(Object.assign(document.createElement(name), { textContent: text }));
      }
      return pair;
    }));
  }

  async function showAlias(at, filling, alias, model) {
    const served = part(at, "served");
    served.hidden = false;
    served.textContent = `Answered by ${model}`;
    const answer = await toque.fetch(`/console/playground/version?${new URLSearchParams({ alias, model })}`);
    if (!answer.ok) return;
    const { version } = await answer.json();
    if (version !== null && current.get(at) === filling) served.textContent = `Version ${version}: answered by ${model}`;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    asking?.abort();
    const controller = asking = new AbortController();
    document.getElementById("stop").hidden = false;
    toque.announce("Asking");
    await Promise.allSettled([...columns.children].map((each) => askOne(each, controller.signal)));
    if (asking !== controller) return;
    document.getElementById("stop").hidden = true;
    toque.announce("All answers have arrived.");
  });

  document.getElementById("stop").addEventListener("click", () => asking?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.contains(event.target)) form.requestSubmit();
  });

  // What is done with a turn or an answer

  const deeds = {
    "add turn": () => addTurn(turns.lastElementChild?.querySelector("select").value === "user" ? "assistant" : "user")
      .querySelector("textarea").focus(),
    "remove turn": (button) => { button.closest("li").remove(); numberTurns(); },
    "remove model": (button) => { column(button).remove(); nameModels(); document.getElementById("add").focus(); },
    continue: (button) => {
      addTurn("assistant", column(button).dataset.answer);
      addTurn("user").querySelector("textarea").focus();
    },
    code: (button) => showCode(request(column(button).dataset.model)),
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) deeds[button.dataset.do](button);
  });

  function showCode(asked) {
    for (const [id, code] of Object.entries(requestCode(asked, `${location.origin}/v1`))) {
      document.getElementById(`code-${id}`).textContent = code;
      document.getElementById(`copy-${id}`).dataset.copy = code;
    }
    document.getElementById("code").showModal();
  }

  addTurn("user");
  nameModels();
})();
