// SPDX-License-Identifier: GPL-2.0-or-later

const MAGIC = 0xfd2fb528;
/** Frames with anything else in them, which unpack to nothing. */
const SKIPPABLE = { first: 0x184d2a50, last: 0x184d2a5f };
const DICTIONARY_ID_BYTES = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES = [0, 2, 4, 8];
const RLE = 1;
const RESERVED = 3;

/** What comes next in the frame. */
type Part = "magic" | "skippable length" | "descriptor" | "block header" | "end";

const PART_BYTES: Readonly<Record<Part, number>> = {
  "magic": 4,
  "skippable length": 4,
  "descriptor": 1,
  "block header": 3,
  "end": 0,
};

/**
 * Finds the end of a zstd frame (RFC 8878) while its bytes pass. The decoder of node:zlib stops at the end
 * of the first frame, and says nothing if that is missing.
 */
export class ZstdFrame {
  #next: Part = "magic";
  /** The part that is read now, as far as it is there. */
  readonly #part: number[] = [];
  /** How many bytes to pass over before it. */
  #pass = 0;
  #hasChecksum = false;

  /** Whether all of its bytes have passed. */
  get isOver(): boolean {
    return this.#next === "end" && this.#pass === 0;
  }

  /** Takes the next bytes, and says how many are of the frame. Throws Error if they are none of a frame. */
  take(bytes: Uint8Array): number {
    let at = 0;
    while (at < bytes.length && !this.isOver) {
      if (this.#pass > 0) {
        const passed = Math.min(this.#pass, bytes.length - at);
        this.#pass -= passed;
        at += passed;
        continue;
      }
      this.#part.push(bytes[at++] ?? 0);
      if (this.#part.length === PART_BYTES[this.#next]) this.#read(this.#part.splice(0));
    }
    return at;
  }

  #read(part: readonly number[]): void {
    const number = part.reduceRight((high, byte) => high * 256 + byte, 0);
    if (this.#next === "magic") {
      const isSkippable = number >= SKIPPABLE.first && number <= SKIPPABLE.last;
      if (number !== MAGIC && !isSkippable) {
        throw new Error("it has something that is no zstd frame");
      }
      this.#next = isSkippable ? "skippable length" : "descriptor";
    } else if (this.#next === "skippable length") {
      this.#pass = number;
      this.#next = "end";
    } else if (this.#next === "descriptor") {
      this.#readDescriptor(number);
    } else {
      this.#readBlockHeader(number);
    }
  }

  #readDescriptor(descriptor: number): void {
    const isSingleSegment = (descriptor & 0x20) !== 0;
    const sizeBytes = CONTENT_SIZE_BYTES[descriptor >> 6] ?? 0;
    this.#hasChecksum = (descriptor & 4) !== 0;
    this.#pass = (isSingleSegment ? 0 : 1) + (DICTIONARY_ID_BYTES[descriptor & 3] ?? 0) +
      (sizeBytes === 0 && isSingleSegment ? 1 : sizeBytes);
    this.#next = "block header";
  }

  #readBlockHeader(header: number): void {
    const type = (header >> 1) & 3;
    if (type === RESERVED) throw new Error("it has a broken zstd block");
    this.#pass = type === RLE ? 1 : header >> 3;
    if ((header & 1) === 0) return;
    if (this.#hasChecksum) this.#pass += 4;
    this.#next = "end";
  }
}
