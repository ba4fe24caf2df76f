// crypto/channel/record.ts: records that a relay alters, and records of a peer with the key that seals invalid content.
// Both builds of libsodium must agree.
import { concatBytes, fromHex, u8, u32, u64, utf8 } from '../../crypto/bytes.ts'
import { createOpener, createSealer, PADDING_CLASSES, type RecordContext } from '../../crypto/channel/record.ts'
import { loadSodium } from '../../crypto/identity.ts'
import type { Primitives } from '../../crypto/primitives.ts'
import { native, portable } from '../../crypto/sodium.ts'
import { RECORD_OVERHEAD_BYTES } from '../../wire/types.ts'
import { attempt, Choices, demand, type Target } from '../target.ts'

export const FUZZ_KEY: Uint8Array = new Uint8Array(32).fill(9)
export const FUZZ_CONTEXT: RecordContext = {
  migrationId: '00112233445566778899aabbccddeeff',
  epoch: 7,
  index: 2,
  direction: 'source-to-target',
}
const HEADER: Uint8Array = new Uint8Array(24).fill(4)
const PADDED = [...PADDING_CLASSES, 512, 8]
/**
 * The context's encoding (docs/reference/protocol.md, Records): required to seal content that createSealer never seals.
 */
const ADDITIONAL = concatBytes(utf8('GWD1'), fromHex(FUZZ_CONTEXT.migrationId), u64(FUZZ_CONTEXT.epoch), u32(FUZZ_CONTEXT.index), u8(1))

/** As a peer with the key: each record is u8 tag, u8 class, u32 stated length, u16 bytes of data. */
function sealAll(choices: Choices): Uint8Array[] {
  const stream = portable().secretStream(FUZZ_KEY, HEADER)
  const out: Uint8Array[] = []
  while (choices.left > 0 && out.length < 40) {
    const tag = choices.number(1) % 5
    const padded = PADDED[choices.number(1) % PADDED.length]!
    const plain = new Uint8Array(padded)
    const length = choices.number(4)
    plain.set(u32(length).subarray(0, padded))
    plain.set(choices.take(choices.number(2)).subarray(0, padded - 4), 4)
    const record = new Uint8Array(padded + RECORD_OVERHEAD_BYTES)
    stream.push(record, plain, ADDITIONAL, tag)
    out.push(record)
  }
  stream.wipe()
  return out
}

function cutAll(choices: Choices): Uint8Array[] {
  const out: Uint8Array[] = []
  while (choices.left > 0 && out.length < 40) out.push(choices.take(choices.number(3) % 66_000))
  return out
}

type Seen = { data: Buffer[]; code: string; digest: string }

function open(records: readonly Uint8Array[], header: Uint8Array, primitives: Primitives): Seen {
  const data: Buffer[] = []
  let digest = ''
  const { error } = attempt(() => {
    const opener = createOpener({ key: FUZZ_KEY, context: FUZZ_CONTEXT, header, primitives })
    try {
      for (const record of records) {
        const opened = opener.open(record.slice(), { inPlace: data.length % 2 === 0 })
        demand(opened.data.length <= record.length - RECORD_OVERHEAD_BYTES - 4, 'more data than the record holds')
        data.push(Buffer.from(opened.data))
        if (opened.final && data.length < records.length) continue
      }
      opener.end()
    } finally {
      digest = Buffer.from(opener.digest()).toString('hex')
      opener.wipe()
    }
  })
  return { data, code: error?.code ?? 'ok', digest }
}

const honest = (sizes: readonly number[]): Uint8Array => {
  const sealer = createSealer({ key: FUZZ_KEY, context: FUZZ_CONTEXT, header: HEADER })
  const records = sizes.map((size, i) => sealer.seal(new Uint8Array(size).fill(i + 1), { final: i === sizes.length - 1 }))
  return concatBytes(Uint8Array.of(0), HEADER, ...records.map(record => concatBytes(u32(record.length).subarray(1), record)))
}
const crafted = (...records: [tag: number, size: number, length: number, data: string][]): Uint8Array =>
  concatBytes(
    Uint8Array.of(1),
    ...records.map(([tag, size, length, data]) => concatBytes(u8(tag), u8(size), u32(length), Uint8Array.of(0, data.length), utf8(data))),
  )

export const records: Target = {
  name: 'records',
  what: 'crypto/channel/record.ts: altered records, and records sealed by a peer that lies',
  codes: ['DECRYPT_FAILED'],
  testRuns: 1500,
  setup: loadSodium,
  seeds: () => [
    honest([10, 1200, 0]),
    honest([5]),
    crafted([0, 0, 5, 'hello'], [2, 0, 2, 'hi'], [3, 1, 0, '']),
    crafted([3, 0, 1021, 'x']),
    crafted([1, 0, 1, 'x']),
  ],
  hostile: () => ({
    'a record that says four gigabytes': crafted([0, 3, 0xffff_ffff, 'x']),
    'a length of one too many': crafted([0, 0, 1021, 'x']),
  }),
  run(input) {
    const choices = new Choices(input)
    const lies = choices.number(1) % 2 === 1
    const header = lies ? HEADER : choices.take(24)
    const all = lies ? sealAll(choices) : cutAll(choices)
    const seen = open(all, header, portable())
    const fast = native()
    if (fast) {
      const other = open(all, header, fast)
      demand(other.code === seen.code && other.digest === seen.digest, 'the two builds of libsodium disagree')
      demand(Buffer.concat(other.data).equals(Buffer.concat(seen.data)), 'the two builds of libsodium open different data')
    }
    if (seen.code !== 'ok') createOpener({ key: FUZZ_KEY, context: FUZZ_CONTEXT, header: HEADER }).open(new Uint8Array(0))
  },
}
