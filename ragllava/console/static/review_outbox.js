// What reviewers have said is sent in the background, one after another. What is not sent yet is kept in this browser and
// sent again after a failure; leaving the page then asks first.
"use strict";

class ReviewOutbox {
  static #STORE = "ragllava-review-outbox";
  static #RETRY_MS = [1000, 2000, 4000, 8000, 15000];

  #server;
  #root;
  #line = document.getElementById("outbox");
  #told; // what is called: saved(entry, answer), refused(entry), emptied()
  #entries = []; // { kind: "save" | "undo", item, fields }, in the order in which they are sent
  #problems = []; // { sentence, key }
  #isSending = false;
  #failures = 0;
  #waiting = ""; // why it is sent again

  constructor(server, root, told) {
    this.#server = server;
    this.#root = root;
    this.#told = told;
    window.addEventListener("beforeunload", (event) => {
      if (this.unsent) event.preventDefault();
    });
  }

  get unsent() {
    return this.#entries.length;
  }

  add(entry) {
    this.#entries.push(entry);
    this.#keep();
    this.#show();
    this.#send();
  }

  // Take back a save that is not on its way yet; returns whether it was there.
  withdraw(saveId) {
    const index = this.#entries.findIndex((entry) => entry.fields.save_id === saveId);
    if (index <= 0) return false;
    this.#entries.splice(index, 1);
    this.#keep();
    this.#show();
    return true;
  }

  // Show a sentence until it is closed; `key` is the case that it is about.
  report(sentence, key) {
    this.#problems.push({ sentence, key });
    this.#show();
  }

  // Send what an earlier visit of this person has not sent: the ids of the saves make a repetition harmless.
  resume() {
    const { owner, archive, tab } = this.#root.dataset;
    const stored = this.#stored();
    const old = stored.filter((entry) => entry.owner === owner && entry.archive === archive && entry.tab !== tab);
    if (!old.length) return;
    localStorage.setItem(ReviewOutbox.#STORE, JSON.stringify(stored.filter((entry) => !old.includes(entry))));
    for (const entry of old) this.add({ kind: "save", item: null, fields: { ...entry.fields, tab: entry.tab } });
  }

  #stored() {
    try {
      return JSON.parse(localStorage.getItem(ReviewOutbox.#STORE) ?? "[]");
    } catch {
      return [];
    }
  }

  #keep() {
    const { owner, archive, tab } = this.#root.dataset;
    const others = this.#stored().filter((entry) => entry.tab !== tab);
    const saves = this.#entries.filter((entry) => entry.kind === "save");
    const mine = saves.map((entry) => ({ owner, archive, tab, fields: this.#fieldsOf(entry) }));
    try {
      if (others.length + mine.length) localStorage.setItem(ReviewOutbox.#STORE, JSON.stringify([...others, ...mine]));
      else localStorage.removeItem(ReviewOutbox.#STORE);
    } catch { /* without storage, the warning before leaving is what is left */ }
  }

  // A save names the version that the case has now: an undo before it has changed that.
  #fieldsOf(entry) {
    return entry.kind === "save" ? { ...entry.fields, version: entry.item?.version ?? entry.fields.version } : entry.fields;
  }

  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    while (this.#entries.length) {
      const entry = this.#entries[0];
      this.#show();
      try {
        const answer = await this.#server.post(entry.kind, this.#fieldsOf(entry));
        this.#failures = 0;
        this.#waiting = "";
        this.#entries.shift();
        this.#told.saved(entry, answer);
      } catch (error) {
        if (error instanceof ReviewRetry) {
          this.#waiting = error.message;
          this.#show();
          const pause = ReviewOutbox.#RETRY_MS[Math.min(this.#failures++, ReviewOutbox.#RETRY_MS.length - 1)];
          await new Promise((resolve) => setTimeout(resolve, pause));
          continue;
        }
        this.#entries.shift();
        this.report(error.message, entry.item?.key ?? `${entry.fields.job}-${entry.fields.question_no}`);
        this.#told.refused(entry);
      }
      this.#keep();
    }
    this.#isSending = false;
    this.#show();
    this.#told.emptied();
  }

  #show() {
    const parts = this.#problems.map((problem) => this.#notice(problem));
    if (this.#waiting && this.unsent) {
      const number = `${this.unsent} ${this.unsent === 1 ? "review waits" : "reviews wait"}`;
      parts.unshift(ReviewOutbox.#paragraph(`${this.#waiting} ${number} and will be sent again.`));
    }
    this.#line.replaceChildren(...parts);
    this.#root.dataset.unsent = this.unsent;
  }

  #notice(problem) {
    const notice = ReviewOutbox.#paragraph(`${problem.sentence} `);
    const close = document.createElement("button");
    close.type = "button";
    close.className = "plain";
    close.textContent = "Close";
    close.addEventListener("click", () => {
      this.#problems.splice(this.#problems.indexOf(problem), 1);
      this.#show();
    });
    if (problem.key) {
      const link = document.createElement("a");
      link.href = `/console/review?archive=${encodeURIComponent(this.#root.dataset.archive)}&case=${problem.key}`;
      link.textContent = "Open this case";
      notice.append(link, " ");
    }
    notice.append(close);
    return notice;
  }

  static #paragraph(text) {
    const element = document.createElement("p");
    element.className = "notice bad";
    element.textContent = text;
    return element;
  }
}
