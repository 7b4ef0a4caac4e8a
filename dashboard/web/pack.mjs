// Compresses what was built, for the binary to carry, and fails when the page has grown past what it may weigh.
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const LIMIT = 250 * 1024; // bytes, compressed, of all files together

function files(folder) {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });
}

let total = 0;
for (const path of files("dist")) {
  const packed = gzipSync(readFileSync(path), { level: 9 });
  writeFileSync(`${path}.gz`, packed);
  rmSync(path);
  total += packed.length;
}
console.log(`page: ${(total / 1024).toFixed(1)} of ${LIMIT / 1024} KiB, compressed`);
if (total > LIMIT) {
  console.error("the page is too heavy");
  process.exit(1);
}
