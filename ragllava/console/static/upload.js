// Files and folders that are dropped or chosen, sent in parts of a moderate size, each with a progress bar.
"use strict";

(() => {
  const form = document.getElementById("upload");
  if (!form) return;
  const MOST_FILES = 300, MOST_BYTES = 64 * 2 ** 20; // of a part
  const MOST_PART_NAME = 200, MOST_DEPTH = 20; // as the server takes them
  const TABLES = /\.(csv|tsv|jsonl|ndjson|json|xlsx|parquet)$/i;
  const SIDECARS = /\.(txt|json|xmp)$/i;
  const sent = document.getElementById("sent");
  const notSent = document.getElementById("not-sent");
  const state = document.getElementById("sending-state");
  const jobs = [];
  let queue = Promise.resolve(), waiting = 0;

  for (const element of form.querySelectorAll("[data-script]")) element.hidden = false;
  for (const element of form.querySelectorAll("[data-plain]")) element.hidden = true;

  const size = (bytes) => bytes < 2 ** 20 ? `${Math.max(1, Math.round(bytes / 1024))} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

  const line = (list, text) => {
    const item = document.createElement("li");
    const name = document.createElement("bdi");
    name.textContent = text;
    item.append(name);
    list.append(item);
    return item;
  };

  const problem = (name, file) => {
    const parts = name.split("/");
    if (parts.some((part) => part.startsWith("."))) return "a hidden file";
    if (/[\p{C}\p{Zl}\p{Zp}]/u.test(name)) return "its name has invisible characters";
    if (parts.length > MOST_DEPTH) return `it is more than ${MOST_DEPTH} folders deep`;
    if (parts.some((part) => new TextEncoder().encode(part).length > MOST_PART_NAME)) return "its name is too long";
    if (file.size === 0) return "it is empty";
    if (file.size > 2 ** 31 - 2 ** 20) return "it is larger than 2 GiB";
    return null;
  };

  // Caption files go with each part, and what belongs to one picture goes with it.
  const partsOf = (files) => {
    const pictures = files.filter(([name]) => !TABLES.test(name) && !SIDECARS.test(name));
    const owners = new Map();
    for (const [name] of pictures) {
      owners.set(name, name);
      owners.set(name.replace(/\.[^./]*$/, ""), name);
    }
    const beside = new Map(), shared = [];
    for (const entry of files) {
      if (!TABLES.test(entry[0]) && !SIDECARS.test(entry[0])) continue;
      const owner = owners.get(entry[0].replace(/\.[^./]*$/, ""));
      if (owner) beside.set(owner, [...(beside.get(owner) ?? []), entry]);
      else if (TABLES.test(entry[0])) shared.push(entry);
    }
    const parts = [];
    let part = [], bytes = 0;
    for (const picture of pictures) {
      const group = [picture, ...(beside.get(picture[0]) ?? [])];
      const more = group.reduce((sum, [, file]) => sum + file.size, 0);
      if (part.length && (part.length + group.length > MOST_FILES || bytes + more > MOST_BYTES)) {
        parts.push([...part, ...shared]);
        part = [];
        bytes = 0;
      }
      part.push(...group);
      bytes += more;
    }
    if (part.length) parts.push([...part, ...shared]);
    return parts;
  };

  const reason = (request) => {
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    return page.querySelector("main .panel p")?.textContent || `the server refused it (${request.status})`;
  };

  const send = (part) => new Promise((resolve) => {
    const bytes = part.reduce((sum, [, file]) => sum + file.size, 0);
    const first = part[0][0];
    const item = line(sent, part.length === 1 ? first : `${first} and ${part.length - 1} more`);
    const figure = document.createElement("span");
    figure.className = "figure";
    const bar = document.createElement("progress");
    bar.max = bytes || 1;
    bar.value = 0;
    bar.setAttribute("aria-label", `upload of ${first}`);
    item.append(figure, bar);
    const body = new FormData();
    for (const [name, file] of part) body.append("file", file, name);
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("accept", "application/json");
    request.setRequestHeader("x-csrf-token", form.elements.csrf.value);
    request.upload.addEventListener("progress", (event) => {
      bar.value = event.loaded;
      figure.textContent = `${Math.floor(100 * event.loaded / event.total)} %`;
    });
    request.addEventListener("loadend", () => {
      if (request.status === 202) {
        bar.value = bar.max;
        figure.textContent = size(bytes);
        const answer = JSON.parse(request.responseText);
        jobs.push(answer.job);
        for (const name of answer.lost_captions) line(notSent, `a caption fits no file: ${name}`);
        for (const [kind, number] of Object.entries(answer.passed_over)) line(notSent, `passed over: ${number} ${kind}`);
        htmx.ajax("GET", `${form.dataset.progress}?jobs=${jobs.slice(-200).join(",")}`, { target: "#progress", swap: "innerHTML" });
      } else {
        figure.textContent = "not sent";
        item.classList.add("bad-line");
        line(notSent, `${first}${part.length > 1 ? ` and ${part.length - 1} more` : ""}: ${request.status ? reason(request) : "the connection was lost; send it again"}`);
      }
      resolve();
    });
    request.send(body);
  });

  const take = (files) => {
    document.getElementById("sending").hidden = false;
    const usable = [];
    for (const [name, file] of files) {
      const why = problem(name, file);
      if (!why) usable.push([name, file]);
      else if (why !== "a hidden file") line(notSent, `${name}: ${why}`);
    }
    const parts = partsOf(usable);
    if (!parts.length) state.textContent = "There is no picture among these files.";
    for (const part of parts) {
      waiting++;
      queue = queue.then(async () => {
        state.textContent = `Sending; ${waiting} part${waiting === 1 ? "" : "s"} to go. Stay on this page.`;
        await send(part);
        waiting--;
        if (!waiting) state.textContent = "Everything is sent. You may leave this page.";
      });
    }
  };

  // Folders

  const entriesOf = async (reader) => {
    const all = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return all;
      all.push(...some);
    }
  };

  const filesBelow = async (entry, path) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return [[path + file.name, file]];
    }
    const files = [];
    for (const each of await entriesOf(entry.createReader())) files.push(...await filesBelow(each, `${path}${entry.name}/`));
    return files;
  };

  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", (event) => {
    if (!form.contains(event.relatedTarget)) form.classList.remove("over");
  });
  form.addEventListener("drop", async (event) => {
    event.preventDefault();
    form.classList.remove("over");
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const entries = items.map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
    const files = [];
    for (const [entry, file] of entries) {
      if (entry?.isDirectory) files.push(...await filesBelow(entry, ""));
      else if (file) files.push([file.name, file]);
    }
    take(files);
  });
  form.addEventListener("change", (event) => {
    const chosen = [...event.target.files].map((file) => [file.webkitRelativePath || file.name, file]);
    event.target.value = "";
    if (chosen.length) take(chosen);
  });
  addEventListener("beforeunload", (event) => {
    if (waiting) event.preventDefault();
  });
})();
