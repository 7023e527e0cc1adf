// SPDX-License-Identifier: GPL-2.0-or-later
import type { Kind } from "./kinds.ts";

/** A setting: all that the program and its documentation know of it. */
export interface Setting<T> extends Details {
  readonly kind: Kind<unknown>;
  /** The default; null stands for what `unset` says. */
  readonly fallback: T;
  readonly doc: string;
}

interface Details {
  /** The default in words, if it is no fixed value. */
  readonly unset?: string;
  readonly example?: unknown;
  /** Whether it is one of the few that people change first. */
  readonly basic?: true;
  /** Whether it shapes a machine: a standby machine with another value does not fit a job. */
  readonly fixed?: true;
  /** A wrong key that people may guess: the mistake then names the right one. */
  readonly guess?: string;
}

export interface Group<M extends Members = Members> {
  readonly doc: string;
  readonly members: M;
}

export interface Members {
  readonly [key: string]: Setting<unknown> | Group;
}

/** A setting with a default, or one that is null if the file says nothing. */
export function setting<T>(
  kind: Kind<T>,
  fallback: NoInfer<T>,
  doc: string,
  details?: Details,
): Setting<T>;
export function setting<T>(
  kind: Kind<T>,
  fallback: null,
  doc: string,
  details: Details & { readonly unset: string },
): Setting<T | null>;
export function setting<T>(
  kind: Kind<T>,
  fallback: T | null,
  doc: string,
  details: Details = {},
): Setting<T | null> {
  return { kind, fallback, doc, ...details };
}

export function group<const M extends Members>(doc: string, members: M): Group<M> {
  return { doc, members };
}

/** Each setting with its key, such as `ssh.port`. */
export function settingsIn(members: Members): [string, Setting<unknown>][] {
  return Object.entries(members).flatMap(([key, member]) =>
    "members" in member
      ? settingsIn(member.members).map(([rest, of]): [string, Setting<unknown>] => {
        return [`${key}.${rest}`, of];
      })
      : [[key, member]]
  );
}
