// SPDX-License-Identifier: GPL-2.0-or-later
import { UsageError } from "../../errors.ts";
import { type LocalImage, openLocalImage } from "../../image/image.ts";
import type { Context } from "../../machine/context.ts";
import { quoted } from "../../quoted.ts";

/** Where an image is. */
export interface Source {
  readonly kind: "file";
  /** What `template list` shows and `template update` reads again: an absolute path. */
  readonly text: string;
}

/** What SOURCE means. Throws UsageError. */
export function parseSource(source: string): Source {
  if (/^[a-z][a-z\d+.-]*:\/\//i.test(source)) {
    throw new UsageError({
      what: `${quoted(source)} is no source of an image that libvirt-gci can read`,
      advice: "Use a file",
    });
  }
  return { kind: "file", text: source.startsWith("/") ? source : `${Deno.cwd()}/${source}` };
}

/** How to open a source. */
export interface OpenOptions {
  /** The digest that it must have, as `sha256:HEX`; null is any. */
  readonly digest: string | null;
  readonly context: Context;
}

/** Fetches the image. The caller disposes of it. Throws SystemFailure. */
export function openSource(
  { text }: Source,
  { digest, context }: OpenOptions,
): Promise<LocalImage> {
  return openLocalImage(text, { digest, signal: context.signal });
}
