// deep-email-validator with its defaults, but for the sender: one HELO, MAIL, RCPT an address, no caches.
import { validate } from "deep-email-validator";
import { run } from "./pool.mjs";

await run(async (email) => {
  const { validators } = await validate({ email, sender: "probe@probe.lab" });
  return validators.smtp.valid || validators.smtp.reason === "Mailbox not found.";
});
