// The bench of the page: node page.mjs CROWD [--json FILE]. CROWD is the server of dashboard/examples/crowd.rs, which
// shows meshes that do not exist by the code that shows real ones.
//
// For each size, in the distribution's Chromium without a GPU: the time from following the link to the first picture;
// frames a second while a person drags the view, as it opens and with every host open; and what the server takes of one
// core while three browsers look, and what it sends to one of them. The page's own weight is what it sends, compressed.

import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../dashboard/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

const [crowd, flag, file] = process.argv.slice(2);
const SIZES = [[60, 120], [1000, 2000], [5000, 10_000]]; // containers, flows
const VIEWERS = 3;
const DRAG_S = 3;
const CPU_S = 15;
const TICKS = 100; // of /proc/PID/stat, a second

/** Seconds of CPU that a process has used. */
function cpu(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Opens the page by a link; seconds to the first picture. */
async function open(browser, link) {
  const page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
  page.setDefaultTimeout(60_000);
  let weight = 0;
  page.on("response", async (response) => {
    if (!new URL(response.url()).pathname.startsWith("/api")) weight += Number((await response.allHeaders())["content-length"] ?? 0);
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

/** Frames a second while `act` is done over and over for some seconds. */
async function framesDuring(page, act) {
  await page.evaluate(() => {
    window.benchFrames = 0;
    const count = () => {
      window.benchFrames += 1;
      window.benchGoes = requestAnimationFrame(count);
    };
    count();
  });
  const began = performance.now();
  for (let step = 0; performance.now() - began < DRAG_S * 1000; step += 1) await act(step);
  const took = (performance.now() - began) / 1000;
  const frames = await page.evaluate(() => {
    cancelAnimationFrame(window.benchGoes);
    return window.benchFrames;
  });
  return frames / took;
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
  const frames = await framesDuring(page, (step) => page.mouse.move(x + 200 + 150 * Math.sin(step / 9), y + 150 + 120 * Math.cos(step / 9)));
  await page.mouse.up();
  return frames;
}

/** Frames a second while the wheel makes the picture larger and smaller. */
async function zoomed(page) {
  await onGround(page);
  return framesDuring(page, (step) => page.mouse.wheel(0, step % 40 < 20 ? -60 : 60));
}

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
    const page_kib = weight() / 1024;
    const more = await Promise.all(links.slice(1).map((link) => open(browser, link)));
    await sleep(2);
    const came = await counted(more[0].page);
    const before = cpu(server.pid);
    await sleep(CPU_S);
    const server_share = (cpu(server.pid) - before) / CPU_S;
    const viewer_bytes_s = came() / CPU_S;
    for (const one of [{ page }, ...more]) await one.page.context().close();
    return { containers, flows, first_s, fps_closed, fps_open, fps_zoom, server_share, viewer_bytes_s, page_kib };
  } finally {
    server.kill();
  }
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const rows = [];
const cell = (value, digits) => (value === null ? "-" : value.toFixed(digits)).padStart(14);
console.log(["containers", "flows", "first picture", "fps", "fps, all open", "fps, zooming", "server", "kB/s a viewer", "page KiB"].map((one) => one.padStart(14)).join(""));
try {
  for (const size of SIZES) {
    const row = await measure(browser, size);
    rows.push(row);
    console.log(
      cell(row.containers, 0) + cell(row.flows, 0) + cell(row.first_s, 2) + cell(row.fps_closed, 0) + cell(row.fps_open, 0) + cell(row.fps_zoom, 0) +
        `${(row.server_share * 100).toFixed(1)} %`.padStart(14) + cell(row.viewer_bytes_s / 1000, 1) + cell(row.page_kib, 0),
    );
  }
} finally {
  await browser.close();
}
if (flag === "--json") writeFileSync(file, `${JSON.stringify(rows, null, 2)}\n`);
