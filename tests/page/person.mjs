// A person who uses the page: node person.mjs LINK FOLDER, see visit.mjs. Has the node restarted, and finds the page again.

import { check, click, context, errors, everybody, have, isBack, link, page, PATIENCE, place, play, saved, say, shot, until } from "./visit.mjs";

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
  check(await isNamed("/db/"), "a host that told of itself late has its name above what is in it");
  await everybody("graph");
}

/** Whether something as bright as a name is drawn above what is in a host, where the host's name has to be. */
async function isNamed(inside) {
  const { x, y } = await place(inside);
  const clip = { x: x - 30, y: y - 75, width: 60, height: 35 };
  const picture = (await page.screenshot({ clip })).toString("base64");
  const other = await context.newPage(); // the page's own rules forbid to load it there
  const found = await other.evaluate(async (picture) => {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${picture}`)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const { data } = canvas.getImageData(0, 0, image.width, image.height);
    return data.some((_, at) => at % 4 === 0 && Math.min(data[at], data[at + 1], data[at + 2]) > 180);
  }, picture);
  await other.close();
  return found;
}

async function look() {
  await click("/web/eth0>c:");
  const details = page.getByRole("complementary", { name: "Details" });
  await details.getByText("web → db").waitFor();
  await details.getByText("udp/7000").waitFor();
  await details.getByText(/Refused: tcp\/7009/).waitFor();
  say("an edge tells its flows, and why one fails");
  await until("and its rate of late is drawn, which is not nothing", isDrawn, "");
  await until("and goes on", isDrawn, await page.locator("aside figure polyline").getAttribute("points"));
  await details.getByText(/What listens there\? On h2:/).waitFor();
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await details.getByRole("button", { name: "Copy weavectl processes --listening db" }).click();
  await details.getByText("Copied").waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  check(copied === "weavectl processes --listening db", "and what to type to learn more, which can be copied");
  await shot("edge");
  await everybody("details");
  await click("/web/eth0");
  await details.getByText("tier").waitFor();
  say("a container tells its labels");
  await details.getByText("tcp/8000").waitFor();
  say("and what runs in it");
  await details.getByText("<i id=bad>").waitFor();
  await details.getByText("<u id=bad>shop</u>").waitFor();
  check((await page.locator("#bad").count()) === 0, "a name that would be markup is text");
  await details.getByText("<img id=bad src=x onerror=alert(1)>").waitFor();
  await details.getByText("<b id=bad>label</b>").waitFor();
  check((await page.locator("#bad").count()) === 0, "and so are a label and its value");
  await shot("container");
  await everybody("details of a container");
  await click("/odd/eth0");
  check((await chosen()) === ODD, `a container has the name that its runtime knows: ${await chosen()}`);
  await page.getByRole("navigation").getByText(ODD).waitFor();
  check((await page.locator("#bad").count()) === 0, "which is text too, wherever it is");
  await page.getByRole("navigation").getByRole("button", { name: /^h1/ }).click();
  await details.getByRole("button", { name: "to h2" }).click();
  await details.getByText("Round trip").waitFor();
  // On a busy machine a packet may be lost.
  await details.getByText(/^\d+(\.\d)? %$/).first().waitFor();
  await details.getByText("straight").waitFor();
  say("a link tells its round trip, its loss and its path");
  await shot("link");
  await page.keyboard.press("Escape");

  await page.getByRole("button", { name: "Close h1" }).click();
  await until("a closed host hides its containers", isShown, ["/idle/", false]);
  // What moves comes to rest, for the picture.
  await page.waitForTimeout(700);
  await shot("closed");
  await page.getByRole("button", { name: "Open h1" }).click();
  await until("an open one shows them where it stands", isShown, ["/idle/", true]);
}

/** In the page: whether something that has this in its id is in the graph, or not. */
const isShown = ([part, shown]) => Object.keys(window.weavePlaces()).some((id) => id.includes(part)) === shown;

/** In the page: whether the details have a line with a point in the upper half of its chart, and are past another line. */
const isDrawn = (before) => {
  const chart = document.querySelector("aside figure svg");
  const line = chart?.querySelector("polyline")?.getAttribute("points") ?? "";
  const heights = line.split(" ").map((point) => Number(point.split(",")[1]));
  return line !== before && heights.length > 1 && Math.min(...heights) < chart.viewBox.baseVal.height / 2;
};

/** Waits until a screen reader was told something. */
const told = (what, words) => until(what, (wanted) => new RegExp(wanted).test(document.querySelector("#said").textContent), words);

/** What Docker calls a container that is attached as `odd`. */
const ODD = "<script id=bad>x=1</script>";

/** What is chosen, as the details call it. */
const chosen = () => page.evaluate(() => document.querySelector("aside h2")?.textContent ?? "");

async function walk() {
  await page.keyboard.press("Escape");
  await page.getByRole("navigation").getByRole("button", { name: /^h1/ }).click();
  await page.getByRole("application").focus();
  const ways = { ArrowRight: ["h2", "db"], ArrowLeft: ["h1", "web", "idle", "inner", ODD] };
  for (const [key, there] of Object.entries(ways)) {
    for (let step = 0; step < 8 && !there.includes(await chosen()); step += 1) await page.keyboard.press(key);
    check(there.includes(await chosen()), `${key} leads from host to host: ${await chosen()}`);
    await told("and a screen reader is told where", `^(${there.join("|")}), (host|container on h\\d), `);
  }
  await page.getByRole("navigation").getByRole("button", { name: /^h1/ }).click();
  await page.getByRole("application").focus();
  await page.keyboard.press("Enter");
  await until("Enter closes a host", isShown, ["/idle/", false]);
  await told("which is said", "^h1, host, this page's node, .*closed");
  await page.keyboard.press("Enter");
  await until("and opens it", isShown, ["/idle/", true]);
  await page.keyboard.press("Escape");
  await until("Escape closes the details", () => !document.querySelector("aside h2"));
}

/** Edges, without a mouse. */
async function edges() {
  const details = page.getByRole("complementary", { name: "Details" });
  const flow = /^tcp\/7009, the edge from web to db$/;
  await page.keyboard.press("t");
  await page.getByRole("region", { name: "Flows" }).getByRole("button", { name: flow }).focus();
  await page.keyboard.press("Enter");
  await details.getByText(/Refused: tcp\/7009/).waitFor();
  check((await chosen()) === "web → db", "a row of the table leads to the edge of its flow");
  await told("which is said with what fails", "^web to db, \\d flows?, refused at tcp 7009$");
  await page.keyboard.press("g");
  await page.getByRole("navigation").getByRole("button", { name: /^db/ }).click();
  await details.getByRole("button", { name: flow }).focus();
  await page.keyboard.press("Enter");
  await until("and so does one of the details", () => document.querySelector("aside h2")?.textContent === "web → db");
  check(await page.evaluate(() => document.querySelector("aside").contains(document.activeElement)), "where keys go on");
  await page.getByRole("navigation").getByRole("button", { name: /^web/ }).click();
  await page.getByRole("application").focus();
  const walked = [];
  for (const key of ["e", "e", "Shift+E", "Shift+E"]) {
    await page.keyboard.press(key);
    walked.push(await chosen());
  }
  check(walked.join() === "web → db,web → shop,web → db,web → shop", `e walks over the edges of a node: ${walked.join(", ")}`);
  await page.keyboard.press("e");
  await page.waitForTimeout(600);
  await shot("walked");
  await everybody("details of an edge that was walked to");
  await page.keyboard.press("ArrowRight");
  check((await chosen()) === "db", "and an arrow leads to one of its ends");
  await told("which is said", "^db, container on h2, up, \\d edges?, 1 failing$");
  await page.keyboard.press("Escape");
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
  await shown();
  await page.keyboard.press("Escape");
  const svg = await saved("SVG");
  const named = await page.evaluate((text) => {
    const drawn = new DOMParser().parseFromString(text, "image/svg+xml");
    if (drawn.querySelector("parsererror")) return [];
    return [...drawn.querySelectorAll("text")].map((one) => one.textContent);
  }, svg);
  check(["h1", "h2", "web", "db", "shop"].every((name) => named.includes(name)), "the drawing that is saved has every name in it");
  const picture = JSON.parse(await saved("JSON"));
  const names = (list) => list.map((one) => one.name);
  check(
    ["h1", "h2"].every((name) => names(picture.hosts).includes(name)) &&
      ["web", "db"].every((name) => names(picture.containers).includes(name)) &&
      picture.flows.some((flow) => flow.from.name === "web" && flow.to.name === "db" && flow.service === "shop" && flow.sent_bytes > 0),
    "so has the picture as JSON, and its flows",
  );
}

/** What is chosen is seen, also in a closed group and beside what is in view. */
async function shown() {
  const shop = page.getByRole("navigation").getByRole("button", { name: /^shop/ });
  await page.getByRole("application").focus();
  await page.keyboard.press("ArrowUp");
  check((await chosen()) === "Services", "an arrow leads from a Service to their group");
  await page.keyboard.press("Enter");
  await until("which Enter closes", isShown, ["s:shop", false]);
  await shop.click();
  await until("a Service that is chosen in the list opens it", isShown, ["s:shop", true]);
  await told("and is said", "^shop, Service, 2 of 2 endpoints ready, ");
  await page.keyboard.press("Escape");
  const frame = await page.locator(".graph").boundingBox();
  const isSeen = async () => {
    const { x, y } = await place("s:shop");
    return x > frame.x && x < frame.x + frame.width && y > frame.y && y < frame.y + frame.height;
  };
  for (let drag = 0; drag < 4 && (await isSeen()); drag += 1) {
    await page.mouse.move(frame.x + 5, frame.y + frame.height - 60);
    await page.mouse.down();
    await page.mouse.move(frame.x + 5, frame.y + 60, { steps: 5 });
    await page.mouse.up();
  }
  check(!(await isSeen()), "the view was moved away from it");
  await shop.click();
  await page.waitForTimeout(300);
  check(await isSeen(), "and comes back when it is chosen");
  await page.getByRole("button", { name: "Fit" }).click();
}

/** How visible a node is in the drawing that is saved. */
async function visible(names) {
  const svg = await saved("SVG");
  return page.evaluate(([text, names]) => {
    const drawn = [...new DOMParser().parseFromString(text, "image/svg+xml").querySelectorAll("text")];
    return names.map((name) => Number(drawn.find((one) => one.textContent === name)?.parentNode.getAttribute("opacity")));
  }, [svg, names]);
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
  const [web, ...away] = await visible(["web", "Outside", "192.168.77.9", "idle"]);
  check(web === 1 && away.every((one) => one > 0 && one < 0.3), `a filter dims addresses outside as it does containers: ${away}`);
  await page.keyboard.press("Escape");
  await page.keyboard.press("t");
  await page.getByRole("region", { name: "Flows" }).getByText("refused").first().waitFor();
  await until("the filter leaves one row of the table", () => document.querySelectorAll("main tbody tr").length === 1);
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
  // Before the present there are three to go back to.
  await page.waitForFunction(() => Number(document.querySelector("#time").max) >= 3, undefined, { timeout: PATIENCE });
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
  await gap(slider);
  await page.getByRole("button", { name: "Live" }).click();
  await page.getByText(/The past, at/).waitFor({ state: "detached" });
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

/** The page asks what the node keeps; here it is told of seconds of which nothing is kept any more. */
async function gap(slider) {
  let asked = 0;
  await page.route("**/api/history", async (route) => {
    const answer = await route.fetch();
    const times = await answer.json();
    asked += 1;
    await route.fulfill({ json: times.map((at) => at - 1) });
  });
  for (const begun = Date.now(); !asked && Date.now() - begun < PATIENCE; ) await page.waitForTimeout(100);
  check(asked, "the page asks again what the node keeps");
  await slider.focus();
  await page.keyboard.press("ArrowLeft");
  await page.getByText(/The past, at .*: there is no picture of /).waitFor();
  say("where nothing is kept the nearest is shown, and that it is");
  await shot("past");
  await everybody("past");
  await page.route("**/api/history/*", (route) => route.abort());
  const told = async () => (await page.locator(".strip.past").innerText()).split(": there is no picture of ");
  const [shown, missed] = await told();
  const before = errors.length;
  await page.keyboard.press("ArrowLeft");
  await page.waitForTimeout(500);
  errors.length = before; // what was aborted
  const [stays, next] = await told();
  check(shown === stays && next && next !== missed, `where none comes what is shown stays: ${stays}, not ${next}`);
  await page.unroute("**/api/history/*");
  await page.unroute("**/api/history");
}

async function again() {
  await have("restart the node");
  await until("the page finds the node again, and is still logged in", () => {
    const strip = document.querySelector(".strip")?.textContent ?? "";
    return document.querySelector(".page") && !strip.includes("does not answer") && !document.querySelector("#code");
  });
  isBack();
  await until("and shows what goes on", () => /flow/.test(document.querySelector(".facts").textContent));
}

await play(visit, look, walk, edges, services, find, past, again);
