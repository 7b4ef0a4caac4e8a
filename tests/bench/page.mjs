// The bench of the page: node page.mjs CROWD [--containers N] [--drawn N] [--json FILE]. CROWD is the server of
// dashboard/examples/crowd.rs, which shows meshes that do not exist by the code that shows real ones.
//
// For each size, or that of so many containers alone, in the distribution's Chromium without a GPU: the time from
// following the link to the first picture; frames a second while a person drags the view, as it opens and with every host
// open, and then turns the wheel, opens and closes a host, types a filter and goes through the past by arrow keys; during
// the last three also the longest that no frame came, the longest from a click or key to the first frame that tells of it,
// and how many pictures of the past a second were seen, for a page that shows none has time for frames; and what the server
// takes of one core while three browsers look, and what it sends to one of them. The page's own weight is what it sends,
// compressed.
//
// Nothing is looked for in the page while frames are counted: among a thousand buttons that takes longer than the page does.
//
// The page draws so many edges at most; with --drawn the browser gets it with another bound. It is no product then: its
// weight is not told.

import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const require = createRequire(new URL("../../dashboard/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

const text = { type: "string" };
const { values: asked, positionals: [crowd] } = parseArgs({ options: { containers: text, drawn: text, json: text }, allowPositionals: true });
const ALL_SIZES = [[60, 120], [1000, 2000], [5000, 10_000]]; // containers, flows
const SIZES = ALL_SIZES.filter(([containers]) => !asked.containers || Number(asked.containers) === containers);
if (!crowd || !SIZES.length || (asked.drawn && !(Number(asked.drawn) > 0))) {
  console.error(`page.mjs CROWD [--containers ${ALL_SIZES.map(([containers]) => containers).join("|")}] [--drawn N] [--json FILE]`);
  process.exit(2);
}
const VIEWERS = 3;
const ACT_S = 3;
const CPU_S = 15;
const CLICK_S = 0.25; // between two clicks of a person
const KEY_S = 0.1; // between two keys
const TYPED = "app-12";
const STEPS = 4; // into the past, of which there is a picture each five seconds
const TICKS = 100; // of /proc/PID/stat, a second

/** Seconds of CPU that a process has used. */
function cpu(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Gives the page to a browser with another bound of the edges that are drawn, wherever the bundle's names went. */
async function drawing(context, most) {
  await context.route("**/*.js", async (route) => {
    const response = await route.fetch();
    const script = await response.text();
    const bounds = /\.slice\(0,([\w$]+)\)\.concat\(([\w$]+)\.slice\(\1\)/g;
    const found = [...script.matchAll(bounds)].length;
    if (found !== 1) throw new Error(`the bound of the edges is in the page ${found} times`);
    const { "content-encoding": packed, "content-length": length, ...headers } = response.headers();
    await route.fulfill({ headers, body: script.replace(bounds, `.slice(0,${most}).concat($2.slice(${most})`) });
  });
}

/** Opens the page by a link; seconds to the first picture. */
async function open(browser, link) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  if (asked.drawn) await drawing(context, Number(asked.drawn));
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  let weight = 0;
  page.on("response", async (response) => {
    if (new URL(response.url()).pathname.startsWith("/api")) return;
    const headers = await response.allHeaders();
    weight += Number(headers["content-length"] ?? 0);
  });
  const began = performance.now();
  await page.goto(link);
  await page.waitForFunction(() => Object.keys(window.weavePlaces?.() ?? {}).length > 0, undefined, { polling: "raf" });
  return { page, first_s: (performance.now() - began) / 1000, weight: () => weight };
}

/** Counts the bytes that come to a page from now on; how many those are. */
async function counted(page) {
  const session = await page.context().newCDPSession(page);
  let bytes = 0;
  session.on("Network.dataReceived", ({ encodedDataLength, dataLength }) => (bytes += encodedDataLength || dataLength));
  await session.send("Network.enable");
  return () => bytes;
}

/**
 * While `act` is done over and over for some seconds: frames and changed pictures of the past a second, and the longest that
 * no frame came and that a click or key was not answered by one, in milliseconds.
 */
async function during(page, act) {
  await page.evaluate(() => {
    const past = () => document.querySelector(".strip.past")?.textContent;
    const bench = { frames: 0, pictures: 0, last: performance.now(), longest: 0, answer: 0, shown: past() };
    const count = () => {
      const [now, shown] = [performance.now(), past()];
      bench.longest = Math.max(bench.longest, now - bench.last);
      bench.last = now;
      bench.frames += 1;
      bench.pictures += Number(shown !== bench.shown);
      bench.shown = shown;
      bench.goes = requestAnimationFrame(count);
    };
    const take = (events) => {
      for (const { duration } of events) bench.answer = Math.max(bench.answer, duration);
    };
    const answers = new PerformanceObserver((list) => take(list.getEntries()));
    answers.observe({ type: "event", durationThreshold: 16 });
    bench.end = () => {
      cancelAnimationFrame(bench.goes);
      take(answers.takeRecords());
      answers.disconnect();
      const { frames, pictures, longest, last, answer } = bench;
      return { frames, pictures, longest: Math.max(longest, performance.now() - last), answer };
    };
    window.bench = bench;
    count();
  });
  const began = performance.now();
  for (let step = 0; performance.now() - began < ACT_S * 1000; step += 1) await act(step);
  const { frames, pictures, longest, answer } = await page.evaluate(() => window.bench.end());
  const took_s = (performance.now() - began) / 1000;
  return { fps: frames / took_s, pictures: pictures / took_s, longest, answer };
}

/** Puts the mouse on the ground between things, where a drag moves the view. */
async function onGround(page) {
  const frame = await page.locator(".graph").boundingBox();
  const [x, y] = [frame.x + 8, frame.y + 8];
  await page.mouse.move(x, y);
  return [x, y];
}

/** Frames a second while the view is dragged about. */
async function dragged(page) {
  const [x, y] = await onGround(page);
  await page.mouse.down();
  const { fps } = await during(page, (step) => page.mouse.move(x + 200 + 150 * Math.sin(step / 9), y + 150 + 120 * Math.cos(step / 9)));
  await page.mouse.up();
  return fps;
}

/** Frames a second while the wheel makes the picture larger and smaller. */
async function zoomed(page) {
  await onGround(page);
  return (await during(page, (step) => page.mouse.wheel(0, step % 40 < 20 ? -60 : 60))).fps;
}

/** While one host is closed and opened in turn, or opened and closed. */
async function toggled(page) {
  const turn = page.getByRole("navigation").getByRole("button", { name: /^(Open|Close) host/ }).first();
  const begun = await turn.getAttribute("aria-expanded");
  await turn.scrollIntoViewIfNeeded();
  const { x, y, width, height } = await turn.boundingBox();
  let clicks = 0;
  const turned = await during(page, async () => {
    await page.mouse.click(x + width / 2, y + height / 2);
    clicks += 1;
    await sleep(CLICK_S);
  });
  if (((await turn.getAttribute("aria-expanded")) === begun) !== (clicks % 2 === 0)) throw new Error("a click was lost");
  if (clicks % 2) await turn.click();
  return turned;
}

/** While a filter is typed, taken back and typed again. */
async function typed(page) {
  const box = page.getByRole("searchbox");
  await box.focus();
  const wrote = await during(page, async (step) => {
    const at = step % (2 * TYPED.length);
    await page.keyboard.press(TYPED[at] ?? "Backspace");
    await sleep(KEY_S);
  });
  await box.fill("");
  return wrote;
}

/** While the slider goes some pictures back and forth. */
async function past(page) {
  await page.waitForFunction((steps) => Number(document.querySelector("#time").max) >= steps, STEPS);
  await page.getByRole("slider").focus();
  const gone = await during(page, async (step) => {
    await page.keyboard.press(step % (2 * STEPS) < STEPS ? "ArrowLeft" : "ArrowRight");
    await sleep(KEY_S);
  });
  if (!gone.pictures) throw new Error("the slider did not lead into the past");
  await page.getByRole("button", { name: "Live" }).click();
  return gone;
}

/** The edges that are drawn. */
const edges = (page) => page.evaluate(() => Object.keys(window.weavePlaces()).filter((id) => id.startsWith("e:")).length);

async function measure(browser, [containers, flows]) {
  const server = spawn(crowd, [containers, flows, VIEWERS].map(String), { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const links = [];
    for await (const line of createInterface({ input: server.stdout })) {
      links.push(line);
      if (links.length === VIEWERS) break;
    }
    const { page, first_s, weight } = await open(browser, links[0]);
    await sleep(2);
    const fps_closed = await dragged(page);
    const closed = page.getByRole("navigation").getByRole("button", { name: /^Open host/ });
    while (containers <= 1000 && (await closed.count()) > 0) await closed.first().click();
    await sleep(2);
    const fps_open = containers <= 1000 ? await dragged(page) : null;
    const fps_zoom = await zoomed(page);
    const drawn = await edges(page);
    const [toggling, typing, going] = [await toggled(page), await typed(page), await past(page)];
    const [fps_toggle, fps_typing, fps_past] = [toggling.fps, typing.fps, going.fps];
    const all = [toggling, typing, going];
    const longest_s = Math.max(...all.map((one) => one.longest)) / 1000;
    const answer_s = Math.max(...all.map((one) => one.answer)) / 1000;
    const page_kib = asked.drawn ? null : weight() / 1024;
    const more = await Promise.all(links.slice(1).map((link) => open(browser, link)));
    await sleep(2);
    const came = await counted(more[0].page);
    const before = cpu(server.pid);
    await sleep(CPU_S);
    const server_share = (cpu(server.pid) - before) / CPU_S;
    const viewer_bytes_s = came() / CPU_S;
    for (const one of [{ page }, ...more]) await one.page.context().close();
    return {
      containers, flows, drawn, first_s, fps_closed, fps_open, fps_zoom, fps_toggle, fps_typing, fps_past,
      pictures: going.pictures, longest_s, answer_s, server_share, viewer_bytes_s, page_kib,
    };
  } finally {
    server.kill();
  }
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const rows = [];
const cell = (value, digits) => (value === null ? "-" : value.toFixed(digits));
const COLUMNS = {
  containers: (row) => cell(row.containers, 0),
  flows: (row) => cell(row.flows, 0),
  edges: (row) => cell(row.drawn, 0),
  "first picture": (row) => cell(row.first_s, 2),
  fps: (row) => cell(row.fps_closed, 0),
  "fps, all open": (row) => cell(row.fps_open, 0),
  zooming: (row) => cell(row.fps_zoom, 0),
  opening: (row) => cell(row.fps_toggle, 0),
  typing: (row) => cell(row.fps_typing, 0),
  "the past": (row) => cell(row.fps_past, 0),
  "pictures/s": (row) => cell(row.pictures, 1),
  "longest s": (row) => cell(row.longest_s, 2),
  "answer s": (row) => cell(row.answer_s, 2),
  server: (row) => `${(row.server_share * 100).toFixed(1)} %`,
  "kB/s a viewer": (row) => cell(row.viewer_bytes_s / 1000, 1),
  "page KiB": (row) => cell(row.page_kib, 0),
};
const line = (told) => console.log(Object.keys(COLUMNS).map((name) => told(name).padStart(Math.max(name.length, 8) + 2)).join(""));
line((name) => name);
try {
  for (const size of SIZES) {
    const row = await measure(browser, size);
    rows.push(row);
    line((name) => COLUMNS[name](row));
  }
} finally {
  await browser.close();
}
if (asked.json) writeFileSync(asked.json, `${JSON.stringify(rows, null, 2)}\n`);
