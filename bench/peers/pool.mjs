// What both npm peers are driven by: `peer.mjs LIST CONCURRENCY` asks the first column of a CSV, so many at a time.
import { readFileSync } from "node:fs";

export async function run(answered) {
  const [list, concurrency] = process.argv.slice(2);
  const rows = readFileSync(list, "utf8").split("\n").slice(1).map((line) => line.split(",")[0].trim()).filter(Boolean);
  let next = 0;
  let count = 0;
  async function work() {
    while (next < rows.length) {
      const email = rows[next++];
      try {
        if (await answered(email)) count++;
      } catch (error) {
        if (process.env.PEER_DEBUG) console.error(email, error);
      }
    }
  }
  await Promise.all(Array.from({ length: Number(concurrency) }, work));
  console.log(JSON.stringify({ addresses: rows.length, answered: count }));
  process.exit(0); // idle timers of a library are no work
}
