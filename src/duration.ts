// SPDX-License-Identifier: GPL-2.0-or-later

/** The form that {@linkcode durationSeconds} reads. */
export const DURATION = /^[1-9]\d{0,5}[smhd]$/;

const SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

export function durationSeconds(text: string): number {
  return Number.parseInt(text) * (SECONDS[text.slice(-1)] ?? 1);
}

/** A duration as people say it, such as `42 s`, `5 min`, `3 h` or `2 d`. */
export function durationText(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return seconds < 48 * 3600
    ? `${Math.round(seconds / 3600)} h`
    : `${Math.round(seconds / 86400)} d`;
}

/** The seconds since a time in milliseconds or ISO 8601. */
export function secondsSince(time: number | string): number {
  return (Date.now() - new Date(time).getTime()) / 1000;
}

/** A time in milliseconds as text, such as `2026-01-31 14:05 UTC`. */
export function moment(time: number): string {
  return `${new Date(time).toISOString().slice(0, 16).replace("T", " ")} UTC`;
}
