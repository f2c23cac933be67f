// A grid of any number of pictures: only those that are seen, and a few around them, are in the page.
"use strict";

(() => {
  const grid = document.getElementById("grid");
  if (!grid || grid.dataset.scroll === undefined) return;
  const every = Number(grid.dataset.every);
  if (grid.children.length < every) return; // all of them are there already

  const LEAST_WIDTH = 176, GAP = 14, HEIGHT = 228; // pixels, as in pictures.css
  const MOST_PIXELS = 15_000_000; // browsers cannot scroll further; the next page can
  const BEYOND = 500; // pixels above and below the window that are filled as well
  const KEPT_PAGES = 16;
  const SETTLED_MS = 70; // a page is fetched when the scrolling rests for so long

  const pages = new Map(); // the tiles of each page that is known, the least recently used first
  const fetches = new Map();
  const placed = new Map(); // the tiles in the grid, by their number
  let keys = [], total = grid.children.length, shown = total, columns = 1, width = LEAST_WIDTH;
  let current = 0, wanted = null, timer = 0, asked = false;

  const place = (tile, number) => {
    const row = Math.floor(number / columns), column = number % columns;
    tile.style.width = `${width}px`;
    tile.style.height = `${HEIGHT}px`;
    tile.style.transform = `translate(${column * (width + GAP)}px, ${row * (HEIGHT + GAP)}px)`;
    tile.setAttribute("aria-posinset", number + 1);
    tile.setAttribute("aria-setsize", total);
    const link = tile.querySelector("a");
    if (link) link.tabIndex = number === current ? 0 : -1;
  };

  const placeholder = () => {
    const tile = document.createElement("li");
    tile.className = "tile waits";
    return tile;
  };

  const tilesOf = (page) => {
    const tiles = pages.get(page);
    if (!tiles) return null;
    pages.delete(page);
    pages.set(page, tiles);
    return tiles;
  };

  const parsed = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html; // made and escaped by our own server
    return [...template.content.querySelectorAll("li.tile")];
  };

  const fetchPage = async (page) => {
    if (pages.has(page) || fetches.has(page) || (page > 0 && !keys[page - 1])) return;
    const control = new AbortController();
    fetches.set(page, control);
    try {
      const address = new URL(grid.dataset.tiles, location.href);
      if (page > 0) {
        address.searchParams.set("after", keys[page - 1][0]);
        if (keys[page - 1][1]) address.searchParams.set("name", keys[page - 1][1]);
      }
      const response = await fetch(address, { signal: control.signal, headers: { "hx-request": "true" } });
      if (!response.ok) return;
      pages.set(page, parsed(await response.text()));
      while (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      fetches.delete(page);
    }
  };

  const range = () => {
    const top = -grid.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor((top - BEYOND) / (HEIGHT + GAP))) * columns;
    const to = Math.max(0, Math.ceil((top + innerHeight + BEYOND) / (HEIGHT + GAP))) * columns;
    return [Math.min(from, shown), Math.min(to, shown)];
  };

  const fetchSeen = () => {
    const [from, to] = range();
    const seen = new Set();
    for (let page = Math.floor(from / every); page * every < to; page++) seen.add(page);
    if (wanted !== null) seen.add(Math.floor(wanted / every));
    for (const [page, control] of fetches) if (!seen.has(page)) control.abort();
    for (const page of seen) fetchPage(page);
  };

  const draw = () => {
    asked = false;
    const [from, to] = range();
    const numbers = [];
    const focused = grid.contains(document.activeElement) && document.activeElement !== grid ? current : null;
    if (focused !== null && focused < from) numbers.push(focused);
    for (let number = from; number < to; number++) numbers.push(number);
    if (focused !== null && focused >= to && focused < shown) numbers.push(focused);
    const tiles = new Map(numbers.map((number) => {
      const known = tilesOf(Math.floor(number / every))?.[number % every];
      const before = placed.get(number);
      return [number, known ?? before ?? placeholder()];
    }));
    for (const [number, tile] of placed) {
      if (tiles.get(number) !== tile) {
        tile.remove();
        placed.delete(number);
      }
    }
    let next = grid.firstElementChild;
    for (const [number, tile] of tiles) {
      place(tile, number);
      if (tile === next) next = next.nextElementSibling;
      else grid.insertBefore(tile, next);
      placed.set(number, tile);
    }
    if (wanted !== null && placed.get(wanted)?.querySelector("a")) {
      placed.get(wanted).querySelector("a").focus({ preventScroll: true });
      wanted = null;
    }
  };

  const soon = () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(draw);
    }
    clearTimeout(timer);
    timer = setTimeout(fetchSeen, SETTLED_MS);
  };

  const measure = () => {
    const space = grid.clientWidth;
    columns = Math.max(2, Math.floor((space + GAP) / (LEAST_WIDTH + GAP)));
    width = (space - GAP * (columns - 1)) / columns;
    const most = Math.floor(MOST_PIXELS / (HEIGHT + GAP)) * columns;
    shown = total <= most ? total : Math.floor(most / every) * every;
    grid.style.height = `${Math.ceil(shown / columns) * (HEIGHT + GAP) - GAP}px`;
    const pager = document.querySelector(".pager");
    const rest = shown < total ? keys[shown / every - 1] : null;
    pager.hidden = !rest;
    const link = pager.querySelector("[rel=next]");
    if (rest && link) {
      const address = new URL(link.href);
      address.searchParams.set("after", rest[0]);
      address.searchParams.set("name", rest[1]);
      link.href = address;
      link.textContent = `Go on after picture ${shown.toLocaleString("en")}`;
    }
    soon();
  };

  const move = (number) => {
    current = Math.max(0, Math.min(shown - 1, number));
    wanted = current;
    const top = grid.getBoundingClientRect().top + Math.floor(current / columns) * (HEIGHT + GAP);
    if (top < 0) scrollBy(0, top - GAP);
    else if (top + HEIGHT > innerHeight) scrollBy(0, top + HEIGHT + GAP - innerHeight);
    draw();
    soon();
  };

  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const rows = Math.max(1, Math.floor(innerHeight / (HEIGHT + GAP)));
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: rows * columns,
      PageUp: -rows * columns, Home: -current, End: shown,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(current + steps[event.key]);
  });
  grid.addEventListener("focusin", (event) => {
    for (const [number, tile] of placed) {
      if (tile.contains(event.target)) current = number;
    }
    for (const [number, tile] of placed) {
      const link = tile.querySelector("a");
      if (link) link.tabIndex = number === current ? 0 : -1;
    }
  });

  const start = async () => {
    const response = await fetch(grid.dataset.marks, { headers: { "hx-request": "true" } });
    if (!response.ok) return; // the page stays as it was, with its pager
    const marks = await response.json();
    total = marks.total;
    keys = marks.keys;
    const tiles = [...grid.children];
    pages.set(0, tiles);
    tiles.forEach((tile, number) => placed.set(number, tile));
    grid.classList.add("scrolls");
    document.getElementById("count").textContent = `${total.toLocaleString("en")} pictures`;
    measure();
    addEventListener("scroll", soon, { passive: true });
    new ResizeObserver(measure).observe(grid.parentElement);
    grid.dataset.ready = "";
  };
  start();
})();
