// What the tests of pages share: a seeded generator, a plain hasher, memory in RAM, pages with a content of one number.
import { createHash } from 'node:crypto'
import { blockOf, PageMap, pageIndexOf } from '../../../edge-node/pages/address.ts'
import type { PageHasher } from '../../../edge-node/pages/hasher.ts'
import type { GuestMemory } from '../../../edge-node/pages/memory.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'

/** mulberry32: 0 <= x < 1. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** For pages made by `pageOf`: their first 8 bytes tell them apart. Not for anything else. */
export const plainHasher: PageHasher = {
  bytes: 16,
  hash(page, out) {
    out.fill(0)
    out.set(page.subarray(0, 8))
  },
}

/** Of all bytes, as a proof must be. */
export const proofHasher: PageHasher = {
  bytes: 16,
  hash: (page, out) => out.set(createHash('md5').update(page).digest()),
}

const pages = new Map<number, Uint8Array>()

/** A page whose every 8 bytes are this number; 0 is the zero page. */
export function pageOf(content: number): Uint8Array {
  let page = pages.get(content)
  if (!page) {
    page = new Uint8Array(new Float64Array(PAGE_BYTES / 8).fill(content).buffer)
    pages.set(content, page)
  }
  return page
}

export type RamMemory = GuestMemory & { bytes: Map<number, Uint8Array>; writes: number }

export function ramMemory(blocks: readonly { id: number; bytes: number }[]): RamMemory {
  const bytes = new Map(blocks.map(block => [block.id, new Uint8Array(block.bytes)]))
  const memory: RamMemory = {
    map: new PageMap(blocks),
    bytes,
    writes: 0,
    read(address, into) {
      const at = pageIndexOf(address) * PAGE_BYTES
      into.set(bytes.get(blockOf(address))!.subarray(at, at + into.length))
    },
    write(address, from) {
      memory.writes++
      bytes.get(blockOf(address))!.set(from, pageIndexOf(address) * PAGE_BYTES)
    },
  }
  return memory
}

export const regionsOf = (blocks: readonly { id: number; bytes: number }[]) =>
  blocks.map(({ id, bytes }) => ({ block: id, fd: -1, bytes, offset: 0 }))

/** The content number of each page of a memory made of `pageOf` pages. Throws on a page that is no such page. */
export function contentsOf(memory: RamMemory): number[] {
  const contents: number[] = []
  for (const bytes of memory.bytes.values()) {
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
      const page = bytes.subarray(at, at + PAGE_BYTES)
      const content = new Float64Array(page.slice(0, 8).buffer)[0]!
      if (Buffer.compare(page, pageOf(content)) !== 0) throw new Error(`a torn page at ${at}`)
      contents.push(content)
    }
  }
  return contents
}
