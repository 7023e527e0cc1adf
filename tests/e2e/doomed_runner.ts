// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * A GitLab Runner in a process of its own, for a test to kill. It runs a job whose script does not
 * end, and passes on what the job prints. The arguments: the job's id, and where attempts'
 * directories go.
 */
import { job, runOnBed } from "./bed.ts";

const [id, tmpdir = "/tmp"] = Deno.args;
await runOnBed(job({ id: Number(id), script: ["echo running", "while :; do sleep 1; done"] }), {
  runner: { tmpdir, onOutput: (_stage, _stream, chunk) => void Deno.stdout.writeSync(chunk) },
});
