"use strict";

// One chat completion over the public API, as it comes.
const chatStream = (() => {
  /** An error as the API tells it, or what became of the connection. */
  class ChatError extends Error {}

  async function refusal(response) {
    try {
      const { error } = await response.json();
      return new ChatError(error.message);
    } catch {
      return new ChatError(`The service answered with the status ${response.status}, and said no more.`);
    }
  }

  /** Yields the data of server-sent events. */
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let incomplete = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (incomplete + value).split("\n\n");
      incomplete = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  }

  /**
   * Asks, and calls `on.begin(model)` with the model that answers if the name was another one, and
   * `on.chunk(chunk)` for every chunk.
   */
  async function ask(request, signal, on) {
    let response;
    try {
      response = await toque.fetch("/v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ChatError("Toque cannot be reached. Is it running? Ask again once it is.");
    }
    if (!response.ok) throw await refusal(response);
    on.begin(response.headers.get("x-toque-model"));
    try {
      for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ChatError(chunk.error.message);
        on.chunk(chunk);
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof ChatError) throw error;
      throw new ChatError("The connection broke before the answer was complete. Ask again.");
    }
    throw new ChatError("The answer broke off before it was complete. Ask again.");
  }

  return { ask, ChatError };
})();
