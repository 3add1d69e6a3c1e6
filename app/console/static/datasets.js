"use strict";

// Uploads through the public API, in one request or in parts that go on where they were; and the search's buttons.
(() => {
  const zone = document.querySelector("[data-upload]");
  const RETRY_SECONDS = [1, 2, 4, 8, 15, 30];
  const AT_ONCE = 3;
  const MEMORY = "toque-upload:";

  /** A request that did not do what it was for; it is worth another try or not. */
  class Failure extends Error {
    constructor(message, isTransient, retryAfter) {
      super(message);
      this.isTransient = isTransient;
      this.retryAfter = retryAfter;
    }
  }

  function randomKey() {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  const units = ["bytes", "kB", "MB", "GB", "TB"];
  function size(bytes) {
    const unit = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
    return `${unit ? (bytes / 1000 ** unit).toPrecision(3) : bytes} ${units[unit]}`;
  }

  function duration(seconds) {
    return seconds < 60 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
  }

  /** Sends a request of the API; unlike `fetch` it tells how much has gone. */
  function send(method, path, { body, key, signal, onProgress } = {}) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, path);
      request.setRequestHeader("x-csrf-token", toque.csrfToken);
      if (key) request.setRequestHeader("idempotency-key", key);
      if (body && !(body instanceof FormData)) request.setRequestHeader("content-type", "application/json");
      request.responseType = "json";
      if (onProgress) request.upload.onprogress = (event) => onProgress(event.loaded);
      request.onload = () => {
        if (request.status < 300) return resolve(request.response);
        const message = request.response?.error?.message ?? `The service answered with ${request.status}.`;
        const isTransient = [408, 429].includes(request.status) || request.status >= 500;
        reject(new Failure(message, isTransient, Number(request.getResponseHeader("retry-after"))));
      };
      request.onerror = () => reject(new Failure("The connection is lost.", true));
      request.onabort = () => reject(new Failure("Cancelled.", false));
      signal.addEventListener("abort", () => request.abort());
      if (signal.aborted) return reject(new Failure("Cancelled.", false));
      request.send(body && !(body instanceof FormData) ? JSON.stringify(body) : body);
    });
  }

  /** Waits, but no longer than until the network is back. */
  function wait(seconds, signal) {
    return new Promise((resolve) => {
      const done = () => { clearTimeout(timer); removeEventListener("online", done); resolve(); };
      const timer = setTimeout(done, seconds * 1000);
      addEventListener("online", done);
      signal.addEventListener("abort", done);
    });
  }

  /** Where it is remembered how far the upload of a file has come. */
  function memoryOf(file, purpose) {
    return MEMORY + [purpose, file.name, file.size, file.lastModified].join(":");
  }

  class Upload {
    constructor(file, purpose, row, onDone) {
      this.onDone = onDone;
      this.file = file;
      this.purpose = purpose;
      this.row = row;
      this.isActive = true; // from the beginning, though it may have to wait for others
      this.isCancelled = false;
      this.key = randomKey();
      this.row.querySelector(".upload-name").textContent = file.name;
      this.bar = row.querySelector("progress");
      this.bar.setAttribute("aria-label", file.name);
      this.retryButton = row.querySelector("[data-retry]");
      this.retryButton.addEventListener("click", () => this.run());
      row.querySelector("[data-cancel]").addEventListener("click", () => this.cancel());
    }

    get memory() {
      return memoryOf(this.file, this.purpose);
    }

    say(text, isBad = false) {
      const state = this.row.querySelector(".upload-state");
      state.textContent = text;
      state.classList.toggle("problem", isBad);
    }

    /** Sends the file, or what is missing of it; resolves once it has arrived, failed for good, or was cancelled. */
    async run() {
      if (this.isCancelled) return; // while it waited
      this.abort = new AbortController();
      this.isActive = true;
      this.retryButton.hidden = true;
      this.gone = new Map();
      this.began = performance.now();
      try {
        const isLarge = this.file.size > Number(zone.dataset.largeBytes);
        const fileId = await (isLarge ? this.sendParts() : this.sendWhole());
        this.finish(fileId);
      } catch (failure) {
        if (!this.abort.signal.aborted) {
          this.abort.abort(); // what else is on its way
          this.say(failure.message, true);
          this.retryButton.hidden = false;
          toque.announce(`${this.file.name} was not uploaded: ${failure.message}`);
        }
      } finally {
        this.isActive = false;
      }
    }

    async sendWhole() {
      const form = new FormData();
      form.append("purpose", this.purpose);
      form.append("file", this.file, this.file.name);
      const sent = await this.persist((onProgress) => send("POST", "/v1/files", { body: form, key: this.key, signal: this.abort.signal, onProgress }), 0);
      return sent.id;
    }

    async sendParts() {
      const upload = await this.open();
      const partBytes = upload.partBytes;
      const offsets = [];
      for (let offset = 0; offset < this.file.size; offset += partBytes) {
        if (upload.parts[offset]) this.gone.set(offset, Math.min(partBytes, this.file.size - offset));
        else offsets.push(offset);
      }
      this.before = this.sum();
      const sendNext = async () => {
        for (let offset = offsets.shift(); offset !== undefined; offset = offsets.shift()) {
          const form = new FormData();
          form.append("data", this.file.slice(offset, offset + partBytes), this.file.name);
          const path = `/v1/uploads/${upload.id}/parts`;
          const options = { body: form, key: `${upload.id} ${offset}`, signal: this.abort.signal };
          const part = await this.persist((onProgress) => send("POST", path, { ...options, onProgress }), offset, partBytes);
          upload.parts[offset] = part.id;
          this.remember(upload);
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, sendNext));
      this.say("All of it has arrived; it is being put together…");
      const ids = Object.keys(upload.parts).map(Number).sort((one, other) => one - other).map((offset) => upload.parts[offset]);
      const complete = { body: { part_ids: ids }, key: `${upload.id} complete`, signal: this.abort.signal };
      const done = await this.persist(() => send("POST", `/v1/uploads/${upload.id}/complete`, complete));
      localStorage.removeItem(this.memory);
      return done.file.id;
    }

    /** Finds the upload that was interrupted, with the parts that the service has, or begins one. */
    async open() {
      const known = JSON.parse(localStorage.getItem(this.memory) ?? "null");
      if (known) {
        try {
          const there = await this.persist(() => send("GET", `/v1/uploads/${known.id}`, { signal: this.abort.signal }));
          if (there.status === "pending") {
            const arrived = new Set(there.parts.map((part) => part.id));
            const parts = Object.entries(known.parts).filter(([, id]) => arrived.has(id));
            this.uploadId = there.id;
            this.show(there.id);
            return { ...known, parts: Object.fromEntries(parts) };
          }
        } catch (failure) {
          if (failure.isTransient) throw failure;
        }
        localStorage.removeItem(this.memory);
      }
      const body = { filename: this.file.name, purpose: this.purpose, bytes: this.file.size, mime_type: "application/jsonl" };
      const made = await this.persist(() => send("POST", "/v1/uploads", { body, key: this.key, signal: this.abort.signal }));
      const upload = { id: made.id, partBytes: Number(zone.dataset.partBytes), parts: {} };
      this.remember(upload);
      return upload;
    }

    /** Takes the place of the row that says that the upload was interrupted. */
    show(id) {
      document.querySelector(`[data-unfinished="${CSS.escape(id)}"]`)?.remove();
    }

    remember(upload) {
      this.uploadId = upload.id;
      localStorage.setItem(this.memory, JSON.stringify(upload));
    }

    /** Makes a request, and makes it again while that may help. */
    async persist(request, offset, most = Infinity) {
      for (let failures = 0; ; failures += 1) {
        try {
          const answer = await request((loaded) => this.advance(offset, Math.min(loaded, most)));
          if (offset !== undefined) this.advance(offset, Math.min(most, this.file.size - offset));
          return answer;
        } catch (failure) {
          const seconds = failure.retryAfter || RETRY_SECONDS[failures];
          if (!failure.isTransient || seconds === undefined || this.abort.signal.aborted) throw failure;
          if (offset !== undefined) this.gone.delete(offset);
          this.say(`${failure.message} Trying again in ${duration(seconds)}…`, true);
          await wait(seconds, this.abort.signal);
        }
      }
    }

    sum() {
      return [...this.gone.values()].reduce((sum, bytes) => sum + bytes, 0);
    }

    advance(offset, bytes) {
      this.gone.set(offset, bytes);
      const gone = Math.min(this.sum(), this.file.size);
      const rate = (gone - (this.before ?? 0)) / (performance.now() - this.began) * 1000;
      this.bar.value = this.file.size ? gone / this.file.size : 1;
      const left = rate > 0 ? `, about ${duration((this.file.size - gone) / rate)} left` : "";
      this.say(`${size(gone)} of ${size(this.file.size)}${gone < this.file.size ? left : ""}`);
    }

    finish(fileId) {
      const link = this.row.querySelector("[data-open]");
      link.href = `/console/datasets/${fileId}`;
      link.hidden = false;
      this.row.querySelector("[data-cancel]").hidden = true;
      this.bar.value = 1;
      this.say("Uploaded.");
      toque.announce(`${this.file.name} was uploaded`);
      this.isActive = false;
      this.onDone(link.href);
    }

    async cancel() {
      this.isCancelled = true;
      this.isActive = false;
      this.abort?.abort();
      this.row.remove();
      localStorage.removeItem(this.memory);
      if (this.uploadId) await giveUp(this.uploadId);
    }
  }

  function giveUp(id) {
    return toque.fetch(`/v1/uploads/${id}/cancel`, { method: "POST" });
  }

  function prepareUploads() {
    const input = document.getElementById("files-to-upload");
    const uploads = [];

    async function upload(files) {
      const purpose = document.querySelector('input[name="purpose"]:checked').value;
      const isNew = (file) => {
        const isUnderWay = uploads.some((each) => each.isActive && each.memory === memoryOf(file, purpose));
        if (isUnderWay) toque.announce(`${file.name} is being uploaded already`);
        return !isUnderWay;
      };
      const added = [...files].filter(isNew).map((file) => {
        const row = document.getElementById("upload-row").content.cloneNode(true).firstElementChild;
        document.getElementById("uploads").append(row);
        return new Upload(file, purpose, row, openIfAlone);
      });
      uploads.push(...added);
      for (const each of added) await each.run();
    }

    /** Goes on to the report of the one file that was chosen. */
    function openIfAlone(address) {
      if (uploads.length === 1) location.assign(address);
    }

    input.addEventListener("change", () => {
      upload(input.files);
      input.value = "";
    });
    input.disabled = false; // as the page comes it is disabled, since a file chosen before this script runs would be ignored
    for (const name of ["dragenter", "dragover"]) {
      zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("is-over"); });
    }
    for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("is-over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) upload(event.dataTransfer.files);
    });
    addEventListener("beforeunload", (event) => {
      if (uploads.some((each) => each.isActive)) event.preventDefault();
    });

    const remembered = Object.keys(localStorage).filter((name) => name.startsWith(MEMORY));
    const known = new Map(remembered.map((name) => [JSON.parse(localStorage.getItem(name)).id, name]));
    for (const row of document.querySelectorAll("[data-unfinished]")) {
      if (known.has(row.dataset.unfinished)) {
        row.querySelector("[data-resume]").hidden = false;
        row.querySelector("[data-elsewhere]").hidden = true;
      }
      row.querySelector("[data-give-up]").addEventListener("click", async () => {
        const response = await giveUp(row.dataset.unfinished);
        if (response.ok || response.status === 404 || response.status === 409) {
          localStorage.removeItem(known.get(row.dataset.unfinished));
          row.remove();
          toque.announce("The upload was given up");
        }
      });
    }
  }

  if (zone) prepareUploads();

  document.addEventListener("click", (event) => {
    const searching = event.target.closest("[data-searching]");
    if (!searching) return;
    const stop = searching.querySelector("[data-stop]");
    const goOn = searching.querySelector("[data-go-on]");
    if (event.target.closest("[data-stop]")) {
      htmx.trigger(searching, "htmx:abort");
      stop.hidden = true;
      goOn.hidden = false;
      goOn.focus();
    } else if (event.target.closest("[data-go-on]")) {
      stop.hidden = false;
      goOn.hidden = true;
      htmx.trigger(searching, "go-on");
    }
  });
})();
