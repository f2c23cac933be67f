// What the review asks of the server. A refusal is final; everything else is tried again.
"use strict";

class ReviewRefused extends Error {}
class ReviewRetry extends Error {}

class ReviewServer {
  #archive;
  #tab;
  #csrf;

  constructor({ archive, tab, csrf }) {
    this.#archive = archive;
    this.#tab = tab;
    this.#csrf = csrf;
  }

  // The JSON of the answer. Throws ReviewRefused and ReviewRetry, with a sentence.
  async post(path, fields) {
    const body = new URLSearchParams();
    for (const [name, value] of Object.entries({ archive: this.#archive, tab: this.#tab, ...fields })) {
      for (const item of Array.isArray(value) ? value : [value]) {
        if (item !== null && item !== undefined && item !== "") body.append(Array.isArray(value) ? `${name}[]` : name, item);
      }
    }
    const headers = { accept: "application/json", "hx-request": "true", "x-csrf-token": this.#csrf };
    let response;
    try {
      response = await fetch(`/console/review/${path}`, { method: "POST", body, headers });
    } catch {
      throw new ReviewRetry("The server cannot be reached.");
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    if (response.status === 401) throw new ReviewRetry("You are signed out. Sign in again in another tab.");
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const sentence = page.getElementById("problem")?.textContent ?? `The server answered ${response.status}.`;
    if (response.status >= 500 || response.status === 429 || response.status === 408) throw new ReviewRetry(sentence);
    throw new ReviewRefused(sentence);
  }

  // The line about progress and agreement as HTML; null if it cannot be had now.
  async progress() {
    const query = new URLSearchParams({ archive: this.#archive, tab: this.#tab });
    const asked = fetch(`/console/review/progress?${query}`, { headers: { "hx-request": "true" } });
    const response = await asked.catch(() => null);
    return response?.ok ? response.text() : null;
  }

  // Give back all cases of this tab, also while the page is being left.
  release() {
    const fields = { archive: this.#archive, tab: this.#tab, csrf: this.#csrf };
    navigator.sendBeacon("/console/review/release", new URLSearchParams(fields));
  }
}
