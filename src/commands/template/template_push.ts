// SPDX-License-Identifier: GPL-2.0-or-later
import { oneArgument } from "../../cli/arguments.ts";
import { defineCommand, type Program } from "../../cli/command.ts";
import { checkRequest, fetchRequested, registryOptions, titleOf } from "./template_source.ts";
import { parseReference, referenceText } from "../../image/registry/reference.ts";
import { Transfer } from "../../transfer.ts";

export const templatePush = defineCommand("push", {
  description: "Put an image into a registry, from which `template add` takes it.",
  footer: "It does not connect to libvirt. The login is that of podman or docker.",
  fields: {
    source: oneArgument("SOURCE", "The image, as for `template add`."),
    target: oneArgument("TARGET", "Its name there: oci://REGISTRY/NAME:TAG."),
  },
  check: ({ source, target }) => {
    checkRequest({ source });
    parseReference(target);
  },
  run: ({ source, target }, program) => pushImage(source, target, program),
});

/** Pushes the image to the registry, and says which digest it has there. Throws SystemFailure. */
async function pushImage(
  source: string,
  target: string,
  { env, signal, printer }: Program,
): Promise<void> {
  const { push } = await import("../../image/registry/push.ts");
  const log = (line: string): void => printer.print(line);
  const report = { log, warn: (line: string) => printer.warn(line), progress: printer.progress };
  const context = { report, signal };
  const reference = parseReference(target);
  const { image } = await fetchRequested({ source }, { env, context });
  await using _ = image;
  using transfer = new Transfer(`Pushing ${referenceText(reference)}`, report);
  const options = await registryOptions({ env, context });
  const title = titleOf(source);
  const digest = await push(image, reference, { ...options, title, onBytes: transfer.update });
  log(`Pushed ${referenceText({ ...reference, digest })}`);
}
