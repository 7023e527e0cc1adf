// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The real program with its arguments, on a host of libvirt's test driver where the machine of
 * {@linkcode JOB} is ready. What it leaves in $TMPDIR is the caller's to remove.
 */
import { Connection } from "../../src/libvirt/connection.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { TestGuest } from "./test_guest.ts";
import { openTestHost } from "./test_host.ts";
import { JOB, testStage } from "./test_stage.ts";

const connection = await openTestHost();
const stage = testStage(connection, await TestGuest.start());
await prepare(JOB, {}, stage);
Connection.open = () => stage.connect(); // another would see another host

await import("../../main.ts");
