// A person who uses the page, in the distribution's Chromium: node person.mjs LINK FOLDER. Says what is seen, one line each, and
// ends with "all seen", or with what was not. Pictures of each view are left in FOLDER.
//
// It asks to have the node restarted by the line "restart the node", and goes on when it is told that it was.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../dashboard/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [link, folder] = process.argv.slice(2);
const PATIENCE = 30_000;

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "dark" });
const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);

const errors = [];
let down = false;
page.on("console", (message) => {
  // While the node is down, that it cannot be reached is no error of the page's.
  if (message.type() === "error" && !down) errors.push(message.text());
});
page.on("pageerror", (error) => errors.push(String(error)));
page.on("request", (request) => {
  const url = request.url();
  if (!url.startsWith(new URL(link).origin) && !/^(data|blob):/.test(url)) errors.push(`something from elsewhere: ${url}`);
});

const say = (text) => console.log(text);
const shot = (name) => page.screenshot({ path: `${folder}/${name}.png` });

function check(condition, what) {
  if (!condition) throw new Error(what);
  say(what);
}

/** Waits until a test of the page holds. */
const until = (what, test, argument) =>
  page.waitForFunction(test, argument, { timeout: PATIENCE }).then(
    () => say(what),
    () => {
      throw new Error(`not so: ${what}`);
    },
  );

/** Where an element of the graph is on the screen. */
async function place(find) {
  await page.waitForFunction((wanted) => Object.keys(window.weavePlaces()).some((id) => id.includes(wanted)), find, { timeout: PATIENCE });
  const frame = await page.locator(".graph").boundingBox();
  const at = await page.evaluate((wanted) => Object.entries(window.weavePlaces()).find(([id]) => id.includes(wanted))[1], find);
  return { x: frame.x + at.x, y: frame.y + at.y };
}

async function click(find) {
  const { x, y } = await place(find);
  await page.mouse.click(x, y);
}

/** Fails on what keeps somebody from using the page. */
async function everybody(view) {
  // The page's policy lets no script in; the browser's own tools are not bound by it.
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const result = await window.axe.run(document, { resultTypes: ["violations"] });
    return result.violations
      .filter((one) => one.impact === "serious" || one.impact === "critical")
      .map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
  });
  check(found.length === 0, `everybody can use the ${view}${found.length ? `, but: ${found.join("; ")}` : ""}`);
}

const restarted = new Promise((resolve) => createInterface({ input: process.stdin }).once("line", resolve));

async function visit() {
  await page.goto(new URL(link).origin);
  await page.getByLabel("Code").waitFor();
  say("without a code there is a login and nothing else");
  await shot("login");
  await everybody("login");
  errors.length = 0; // the 401 by which the page learns of it

  await page.goto("about:blank");
  await page.goto(link);
  await page.getByRole("heading", { name: "Weave" }).waitFor();
  await until("the code is out of sight", () => !location.hash);
  await until("hosts and containers are there", () => {
    const ids = Object.keys(window.weavePlaces?.() ?? {}).join(" ");
    return ["/web/", "/db/", "/idle/", "l:"].every((part) => ids.includes(part));
  });
  await until("flows are there, and one fails", () => {
    return /e:c:.*\/web\/.*>c:.*\/db\//.test(Object.keys(window.weavePlaces()).join("\n")) && /failing/.test(document.querySelector("header").textContent);
  });
  await page.waitForTimeout(1500);
  await shot("graph");
  await everybody("graph");
}

async function look() {
  await click("/web/eth0>c:");
  const details = page.getByRole("complementary", { name: "Details" });
  await details.getByText("web → db").waitFor();
  await details.getByText("udp/7000").waitFor();
  await details.getByText(/Refused: tcp\/7009/).waitFor();
  say("an edge tells its flows, and why one fails");
  await shot("edge");
  await everybody("details");
  await click("/web/eth0");
  await details.getByText("tier").waitFor();
  say("a container tells its labels");
  await details.getByText("tcp/8000").waitFor();
  say("and what runs in it");
  await details.getByText("<i id=bad>").waitFor();
  check((await page.locator("#bad").count()) === 0, "a name that would be markup is text");
  await shot("container");
  await everybody("details of a container");
  await page.getByRole("navigation").getByRole("button", { name: /^h1/ }).click();
  await details.getByRole("button", { name: "to h2" }).click();
  await details.getByText("Round trip").waitFor();
  await details.getByText("0.0 %").waitFor();
  await details.getByText("straight").waitFor();
  say("a link tells its round trip, its loss and its path");
  await shot("link");
  await page.keyboard.press("Escape");

  const inside = () => Object.keys(window.weavePlaces()).some((id) => id.includes("/idle/"));
  await page.getByRole("button", { name: "Close h1" }).click();
  await page.waitForTimeout(700);
  check(!(await page.evaluate(inside)), "a closed host hides its containers");
  await shot("closed");
  await page.getByRole("button", { name: "Open h1" }).click();
  await page.waitForTimeout(700);
  check(await page.evaluate(inside), "an open one shows them where it stands");
}

async function services() {
  await until("a flow through a Service goes by it", () => {
    const ids = Object.keys(window.weavePlaces()).join("\n");
    return /e:c:.*\/web\/.*>s:shop/.test(ids) && /e:s:shop>c:.*\/db\//.test(ids);
  });
  await page.getByRole("navigation").getByRole("button", { name: /^shop/ }).click();
  const details = page.getByRole("complementary", { name: "Details" });
  await details.getByText("2 endpoints").waitFor();
  await details.getByText("81/udp → 7000").waitFor();
  say("a Service tells its ports and who is behind it");
  await page.waitForTimeout(600);
  await shot("service");
  await everybody("details of a Service");
  await page.keyboard.press("Escape");
  const [saved] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "SVG" }).click()]);
  await saved.saveAs(`${folder}/graph.svg`);
  const svg = readFileSync(`${folder}/graph.svg`, "utf8");
  const named = await page.evaluate((text) => {
    const drawn = new DOMParser().parseFromString(text, "image/svg+xml");
    if (drawn.querySelector("parsererror")) return [];
    return [...drawn.querySelectorAll("text")].map((one) => one.textContent);
  }, svg);
  check(["h1", "h2", "web", "db", "shop"].every((name) => named.includes(name)), "the drawing that is saved has every name in it");
}

async function find() {
  const names = (wanted) => page.waitForFunction((all) => {
    const drawn = document.querySelector("nav").textContent;
    return all.every(([name, there]) => drawn.includes(name) === there);
  }, wanted, { timeout: PATIENCE });
  const network = page.getByLabel("Network or namespace");
  await network.selectOption("net:=blue");
  await names([["inner", true], ["idle", false]]);
  say("one network can be chosen");
  await shot("network");
  await network.selectOption("");
  await names([["inner", true], ["idle", true]]);
  await page.keyboard.press("/");
  await page.keyboard.type("is:failing");
  await page.waitForTimeout(600);
  await shot("search");
  await page.keyboard.press("Escape");
  await page.keyboard.press("t");
  await page.getByRole("region", { name: "Flows" }).getByText("refused").first().waitFor();
  const rows = await page.locator("main tbody tr").count();
  check(rows === 1, `the filter leaves one row of the table (${rows})`);
  await page.getByRole("searchbox").fill("");
  await until("without it there are more", () => document.querySelectorAll("main tbody tr").length > 1);
  await page.getByRole("button", { name: "Sent", exact: true }).click();
  await shot("table");
  await everybody("table");
  await page.getByRole("button", { name: /process/ }).click();
  await page.getByRole("searchbox").fill("listens:8000");
  await until("who listens is found", () => {
    const rows = [...document.querySelectorAll("main tbody tr")].map((row) => row.textContent);
    return rows.length === 1 && rows[0].includes("tcp/8000") && rows[0].includes("web");
  });
  await shot("processes");
  await everybody("table of processes");
  await page.getByRole("searchbox").fill("nothing-is-called-so");
  await page.getByText(/The filter hides all/).waitFor();
  say("an empty table says why");
  await page.getByRole("button", { name: "Show everything" }).click();
  await page.getByRole("button", { name: "Graph", exact: true }).click();
}

async function past() {
  const slider = page.getByRole("slider");
  await page.waitForFunction(() => Number(document.querySelector("#time").max) >= 2, undefined, { timeout: PATIENCE });
  await slider.focus();
  // The first picture may be older than the containers.
  await page.keyboard.press("ArrowLeft");
  await page.getByText(/^The past, at/).waitFor();
  say("the slider leads into the past");
  await page.getByRole("navigation").getByRole("button", { name: /^web/ }).click();
  const details = page.getByRole("complementary", { name: "Details" });
  await details.getByText(/\/s then$/).waitFor();
  check((await details.locator("svg").count()) === 0, "and tells what moved then, not now");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Live" }).click();
  await page.getByText(/^The past, at/).waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Light colours" }).click();
  await page.waitForTimeout(500);
  await shot("light");
  await everybody("light page");
  await page.getByRole("button", { name: "Dark colours" }).click();
  await page.getByRole("button", { name: "Help" }).click();
  await everybody("help");
  await shot("help");
  await page.keyboard.press("Escape");
}

async function again() {
  down = true;
  say("restart the node");
  await restarted;
  await until("the page finds the node again, and is still logged in", () => {
    const strip = document.querySelector(".strip")?.textContent ?? "";
    return document.querySelector(".page") && !strip.includes("does not answer") && !document.querySelector("#code");
  });
  down = false;
  await until("and shows what goes on", () => /flow/.test(document.querySelector(".facts").textContent));
}

try {
  await visit();
  await look();
  await services();
  await find();
  await past();
  await again();
  check(errors.length === 0, `the console has no error${errors.length ? `, but: ${errors.join("; ")}` : ""}`);
  say("all seen");
} catch (error) {
  await shot("failed").catch(() => {});
  say(`FAILED: ${error.message}`);
  if (errors.length) say(`the console said: ${errors.join("; ")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
  // Whoever started this still holds its input open.
  process.stdin.destroy();
}
