// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { newOwner } from "../src/machine/owner.ts";
import { createVolumes } from "../src/machine/start.ts";
import { findTemplate } from "../src/machine/template.ts";
import { cleanup } from "../src/stages/cleanup.ts";
import { createLogin, volumeContents } from "../src/stages/login.ts";
import { boot, newRecord } from "../src/stages/new_machine.ts";
import { StepTimer } from "../src/stages/step_timer.ts";
import { chooseTemplate } from "../src/template_choice.ts";
import { TestGuest } from "./test_guest.ts";
import { openTestHost } from "./test_host.ts";
import { JOB, testStage } from "./test_stage.ts";

Deno.test("a machine that could not be resumed boots with another MAC, which has no lease yet", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  using pool = await connection.lookupPool("libvirt-gci");
  const { config } = stage;
  const { machine: name } = JOB;
  const { machine: settings } = config;
  const template = "debian-12";
  const choice = chooseTemplate(config, template, { isOperator: true });
  const asked = { ...choice, isAllowed: () => true, pool: config.templatePool };
  const disk = { template: await findTemplate(connection, asked), diskGib: null };
  const login = await createLogin(name, { keyFile: undefined, settings }, stage);
  const ofRecord = { template, login, settings, card: null };
  const record = newRecord(await newOwner(JOB), ofRecord); // as the attempt to resume it had it
  const machine = {
    ...{ name, record, domainType: "test", settings, filter: null, card: null, disk, login },
    ...await createVolumes(pool, name, volumeContents(name, login, settings)),
  };
  const making = { pool, turn: null, timer: new StepTimer(null) };
  const { mac, address } = await boot(machine, making, stage);
  await cleanup(name, stage);
  assert.notEqual(mac, record.mac);
  assert.match(address, /^127\.99\./);
});
