// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";

type Maybe = XmlElement | null | undefined;

export function rootOf(xml: string): XmlElement | null {
  return parseXml(xml).root;
}

export function childrenOf(element: Maybe, name: string): XmlElement[] {
  return (element?.children ?? [])
    .filter((child) => child instanceof XmlElement)
    .filter((child) => child.name === name);
}

/** The first element at this path of names, or undefined. */
export function find(element: Maybe, ...path: readonly string[]): XmlElement | undefined {
  let found = element ?? undefined;
  for (const name of path) found = childrenOf(found, name)[0];
  return found;
}

export function textAt(element: Maybe, ...path: readonly string[]): string | null {
  return find(element, ...path)?.text ?? null;
}
