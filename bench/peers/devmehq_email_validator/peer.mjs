// @devmehq/email-validator-js with its defaults, but for the time-out: one HELO, MAIL, RCPT an address, its caches on.
import { verifyEmail } from "@devmehq/email-validator-js";
import { run } from "./pool.mjs";

await run(async (emailAddress) => {
  const { validSmtp } = await verifyEmail({ emailAddress, verifyMx: true, verifySmtp: true, timeout: 60000 });
  return validSmtp !== null && validSmtp !== undefined;
});
