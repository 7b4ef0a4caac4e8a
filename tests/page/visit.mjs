// What the people who use the page have in common: a browser, the distribution's Chromium, with the page in it; words for what
// they see; and somebody who does things to the nodes when they ask.
//
// A script of theirs is started with LINK FOLDER. It says what is seen, one line each, asks by "do: WHAT" and goes on when a line
// comes back, and ends with "all seen", or with what was not. Pictures of each view are left in FOLDER.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../dashboard/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const [link, folder] = process.argv.slice(2);
export const PATIENCE = 30_000;

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
export const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "dark" });
export const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);

/** What the browser complained of, and what came from elsewhere. */
export const errors = [];
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

export const say = (text) => console.log(text);
export const shot = (name) => page.screenshot({ path: `${folder}/${name}.png` });

export function check(condition, what) {
  if (!condition) throw new Error(what);
  say(what);
}

/** Waits until a test of the page holds. */
export const until = (what, test, argument) =>
  page.waitForFunction(test, argument, { timeout: PATIENCE }).then(
    () => say(what),
    () => {
      throw new Error(`not so: ${what}`);
    },
  );

/** Where an element of the graph is on the screen. */
export async function place(find) {
  await page.waitForFunction((wanted) => Object.keys(window.weavePlaces()).some((id) => id.includes(wanted)), find, { timeout: PATIENCE });
  const frame = await page.locator(".graph").boundingBox();
  const at = await page.evaluate((wanted) => Object.entries(window.weavePlaces()).find(([id]) => id.includes(wanted))[1], find);
  return { x: frame.x + at.x, y: frame.y + at.y };
}

export async function click(find) {
  const { x, y } = await place(find);
  await page.mouse.click(x, y);
}

/** What is saved when a button is pressed, as text. */
export async function saved(name) {
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name, exact: true }).click()]);
  const path = `${folder}/${file.suggestedFilename()}`;
  await file.saveAs(path);
  return readFileSync(path, "utf8");
}

/** Fails on what keeps somebody from using the page. */
export async function everybody(view) {
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

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has something done to a node, which may not answer meanwhile. */
export async function have(what) {
  down = true;
  say(`do: ${what}`);
  await answers.next();
}

/** The node answers again: what the browser complains of from now on counts. */
export function isBack() {
  down = false;
}

/** Does all of it in order; what is not as it should be ends it. */
export async function play(...scenes) {
  try {
    for (const scene of scenes) await scene();
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
}
