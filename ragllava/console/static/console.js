// What HTML and htmx do not do: questions before changes, no polling of hidden tabs, local times, file drops.
"use strict";

(() => {
  // A form or button with data-confirm asks first. Without scripts the change is made at once.
  document.addEventListener("submit", (event) => {
    const asked = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
    if (asked && !window.confirm(asked)) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, true);

  // A part with data-events fetches itself when there is news. It polls as well, often only while no events come.
  const RARELY_MS = 15_000, AGAIN_MS = 30_000;
  const sources = new Map();
  const missed = new Set(); // the addresses of parts with news that could not be fetched yet
  const partOf = (address) => [...document.querySelectorAll("[data-events]")].find((part) => part.dataset.events === address);
  const renew = (address) => {
    const part = partOf(address);
    if (!part) return;
    // A fetch that is on its way may have been answered before the news, and htmx asks nothing for a replaced part.
    if (part.classList.contains("htmx-request")) missed.add(address);
    else htmx.trigger(part, "news");
  };
  const catchUp = () => {
    const addresses = [...missed];
    missed.clear();
    addresses.forEach(renew);
  };
  const follow = (address) => {
    const source = new EventSource(address);
    source.addEventListener("progress", () => renew(address));
    source.addEventListener("end", () => { source.close(); renew(address); });
    sources.set(address, { source, since: Date.now(), renewed: Date.now() });
  };
  // Hidden tabs listen to nothing: a browser has few connections to a host.
  const listen = () => {
    const wanted = document.hidden ? [] : [...document.querySelectorAll("[data-events]")].map((part) => part.dataset.events);
    for (const [address, { source, since }] of sources) {
      const hasFailed = source.readyState === EventSource.CLOSED && Date.now() - since > AGAIN_MS;
      if (wanted.includes(address) && !hasFailed) continue;
      source.close();
      sources.delete(address);
    }
    wanted.filter((address) => !sources.has(address)).forEach(follow);
  };
  document.addEventListener("visibilitychange", listen);
  document.addEventListener("htmx:afterSettle", listen);
  document.addEventListener("htmx:afterSettle", catchUp);
  window.addEventListener("pageshow", listen);
  window.addEventListener("pagehide", () => sources.forEach(({ source }) => source.close()));

  // Parts that fetch themselves again and again (data-poll) rest while nobody sees them.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.dataset.poll === undefined) return;
    const isNews = event.detail.requestConfig.triggeringEvent?.type === "news";
    const told = sources.get(event.target.dataset.events);
    const isFollowed = told?.source.readyState === EventSource.OPEN && Date.now() - told.renewed < RARELY_MS;
    if (document.hidden || (isFollowed && !isNews)) event.preventDefault();
    else if (told) told.renewed = Date.now();
  });

  // A part stays as it is while something in it is pressed, by mouse, finger or space bar: a press that ends on another
  // button is not a click.
  let pressed = null;
  const release = () => {
    pressed = null;
    catchUp();
  };
  document.addEventListener("pointerdown", (event) => { if (event.button === 0) pressed = event.target; }, true);
  document.addEventListener("keydown", (event) => { if (event.key === " ") pressed = event.target; }, true);
  for (const end of ["pointerup", "pointercancel", "keyup"]) {
    document.addEventListener(end, () => setTimeout(release), true); // after the click
  }
  // The end of some presses is not told: of one on a scroll bar, or one that opened a menu.
  document.addEventListener("pointermove", (event) => { if (pressed && !event.buttons) release(); }, true);
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { poll, events } = event.target.dataset;
    if (poll === undefined || !pressed || !event.target.contains(pressed)) return;
    event.detail.shouldSwap = false;
    if (events) missed.add(events);
  });

  // What a person has done in a part stays when it is renewed: the focus, what is unfolded, and where it is scrolled.
  const kept = new Map(); // by the id of the part, until it is replaced
  const keyOf = (element) => {
    const address = element.getAttribute("href") ?? element.closest("form")?.getAttribute("action") ?? "";
    const words = element.matches("button, summary") ? element.textContent.trim() : "";
    return [element.tagName, address, element.getAttribute("name") ?? "", words].join("\n");
  };
  document.addEventListener("htmx:beforeSwap", (event) => {
    const part = event.target;
    if (part.dataset.poll === undefined || !part.id || !event.detail.shouldSwap) return;
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    kept.set(part.id, {
      key: focused && keyOf(focused),
      open: [...part.querySelectorAll("details")].filter((each) => each.open).map((each) => keyOf(each.firstElementChild)),
      offsets: [...part.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]),
    });
  });
  document.addEventListener("htmx:afterSwap", () => kept.forEach((before, id) => {
    const part = document.getElementById(id);
    kept.delete(id);
    if (!part) return;
    part.querySelectorAll("details").forEach((each) => { each.open ||= before.open.includes(keyOf(each.firstElementChild)); });
    part.querySelectorAll(".scroll").forEach((each, number) => each.scrollTo(...(before.offsets[number] ?? [0, 0])));
    if (!before.key) return;
    const all = [...part.querySelectorAll("a[href], button, summary, input, select, [tabindex]")];
    all.find((each) => keyOf(each) === before.key)?.focus({ preventScroll: true });
  }));

  // What a part could not be fetched for is over when it can be.
  document.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.successful) catchUp(); // nothing settles
    else if (event.target.dataset?.poll !== undefined) document.getElementById("problem")?.remove();
  });

  // A file that is dropped on [data-drop] is chosen in the file input inside it.
  const zoneOf = (event) => event.target instanceof Element ? event.target.closest("[data-drop]") : null;
  document.addEventListener("dragover", (event) => {
    const zone = zoneOf(event);
    if (!zone) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => zoneOf(event)?.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    const zone = zoneOf(event);
    if (!zone) return;
    event.preventDefault();
    zone.classList.remove("over");
    const input = zone.querySelector("input[type=file]");
    if (!input || !event.dataTransfer?.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // What can be scrolled can be scrolled by keyboard, too.
  const reach = () => document.querySelectorAll(".scroll").forEach((part) => {
    if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
  window.addEventListener("resize", reach);
  document.addEventListener("htmx:afterSettle", reach);
  reach();

  // The navigation is folded on narrow screens.
  const menu = document.querySelector("details.menu");
  const narrow = window.matchMedia("(max-width: 60rem)");
  const fold = () => { if (menu) menu.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
})();
