// Somebody who opens the page when there is little or nothing to see: node empty.mjs LINK FOLDER, see visit.mjs. It says why
// each time. Has the node changed between two looks.

import { check, errors, everybody, have, isBack, link, page, play, say, shot, until } from "./visit.mjs";

/** Waits for what is said in the middle of the page, and the command beside it. */
async function told(why, command) {
  const note = page.locator(".empty");
  await note.getByText(why).waitFor();
  if (command) await note.getByText(command).waitFor();
  say(`it says: ${(await note.innerText()).replaceAll("\n", " | ")}`);
}

async function notAllowed() {
  await page.goto(new URL(link).origin);
  await page.getByLabel("Code").fill("a-code-that-nobody-made");
  await page.getByRole("button", { name: "Log in" }).click();
  const refusal = page.getByRole("alert");
  await refusal.waitFor();
  check((await refusal.innerText()).includes("weavectl dashboard"), `who may not look is told how to: ${await refusal.innerText()}`);
  check((await page.locator(".graph").count()) === 0, "and sees nothing");
  await everybody("refused login");
  errors.length = 0; // the 401 and the 403 by which the page learns of it
}

async function noCluster() {
  await page.goto("about:blank");
  await page.goto(link);
  await told("This node is in no cluster.", "weavectl init");
  await shot("no-cluster");
  await everybody("page without a cluster");
}

async function noContainers() {
  await have("make a cluster");
  isBack();
  await told("No container is attached on any host that tells.", "weavectl attach");
  await shot("no-containers");
  await page.keyboard.press("t");
  await told("No container is attached on any host that tells.", "weavectl attach");
  await everybody("empty table");
  await page.keyboard.press("g");
}

async function noFlows() {
  await have("attach two containers");
  isBack();
  await told("No container has talked to anybody in the last five minutes.", "ping ");
  await shot("no-flows");
  await everybody("page without flows");
}

async function notReached() {
  await have("lose the other host");
  isBack();
  await page.getByRole("navigation").getByText("unreachable").waitFor();
  await page.getByRole("navigation").getByRole("button", { name: /^h2/ }).click();
  const details = page.getByRole("complementary", { name: "Details" });
  await details.getByText("there is no session with it").waitFor();
  say("of a host that cannot be reached it says that nothing is known, and why");
  await page.locator(".strip").waitFor();
  check(/h2/.test(await page.locator(".strip").innerText()), `and so does the strip: ${await page.locator(".strip").innerText()}`);
  await shot("not-reached");
  await everybody("page with a host that is away");
}

async function notSeen() {
  await have("stop looking at flows");
  await until("the node is back", () => !document.querySelector(".strip")?.textContent.includes("does not answer"));
  isBack();
  await told("h1 sees no flows: this node was started with --flows=off");
  await shot("not-seen");
}

async function stale() {
  await have("stop the node");
  await page.getByText("The node does not answer; what you see is what it said last.").waitFor();
  say("what is old is said to be old");
  await shot("stale");
  await everybody("page that is old");
}

await play(notAllowed, noCluster, noContainers, noFlows, notReached, notSeen, stale);
