// The part of a BATCH body for pages that are blocks of disks which the target has, both ways. Pure.
//
//   varint pages (1..512)
//   | per page: zigzag varint, address - (address of the page before + 1);
//               zigzag varint, place - (place of the page before + 1)            (a run of blocks: one zero byte each)
//   | 16 bytes proof
//
// A place is the name of a block of 4 KiB of a disk (disks/places.ts), below 2^48. The proof is over the
// content of all these pages (hasher.ts). Enters: pages by address, with their places. Leaves: bytes, and back.
// Always holds: every address names an existing page and every place could be a block; any other input is
// FRAME_MALFORMED. Whether there is such a disk and block is for the reader of the disks to say.
import type { PageMap } from './address.ts'
import { PROOF_BYTES } from './hasher.ts'
import { malformed, VARINT_BYTES_MAX, type VarintReader, writeVarint, zigzag } from './varint.ts'

/** Pages in a batch: 2 MiB of content, as much as a batch may be otherwise. */
export const BATCH_BLOCKS_MAX = 512
export const BATCH_BLOCKS_BYTES_MIN = 3 + PROOF_BYTES
export const BATCH_BLOCKS_BYTES_MAX = (1 + 2 * BATCH_BLOCKS_MAX) * VARINT_BYTES_MAX + PROOF_BYTES

const PLACES_MAX = 2 ** 48

/** Pages by address; `places`: the block of each. */
export type BatchBlocks = { addresses: Float64Array; places: Float64Array; proof: Uint8Array }

export function writeBlocks(out: Uint8Array, at: number, { addresses, places, proof }: BatchBlocks): number {
  at = writeVarint(out, at, addresses.length)
  let nextAddress = 0
  let nextPlace = 0
  for (let i = 0; i < addresses.length; i++) {
    at = writeVarint(out, at, zigzag(addresses[i]! - nextAddress))
    at = writeVarint(out, at, zigzag(places[i]! - nextPlace))
    nextAddress = addresses[i]! + 1
    nextPlace = places[i]! + 1
  }
  out.set(proof, at)
  return at + PROOF_BYTES
}

/** Throws FRAME_MALFORMED. */
export function readBlocks(reader: VarintReader, map: PageMap): BatchBlocks {
  const count = reader.unsigned()
  if (count < 1 || count > BATCH_BLOCKS_MAX) throw malformed(`${count} pages`)
  const addresses = new Float64Array(count)
  const places = new Float64Array(count)
  let nextAddress = 0
  let nextPlace = 0
  for (let i = 0; i < count; i++) {
    const address = nextAddress + reader.signed()
    const place = nextPlace + reader.signed()
    if (!map.covers(address, 1)) throw malformed(`no page ${address}`)
    if (place < 0 || place >= PLACES_MAX) throw malformed(`no place ${place}`)
    addresses[i] = address
    places[i] = place
    nextAddress = address + 1
    nextPlace = place + 1
  }
  return { addresses, places, proof: reader.take(PROOF_BYTES) }
}
